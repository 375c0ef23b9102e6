"""Bad trees are refused, and so are labels and smoothings that do not fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.build import balanced_tree, huffman_tree, two_level_tree
from jsoftmax.hierarchical.relatives import tree_distance
from jsoftmax.hierarchical.taxonomies import tree_from_names, tree_from_parents
from tests.tree_checks import smooth

untyped: Any = (huffman_tree, balanced_tree, two_level_tree, tree_from_parents, tree_from_names)
huffman, balanced, two_level, from_parents, from_names = untyped
distance: Any = tree_distance
T = balanced_tree(4)

ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: huffman([[1, 2], [3, 4]]),
        ValueError,
        "huffman_tree: counts must have shape [classes], got [2, 2]; pass one number per class.",
    ),
    (
        lambda: huffman([3]),
        ValueError,
        "huffman_tree: counts must have shape [classes] of two or more, got [1]; a tree needs two "
        "leaves.",
    ),
    (
        lambda: huffman([]),
        ValueError,
        "huffman_tree: counts must have shape [classes] of two or more, got [0]; a tree needs two "
        "leaves.",
    ),
    (
        lambda: huffman([True, False]),
        TypeError,
        "huffman_tree: counts must have an integer or floating dtype, got bool; count how often each "
        "class occurs.",
    ),
    (
        lambda: huffman(["a", "b"]),
        TypeError,
        "huffman_tree: counts must have an integer or floating dtype, got <U1; count how often each "
        "class occurs.",
    ),
    *(
        (
            lambda wrong=wrong: huffman(np.array([3, wrong, 1])),
            ValueError,
            f"huffman_tree: counts must be positive and finite, got {wrong} for class 1; add 1 to all "
            "of them, or leave such classes out.",
        )
        for wrong in (0, -2, 0.0, -0.5, np.nan, np.inf)
    ),
    (
        lambda: jax.jit(huffman)(np.array([1, 2])),
        TypeError,
        "huffman_tree: counts must be known before tracing, got a traced array; make the tree "
        "outside and pass it as an argument.",
    ),
    (
        lambda: huffman(np.ones(1025), 10),
        ValueError,
        "huffman_tree: max_depth must be at least log2(classes) = 11 for 1025 classes, got 10; a "
        "binary tree has up to 2 ** max_depth leaves.",
    ),
    (
        lambda: huffman([1, 2], 3.0),
        TypeError,
        "huffman_tree: max_depth must be an integer, got 3.0; pass a Python int.",
    ),
    (
        lambda: balanced(1),
        ValueError,
        "balanced_tree: num_classes must be at least 2, got 1; no tree is smaller.",
    ),
    (
        lambda: balanced(5, 1),
        ValueError,
        "balanced_tree: branching must be at least 2, got 1; no tree is smaller.",
    ),
    (
        lambda: balanced(5.0),
        TypeError,
        "balanced_tree: num_classes must be an integer, got 5.0; pass a Python int.",
    ),
    (
        lambda: two_level(5, 1),
        ValueError,
        "two_level_tree: num_groups must be at least 2, got 1; no tree is smaller.",
    ),
    (
        lambda: two_level(5, 6),
        ValueError,
        "two_level_tree: num_groups must be at most num_classes = 5, got 6; no group may be empty.",
    ),
    (
        lambda: from_parents([]),
        ValueError,
        "tree_from_parents: parents must have shape [nodes] of three or more, got [0]; a root and two "
        "classes are the smallest tree.",
    ),
    (
        lambda: from_parents([[-1, 0]]),
        ValueError,
        "tree_from_parents: parents must have shape [nodes], got [1, 2]; pass one number per node.",
    ),
    (
        lambda: from_parents([-1.0, 0.0, 0.0]),
        TypeError,
        "tree_from_parents: parents must have an integer dtype, got float64; number the nodes from 0.",
    ),
    (
        lambda: jax.jit(from_parents)(np.array([-1, 0, 0])),
        TypeError,
        "tree_from_parents: parents must be known before tracing, got a traced array; make the tree "
        "outside and pass it as an argument.",
    ),
    (
        lambda: from_parents([-1, 0, 3]),
        ValueError,
        "tree_from_parents: parents must be in [-1, nodes) = [-1, 3), got 3 for node 2; number the "
        "nodes from 0.",
    ),
    (
        lambda: from_parents([-1, 0, -2]),
        ValueError,
        "tree_from_parents: parents must be in [-1, nodes) = [-1, 3), got -2 for node 2; number the "
        "nodes from 0.",
    ),
    (
        lambda: from_parents(np.array([0, 0, 0], np.uint8)),
        ValueError,
        "tree_from_parents: parents must be -1 for one node, the root, got 0 of them; every tree has a "
        "root.",
    ),
    (
        lambda: from_parents([-1, 0, 0, -1]),
        ValueError,
        "tree_from_parents: parents must be -1 for one node, the root, got 2 of them; put one node "
        "above them.",
    ),
    (
        lambda: from_parents([-1, 0, 0, 4, 5, 3, 5]),
        ValueError,
        "tree_from_parents: parents must lead from every node to the root 0, got a cycle at or above "
        "node 3; give one node of the cycle another parent.",
    ),
    (
        lambda: from_parents([1, -1, 2, 1]),
        ValueError,
        "tree_from_parents: parents must lead from every node to the root 1, got a cycle at or above "
        "node 2; give one node of the cycle another parent.",
    ),
    (
        lambda: from_parents([-1]),
        ValueError,
        "tree_from_parents: parents must leave two or more nodes without children, got 1; those are "
        "the classes.",
    ),
    (
        lambda: from_parents([-1, 0, 1]),
        ValueError,
        "tree_from_parents: parents must leave two or more nodes without children, got 1; those are "
        "the classes.",
    ),
    (
        lambda: from_names({"a": {"b": 3}}),
        TypeError,
        "tree_from_names: nested must hold names that are strings, got 3 under 'b'; convert with str.",
    ),
    (
        lambda: from_names([["a", "b"], "c"]),
        TypeError,
        "tree_from_names: nested must hold names that are strings, got ['a', 'b']; convert with str.",
    ),
    (
        lambda: from_names(None),
        TypeError,
        "tree_from_names: nested must hold names that are strings, got None; convert with str.",
    ),
    (
        lambda: from_names({"a": ["x", "y"], "b": ["x"]}),
        ValueError,
        "tree_from_names: nested must hold every name once and none that is empty, got 'x' under 'b' "
        "again; a longer name tells nodes apart.",
    ),
    (
        lambda: from_names(["a", ""]),
        ValueError,
        "tree_from_names: nested must hold every name once and none that is empty, got ''; a longer "
        "name tells nodes apart.",
    ),
    (
        lambda: from_names({"a": {}, "b": None}),
        ValueError,
        "tree_from_names: nested must hold no empty dict or list, got {} under 'a'; a leaf is None.",
    ),
    (
        lambda: from_names([]),
        ValueError,
        "tree_from_names: nested must hold no empty dict or list, got []; a leaf is None.",
    ),
    (
        lambda: from_names({"a": "b"}),
        ValueError,
        "tree_from_names: nested must hold two or more leaves, got 1; those are the classes.",
    ),
    (
        lambda: huffman(range(1, 102)).plot(),
        ValueError,
        "Tree.plot: tree must have at most 200 nodes to be drawn, got 201; make one of fewer classes.",
    ),
    (
        lambda: T.plot(names=["a"]),
        ValueError,
        "Tree.plot: names must be one per class, [classes] = [4], or one per node, [nodes] = [7], "
        "got 1; name all of them.",
    ),
    *(
        (
            wrong,
            ValueError,
            "Tree.plot: tree must be a single one outside of jit and vmap, got a traced or stacked "
            "tree; take one with jax.tree.map(lambda x: x[0], tree).",
        )
        for wrong in (
            lambda: jax.jit(lambda t: t.plot())(T),
            lambda: jax.tree.map(lambda x: jnp.stack([x, x]), T).plot(),
        )
    ),
    (
        lambda: distance(0, 1, [0]),
        TypeError,
        "tree_distance: tree must be a Tree, got list; make one with huffman_tree, balanced_tree, "
        "two_level_tree or tree_from_parents.",
    ),
    (
        lambda: distance(0, 1.0, T),
        TypeError,
        "tree_distance: b must have an integer dtype, got float32; convert with b.astype(jnp.int32).",
    ),
    (
        lambda: distance(np.arange(3), np.arange(3)[:, None], T),
        ValueError,
        "tree_distance: b must have shape [*batch] = [3] like a, got [3, 1]; broadcast them "
        "explicitly.",
    ),
    (
        lambda: smooth(True, T, 0.1),
        TypeError,
        "smooth_over_tree: labels must have an integer dtype, got bool; convert with "
        "labels.astype(jnp.int32).",
    ),
    (
        lambda: smooth(0, T, 1.1),
        ValueError,
        "smooth_over_tree: smoothing must be in [0, 1], got 1.1; choose a value in range.",
    ),
    (
        lambda: smooth(0, T, 0.1, decay=-1),
        ValueError,
        "smooth_over_tree: decay must be in [0, inf), got -1; choose a value in range.",
    ),
    (
        lambda: smooth(np.arange(3), T, np.ones(2)),
        ValueError,
        "smooth_over_tree: smoothing must be a scalar or have shape [*batch] = [3], got [2]; one "
        "value per row.",
    ),
    (
        lambda: smooth(0, T, 0.1, ignore_index=0.5),
        TypeError,
        "smooth_over_tree: ignore_index must be an integer, got 0.5; pass a Python int.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as caught:
        call()
    # Under jit, JAX adds lines of its own.
    assert str(caught.value).split("\n")[0] == text
