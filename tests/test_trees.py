"""Trees: every field, the best of all code lengths, distances, drawing, and the text of every error."""

from __future__ import annotations

import pickle
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from jsoftmax.hierarchical.build import balanced_tree, huffman_tree, two_level_tree
from jsoftmax.hierarchical.relatives import smooth_over_tree, tree_distance
from jsoftmax.hierarchical.taxonomies import tree_from_names, tree_from_parents
from jsoftmax.hierarchical.tree import Tree
from tests.oracles import trees as oracle
from tests.truth import x64

mpl.use("Agg")

COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=14)
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


@settings(deadline=None)
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


def same(a: Tree, b: Tree) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in leaves
    )


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


def test_cannot_be_changed():
    parents, counts = np.array([-1, 0, 0], np.int32), np.array([1, 2, 3])
    trees = tree_from_parents(parents), huffman_tree(counts)
    kept = [np.array(x) for x in jax.tree.leaves(trees)]
    parents[:], counts[:] = 7, 7
    for x, y in zip(jax.tree.leaves(trees), kept, strict=True):
        np.testing.assert_array_equal(x, y)
    fixed: Any = trees[0]
    with pytest.raises(AttributeError):
        fixed.parents = parents
    with pytest.raises(TypeError):
        fixed.parents[0] = 3


def test_is_a_pytree():
    tree = huffman_tree([5, 1, 1, 2])
    assert same(jax.jit(lambda t: t)(tree), tree)
    assert same(jax.tree.map(lambda x: x + 0, tree), tree)
    assert same(pickle.loads(pickle.dumps(tree)), tree)
    shapes = jax.eval_shape(lambda t: t, tree)
    assert (shapes.num_classes, shapes.num_nodes, shapes.num_rows, shapes.depth) == (4, 7, 3, 3)
    mapped = jax.tree.map(lambda _: 0, tree)
    assert (mapped.num_classes, mapped.num_nodes, mapped.num_rows) == (4, 7, 3)
    donated = jax.jit(lambda t: jax.tree.map(lambda x: x + 0, t), donate_argnums=0)(
        jax.tree.map(lambda x: x + 0, tree)
    )
    assert same(donated, tree)
    copies = jax.lax.scan(lambda t, _: (t, t.leaves), tree, None, length=2)[1]
    np.testing.assert_array_equal(copies, [[0, 1, 2, 3]] * 2)


def test_one_compilation_for_trees_of_one_form():
    traces = 0

    @jax.jit
    def first(tree: Tree) -> Any:
        nonlocal traces
        traces += 1
        return tree.class_at

    assert int(first(huffman_tree([5, 1, 1, 2]))[1]) == 0
    assert int(first(huffman_tree([1, 2, 5, 1]))[1]) == 2
    assert traces == 1
    first(balanced_tree(4))
    assert traces == 2


def test_stacked_trees():
    trees = huffman_tree([5, 1, 1, 2]), huffman_tree([1, 2, 5, 1])
    stack = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    a, b = jnp.array([0, 1, 2]), jnp.array([1, 3, 0])
    together = jax.vmap(tree_distance, (None, None, 0))(a, b, stack)
    smooth = jax.vmap(lambda t: smooth_over_tree(a, t, 0.3))(stack)
    for i, tree in enumerate(trees):
        np.testing.assert_array_equal(together[i], tree_distance(a, b, tree))
        np.testing.assert_allclose(smooth[i], smooth_over_tree(a, tree, 0.3), 1e-6)
    assert not np.array_equal(together[0], together[1])


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


@settings(deadline=None, max_examples=15)
@given(parent_lists(), st.data())
def test_distance(parents: list[int], data: Any):
    if oracle.children(parents).count([]) < 2:
        return
    tree = tree_from_parents(parents)
    node = st.integers(0, len(parents) - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(node, node), min_size=5, max_size=5)))
    found = tree_distance(pairs[:, 0], pairs[:, 1], tree, nodes=True)
    np.testing.assert_array_equal(found, [oracle.distance(parents, a, b) for a, b in pairs.tolist()])
    leaves = np.asarray(tree.leaves)
    k = pairs % len(leaves)
    found = tree_distance(k[:, 0], k[:, 1], tree)
    far = [oracle.distance(parents, a, b) for a, b in leaves[k].tolist()]
    np.testing.assert_array_equal(found, far)


