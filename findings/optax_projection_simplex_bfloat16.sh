#!/usr/bin/env bash
# The "projection onto the simplex" of 3000 equal bfloat16 scores sums to 6.9.
#
# Library:  optax 0.2.8 on jax 0.10.2, optax.projections.projection_simplex (the map behind sparsemax).
# Expected: bfloat16 in, bfloat16 out, or a float32 result that sums to 1 to float32 accuracy.
# Seen:     the threshold is found from a sort and a cumulative sum in bfloat16 and the result is then
#           promoted to float32: 3000 scores of 0.3 sum to 6.89, 1000 normal ones to 0.969 (1.0000 after a
#           cast of the same scores to float32 by hand). The dtype promises digits that were lost before.
# Matters:  a probability map that gains or leaks mass biases every loss and every average built on it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from optax.projections import projection_simplex

for name, scores, low, high in (
    ("3000 times 0.3", jnp.full(3000, 0.3), 6.5, 7.5),
    ("1000 normal", jax.random.normal(jax.random.key(1), (1000,)), 0.96, 0.98),
):
    half = scores.astype(jnp.bfloat16)
    seen, wide = projection_simplex(half), projection_simplex(half.astype(jnp.float32))
    print(name, "bfloat16:", seen.dtype, "sum", float(seen.sum()), "| cast first:", "sum", float(wide.sum()))
    assert seen.dtype == jnp.float32
    assert low < float(seen.sum()) < high
    assert abs(float(wide.sum()) - 1) < 1e-5
PY
