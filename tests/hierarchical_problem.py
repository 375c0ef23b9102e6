"""Trees and scores that the softmax over a tree is tested with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jsoftmax import hierarchical
from jsoftmax.hierarchical import Tree

FEATURES, ROWS = 7, 9
TAXONOMY = (-1, 0, 0, 0, 1, 1, 1, 2, 4, 4, 4, 4, 4, 7, 3, 3, 14, 14)

TREES: dict[str, Tree] = {
    "two classes": hierarchical.huffman_tree([3, 1]),
    "huffman": hierarchical.huffman_tree(1 / np.arange(1, 41)),
    "chain": hierarchical.huffman_tree(2.0 ** np.arange(12)),
    "limited": hierarchical.huffman_tree(2.0 ** np.arange(12), max_depth=5),
    "balanced": hierarchical.balanced_tree(33),
    "balanced by 3": hierarchical.balanced_tree(20, 3),
    "two levels": hierarchical.two_level_tree(50),
    "many groups": hierarchical.two_level_tree(200, 100),
    "taxonomy": hierarchical.tree_from_parents(TAXONOMY),
}

every_tree = pytest.mark.parametrize("name", TREES)

# Some of what is passed here is wrong on purpose.
loss: Any = hierarchical.hierarchical_cross_entropy


def draw(tree: Tree, seed: int = 0, size: float = 1.0) -> tuple[Any, Any, Any, Any]:
    """Hidden vectors, kernel and bias of float32 numbers, and labels."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((ROWS, FEATURES)).astype(np.float32),
        (size * rng.standard_normal((tree.num_rows, FEATURES))).astype(np.float32),
        rng.standard_normal(tree.num_rows).astype(np.float32),
        rng.integers(0, tree.num_classes, ROWS).astype(np.int32),
    )