def test_distance_of_what_is_no_class():
    tree = balanced_tree(4)
    a, b = np.array([0, -1, 4, 0, 1, 2], np.int8), np.array([1, 1, 1, 4, 127, -128], np.int8)
    found = tree_distance(a, b, tree)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [2, *[np.nan] * 5])
    inner = tree_distance(np.array([4, 6, 7]), np.array([0, 0, 0]), tree, nodes=True)
    np.testing.assert_array_equal(inner, [2, 3, np.nan])
    assert np.isnan(tree_distance(np.uint32(2**32 - 1), np.uint32(0), tree))


def test_small_integers_name_classes_of_a_large_tree():
    tree = balanced_tree(300)
    y = np.array([100, -1, 127], np.int8)
    near = y.astype(np.int32)
    np.testing.assert_array_equal(
        tree_distance(y, y[::-1], tree), tree_distance(near, near[::-1], tree)
    )
    np.testing.assert_array_equal(smooth_over_tree(y, tree, 0.1), smooth_over_tree(near, tree, 0.1))
    assert np.isnan(smooth_over_tree(y, tree, 0.1)).any(-1).tolist() == [False, True, False]


def test_distance_shapes():
    tree = balanced_tree(10)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 10, (2, 3, 4))
    found = tree_distance(a, b, tree)
    assert found.shape == (3, 4)
    np.testing.assert_array_equal(found, tree_distance(b, a, tree))
    np.testing.assert_array_equal(found, jax.vmap(lambda x, y: tree_distance(x, y, tree))(a, b))
    np.testing.assert_array_equal(found[1, 2], jax.jit(tree_distance)(a[1, 2], b[1, 2], tree))
    assert tree_distance(a[:0], b[:0], tree).shape == (0, 4)


@pytest.mark.parametrize("decay", [0.0, 0.7, 200.0, 1e30])
@pytest.mark.parametrize("name", TREES)
def test_smoothing(name: str, decay: float):
    tree = TREES[name]()
    parents, leaves = np.asarray(tree.parents).tolist(), np.asarray(tree.leaves).tolist()
    labels = np.arange(min(tree.num_classes, 12))
    found = smooth_over_tree(labels, tree, 0.2, decay=decay)
    expected = [oracle.smoothed(parents, leaves, y, 0.2, decay) for y in labels.tolist()]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, 2e-5, 1e-30)
    np.testing.assert_allclose(np.asarray(found).sum(-1), 1, 0, 1e-6)


def test_smoothing_at_its_ends():
    tree = balanced_tree(4)
    np.testing.assert_array_equal(smooth_over_tree(np.arange(4), tree, 0.0), np.eye(4))
    np.testing.assert_allclose(
        smooth_over_tree(np.arange(4), tree, 1, decay=0), (1 - np.eye(4)) / 3, 1e-6
    )


def test_smoothing_per_row():
    tree = huffman_tree([5, 1, 1, 2, 9])
    y, eps, decay = (
        np.array([[0, 1], [4, 2]]),
        np.array([[0.1, 0.2], [0.3, 0.4]]),
        np.array([[0, 1], [2, 3]]),
    )
    found = smooth_over_tree(y, tree, eps.astype(np.float32), decay=decay)
    for at in np.ndindex(2, 2):
        alone = smooth_over_tree(y[at], tree, float(eps[at]), decay=float(decay[at]))
        np.testing.assert_allclose(found[at], alone, 1e-6)


def test_smoothing_of_what_is_no_class():
    tree = balanced_tree(4)
    labels = np.array([1, -1, 4, -100], np.int8)

    def f(eps: Any, decay: Any) -> Any:
        return smooth_over_tree(labels, tree, eps, decay=decay, ignore_index=-100)

    found = np.asarray(f(0.1, 1.0))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:3]).all()
    assert (found[3] == 0).all()
    for slope in map(np.asarray, jax.jacfwd(f, (0, 1))(jnp.float32(0.1), jnp.float32(1.0))):
        assert np.isfinite(slope[0]).all()
        assert np.isnan(slope[1:3]).all()
        assert (slope[3] == 0).all()
    # The rows share a smoothing: an ignored one leaves its gradient alone, an invalid one does not.
    rows = jax.vjp(lambda e, d: f(e, d)[::3], jnp.float32(0.1), jnp.float32(1.0))[1]
    weight = jnp.arange(8, dtype=jnp.float32).reshape(2, 4)
    assert np.isnan(rows(weight)).all()
    labels = np.array([1, -100], np.int8)
    rows = jax.vjp(f, jnp.float32(0.1), jnp.float32(1.0))[1]
    assert np.isfinite(rows(weight)).all()
    for eps, decay in ((1.5, 1.0), (-0.1, 1.0), (np.nan, 1.0), (0.1, -1.0), (0.1, np.inf)):
        wrong = np.asarray(f(jnp.float32(eps), jnp.float32(decay)))
        assert np.isnan(wrong[0]).all()
        assert (wrong[1] == 0).all()


