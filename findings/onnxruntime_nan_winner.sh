#!/usr/bin/env bash
# A row of logits with a NaN in it: the winner depends on the ONNX operator, and on where the NaN is.
#
# Library:  onnxruntime 1.32.0 (CPU), with onnx 1.23.2 and its reference evaluator.
# Expected: NaN is contagious, as in NumPy: ReduceMax gives NaN, and ArgMax the place of the NaN.
# Seen:     for [0, nan, 1] ReduceMax gives 1.0 and ArgMax and Hardmax pick class 2, where TopK picks class 1,
#           the NaN. For [nan, 1, 0] Hardmax is all zeros, no class. ONNX's own reference evaluator gives
#           NaN, and the class of the NaN in all three.
# Matters:  an exported classifier that overflowed still hands out a plausible class, and another one when
#           the same graph ends in TopK.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
middle, first = np.array([[0, np.nan, 1]], np.float32), np.array([[np.nan, 1, 0]], np.float32)


def run(op, types, logits, *more, **attributes):
    feeds = {f"x{i}": x for i, x in enumerate((logits, *more))}
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()]
    outputs = [helper.make_tensor_value_info(f"y{i}", t, None) for i, t in enumerate(types)]
    node = helper.make_node(op, list(feeds), [o.name for o in outputs], **attributes)
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen, reference = session.run(None, feeds)[-1], ReferenceEvaluator(model).run(None, feeds)[-1]
    print(f"{op:10} of {logits.ravel()}: onnxruntime {seen.ravel()} reference {np.ravel(reference)}")
    return seen.ravel().tolist(), np.ravel(reference).tolist()


top, top_reference = run("ReduceMax", [FLOAT], middle)
assert top == [1.0] and np.isnan(top_reference[0])
assert run("ArgMax", [INT], middle, axis=1) == ([2], [1])
assert run("TopK", [FLOAT, INT], middle, np.array([1]), axis=1) == ([1], [1])
assert run("Hardmax", [FLOAT], middle) == ([0, 0, 1], [0, 1, 0])
assert run("Hardmax", [FLOAT], first) == ([0, 0, 0], [1, 0, 0])
PY
