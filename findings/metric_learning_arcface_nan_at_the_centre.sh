#!/usr/bin/env bash
# The ArcFace gradient of a perfectly classified example is NaN, while its loss is 0.0003.
#
# Library:  pytorch-metric-learning 2.9.0 on torch 2.13.0, losses.ArcFaceLoss.
# Expected: the slope of acos at 1 is guarded: an embedding on its class centre has a small, finite gradient.
# Seen:     NaN in every entry of the embedding's gradient, and NaN in that of the class weights, at angle 0.
#           0.01 rad away it is below 0.002.
# Matters:  centres that are initialised from class means, a class with one example, and prototypes copied from
#           embeddings start exactly there; one such row turns all weights into NaN at the first step.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pytorch-metric-learning==2.9.0 torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import math

import torch
from pytorch_metric_learning.losses import ArcFaceLoss

loss = ArcFaceLoss(num_classes=3, embedding_size=4, margin=28.6, scale=10)
with torch.no_grad():
    loss.W.copy_(torch.eye(4)[:, :3])  # the three class centres
seen = {}
for angle in (0.0, 0.01, 0.5):
    embedding = torch.tensor([[math.cos(angle), 0, 0, math.sin(angle)]], requires_grad=True)
    loss.W.grad = None
    value = loss(embedding, torch.tensor([0]))
    value.backward()
    seen[angle] = value.item(), embedding.grad, loss.W.grad
    print(f"angle {angle}: loss {value.item():.4f}, gradient {embedding.grad.tolist()}")
assert seen[0.0][0] < 1e-3 and seen[0.0][1].isnan().all() and seen[0.0][2].isnan().any()
assert seen[0.01][1].isfinite().all() and seen[0.5][1].isfinite().all()
PY
