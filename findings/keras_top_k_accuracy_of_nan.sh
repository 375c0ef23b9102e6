#!/usr/bin/env bash
# A model whose logits are all NaN, or all equal, has a top-1 accuracy of 1.0.
#
# Library:  keras 3.15.1 on the jax backend (jax 0.10.2), SparseTopKCategoricalAccuracy(k=1).
# Expected: the same as SparseCategoricalAccuracy, at least 0 for the NaN rows: no class was predicted.
# Seen:     1.0 in both cases. A target counts as found unless k logits are strictly larger than its own, and
#           nothing is larger than NaN or than a tie. SparseCategoricalAccuracy of the same two NaN rows
#           (labels 0 and 3) is 0.5: argmax of NaN is class 0.
# Matters:  early stopping and "keep the best" on top-5 accuracy select the checkpoint that diverged, and an
#           output layer that starts at zero looks perfect.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
HOME=$dir KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import keras

labels = jnp.array([0, 3])
seen = {}
for name, logits in (("all NaN", jnp.full((2, 10), jnp.nan)), ("all zero", jnp.zeros((2, 10)))):
    top = keras.metrics.SparseTopKCategoricalAccuracy(k=1)
    plain = keras.metrics.SparseCategoricalAccuracy()
    top.update_state(labels, logits)
    plain.update_state(labels, logits)
    seen[name] = float(top.result()), float(plain.result())
    print(f"{name}: top-1 accuracy {seen[name][0]}, accuracy {seen[name][1]}")
assert seen == {"all NaN": (1.0, 0.5), "all zero": (1.0, 0.5)}
PY