@pytest.mark.slow  # the conformance table has the modes in float32
def test_derivatives_of_smoothing():
    with x64():
        tree = huffman_tree([5, 1, 1, 2, 9])
        parents, leaves = np.asarray(tree.parents).tolist(), np.asarray(tree.leaves).tolist()

        def f(x: Any) -> Any:
            return smooth_over_tree(np.array([0, 2]), tree, x[0], decay=x[1])

        def truth(x: np.ndarray) -> np.ndarray:
            return np.stack([oracle.smoothed(parents, leaves, y, x[0], x[1]) for y in (0, 2)])

        x = np.array([0.2, 0.7])
        assert f(x).dtype == jnp.float64
        np.testing.assert_allclose(f(x), truth(x), 1e-13)
        steps = 1e-6 * np.eye(2)
        slopes = np.stack([(truth(x + s) - truth(x - s)) / 2e-6 for s in steps], -1)
        for mode in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(mode(f))(x), slopes, 1e-7, 1e-9)
        slope = jax.jit(jax.jacfwd(f))
        curves = np.stack([(slope(x + s) - slope(x - s)) / 2e-6 for s in steps], -1)
        for outer, inner in ((jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd)):
            np.testing.assert_allclose(jax.jit(outer(inner(f)))(x), curves, 1e-6, 1e-8)


def test_under_transformations():
    tree, y = tree_from_names(ANIMALS).tree, jnp.array([0, 1, 2, 3])
    q, d = smooth_over_tree(y, tree, 0.2), tree_distance(y, y[::-1], tree)
    f = jax.jit(lambda y, e, t: smooth_over_tree(y, t, e))
    np.testing.assert_allclose(f(y, 0.2, tree), q, 1e-6)
    np.testing.assert_allclose(jax.vmap(f, (0, None, None))(y, 0.2, tree), q, 1e-6)
    np.testing.assert_allclose(jax.lax.map(lambda y: f(y, 0.2, tree), y), q, 1e-6)
    np.testing.assert_allclose(jax.checkpoint(f)(y, 0.2, tree), q, 1e-6)
    assert jax.eval_shape(f, y, 0.2, tree).shape == (4, 4)
    assert f(y, 0.2, tree).dtype == jnp.float32
    exported = jax.export.export(jax.jit(lambda y: (f(y, 0.2, tree), tree_distance(y, y[::-1], tree))))(
        y
    )
    found = jax.export.deserialize(exported.serialize()).call(y)
    np.testing.assert_allclose(found[0], q, 1e-6)
    np.testing.assert_array_equal(found[1], d)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    sharded = jax.shard_map(
        lambda y, z, t: (smooth_over_tree(y, t, 0.2), tree_distance(y, z, t)),
        mesh=mesh,
        in_specs=(spec, spec, jax.sharding.PartitionSpec()),
        out_specs=spec,
    )
    found = jax.jit(sharded)(y, y[::-1], tree)
    np.testing.assert_allclose(found[0], q, 1e-6)
    np.testing.assert_array_equal(found[1], d)


@pytest.mark.slow
@pytest.mark.parametrize("max_depth", [None, 22, 20])
def test_a_million_classes(max_depth: int | None):
    counts = 1e9 / np.arange(1, 1_000_001)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    tree = huffman_tree(counts, max_depth)
    assert time.perf_counter() - start < 20
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2e9
    assert tree.num_classes == 1_000_000
    p = counts / counts.sum()
    entropy = -np.sum(p * np.log2(p))
    sizes = np.diff([0, *tree.level_ends])
    at = np.asarray(tree.position)[np.asarray(tree.leaves)]
    depths = np.repeat(np.arange(len(sizes)), sizes)[at]
    assert np.sum(0.5**depths) == 1
    assert entropy <= np.sum(p * depths)
    # Limited, it may cost more: 2 ** 20 leaves hold these classes only if nearly all are as deep.
    assert np.sum(p * depths) < entropy + 1 if max_depth is None else tree.depth == max_depth


untyped: Any = (huffman_tree, balanced_tree, two_level_tree, tree_from_parents, tree_from_names)
huffman, balanced, two_level, from_parents, from_names = untyped
distance: Any = tree_distance
smooth: Any = smooth_over_tree
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
