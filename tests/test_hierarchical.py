"""The softmax over a tree: values and gradients on every kind of tree, labels, rows in place."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jsoftmax import hierarchical
from jsoftmax.hierarchical import Tree
from tests.oracles import hierarchical as oracle
from tests.truth import quick

pytestmark = pytest.mark.thin(3)


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
log_softmax = hierarchical.hierarchical_log_softmax


def draw(tree: Tree, seed: int = 0, size: float = 1.0) -> tuple[Any, Any, Any, Any]:
    """Hidden vectors, kernel and bias of float32 numbers, and labels."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((ROWS, FEATURES)).astype(np.float32),
        (size * rng.standard_normal((tree.num_rows, FEATURES))).astype(np.float32),
        rng.standard_normal(tree.num_rows).astype(np.float32),
        rng.integers(0, tree.num_classes, ROWS).astype(np.int32),
    )


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


@every_tree
@pytest.mark.parametrize("options", [(), ("node_bias", "class_weights", "weights", "ignore_index")])
def test_row_gradients_add_up_to_the_dense_gradient(name: str, options: tuple[str, ...]):
    tree = TREES[name]
    h, kernel, bias, y = draw(tree)
    rng = np.random.default_rng(2)
    all_options = {
        "node_bias": bias,
        "class_weights": rng.uniform(0.5, 2, tree.num_classes).astype(np.float32),
        "weights": rng.uniform(0.5, 2, ROWS).astype(np.float32),
        "ignore_index": int(y[0]),
    }
    given = {option: all_options[option] for option in options}
    weights = given.pop("weights", 1)
    got = hierarchical.row_gradients(h, kernel, y, tree, weights=weights, **given)
    bias = given.pop("node_bias", None)

    def total(h: Any, parameters: Any) -> Any:
        each = loss(h, parameters[0], y, tree, node_bias=parameters[1], **given)
        return jnp.sum(weights * each), each

    (_, each), (d_h, dense) = quick(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        h, (kernel, bias)
    )
    np.testing.assert_allclose(got.loss, each, rtol=1e-6)
    np.testing.assert_allclose(got.d_hidden, d_h, rtol=1e-5, atol=1e-6)
    values = (got.values, None) if bias is None else got.values
    for value, expected in zip(values, dense, strict=True):
        if value is not None:
            summed = jnp.zeros_like(expected).at[got.rows].add(value)
            np.testing.assert_allclose(summed, expected, rtol=1e-5, atol=1e-6)


def trained(optimizer: Any, steps: int, with_bias: bool, every_row: bool = False) -> tuple[Any, Any]:
    """Some steps by rows, and as many with optax and the dense gradient."""
    tree = TREES["balanced by 3" if every_row else "huffman"]
    rows, dense = optimizer
    h, kernel, bias, _ = draw(tree)
    start = (kernel, bias) if with_bias else kernel
    init, update = rows
    ours, ours_state = jax.tree.map(jnp.asarray, start), init(start)
    theirs, theirs_state = ours, dense.init(ours)
    classes = tree.num_classes

    def parts(parameters: Any) -> dict[str, Any]:
        pair = parameters if with_bias else (parameters, None)
        return {"node_kernel": pair[0], "node_bias": pair[1]}

    def total(parameters: Any, x: Any, y: Any) -> Any:
        return jnp.sum(loss(x, labels=y, tree=tree, **parts(parameters)))

    gradient_of, update = jax.jit(jax.grad(total)), jax.jit(update)
    for step in range(steps):
        y = np.random.default_rng(step).integers(0, classes, ROWS) if not every_row else None
        x, y = (h, y) if y is not None else (np.resize(h, (classes, FEATURES)), np.arange(classes))

        got = hierarchical.row_gradients(x, labels=y, tree=tree, **parts(ours))
        updates, ours_state = update(got.values, ours_state, got.rows)
        ours = hierarchical.apply_row_updates(ours, got.rows, updates)
        gradient = gradient_of(theirs, x, y)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam multiplies floats with integers
            updates, theirs_state = dense.update(gradient, theirs_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    return ours, theirs


def falling(step: Any) -> Any:
    return 0.1 / (1.0 + jnp.asarray(step, jnp.float32))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "every_row"),
    [
        ((hierarchical.row_sgd(0.1), optax.sgd(0.1)), False),
        ((hierarchical.row_sgd(falling), optax.sgd(falling)), False),
        ((hierarchical.row_adagrad(0.1), optax.adagrad(0.1)), False),
        # A lazy Adam is Adam where every row is touched.
        ((hierarchical.row_adam(0.1), optax.adam(0.1)), True),
    ],
    ids=["sgd", "schedule", "adagrad", "adam"],
)
def test_optimizers_do_what_optax_does(optimizer: Any, every_row: bool, with_bias: bool):
    ours, theirs = trained(optimizer, 4, with_bias, every_row)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


def test_adam_leaves_other_rows_alone():
    tree = TREES["huffman"]
    h, kernel, _, _ = draw(tree)
    init, update = hierarchical.row_adam(0.1)
    state = init(kernel)
    for y in (np.zeros(ROWS, np.int32), np.full(ROWS, tree.num_classes - 1, np.int32)):
        before = state
        got = hierarchical.row_gradients(h, kernel, y, tree)
        updates, state = update(got.values, before, got.rows)
        touched = np.isin(np.arange(tree.num_rows), got.rows)
        for old, new in zip(before[1:], state[1:], strict=True):
            np.testing.assert_array_equal(np.asarray(old)[~touched], np.asarray(new)[~touched])
        changed = np.asarray(hierarchical.apply_row_updates(kernel, got.rows, updates)) != kernel
        np.testing.assert_array_equal(changed.any(axis=1) & ~touched, False)


@pytest.mark.parametrize("optimizer", [hierarchical.row_adagrad, hierarchical.row_adam])
def test_rows_that_are_none_are_left_out(optimizer: Any):
    init, update = optimizer(0.1)
    kernel, values = jnp.zeros((3, 2)), jnp.ones((4, 2))
    rows = jnp.array([-1, 2, 3, 2])
    updates, state = update(values, init(kernel), rows)
    alone, alone_state = update(values[1::2], init(kernel), rows[1::2])
    np.testing.assert_array_equal(
        hierarchical.apply_row_updates(kernel, rows, updates),
        hierarchical.apply_row_updates(kernel, rows[1::2], alone),
    )
    jax.tree.map(np.testing.assert_array_equal, state, alone_state)
    np.testing.assert_array_equal(hierarchical.apply_row_updates(kernel, rows, values)[:, 0], [0, 0, 2])


@pytest.mark.parametrize("optimizer", [hierarchical.row_sgd, hierarchical.row_adagrad])
def test_step_in_place(optimizer: Any):
    """A donated kernel and state are updated where they are: no second array of their size."""
    tree = hierarchical.balanced_tree(1 << 14)
    init, update = optimizer(0.1)
    kernel = jnp.zeros((tree.num_rows, 64))
    state, h, y = init(kernel), jnp.ones((8, 64)), jnp.arange(8)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(kernel: Any, state: Any, h: Any, y: Any, tree: Tree) -> Any:
        got = hierarchical.row_gradients(h, kernel, y, tree)
        updates, state = update(got.values, state, got.rows)
        return hierarchical.apply_row_updates(kernel, got.rows, updates), state

    memory = step.lower(kernel, state, h, y, tree).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= kernel.nbytes
    assert memory.temp_size_in_bytes < kernel.nbytes / 8
    step(kernel, state, h, y, tree)
    assert kernel.is_deleted()


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
