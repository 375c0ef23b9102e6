#!/usr/bin/env bash
# A NaN stored in a four- or six-bit float is read back as minus zero, and infinity as 6.
#
# Library:  ml_dtypes 0.6.0 with numpy 2.4.6; jax 0.10.2 does the same for float4_e2m1fn.
# Expected: "fn" in float8_e4m3fn means "finite, with NaN": infinity becomes NaN there, and so in the others.
# Seen:     float4_e2m1fn, float6_e2m3fn and float6_e3m2fn carry the same suffix but have no NaN: NaN turns
#           into -0.0 and infinity into the largest number (6, 7.5, 28). np.isnan is then False everywhere.
# Matters:  in a block-scaled format a diverged value is silently a 0: checks for NaN after the cast pass.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - <<'PY'
import jax.numpy as jnp
import ml_dtypes
import numpy as np

values = np.array([np.nan, np.inf, -np.inf, 1e9], np.float32)
for name, top in (("float8_e4m3fn", None), ("float4_e2m1fn", 6), ("float6_e2m3fn", 7.5), ("float6_e3m2fn", 28)):
    seen = values.astype(getattr(ml_dtypes, name)).astype(np.float32)
    print(f"{values} as {name}: {seen}")
    if top is None:
        assert np.isnan(seen).all()
    else:
        assert seen.tolist() == [0, top, -top, top] and np.signbit(seen[0])
device = np.asarray(jnp.asarray(values).astype(jnp.float4_e2m1fn)).astype(np.float32)
print("through jax, float4_e2m1fn:", device)
assert device.tolist() == [0, 6, -6, 6] and np.signbit(device[0])
PY
