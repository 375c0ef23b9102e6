"""Digits of sums over millions of classes: blocks of them are not simply added one by one.

One score above a row of zeros is the hardest: each block adds the same, so each addition rounds the
same way. Truth in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax

AT = 17


def ulp(found: Any, true: float) -> float:
    return abs(float(found) - true) / float(np.spacing(np.float32(abs(true))))


def row(classes: int, top: float) -> jax.Array:
    return jnp.zeros(classes).at[AT].set(top)


DENSE: dict[str, Callable[[jax.Array], tuple[Any, Callable[[float, float], float]]]] = {
    "logsumexp": lambda z: (jsoftmax.logsumexp(z), lambda log_z, top: log_z),
    "log_softmax": lambda z: (jsoftmax.log_softmax(z)[AT], lambda log_z, top: top - log_z),
    "cross_entropy": lambda z: (jsoftmax.cross_entropy(z, AT), lambda log_z, top: log_z - top),
    "of another label": lambda z: (jsoftmax.cross_entropy(z, 0), lambda log_z, top: log_z),
    "soft": lambda z: (
        jsoftmax.cross_entropy(z, jnp.zeros_like(z).at[AT].set(1)),
        lambda log_z, top: log_z - top,
    ),
    "with its gradient": lambda z: (
        jax.value_and_grad(lambda z: jsoftmax.cross_entropy(z, AT))(z)[0],
        lambda log_z, top: log_z - top,
    ),
}


@pytest.mark.parametrize("top", [20.0, 3.0])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, top: float):
    """It was 27 ulp with a score of 20."""
    classes = 8_000_000
    found, true = DENSE[name](row(classes, top))
    assert ulp(found, true(math.log(math.exp(top) + classes - 1), top)) <= 2


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("top", [20.0, 9.0])
def test_linear(top: float, reduction: str):
    """Blocks of 512 were off by 365 ulp, and the gradient of the bias with them."""
    classes = 1_000_000
    hidden, kernel = jnp.zeros((1, 2)), jnp.zeros((2, classes))
    size = 512 if reduction == "none" else None

    def loss(bias: Any) -> Any:
        labels = jnp.array([AT])
        rows = jsoftmax.linear_cross_entropy(
            hidden, kernel, labels, bias=bias, reduction=reduction, chunk_size=size
        )
        return jnp.sum(rows)

    found, gradient = jax.value_and_grad(loss)(row(classes, top))
    true = math.log(math.exp(top) + classes - 1) - top
    assert ulp(found, true) <= 2
    assert ulp(gradient[AT], math.expm1(-true)) <= 3
    assert ulp(gradient[0], math.exp(-true - top)) <= 4
