#!/usr/bin/env bash
# Asked for three different classes where one is possible, samplers hand out two of probability 0.
#
# Library:  torch 2.13.0 (torch.multinomial, CPU), jax 0.10.2 (jax.random.choice, jax.random.categorical).
# Expected: an error from torch (its documentation wants as many non-zero entries as draws; NumPy's
#           Generator.choice raises for the same request), -1 or an error from jax.
# Seen:     three indices from each, the possible one and two of probability 0, without an error.
# Matters:  masked candidates (seen items, invalid actions, the positive itself) come back as negatives or
#           actions in just those rows whose mask is nearly full.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.13.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

probs = [0.0, 1.0, 0.0, 0.0]
key = jax.random.key(0)
torch.manual_seed(0)
seen = {
    "torch.multinomial": torch.multinomial(torch.tensor(probs), 3, replacement=False).tolist(),
    "jax.random.choice": jax.random.choice(key, 4, (3,), replace=False, p=jnp.array(probs)).tolist(),
    "jax.random.categorical": jax.random.categorical(key, jnp.log(jnp.array(probs)), shape=(3,), replace=False).tolist(),
}
for name, drawn in seen.items():
    print(f"{name}: {drawn}")
    assert len(set(drawn)) == 3 and 1 in drawn and set(drawn) <= {0, 1, 2, 3}
try:
    np.random.default_rng(0).choice(4, 3, replace=False, p=probs)
    raise SystemExit("numpy accepts it too now")
except ValueError as error:
    print("numpy:", error)
PY
