#!/usr/bin/env bash
# An impossible outcome costs 15.9 or 87.3 nats, by the side it lies on and by the class that is asked.
#
# Library:  numpyro 0.22.0 (Bernoulli, Categorical with probs) and torch 2.13.0 (distributions.Categorical).
# Expected: log 0 = -inf for an outcome of probability 0, the same for p = 0 and for p = 1.
# Seen:     numpyro Bernoulli(probs=1).log_prob(0) = -15.94 and Bernoulli(probs=0).log_prob(1) = -87.34, with
#           gradients of 0; numpyro Categorical(probs=[0, 1]).log_prob(0) = -inf. torch Categorical of these
#           probs gives -15.94 in float32, -36.04 in float64, but -inf from logits = [-inf, 0].
# Matters:  importance weights, sums of log-probabilities and comparisons of two models depend on the dtype
#           and on which of the two classes was called 1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import torch
from numpyro.distributions import Bernoulli, Categorical

ones = float(Bernoulli(probs=1.0).log_prob(0)), float(jax.grad(lambda p: Bernoulli(probs=p).log_prob(0))(1.0))
zeros = float(Bernoulli(probs=0.0).log_prob(1)), float(jax.grad(lambda p: Bernoulli(probs=p).log_prob(1))(0.0))
print("numpyro Bernoulli(1) of 0:", ones, "Bernoulli(0) of 1:", zeros, "(value, gradient)")
assert abs(ones[0] + 15.942) < 1e-2 and abs(zeros[0] + 87.337) < 1e-2 and ones[1] == zeros[1] == 0
categorical = float(Categorical(probs=jnp.array([0.0, 1.0])).log_prob(0))
print("numpyro Categorical([0, 1]) of 0:", categorical)
assert categorical == -jnp.inf
for dtype, cost in ((torch.float32, 15.942), (torch.float64, 36.044)):
    probs = torch.tensor([0.0, 1.0], dtype=dtype)
    by_probs = torch.distributions.Categorical(probs=probs).log_prob(torch.tensor(0)).item()
    by_logits = torch.distributions.Categorical(logits=probs.log()).log_prob(torch.tensor(0)).item()
    print(f"torch Categorical([0, 1]) of 0, {dtype}: probs {by_probs:.3f}, logits {by_logits}")
    assert abs(by_probs + cost) < 1e-2 and by_logits == -float("inf")
PY
