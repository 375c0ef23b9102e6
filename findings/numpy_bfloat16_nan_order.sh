#!/usr/bin/env bash
# np.sort leaves a bfloat16 array with a NaN in it unsorted, and np.nanmean of it is NaN.
#
# Library:  numpy 2.4.6 with ml_dtypes 0.6.0 (bfloat16; float8_e4m3fn is the same).
# Expected: as for float32 and float16: NaN is sorted to the end, np.nanmean leaves it out.
# Seen:     np.sort([3, nan, 1, 2]) = [3, nan, 1, 2]: no number is moved past the NaN, so that what stands on
#           its two sides is not in order. np.nanmean gives nan, while np.nanmax gives 3.
# Matters:  top-k by argsort, quantiles and per-class reports made on the host from bfloat16 scores are wrong
#           beside a NaN, also for the finite scores.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q ml_dtypes==0.6.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import ml_dtypes
import numpy as np

scores = np.array([3, np.nan, 1, 2], np.float32)
for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    x = scores.astype(dtype)
    ordered = np.sort(x).astype(np.float32)
    mean, top = float(np.nanmean(x)), float(np.nanmax(x))
    print(f"{np.dtype(dtype).name:14} sort {ordered}  nanmean {mean}  nanmax {top}")
    if dtype in (np.float32, np.float16):
        assert ordered[:3].tolist() == [1, 2, 3] and np.isnan(ordered[3]) and mean == 2
    else:
        assert ordered[[0, 2, 3]].tolist() == [3, 1, 2] and np.isnan(ordered[1]) and np.isnan(mean)
    assert top == 3
PY
