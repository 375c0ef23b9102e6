#!/usr/bin/env bash
# Keras' categorical focal loss "from logits" is flat where the model is most wrong.
#
# Library:  keras 3.15.1 on the jax backend (jax 0.10.2), losses.CategoricalFocalCrossentropy(from_logits=True).
# Expected: from_logits=True means a log-softmax, as in CategoricalCrossentropy: at logits [40, 0] and label 1
#           the loss is 0.25 * 40 = 10 and the gradient is [0.25, -0.25].
# Seen:     the logits are put through softmax and the probabilities clipped to [1e-7, 1 - 1e-7]: the loss is
#           4.03 = 0.25 * 16.1 and the gradient 0. CategoricalCrossentropy gives 40 and [1, -1].
# Matters:  focal loss is there to learn from hard examples; those beyond a gap of 16 teach nothing at all.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
HOME=$dir KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import keras

label = jnp.array([[0.0, 1.0]])
focal = keras.losses.CategoricalFocalCrossentropy(from_logits=True)
plain = keras.losses.CategoricalCrossentropy(from_logits=True)
for gap in (10.0, 16.0, 17.0, 40.0):
    logits = jnp.array([[gap, 0.0]])
    loss, gradient = jax.value_and_grad(lambda z: focal(label, z))(logits)
    reference = jax.value_and_grad(lambda z: plain(label, z))(logits)
    print(f"gap {gap}: focal {loss:.3f}, gradient {gradient[0]}; cross-entropy {reference[0]:.3f}, {reference[1][0]}")
    if gap > 16.2:
        assert abs(loss - 0.25 * 16.118) < 1e-2 and not gradient.any()
        assert abs(reference[0] - gap) < 1e-3 and reference[1][0, 0] > 0.99
PY
