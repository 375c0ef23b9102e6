#!/usr/bin/env bash
# The NumPy mean of a thousand bfloat16 losses of 1.0 is 0.256.
#
# Library:  numpy 2.4.6 with ml_dtypes 0.6.0 (the bfloat16 that np.asarray of a jax or flax array has).
# Expected: 1.0. np.mean of float16 accumulates in float32, and says so; bfloat16 has more use for it.
# Seen:     np.mean and np.sum add in bfloat16, one by one: past 256 adding 1 changes nothing. The sum of
#           4096 probabilities of 1/4096 is 0.0625; 1000 uniform ones, summed up, stop at 0.5. np.mean of
#           float16 ones is 1.0, and jnp.mean of the bfloat16 array is 1.0.
# Matters:  losses and probabilities that are fetched from the device and averaged on the host are off by a
#           factor that grows with the number of rows, without a warning.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import numpy as np

losses = np.asarray(jnp.ones(1000, jnp.bfloat16))
print("np.mean of 1000 ones: bfloat16", np.mean(losses), "float16", np.mean(losses.astype(np.float16)))
print("jnp.mean of the same bfloat16 array:", jnp.mean(losses))
assert abs(float(np.mean(losses)) - 0.256) < 1e-3
assert np.mean(losses.astype(np.float16)) == 1 and jnp.mean(losses) == 1
for n, total in ((1000, 0.5), (4096, 0.0625)):
    probs = np.full(n, 1 / n).astype(losses.dtype)
    print(f"{n} probabilities of 1/{n}: np.sum {np.sum(probs)}, last of np.cumsum {np.cumsum(probs)[-1]}")
    assert float(np.cumsum(probs)[-1]) == total and float(np.sum(probs)) == total
PY
