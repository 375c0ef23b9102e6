#!/usr/bin/env bash
# entmax_bisect with alpha = 1 is the uniform distribution, with alpha = 1.001 it is softmax.
#
# Library:  entmax 1.3 on torch 2.13.0, entmax.entmax_bisect; and the loss classes' ignore_index.
# Expected: alpha = 1 is softmax by definition: [0.66, 0.24, 0.09, 0.00] for [2, 1, 0, -5]. ignore_index=-100,
#           the default of every loss class of the package, leaves out rows with label -100.
# Seen:     alpha = 1 gives [0.25, 0.25, 0.25, 0.25]: scores are multiplied by alpha - 1 = 0. No error. A label
#           of -100 raises "index -100 is out of bounds": the loss gathers before it masks, so that only a
#           valid class can be ignored.
# Matters:  a learned or annealed alpha may start at, or reach, exactly 1; and padded batches fail.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q entmax==1.3 torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import entmax
import torch

scores = torch.tensor([[2.0, 1.0, 0.0, -5.0]])
softmax = torch.softmax(scores, -1)
for alpha in (1.1, 1.001, 1.0):
    print(f"alpha {alpha}: {entmax.entmax_bisect(scores, alpha=alpha)[0].tolist()}")
print("softmax:", softmax[0].tolist())
assert torch.allclose(entmax.entmax_bisect(scores, alpha=1.001), softmax, atol=1e-3)
assert torch.equal(entmax.entmax_bisect(scores, alpha=1.0), torch.full((1, 4), 0.25))
labels = torch.tensor([-100])
for loss in (entmax.SparsemaxLoss(), entmax.Entmax15Loss(), entmax.EntmaxBisectLoss()):
    try:
        loss(scores, labels)
        raise SystemExit("a label of -100 is ignored now")
    except RuntimeError as error:
        print(type(loss).__name__, "with a label of -100:", error)
        assert "out of bounds" in str(error) and loss.ignore_index == -100
PY
