"""Trees as pytrees: under transformations, stacked, compiled once for trees of one form, large."""

from __future__ import annotations

import pickle
import resource
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.build import balanced_tree, huffman_tree
from jsoftmax.hierarchical.relatives import smooth_over_tree, tree_distance
from jsoftmax.hierarchical.taxonomies import tree_from_names, tree_from_parents
from jsoftmax.hierarchical.tree import Tree
from tests.tree_checks import ANIMALS, same


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
    tree = huffman_tree(counts, max_depth)
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
