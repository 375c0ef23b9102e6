"""What the softmax over a tree refuses, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jsoftmax import hierarchical
from tests.hierarchical_problem import TREES, loss

T: Any = TREES["taxonomy"]
H, K = np.zeros((4, 5), np.float32), np.zeros((17, 5), np.float32)
Y = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: loss(H, K.T, Y, T),
            ValueError,
            "hierarchical_cross_entropy: node_kernel must have shape [tree.num_rows, features] = "
            "[17, 5] to match hidden [4, 5], got [5, 17]; transpose it.",
        ),
        (
            lambda: loss(H, K[:3], Y, T),
            ValueError,
            "hierarchical_cross_entropy: node_kernel must have shape [tree.num_rows, features] = "
            "[17, 5] to match hidden [4, 5], got [3, 5]; it is gathered by rows.",
        ),
        (
            lambda: loss(H, K, Y[:, None], T),
            ValueError,
            "hierarchical_cross_entropy: labels must have shape [*batch] = [4] to match hidden [4, 5], "
            "got [4, 1]; class indices have no class axis, squeeze the last one.",
        ),
        (
            lambda: loss(H, K, Y, [-1, 0, 0]),
            TypeError,
            "hierarchical_cross_entropy: tree must be a Tree, got list; make one with huffman_tree, "
            "balanced_tree, two_level_tree or tree_from_parents.",
        ),
        (
            lambda: loss(H, K, Y, T, node_bias=Y[:3].astype(np.float32)),
            ValueError,
            "hierarchical_cross_entropy: node_bias must have shape [tree.num_rows] = [17], got [3]; "
            "one value each.",
        ),
        (
            lambda: loss(H, K, Y, T, nodes=True, class_weights=np.ones(T.num_classes)),
            ValueError,
            "hierarchical_cross_entropy: nodes must be False with class_weights or labels that are "
            "distributions, got True; both are over the classes.",
        ),
        (
            lambda: loss(H.astype(np.int32), K, Y, T),
            TypeError,
            "hierarchical_cross_entropy: hidden must have a floating dtype, got int32; convert with "
            "hidden.astype(jnp.float32).",
        ),
        (
            lambda: hierarchical.row_gradients(H, K, np.zeros((4, T.num_classes), np.float32), T),
            TypeError,
            "row_gradients: labels must have an integer dtype, got float32; give every row one class.",
        ),
        (
            lambda: hierarchical.row_gradients(H, K, Y, T, grouped=True),
            ValueError,
            "row_gradients: labels must have shape [*batch] = [] to match hidden [4, 5], got [4]; pass "
            "one class index per row.",
        ),
        (
            lambda: hierarchical.row_gradients(H[0], K, Y[0], T, grouped=True),
            ValueError,
            "row_gradients: hidden must have shape [*batch, group, features] if grouped, got [5]; give "
            "each label a group of vectors.",
        ),
        (
            lambda: hierarchical.row_gradients(H[:, None], K, Y, T, weights=H[:, 0], grouped=True),
            ValueError,
            "row_gradients: weights must be a scalar or have shape [*batch, group] = [4, 1], got [4]; "
            "one value per row.",
        ),
        (
            lambda: hierarchical.apply_row_updates(K, Y, H[:, :2]),
            ValueError,
            "apply_row_updates: updates must have shape [touched, features] = [4, 5] to match rows and "
            "node_kernel [17, 5], got [4, 2]; one update per row given.",
        ),
        (
            lambda: hierarchical.apply_row_updates(K, H[:, 0], H),
            TypeError,
            "apply_row_updates: rows must be integers [touched], got float32[4]; pass those that "
            "row_gradients returned.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
