"""Distances on a tree, and label smoothing by them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsoftmax.hierarchical.build import balanced_tree, huffman_tree
from jsoftmax.hierarchical.relatives import smooth_over_tree, tree_distance
from jsoftmax.hierarchical.taxonomies import tree_from_parents
from tests.oracles import trees as oracle
from tests.tree_checks import TREES, parent_lists
from tests.truth import x64


@settings(max_examples=15)
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


@pytest.mark.thin(4)
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
