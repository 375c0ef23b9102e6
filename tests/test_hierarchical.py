"""The softmax over a tree: values and gradients on every kind of tree, labels, memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import hierarchical
from jsoftmax.hierarchical import Tree
from tests.hierarchical_problem import FEATURES, ROWS, TREES, draw, every_tree, loss
from tests.oracles import hierarchical as oracle
from tests.truth import quick

pytestmark = pytest.mark.thin(6)

log_softmax = hierarchical.hierarchical_log_softmax


def exactly(tree: Tree, h: Any, kernel: Any, bias: Any = None) -> np.ndarray:
    """The log-probabilities of all nodes in float64."""
    parents, order = np.asarray(tree.parents).tolist(), np.asarray(tree.order).tolist()
    return oracle.node_log_probs(h, kernel, bias, parents, order)


@every_tree
def test_probabilities(name: str):
    tree = TREES[name]
    h, kernel, bias, _ = draw(tree)
    got = log_softmax(h, kernel, tree, node_bias=bias)
    np.testing.assert_allclose(np.sum(np.exp(np.float64(got)), axis=-1), 1, rtol=0, atol=1e-5)
    true = exactly(tree, h, kernel, bias)[:, np.asarray(tree.leaves)]
    np.testing.assert_allclose(got, true, rtol=2e-6, atol=2e-6)


@every_tree
def test_nodes_are_sums_of_their_classes(name: str):
    tree = TREES[name]
    h, kernel, bias, _ = draw(tree)
    got = np.exp(np.float64(hierarchical.node_log_probs(h, kernel, tree, node_bias=bias)))
    parents, total = np.asarray(tree.parents), np.zeros_like(got)
    total[:, np.asarray(tree.leaves)] = np.exp(np.float64(log_softmax(h, kernel, tree, node_bias=bias)))
    for node in np.asarray(tree.order)[:0:-1]:
        total[:, parents[node]] += total[:, node]
    np.testing.assert_allclose(got, total, rtol=1e-5)
    np.testing.assert_array_equal(got[:, parents < 0], 1)


@every_tree
def test_loss_is_the_log_softmax_at_the_label(name: str):
    """Value and gradients, of class indices, their one-hot distributions, and nodes."""
    tree = TREES[name]
    h, kernel, bias, y = draw(tree)
    one_hot = (np.arange(tree.num_classes) == y[:, None]).astype(np.float32)

    def picked(h: Any, kernel: Any, bias: Any) -> Any:
        logs = log_softmax(h, kernel, tree, node_bias=bias)
        each = -jnp.take_along_axis(logs, y[:, None], axis=1)[:, 0]
        return jnp.sum(each), each

    def given(labels: Any, nodes: bool) -> Any:
        def total(h: Any, kernel: Any, bias: Any) -> Any:
            each = loss(h, kernel, labels, tree, node_bias=bias, nodes=nodes)
            return jnp.sum(each), each

        return total

    def run(f: Any) -> Any:
        return quick(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(h, kernel, bias)

    expected = run(picked)
    for labels, nodes in [(y, False), (one_hot, False), (np.asarray(tree.leaves)[y], True)]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            run(given(labels, nodes)),
            expected,
        )


@every_tree
def test_gradient_by_the_oracle(name: str):
    """Of the loss and of all log-probabilities, by differences of the oracle in float64."""
    tree = TREES[name]
    *given, y = draw(tree)
    leaves, rng = np.asarray(tree.leaves), np.random.default_rng(3)
    weights = rng.standard_normal((ROWS, tree.num_classes)).astype(np.float32)

    def slopes(f: Any) -> Any:
        return quick(jax.grad(f, (0, 1, 2)))(*given)

    of_loss = slopes(lambda h, k, b: jnp.sum(loss(h, k, y, tree, node_bias=b)))
    of_logs = slopes(lambda h, k, b: jnp.vdot(weights, log_softmax(h, k, tree, node_bias=b)))
    along = [rng.standard_normal(x.shape) for x in given]
    step = 1e-5
    ahead, back = (
        exactly(tree, *(np.float64(x) + sign * t for x, t in zip(given, along, strict=True)))[:, leaves]
        for sign in (step, -step)
    )
    moved = (ahead - back) / (2 * step)
    for got, true in (
        (of_loss, -np.sum(moved[np.arange(ROWS), y])),
        (of_logs, np.sum(weights * moved)),
    ):
        found = sum(np.vdot(np.float64(g), t) for g, t in zip(got, along, strict=True))
        size = sum(float(np.vdot(g, g) * np.vdot(t, t)) ** 0.5 for g, t in zip(got, along, strict=True))
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-6 * size)


@every_tree
def test_inner_nodes_as_labels(name: str):
    tree = TREES[name]
    h, kernel, bias, _ = draw(tree)
    nodes = np.random.default_rng(1).permutation(np.arange(ROWS) % tree.num_nodes).astype(np.int32)
    all_nodes = hierarchical.node_log_probs(h, kernel, tree, node_bias=bias)
    got = loss(h, kernel, nodes, tree, node_bias=bias, nodes=True)
    np.testing.assert_allclose(got, -all_nodes[np.arange(ROWS), nodes], rtol=1e-5, atol=1e-6)


@every_tree
def test_large_scores_stay_finite(name: str):
    """Scores of ±200 give large losses, not infinite ones, and exact gradients."""
    tree = TREES[name]
    h, kernel, _, y = draw(tree)
    scores = h @ kernel.T
    kernel = kernel * (200 / np.abs(scores).max())
    logs = log_softmax(h, kernel, tree)
    assert np.isfinite(logs).all()
    gradient = jax.grad(lambda k: jnp.sum(loss(h, k, y, tree)))(kernel)
    assert np.isfinite(gradient).all()
    true = exactly(tree, h, kernel)[:, np.asarray(tree.leaves)]
    np.testing.assert_allclose(logs, true, rtol=3e-5, atol=1e-4)


@every_tree
def test_small_losses_keep_their_digits(name: str):
    """Along a path of certain steps: `1 − p` of each is far below the rounding of 1."""
    tree = TREES[name]
    label = np.full(1, tree.num_classes // 2, np.int32)
    one = np.ones((1, 1), np.float32)
    kernel = np.zeros((tree.num_rows, 1), np.float32)
    # The gradient at 0 is negative for what makes the label likelier.
    pull = hierarchical.row_gradients(one, kernel, label, tree)
    np.add.at(kernel, np.asarray(pull.rows), np.asarray(pull.values))
    kernel = -20 * np.sign(kernel)
    got = loss(one, kernel, label, tree)
    true = -exactly(tree, one, kernel)[:, np.asarray(tree.leaves)[label[0]]]
    np.testing.assert_allclose(got, true, rtol=2e-6)
    assert true[0] < 1e-5


def test_impossible_edges():
    """Each row at −inf, one after the other, against every class: no NaN beside a finite loss."""
    tree = hierarchical.tree_from_parents([-1, 0, 0, 0, 1, 1, 4, 4])
    classes, rows = tree.num_classes, tree.num_rows

    @jax.jit
    def run(bias: Any) -> Any:
        h, kernel = jnp.ones((classes, 2)), jnp.ones((rows, 2))

        def total(h: Any, kernel: Any, bias: Any) -> Any:
            each = loss(h, kernel, jnp.arange(classes), tree, node_bias=bias)
            return jnp.sum(jnp.where(jnp.isfinite(each), each, 0)), each

        gradients, each = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(h, kernel, bias)
        return each, gradients

    for row in range(rows):
        bias = np.zeros(rows, np.float32)
        bias[row] = -np.inf
        each, gradients = run(bias)
        assert not np.isnan(each).any()
        assert np.isfinite(each).any()
        for gradient in gradients:
            assert np.isfinite(gradient).all()


def test_memory_follows_the_width_of_each_level():
    """A wide node beside a deep way: padded to the widest, every level would be as wide."""
    parents = [-1, *[0] * 500]
    for _ in range(20):
        parents += [len(parents) - 1] * 2
    tree = hierarchical.tree_from_parents(parents)

    def run(h: Any, kernel: Any, y: Any) -> Any:
        return jnp.sum(loss(h, kernel, y, tree))

    h, kernel, y = jnp.ones((256, 8)), jnp.ones((tree.num_rows, 8)), jnp.zeros(256, jnp.int32)
    memory = jax.jit(jax.grad(run, argnums=(0, 1))).lower(h, kernel, y).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 10 * 4 * 256 * (500 + 20 * 2 * 8)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("huffman", np.int8), ("huffman", np.uint8), ("huffman", np.int64), ("taxonomy", np.int32)],
)
def test_label_policy(name: str, dtype: Any):
    tree = TREES[name]
    h, kernel, bias, _ = draw(tree)
    last = tree.num_classes - 1
    labels = np.array([0, last, 3, 2, last + 1, 127, 3, 1, 2]).astype(dtype)
    bad = (labels > last) | (labels < 0)

    def total(h: Any) -> Any:
        each = loss(h, kernel, labels, tree, node_bias=bias, ignore_index=3)
        return jnp.sum(jnp.where(bad, 0, each)), each

    dirty = np.where((labels == 3)[:, None], np.nan, h)
    d_h, each = jax.grad(total, has_aux=True)(dirty)
    np.testing.assert_array_equal(np.isnan(each), bad)
    np.testing.assert_array_equal(each[labels == 3], 0)
    np.testing.assert_array_equal(d_h[labels == 3], 0)
    assert np.isfinite(np.asarray(d_h)[~bad]).all()
    all_of_it = jax.grad(lambda h: jnp.sum(loss(h, kernel, labels, tree, ignore_index=3)))(dirty)
    np.testing.assert_array_equal(np.isnan(all_of_it).all(axis=1), bad)
    rows = hierarchical.row_gradients(dirty, kernel, labels, tree, ignore_index=3)
    np.testing.assert_array_equal(np.isnan(rows.loss), bad)
    np.testing.assert_array_equal(np.isnan(rows.d_hidden).all(axis=1), bad)


def test_negative_labels_are_nan():
    tree = TREES["huffman"]
    h, kernel, _, _ = draw(tree)
    labels = np.full(ROWS, -1)
    assert np.isnan(loss(h, kernel, labels, tree)).all()
    assert not np.asarray(loss(h, kernel, labels, tree, ignore_index=-1)).any()


@pytest.mark.parametrize("name", ["huffman", "taxonomy"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(name: str, dtype: Any):
    tree = TREES[name]
    h, kernel, bias, y = (jnp.asarray(x) for x in draw(tree))
    halves = [x.astype(dtype) for x in (h, kernel, bias)]
    wide = [x.astype(jnp.float32) for x in halves]

    def total(h: Any, kernel: Any, bias: Any) -> Any:
        return jnp.sum(loss(h, kernel, y, tree, node_bias=bias))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(*halves)
    true_value, true = jax.value_and_grad(total, argnums=(0, 1, 2))(*wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, true_value, rtol=1e-6)
    for got, expected in zip(gradients, true, strict=True):
        assert got.dtype == dtype
        # Rounded once.
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-6
        )


def test_tree_is_an_argument():
    """Of `jit`, without a new trace for another tree of the same form, and of `vmap`."""
    traces = []

    @jax.jit
    def run(tree: Tree, h: Any, kernel: Any, y: Any) -> Any:
        traces.append(None)
        return loss(h, kernel, y, tree)

    trees = [hierarchical.huffman_tree(np.roll([16, 8, 4, 2, 1, 1], i)) for i in range(2)]
    h, kernel, _, y = draw(trees[0])
    found = [run(tree, h, kernel, y) for tree in trees]
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    np.testing.assert_allclose(
        jax.vmap(lambda tree: loss(h, kernel, y, tree))(stacked), np.stack(found), rtol=1e-6
    )
    assert not np.allclose(found[0], found[1])


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_any_batch(shape: tuple[int, ...]):
    tree = TREES["taxonomy"]
    rng = np.random.default_rng(0)
    _, kernel, _, _ = draw(tree)
    h = rng.standard_normal((*shape, FEATURES)).astype(np.float32)
    y = rng.integers(0, tree.num_classes, shape)
    each = loss(h, kernel, y, tree)
    logs = log_softmax(h, kernel, tree)
    assert each.shape == shape
    assert logs.shape == (*shape, tree.num_classes)
    np.testing.assert_allclose(
        each, -np.take_along_axis(np.asarray(logs), y[..., None], -1)[..., 0], rtol=1e-5
    )
    got = hierarchical.row_gradients(h, kernel, y, tree)
    assert got.d_hidden.shape == h.shape
