"""Linear losses of special values: rows that do not count, labels of no class, infinities, NaN."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax.linear import linear_cross_entropy
from tests.linear_problem import CLASSES, close, draw


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_may_hold_anything(reduction: str):
    given = draw((5,))
    given["labels"] = np.array([0, -100, 2, 3, -100], np.int32)
    given["hidden"][[1, 4]] = np.nan

    def loss(hidden: Any, kernel: Any) -> Any:
        return linear_cross_entropy(
            hidden, kernel, given["labels"], ignore_index=-100, reduction=reduction, chunk_size=3
        )

    def kept(hidden: Any, kernel: Any) -> Any:
        rows = jsoftmax.cross_entropy(hidden[jnp.array([0, 2, 3])] @ kernel, jnp.array([0, 2, 3]))
        return jnp.mean(rows) if reduction == "mean" else jnp.sum(rows)

    operands = given["hidden"], given["kernel"]
    got = jax.value_and_grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(*operands)
    expected = jax.value_and_grad(kept, (0, 1))(*operands)
    close(got, expected)


@pytest.mark.parametrize("label", [-100, CLASSES])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_of_weight_0_may_hold_anything(reduction: str, label: int):
    """NaN, or a label of no class: nothing of it reaches a gradient, that of the weights neither."""
    given = draw((5,))
    given["labels"] = np.array([0, label, 2, 3, 1], np.int32)
    given["hidden"][4] = np.nan
    weights, kept = np.array([2, 0, 1, 0.5, 0], np.float32), np.array([0, 2, 3])

    def loss(hidden: Any, kernel: Any, weights: Any) -> Any:
        return linear_cross_entropy(
            hidden, kernel, given["labels"], weights=weights, reduction=reduction, chunk_size=3
        )

    def without(hidden: Any, kernel: Any, weights: Any) -> Any:
        rows = jsoftmax.cross_entropy(hidden[kept] @ kernel, given["labels"][kept])
        total = jnp.sum(weights[kept] * rows)
        return total / jnp.sum(weights[kept]) if reduction == "mean" else total

    operands = given["hidden"], given["kernel"], jnp.asarray(weights)
    got, expected = (
        jax.value_and_grad(lambda *x, f=f: jnp.sum(f(*x)), (0, 1, 2))(*operands)
        for f in (loss, without)
    )
    close(got, expected)


def test_everything_ignored():
    given = draw((3,)) | {"labels": np.full(3, -1, np.int32)}

    def loss(hidden: Any) -> Any:
        return linear_cross_entropy(hidden, given["kernel"], given["labels"], ignore_index=-1)

    value, gradient = jax.value_and_grad(loss)(given["hidden"])
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_of_no_class(label: int):
    given = draw((5,))
    given["labels"][3] = label

    def loss(hidden: Any, kernel: Any) -> Any:
        return linear_cross_entropy(hidden, kernel, given["labels"], reduction="none", chunk_size=2)

    operands = given["hidden"], given["kernel"]
    np.testing.assert_array_equal(np.isnan(loss(*operands)), np.arange(5) == 3)
    d_hidden, d_kernel = jax.grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(*operands)
    np.testing.assert_array_equal(np.isnan(d_hidden), np.arange(5)[:, None].repeat(3, 1) == 3)
    assert np.isnan(d_kernel).all()
    total = jax.grad(lambda h: linear_cross_entropy(h, operands[1], given["labels"]))(operands[0])
    assert np.isnan(total[3]).all()
    assert np.isfinite(total[0]).all()


INF = np.inf

BIASES = {
    "one impossible": [0, -INF, 1, 0, -INF],
    "first block impossible": [-INF, -INF, 3, 1, 2],
    "last block impossible": [3, 1, 2, -INF, -INF],
    "all impossible": [-INF] * 5,
    "one certain": [0, INF, 0, 0, -INF],
    "two certain": [INF, 0, 0, 0, INF],
    "nan": [0, 0, 0, np.nan, 0],
    "large offset": [1e6] * 5,
}


@pytest.mark.thin(4)
@pytest.mark.parametrize("mask", [None, [[True] * 5, [False] * 5, [True, False, True, True, False]]])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "label_smoothing": 0.2, "z_loss": 0.1}])
def test_special_values_as_dense(options: Any, soft: bool, mask: Any):
    """Two classes a block: what is special lies in one block, and the label in another."""
    rng = np.random.default_rng(0)
    h, k = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, 2), (2, 5)))
    labels = jnp.asarray(rng.dirichlet(np.ones(5), 3), jnp.float32) if soft else jnp.array([0, 4, 3])
    where = None if mask is None else jnp.asarray(mask)
    by = jnp.array([1.0, -2.0, 3.0])

    def blocks(h: Any, k: Any, b: Any) -> Any:
        loss = linear_cross_entropy(
            h, k, labels, bias=b, where=where, reduction="none", chunk_size=2, **options
        )
        return jnp.dot(by, loss), loss

    def dense(h: Any, k: Any, b: Any) -> Any:
        loss = jsoftmax.cross_entropy(h @ k + b, labels, where=where, **options)
        return jnp.dot(by, loss), loss

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True)) for f in (blocks, dense))
    for name, bias in BIASES.items():
        b = jnp.asarray(bias, jnp.float32)
        pairs = zip(jax.tree.leaves(got(h, k, b)), jax.tree.leaves(expected(h, k, b)), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5, err_msg=name)
