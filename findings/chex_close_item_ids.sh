#!/usr/bin/env bash
# chex finds two integer arrays "close" that name different items, if the ids are above a million.
#
# Library:  chex 0.1.92, chex.assert_trees_all_close, on jax 0.10.2.
# Expected: integers are compared exactly, or to an absolute tolerance of 0 as the default atol says; the
#           rtol = 1e-6 is there for floats. So 1000001 against 1000000 fails.
# Seen:     it passes, for NumPy and for jax arrays, as do float32 against bfloat16 and int32 against float32 (the
#           dtype is not compared). 999999 against 999998 fails.
# Matters:  tests of samplers, top-k and retrieval over large vocabularies compare ids along with scores in one
#           tree; off-by-one ids pass. chex.assert_trees_all_equal on the ids catches them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q chex==0.1.92 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import chex
import jax.numpy as jnp
import numpy as np


def passes(check, a, b):
    try:
        check(a, b)
        return True
    except AssertionError:
        return False


for module in (np, jnp):
    for right, wrong in ((1_000_000, 1_000_001), (999_998, 999_999)):
        a, b = ({"scores": module.ones(1), "ids": module.array([i])} for i in (right, wrong))
        seen = passes(chex.assert_trees_all_close, a, b), passes(chex.assert_trees_all_equal, a, b)
        print(f"{module.__name__}: id {right} or {wrong}: close {seen[0]}, equal {seen[1]}")
        assert seen == (right >= 1_000_000, False)
assert passes(chex.assert_trees_all_close, jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32))
assert passes(chex.assert_trees_all_close, jnp.ones(2, jnp.int32), jnp.ones(2, jnp.float32))
PY
