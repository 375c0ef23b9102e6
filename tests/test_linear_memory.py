"""What linear losses take in memory, as XLA compiled them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from jsoftmax.linear import linear_cross_entropy
from tests.linear_problem import CHUNK, CLASSES_BIG, FEATURES_BIG, temp_bytes, walked, walked_rows


def naive(h: Any, k: Any, y: Any) -> Any:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ k, y))


KERNEL = FEATURES_BIG * CLASSES_BIG * 4


@pytest.mark.parametrize("loss", [walked, walked_rows])
def test_memory_is_that_of_a_chunk(loss: Any):
    chunk = CHUNK[loss]
    gradient = temp_bytes(jax.value_and_grad(loss, (0, 1)))
    tied = temp_bytes(jax.value_and_grad(lambda h, e, y: loss(h, e.reshape(CLASSES_BIG, -1).T, y), 0))

    def curvature(h: Any, k: Any, y: Any) -> Any:
        return jax.jvp(lambda k: jax.grad(loss, 1)(h, k, y), (k,), (k,))[1]

    def twice(h: Any, k: Any, y: Any) -> Any:
        return jax.grad(lambda k: jnp.sum(k * jax.grad(loss, 1)(h, k, y)))(k)

    assert temp_bytes(loss) < 3 * chunk
    assert gradient < 3 * chunk < temp_bytes(jax.value_and_grad(naive, (0, 1))) / 10
    assert tied < 3 * chunk + 2 * KERNEL
    assert temp_bytes(curvature) < 12 * chunk + 4 * KERNEL
    assert temp_bytes(twice) < 12 * chunk + 6 * KERNEL


@pytest.mark.parametrize(("rows", "reduction"), [(1024, "none"), (512, "mean")])
def test_a_thirtieth_of_the_logits(rows: int, reduction: str):
    """By default, with one value per row and with few rows."""
    shapes = ((rows, 64), (64, 32_000))
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def loss(h: Any, k: Any, y: Any) -> Any:
        return jnp.sum(jnp.sin(linear_cross_entropy(h, k, y, reduction=reduction)))

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands, labels).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 2 * rows * 32_000 * 4 / 30
