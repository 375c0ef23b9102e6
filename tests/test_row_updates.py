"""Gradients as rows of the kernel, and optimizers that touch no others."""

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
from tests.hierarchical_problem import FEATURES, ROWS, TREES, draw, every_tree, loss
from tests.truth import quick

pytestmark = pytest.mark.thin(6)


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


@every_tree
@pytest.mark.parametrize("options", [(), ("node_bias", "class_weights", "weights", "ignore_index")])
def test_groups_are_their_vectors_one_by_one(name: str, options: tuple[str, ...]):
    """Also in two batch axes, and with labels that are no class."""
    tree, rng = TREES[name], np.random.default_rng(3)
    _, kernel, bias, y = draw(tree)
    y = np.append(y[:5], -7).reshape(2, 3)
    h = rng.standard_normal((2, 3, 4, FEATURES)).astype(np.float32)
    all_options = {
        "node_bias": bias,
        "class_weights": rng.uniform(0.5, 2, tree.num_classes).astype(np.float32),
        "weights": rng.uniform(0.5, 2, (2, 3, 4)).astype(np.float32),
        "ignore_index": int(y[0, 0]),
    }
    given = {option: all_options[option] for option in options}
    got = hierarchical.row_gradients(h, kernel, y, tree, grouped=True, **given)
    each = hierarchical.row_gradients(h, kernel, np.repeat(y[..., None], 4, -1), tree, **given)
    np.testing.assert_allclose(got.loss, each.loss, rtol=1e-6)
    np.testing.assert_allclose(got.d_hidden, each.d_hidden, rtol=1e-5, atol=1e-6)

    def summed(values: Any, rows: Any) -> Any:
        return jnp.zeros((tree.num_rows, *values.shape[1:])).at[rows].add(values)

    for ours, theirs in zip(jax.tree.leaves(got.values), jax.tree.leaves(each.values), strict=True):
        expected = summed(theirs, each.rows)
        np.testing.assert_allclose(summed(ours, got.rows), expected, rtol=1e-5, atol=2e-6)


def test_groups_under_transforms():
    """A derivative of the gradient, and vmap, as of single vectors."""
    tree = TREES["huffman"]
    _, kernel, _, y = draw(tree)
    y, h = y[:3], np.random.default_rng(4).standard_normal((3, 2, FEATURES)).astype(np.float32)

    def pulled(h: Any, y: Any, grouped: bool) -> Any:
        got = hierarchical.row_gradients(h, kernel, y, tree, grouped=grouped)
        summed = jnp.zeros_like(kernel).at[got.rows].add(got.values)
        return got.loss, got.d_hidden, summed

    def single(h: Any, y: Any) -> Any:
        return pulled(h, jnp.repeat(y[..., None], 2, -1), False)

    read = hierarchical.row_gradients(h, kernel, y, tree, grouped=True).rows
    assert set(read.tolist()) <= set(range(tree.num_rows))
    assert read.size <= 3 * tree.depth
    grouped = functools.partial(pulled, grouped=True)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
    tangents = jax.jvp(lambda h: grouped(h, y), (h,), (h[::-1],))
    jax.tree.map(close, tangents, jax.jvp(lambda h: single(h, y), (h,), (h[::-1],)))
    h, y = np.stack([h, 2 * h]), np.stack([y, y[::-1]])
    jax.tree.map(close, jax.vmap(grouped)(h, y), jax.vmap(single)(h, y))


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


@pytest.mark.thin(1)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_rows_of_any_integer_dtype(dtype: Any):
    """Padding by −1 too, in a table of more rows than the dtype counts."""
    rows = np.array([5, 100, 5, 7]).astype(dtype)
    left_out = rows.copy()
    left_out[1] = -1 if np.issubdtype(dtype, np.signedinteger) else 100
    kernel, updates = jnp.zeros((300, 2)), jnp.ones((4, 2))
    optimizer = hierarchical.row_adagrad(1.0, initial_accumulator_value=1.0, eps=0.0)
    got = hierarchical.apply_row_updates(kernel, left_out, updates)
    expected = np.zeros((300, 2))
    expected[[5, 7]], expected[100] = [[2, 2], [1, 1]], float(left_out[1] == 100)
    np.testing.assert_array_equal(got, expected)
    scaled, (_, sums) = optimizer.update(updates, optimizer.init(kernel), jnp.asarray(left_out))
    np.testing.assert_array_equal(np.asarray(sums), 1 + expected**2)
    got = hierarchical.apply_row_updates(kernel, left_out, scaled)
    np.testing.assert_allclose(got, -expected / np.sqrt(1 + expected**2), rtol=1e-6)


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
