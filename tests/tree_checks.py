"""Trees of every kind, and what has to hold of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from jsoftmax.hierarchical.build import balanced_tree, huffman_tree, two_level_tree
from jsoftmax.hierarchical.relatives import smooth_over_tree
from jsoftmax.hierarchical.taxonomies import tree_from_names, tree_from_parents
from jsoftmax.hierarchical.tree import Tree

ANIMALS = {"animal": {"dog": ["poodle", "beagle"], "cat": None}, "plant": ["oak"]}


@st.composite
def parent_lists(draw: Any) -> list[int]:
    """Trees of two leaves or more, their nodes numbered at random, some with one child."""
    size = draw(st.integers(3, 16))
    parents = [-1, 0, 0, *(draw(st.integers(0, node - 1)) for node in range(3, size))]
    number = draw(st.permutations(range(size)))
    mixed = [0] * size
    for node, parent in enumerate(parents):
        mixed[number[node]] = -1 if parent < 0 else number[parent]
    # Two children of the root stay two leaves, or two ways to leaves.
    return mixed


TREES: dict[str, Callable[[], Tree]] = {
    "huffman": lambda: huffman_tree([5, 1, 1, 2, 7, 7, 30]),
    "huffman two": lambda: huffman_tree([1, 2]),
    "huffman limited": lambda: huffman_tree([1, 1, 2, 3, 5, 8, 13, 21, 34], max_depth=4),
    "huffman zipf": lambda: huffman_tree(1000 / np.arange(1, 301)),
    "balanced": lambda: balanced_tree(13),
    "balanced 2": lambda: balanced_tree(2),
    "balanced by 3": lambda: balanced_tree(41, 3),
    "balanced flat": lambda: balanced_tree(5, 100),
    "two levels": lambda: two_level_tree(30),
    "two levels of 2": lambda: two_level_tree(2),
    "two levels uneven": lambda: two_level_tree(11, 4),
    "two levels, a group each": lambda: two_level_tree(4, 4),
    "parents": lambda: tree_from_parents([4, 4, 6, 6, 6, 3, -1, 2, 2, 2]),
    "parents, an only child": lambda: tree_from_parents([-1, 0, 1, 2, 2, 4]),
    "parents, wide and narrow": lambda: tree_from_parents([-1, 0, 0, *[1] * 9, *[2] * 3, *[3] * 2, 4]),
    "names": lambda: tree_from_names(ANIMALS).tree,
}

smooth: Any = smooth_over_tree


def same(a: Tree, b: Tree) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in leaves
    )
