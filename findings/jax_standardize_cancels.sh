#!/usr/bin/env bash
# Standardised logits come out 350 times too large once they sit on an offset of 10,000.
#
# Library:  jax 0.10.2, jax.nn.standardize.
# Expected: (x - mean) / std, which no offset changes: about -1.34, -0.45, 0.45, 1.34 for four even steps.
# Seen:     the variance is taken as mean(x^2) - mean(x)^2, which cancels to 0 in float32 (it is then
#           clipped at 0), so that only epsilon is left: -474, -158, 158, 474. No warning, no NaN.
# Matters:  logit standardisation is a common step before a distillation loss, where both sides are then
#           put through a softmax; an offset, which softmax itself ignores, turns the target into a one-hot.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp

logits = jnp.arange(4.0)  # 10000 + these are exact in float32 too
plain, offset = jax.nn.standardize(logits), jax.nn.standardize(logits + 10000)
by_hand = (logits + 10000 - (logits + 10000).mean()) / jnp.std(logits + 10000)
print("without offset:", plain)
print("offset 10000:  ", offset)
print("by jnp.std:    ", by_hand)
print("softmax of each:", jax.nn.softmax(plain), jax.nn.softmax(offset))
assert abs(plain[-1] - 1.3416) < 1e-3 and abs(by_hand[-1] - 1.3416) < 1e-3
assert offset[-1] > 400
assert jax.nn.softmax(offset)[-1] == 1.0
PY
