#!/usr/bin/env bash
# The gradient with respect to a weight of logsumexp is 0 exactly where the weight is 0.
#
# Library:  jax 0.10.2, jax.nn.logsumexp(a, b=weights).
# Expected: d/db_k log(sum_j b_j exp(a_j)) = exp(a_k) / sum, whatever b_k is: 2.718 for a = [0, 1], b = [1, 0].
# Seen:     0 at b_k = 0, and 2.718 at b_k = 1e-6. Entries with weight 0 are replaced by minus infinity
#           before the sum, which protects the value and cuts the gradient. No NaN and no warning.
# Matters:  learned mixture weights, soft masks and sparse gates that reach 0 can never leave it again.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp

a = jnp.array([0.0, 1.0])
library = jax.grad(lambda b: jax.nn.logsumexp(a, b=b))
by_hand = jax.grad(lambda b: jnp.log(jnp.sum(b * jnp.exp(a))))
for b in ([1.0, 1e-6], [1.0, 0.0]):
    print("b =", b, "jax.nn.logsumexp:", library(jnp.array(b)), "by hand:", by_hand(jnp.array(b)))
assert abs(library(jnp.array([1.0, 1e-6]))[1] - 2.718) < 1e-2
assert abs(by_hand(jnp.array([1.0, 0.0]))[1] - 2.718) < 1e-2
assert library(jnp.array([1.0, 0.0]))[1] == 0
PY
