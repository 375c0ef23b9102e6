#!/usr/bin/env bash
# The contrastive loss of a hard pair stops at 9.7 in float16 and at 87.3 in float32, with gradient 0.
#
# Library:  pytorch-metric-learning 2.9.0 on torch 2.13.0, losses.NTXentLoss.
# Expected: a log-softmax: the loss of a positive pair on opposite sides is about 2 / temperature, its gradient
#           of order 1 / temperature, in every dtype (bfloat16 agrees to its precision at 0.07).
# Seen:     the ratio is taken after exp and clipped from below by the smallest float: at the usual temperature
#           0.07, float16 gives 9.70 with gradient 0 for a true 28.3; at 0.02, float32 gives 87.3 for 99.0 and
#           a gradient of 1e-4 for 8.2. float64 is right. SupConLoss of the same package has no such floor.
# Matters:  under mixed precision the pairs that a contrastive loss should learn most from are dropped.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pytorch-metric-learning==2.9.0 torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

labels = torch.tensor([0, 0, 1, 1])
points = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.05], [-1.0, 0.2]])  # positives are far apart


def value_and_gradient(loss, dtype):
    embeddings = points.to(dtype, copy=True).requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    return value.item(), embeddings.grad.abs().max().item()


seen = {}
for temperature in (0.07, 0.02):
    for dtype in (torch.float64, torch.float32, torch.float16):
        value, gradient = seen[temperature, dtype] = value_and_gradient(NTXentLoss(temperature), dtype)
        print(f"temperature {temperature}, {dtype}: loss {value:.2f}, largest gradient {gradient:.2g}")
supcon = value_and_gradient(SupConLoss(0.07), torch.float16)
print(f"SupConLoss 0.07, float16: loss {supcon[0]:.2f}, largest gradient {supcon[1]:.2g}")
assert abs(seen[0.07, torch.float64][0] - 28.28) < 0.01 and seen[0.07, torch.float64][1] > 2
assert abs(seen[0.07, torch.float16][0] - 9.70) < 0.01 and seen[0.07, torch.float16][1] == 0
assert abs(seen[0.02, torch.float64][0] - 98.96) < 0.01 and seen[0.02, torch.float64][1] > 8
assert abs(seen[0.02, torch.float32][0] - 87.34) < 0.01 and seen[0.02, torch.float32][1] < 1e-3
assert abs(supcon[0] - 28.28) < 0.1 and supcon[1] > 2
PY
