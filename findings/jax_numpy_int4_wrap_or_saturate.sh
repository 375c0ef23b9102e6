#!/usr/bin/env bash
# Casting floats to int4 wraps around in NumPy and saturates in JAX: 7.9 and 9.0 become 7 and -7, or 7 and 7.
#
# Library:  ml_dtypes 0.6.0 (the dtype that both use), numpy 2.4.6, jax 0.10.2 on CPU.
# Expected: x.astype(int4) is one operation with one rule, since jnp.int4 *is* ml_dtypes.int4.
# Seen:     np.array([9, -9, 100]).astype(int4) = [-7, 7, 4], the low four bits; the same array through
#           jnp gives [7, -8, 7]. For uint4, -1 is 15 in NumPy and 0 in JAX.
# Matters:  weights or logits quantised on the host and on the device differ by half the range and more on
#           exactly the outliers, and a test that only feeds values in range will not see it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import ml_dtypes
import numpy as np

assert jnp.int4.dtype == np.dtype(ml_dtypes.int4)
values = np.array([7.9, 9, -9, 100, -1], np.float32)
seen = {}
for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
    host = values.astype(dtype).astype(int).tolist()
    device = np.asarray(jnp.asarray(values).astype(dtype)).astype(int).tolist()
    seen[dtype.__name__] = host, device
    print(f"{values} as {dtype.__name__}: numpy {host}, jax {device}")
assert seen["int4"] == ([7, -7, 7, 4, -1], [7, 7, -8, 7, -1])
assert seen["uint4"] == ([7, 9, 7, 4, 15], [7, 9, 0, 15, 0])
PY
