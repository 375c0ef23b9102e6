#!/usr/bin/env bash
# A transposed NumPy matrix comes back from a safetensors file with its numbers in the wrong places.
#
# Library:  safetensors 0.8.0, safetensors.numpy.save / load (and save_file / load_file).
# Expected: load(save({"a": m.T}))["a"] equals m.T, or an error that asks for a contiguous array, as the
#           torch side of the same package raises.
# Seen:     the shape is that of the transpose and the bytes are in the order of the original matrix, so
#           that [[0, 3], [1, 4], [2, 5]] is read back as [[0, 1], [2, 3], [4, 5]]. No error at any step.
#           A jax array through safetensors.flax survives, since it is copied to NumPy in row-major order.
# Matters:  output layers are kept both as [vocab, features] and as [features, vocab]; a script that
#           converts one into the other with .T writes a file of the right size that holds another matrix.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import load, load_file, save, save_file

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
back = load(save({"kernel": kernel.T}))["kernel"]
save_file({"kernel": kernel.T}, "kernel.safetensors")
from_file = load_file("kernel.safetensors")["kernel"]
copied = load(save({"kernel": np.ascontiguousarray(kernel.T)}))["kernel"]
print("saved: ", kernel.T.tolist())
print("loaded:", back.tolist())
print("loaded after np.ascontiguousarray:", copied.tolist())
assert back.shape == (3, 2) and back.tolist() == [[0, 1], [2, 3], [4, 5]]
assert np.array_equal(from_file, back)
assert np.array_equal(copied, kernel.T)
PY
