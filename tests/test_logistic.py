"""The sigmoid's cross-entropy: its digits, and that it stores nothing on the way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import losses
from tests.oracles.ulp import ulp_error


def costs(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cost and slope in extended precision."""
    x, y = np.asarray(x, np.longdouble), np.asarray(y, np.longdouble)
    both_ways = np.log1p(np.exp(-np.abs(x)))
    yes, no = np.maximum(-x, 0) + both_ways, np.maximum(x, 0) + both_ways
    return y * yes + (1 - y) * no, (1 - y) * np.exp(-yes) - y * np.exp(-no)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("scale", [1e-4, 3.0, 25.0])
def test_digits(scale: float, kind: str):
    rng = np.random.default_rng(int(scale))
    x = (scale * rng.standard_normal(20_000)).astype(np.float32)
    y = rng.random(20_000, np.float32)
    y = np.round(y) if kind == "hard" else y
    value, pull = jax.vjp(lambda x: losses.sigmoid_binary_cross_entropy(x, y), x)
    cost, slope = costs(x, y)
    kept = np.abs(x) < 80  # Beyond, costs are next to the smallest numbers that there are.
    assert ulp_error(np.asarray(value), cost)[kept].max() <= 4
    if kind == "hard":  # Where a soft label meets its own probability, the slope cancels.
        slopes = np.asarray(pull(jnp.ones_like(x))[0])
        assert ulp_error(slopes, slope)[kept].max() <= 4


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_rows(weighted: bool):
    x, y = jnp.linspace(-5.0, 5.0, 10), jnp.linspace(0.0, 1.0, 10)
    w = jnp.linspace(0.5, 2.0, 10) if weighted else None

    def by_rule(x: Any, y: Any) -> Any:
        return jnp.sum(losses.multilabel_cross_entropy(x, y, pos_weight=w))

    def formula(x: Any, y: Any) -> Any:
        weight = 1 if w is None else w
        return jnp.sum(weight * y * jnp.logaddexp(0.0, -x) + (1 - y) * jnp.logaddexp(0.0, x))

    for argument in (0, 1):
        np.testing.assert_allclose(
            jax.grad(by_rule, argument)(x, y), jax.grad(formula, argument)(x, y), 1e-5, 1e-6
        )


def temp_of(function: Any, dtype: str) -> int:
    """Bytes that the compiled function takes besides what goes in and comes out."""
    z = jax.ShapeDtypeStruct((512, 1000), dtype)
    analysis: Any = jax.jit(function).lower(z, z).compile().memory_analysis()
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_take_no_memory(dtype: str):
    """No more than the value of the textbook's formula alone: nothing, but for old compilers."""

    def loss(z: Any, y: Any) -> Any:
        return jnp.mean(losses.sigmoid_binary_cross_entropy(z, y))

    def textbook(z: Any, y: Any) -> Any:
        return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))))

    spare = 0.02 * 512 * 1000 * 4
    assert temp_of(jax.value_and_grad(loss), dtype) <= temp_of(textbook, "float32") + spare
