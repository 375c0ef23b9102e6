#!/usr/bin/env bash
# A bfloat16 JAX checkpoint is saved without complaint, and cannot be loaded by the module that saved it.
#
# Library:  safetensors 0.8.0, safetensors.flax (and safetensors.numpy), with ml_dtypes 0.6.0, jax 0.10.2.
# Expected: safetensors.flax.load(save(x)) returns x for every dtype that save accepts, bfloat16 first.
# Seen:     save writes bfloat16, float8_e4m3fn and float8_e5m2; load raises KeyError: 'BF16', 'F8_E4M3',
#           'F8_E5M2', because its table of dtypes has NumPy's own only. float16 and float32 come back.
# Matters:  bfloat16 is the usual dtype of a JAX model, and the failure shows when the run is resumed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax.numpy as jnp
from safetensors.flax import load, save

seen = {}
for dtype in (jnp.float32, jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2):
    data = save({"kernel": jnp.ones((2, 2), dtype)})
    try:
        seen[dtype.__name__] = str(load(data)["kernel"].dtype)
    except KeyError as error:
        seen[dtype.__name__] = f"KeyError: {error}"
for name, result in seen.items():
    print(f"{name}: saved; loaded as: {result}")
assert seen["float32"] == "float32" and seen["float16"] == "float16"
assert seen["bfloat16"] == "KeyError: 'BF16'"
assert seen["float8_e4m3fn"].startswith("KeyError") and seen["float8_e5m2"].startswith("KeyError")
PY
