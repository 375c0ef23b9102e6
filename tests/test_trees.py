"""Trees: every field, the best of all code lengths, names, drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from jsoftmax.hierarchical._edges import path
from jsoftmax.hierarchical.build import balanced_tree, huffman_tree, two_level_tree
from jsoftmax.hierarchical.taxonomies import tree_from_names, tree_from_parents
from jsoftmax.hierarchical.tree import Tree
from tests.oracles import trees as oracle
from tests.tree_checks import ANIMALS, TREES, parent_lists, same

mpl.use("Agg")


COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=14)


@pytest.mark.parametrize("name", TREES)
def test_ways_are_the_same_where_they_are_walked(name: str):
    tree = TREES[name]()
    walked, everywhere = dataclasses.replace(tree, paths=None), jnp.arange(tree.num_nodes)
    np.testing.assert_array_equal(path(walked, everywhere), path(tree, everywhere))


def test_ways_of_a_large_tree_are_walked():
    assert balanced_tree(100_000).paths is not None
    assert balanced_tree(200_000).paths is None


def check_fields(tree: Tree) -> None:
    """Every field against the parents, node by node."""
    parents = np.asarray(tree.parents).tolist()
    below = oracle.children(parents)
    ways = [oracle.way(parents, node) for node in range(len(parents))]
    order, position = np.asarray(tree.order).tolist(), np.asarray(tree.position).tolist()
    leaves = np.asarray(tree.leaves).tolist()
    many = [len(below[node]) for node in order]

    assert parents.count(-1) == 1
    assert all(x.dtype == jnp.int32 for x in jax.tree.leaves(tree))
    assert sorted(order) == list(range(len(parents)))
    assert [order[p] for p in position] == list(range(len(parents)))
    assert order[0] == parents.index(-1)
    assert (tree.num_nodes, tree.num_classes) == (len(parents), len(leaves))
    assert sorted(leaves) == [node for node, nodes in enumerate(below) if not nodes]

    above, offsets = np.asarray(tree.above), np.asarray(tree.offsets)
    assert offsets.shape == (len(parents) + 1,)
    assert above[0] == 0
    # First those of the first node: breadth first, siblings side by side.
    assert (np.diff(above[1:]) >= 0).all()
    for p, node in enumerate(order):
        assert p == 0 or order[above[p]] == parents[node]
        assert sorted(order[offsets[p] : offsets[p + 1]]) == below[node]
    classes = np.asarray(tree.class_at)
    assert [classes[position[leaf]] for leaf in leaves] == list(range(len(leaves)))
    assert (classes >= 0).sum() == len(leaves)

    assert tree.paths is not None
    for p, node in enumerate(order):
        way = sorted(position[above_it] for above_it in ways[node])[1:]
        assert tree.paths[p].tolist() == way + [0] * (tree.depth - len(way))

    depths = [len(ways[node]) - 1 for node in order]
    assert depths == sorted(depths)
    ends = [sum(d <= level for d in depths) for level in range(max(depths) + 1)]
    assert tree.level_ends == tuple(ends)
    assert tree.depth == max(depths)
    by_level = [
        [m for m, d in zip(many, depths, strict=True) if d == level] for level in range(tree.depth)
    ]
    assert tree.widths == tuple(map(max, by_level))
    assert tree.binary == all(m in (0, 2) for m in many)
    assert tree.num_rows == (len(leaves) - 1 if tree.binary else len(parents) - 1)
    if tree.binary:
        inner = [p for p, m in enumerate(many) if m]
        assert [offsets[p] for p in inner] == [2 * i + 1 for i in range(len(inner))]

    families, slots = np.asarray(tree.families).tolist(), np.asarray(tree.slots)
    assert sorted(families) == [p for p, m in enumerate(many) if m]
    assert sum(n for n, _ in tree.groups) == len(families)
    start = family = 0
    for number, width in tree.groups:
        for p in families[family : family + number]:
            assert width / 2 < many[p] <= width
            expected = np.arange(start, start + many[p])
            np.testing.assert_array_equal(slots[offsets[p] - 1 : offsets[p + 1] - 1], expected)
            start += width
        family += number


@pytest.mark.parametrize("name", TREES)
def test_fields(name: str):
    check_fields(TREES[name]())


@given(parent_lists())
def test_fields_of_any_tree(parents: list[int]):
    if oracle.children(parents).count([]) < 2:
        return
    tree = tree_from_parents(parents)
    check_fields(tree)
    assert np.asarray(tree.parents).tolist() == parents
    assert np.asarray(tree.leaves).tolist() == [
        n for n, c in enumerate(oracle.children(parents)) if not c
    ]


@given(COUNTS, st.integers(0, 3))
def test_fields_of_built_trees(counts: list[int], spare: int):
    classes = len(counts)
    shortest = (classes - 1).bit_length()
    check_fields(huffman_tree(counts, shortest + spare))
    check_fields(balanced_tree(classes, 2 + spare))
    check_fields(two_level_tree(classes, min(2 + spare, classes)))


def depths_of(tree: Tree) -> np.ndarray:
    parents = np.asarray(tree.parents).tolist()
    return np.array([len(oracle.way(parents, leaf)) - 1 for leaf in np.asarray(tree.leaves).tolist()])


@given(COUNTS)
def test_huffman(counts: list[int]):
    tree = huffman_tree(counts)
    depths, c = depths_of(tree), np.array(counts)
    assert tree.binary
    assert np.sum(0.5**depths) == 1
    assert np.sum(c * depths) == oracle.huffman_cost(counts)
    p = c / c.sum()
    entropy = -np.sum(p * np.log2(p))
    assert entropy - 1e-9 <= np.sum(p * depths) < entropy + 1
    # The most frequent first, at every depth: as labels are sorted, so are positions.
    at = np.asarray(tree.position)[np.asarray(tree.leaves)]
    assert (np.lexsort((np.arange(len(c)), -c)) == np.argsort(at)).all()


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12))
def test_huffman_of_floats(counts: list[float]):
    cost = float(np.sum(np.array(counts) * depths_of(huffman_tree(counts))))
    assert cost == pytest.approx(float(oracle.huffman_cost(counts)), rel=1e-12)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(0, 4))
def test_limited(counts: list[int], spare: int):
    longest = (len(counts) - 1).bit_length() + spare
    depths, c = depths_of(huffman_tree(counts, longest)), np.array(counts)
    assert depths.max() <= longest
    assert np.sum(0.5**depths) == 1
    assert np.sum(c * depths) == oracle.limited_cost(counts, longest)


def test_limited_where_it_binds():
    counts = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    assert huffman_tree(counts).depth == 9
    costs = []
    for longest in range(4, 10):
        tree = huffman_tree(counts, longest)
        assert tree.depth == longest
        costs.append(int(np.sum(np.array(counts) * depths_of(tree))))
        assert costs[-1] == oracle.limited_cost(counts, longest)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == oracle.huffman_cost(counts)


def test_of_the_best_trees_the_shallowest():
    # 1 1 2 2 can be cut into depths 2 2 2 2 or 1 2 3 3, both at cost 12.
    assert huffman_tree([2, 1, 2, 1]).depth == 2


@pytest.mark.parametrize(
    "as_given",
    [
        list,
        tuple,
        np.array,
        jnp.array,
        lambda c: np.array(c, np.uint8),
        lambda c: jnp.array(c, jnp.bfloat16),
        lambda c: np.array(c, np.float16),
        lambda c: np.array(c) * 1e306,
        lambda c: np.array(c) * 2.0**-1060,
    ],
)
def test_counts_of_any_kind(as_given: Callable[[list[int]], Any]):
    counts = [5, 1, 1, 2, 7, 7, 30, 3, 3, 3, 100]
    assert same(huffman_tree(as_given(counts)), huffman_tree(counts))
    assert same(huffman_tree(as_given(counts), 4), huffman_tree(counts, 4))


@pytest.mark.parametrize("max_depth", [None, 5, 4])
def test_counts_whose_sum_overflows(max_depth: int | None):
    counts = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]) / 9
    largest = counts * np.finfo(np.float64).max
    assert same(huffman_tree(largest, max_depth), huffman_tree(counts, max_depth))


def test_siblings_are_in_the_order_of_their_number():
    rng = np.random.default_rng(0)
    parents = np.array([-1, *(rng.integers(0, min(node, 20)) for node in range(1, 3000))])
    tree = tree_from_parents(parents)
    order, above = np.asarray(tree.order), np.asarray(tree.above)
    assert ((np.diff(order) > 0) | (np.diff(above) > 0))[1:].all()


def test_equal_counts_keep_the_order_of_the_classes():
    tree = huffman_tree([1] * 6)
    at = np.asarray(tree.position)[np.asarray(tree.leaves)]
    assert (np.diff(at) > 0).all()


def test_classes_are_nodes_of_their_number():
    for name in ("huffman", "balanced", "balanced by 3", "two levels"):
        tree = TREES[name]()
        assert np.asarray(tree.leaves).tolist() == list(range(tree.num_classes))
        inner = np.asarray(tree.order)[np.asarray(tree.class_at) < 0]
        assert (np.diff(inner) == 1).all()


@pytest.mark.parametrize("branching", [2, 3, 7, 1000])
@pytest.mark.parametrize("classes", [2, 3, 4, 8, 9, 10, 27, 28, 100])
def test_balanced(classes: int, branching: int):
    tree = balanced_tree(classes, branching)
    depth = 0
    while branching**depth < classes:
        depth += 1
    assert tree.depth == depth
    assert tree.binary or branching > 2
    many = np.diff(np.asarray(tree.offsets))
    assert set(many[many > 0].tolist()) <= set(range(2, branching + 1))
    # Every node stands for a range of classes.
    below = {n: [] for n in range(tree.num_nodes)}
    parents = np.asarray(tree.parents).tolist()
    for k, leaf in enumerate(np.asarray(tree.leaves).tolist()):
        for node in oracle.way(parents, leaf):
            below[node].append(k)
    assert all(ks == list(range(ks[0], ks[-1] + 1)) for ks in below.values())


@pytest.mark.parametrize(
    ("classes", "groups"), [(2, None), (3, None), (10, None), (100, None), (11, 4), (7, 7)]
)
def test_two_levels(classes: int, groups: int | None):
    tree = two_level_tree(classes, groups)
    expected = int(np.ceil(np.sqrt(classes))) if groups is None else groups
    assert tree.level_ends == (1, 1 + expected, 1 + expected + classes)
    group = np.asarray(tree.parents)[:classes] - classes - 1
    assert (np.diff(group) >= 0).all()
    sizes = np.bincount(group)
    assert len(sizes) == expected
    assert sizes.max() - sizes.min() <= 1


def test_names():
    tree, classes, nodes = tree_from_names(ANIMALS)
    assert classes == ("poodle", "beagle", "cat", "oak")
    assert nodes == ("", "animal", "dog", "poodle", "beagle", "cat", "plant", "oak")
    assert np.asarray(tree.parents).tolist() == [-1, 0, 1, 2, 2, 1, 0, 6]
    assert [nodes[n] for n in np.asarray(tree.leaves)] == list(classes)


def test_names_in_every_form():
    tree, classes, nodes = tree_from_names(({"a": "x"}, "b", {"c": ("y", {"d": [{"e": None}]})}))
    assert nodes == ("", "a", "x", "b", "c", "y", "d", "e")
    assert classes == ("x", "b", "y", "e")
    assert np.asarray(tree.parents).tolist() == [-1, 0, 1, 0, 0, 4, 4, 6]


def test_repr():
    tree = huffman_tree([5, 1, 1, 2])
    text = "4 classes, binary, 3 rows, depth 3"
    full = f"Tree({text}, mean depth 2.2)"
    assert repr(tree) == full
    assert (
        repr(balanced_tree(9, 3))
        == "Tree(9 classes, up to 3 children, 12 rows, depth 2, mean depth 2.0)"
    )
    seen: list[str] = []
    jax.jit(lambda t: seen.append(repr(t)))(tree)
    stack = jax.tree.map(lambda x: jnp.stack([x] * 3), tree)
    jax.vmap(lambda t: seen.append(repr(t)))(stack)
    assert seen == [f"Tree({text})"] * 2
    assert repr(stack) == f"Tree(stack of [3], {text}, mean depth 2.2)"
    assert repr(jax.eval_shape(lambda t: t, tree)) == f"Tree({text})"
    assert repr(jax.tree.map(lambda _: None, tree)) == f"Tree({text})"
    gone = jax.tree.map(lambda x: x + 0, tree)
    gone.class_at.delete()
    assert repr(gone) == f"Tree({text})"


def drawn(ax: Any) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.xy for text in ax.texts}


def test_plot():
    import matplotlib.pyplot as plt

    named = tree_from_names(ANIMALS)
    ax = named.tree.plot(names=named.nodes)
    at = drawn(ax)
    depth = {"": 0, "animal": 1, "plant": 1, "dog": 2, "cat": 2, "oak": 2, "poodle": 3, "beagle": 3}
    assert {name: x for name, (x, _) in at.items()} == depth
    assert sorted(at[leaf][1] for leaf in named.classes) == [0, 1, 2, 3]
    assert at["dog"][1] == (at["poodle"][1] + at["beagle"][1]) / 2
    assert at["plant"][1] == at["oak"][1]
    branches = ax.collections[0]
    assert isinstance(branches, LineCollection)
    assert len(branches.get_segments()) == 7
    mine = plt.subplots()[1]
    assert named.tree.plot(mine) is mine
    assert set(drawn(mine)) == {"", "0", "1", "2", "3"}
    assert set(drawn(named.tree.plot(names=named.classes))) == {"", *named.classes}
    ax.figure.canvas.draw()
    plt.close("all")
