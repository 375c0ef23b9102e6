#!/usr/bin/env bash
# The cross-entropy of the same predictions is 9.0, 4.0 or 1.7, by the dtype they are stored in.
#
# Library:  scikit-learn 1.9.1, sklearn.metrics.log_loss.
# Expected: 0, 1 are exact in every float dtype, so float64, float32 and float16 give the same loss.
# Seen:     the probabilities are clipped to the machine epsilon of *their own dtype*, so a class that was
#           given probability 0 costs 36.04 nats in float64, 15.94 in float32 and 6.93 in float16.
# Matters:  models that save their probabilities in half precision score better than the same model in
#           float64, and a score computed from a float32 array cannot be compared with one from float64.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q scikit-learn==1.9.1 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import numpy as np
from sklearn.metrics import log_loss

labels = [0, 1, 1, 2]  # the third prediction below is wrong, with probability 0 on the truth
probs = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
seen = {d: log_loss(labels, probs.astype(d)) for d in ("float64", "float32", "float16")}
for dtype, loss in seen.items():
    print(f"{dtype}: mean {loss:.4f}, the wrong row alone {4 * loss:.4f}")
assert abs(seen["float64"] * 4 - 36.0437) < 1e-3
assert abs(seen["float32"] * 4 - 15.9424) < 1e-3
assert abs(seen["float16"] * 4 - 6.93) < 0.01
PY
