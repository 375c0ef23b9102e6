#!/usr/bin/env bash
# softmax prefers the smaller logit when the logits are int8, and is NaN for the bytes 0, 1, 2.
#
# Library:  scipy 1.17.1, scipy.special.softmax and log_softmax.
# Expected: integers become floats, as in scipy.special.logsumexp: softmax([0, 1, 2]) = [0.09, 0.24, 0.67].
# Seen:     the maximum is subtracted in the integer dtype, where it wraps around. uint8 [0, 1, 2] gives
#           [nan, nan, 0]; int8 [127, -128] gives [0.27, 0.73], as if the second logit were the larger one,
#           in float16. logsumexp of the same arrays is right, in float64. int64 is right in all of them.
# Matters:  quantised classifiers hand out int8 or uint8 logits, and argmax of these "probabilities" is wrong.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q scipy==1.17.1 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

small, wide = np.array([0, 1, 2], np.uint8), np.array([127, -128], np.int8)
for logits in (small, wide):
    print(logits.dtype, logits, "softmax", softmax(logits), "log_softmax", log_softmax(logits),
          "logsumexp", logsumexp(logits), "| as int64: softmax", softmax(logits.astype(np.int64)))
assert np.isnan(softmax(small)[:2]).all() and softmax(small)[2] == 0
assert np.isneginf(log_softmax(small)).all()
assert softmax(wide).argmax() == 1 and softmax(wide).dtype == np.float16
assert softmax(wide.astype(np.int64))[0] == 1
assert abs(logsumexp(small) - 2.4076) < 1e-4 and logsumexp(wide) == 127
PY
