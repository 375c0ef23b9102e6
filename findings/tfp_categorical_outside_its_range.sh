#!/usr/bin/env bash
# A class that does not exist has probability 1.
#
# Library:  TensorFlow Probability on JAX, tfp-nightly 0.26.0.dev20261027; distrax 0.1.9 and numpyro 0.22.0 beside it.
# Expected: Categorical.log_prob(-1) and log_prob(num_classes) are -inf (or NaN), as in distrax and numpyro.
# Seen:     0.0, with a gradient of 0: the class becomes a one-hot row of zeros, whose product with the log-
#           probabilities is 0. prob() from -2 to 5 of a uniform distribution over 3 classes sums to 6.
#           validate_args=True raises; it is off by default.
# Matters:  padding labels (-1, -100) in a likelihood count as perfectly predicted and are averaged in.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q tfp-nightly==0.26.0.dev20261027 distrax==0.1.9 numpyro==0.22.0 \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - <<'PY'
import distrax
import jax
import jax.numpy as jnp
import numpyro.distributions as numpyro
from tensorflow_probability.substrates.jax import distributions as tfp

logits = jnp.arange(3.0)
for value in (-1, 3):
    seen = float(tfp.Categorical(logits=logits).log_prob(value))
    others = [float(c(logits=logits).log_prob(value)) for c in (distrax.Categorical, numpyro.Categorical)]
    gradient = jax.grad(lambda z: tfp.Categorical(logits=z).log_prob(value))(logits)
    print(f"class {value} of 3: tfp {seen}, gradient {gradient}; distrax, numpyro {others}")
    assert seen == 0 and not gradient.any() and others == [-jnp.inf, -jnp.inf]
total = float(tfp.Categorical(logits=jnp.zeros(3)).prob(jnp.arange(-2, 6)).sum())
print("sum of prob over -2 .. 5:", total)
assert abs(total - 6) < 1e-5
PY
