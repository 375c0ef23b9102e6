#!/usr/bin/env bash
# One two-class model, one array of probabilities: a calibration error of 0.10 or of 0.00.
#
# Library:  netcal 1.4.0 (ECE, TemperatureScaling) and torchmetrics 1.9.0 on torch 2.13.0.
# Expected: the error of the [n, 2] array is that of the predicted class's confidence in both, and
#           TemperatureScaling().temperature of logits that are three times too large is 3.
# Seen:     netcal silently keeps the second column of an [n, 2] array and returns 0.10; torchmetrics' multiclass
#           error of the same array is 0.00 (errors at 0.2 and 0.8 cancel in the bin of confidence 0.8), its
#           binary error 0.10. And netcal's `temperature` is 0.33: the factor on the logits, not the divisor.
# Matters:  numbers from two papers or two tools are not comparable for two classes, and a "temperature" that is
#           carried over to another library sharpens where it should soften.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q netcal==1.4.0 torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 scipy==1.17.1
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

p = np.r_[np.full(50, 0.8), np.full(50, 0.2)]  # 70 % and 10 % of these are of class 1
y = np.r_[np.ones(35), np.zeros(15), np.ones(5), np.zeros(45)].astype(int)
both = np.stack([1 - p, p], axis=1)
netcal = ECE(10).measure(both, y)
multiclass = multiclass_calibration_error(torch.tensor(both), torch.tensor(y), num_classes=2, n_bins=10).item()
binary = binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=10).item()
print(f"[n, 2] array: netcal {netcal:.3f}, torchmetrics multiclass {multiclass:.3f}; torchmetrics binary {binary:.3f}")
assert abs(netcal - 0.1) < 1e-6 and multiclass < 1e-5 and abs(binary - 0.1) < 1e-6

rng = np.random.default_rng(0)
logits = 2 * rng.normal(size=(20000, 3))
labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # distributed as softmax(logits)
sharp = torch.softmax(torch.tensor(3 * logits), -1).numpy()
scaling = TemperatureScaling()
scaling.fit(sharp, labels)
print("logits three times too large: netcal temperature", scaling.temperature)
assert abs(float(scaling.temperature[0]) - 1 / 3) < 0.02
PY
