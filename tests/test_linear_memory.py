"""What linear losses take in memory, as XLA compiled them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from jsoftmax.linear import linear_cross_entropy

ROWS, FEATURES, CLASSES = 512, 32, 8192


def temp_bytes(function: Any) -> int:
    shapes = [(ROWS, FEATURES), (FEATURES, CLASSES)]
    operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    labels = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    analysis = jax.jit(function).lower(*operands, labels).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def walked(h: Any, k: Any, y: Any) -> Any:
    return linear_cross_entropy(h, k, y, chunk_size=16)


def walked_rows(h: Any, k: Any, y: Any) -> Any:
    rows = linear_cross_entropy(h, k, y, chunk_size=64, reduction="none")
    return jnp.sum(rows * jnp.arange(ROWS, dtype=jnp.float32))


# What the logits of a chunk take, of 16 rows or of 64 classes.
CHUNK = {walked: 16 * CLASSES * 4, walked_rows: ROWS * 64 * 4}


def naive(h: Any, k: Any, y: Any) -> Any:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ k, y))


KERNEL = FEATURES * CLASSES * 4


@pytest.mark.parametrize("loss", [walked, walked_rows])
def test_memory_is_that_of_a_chunk(loss: Any):
    chunk = CHUNK[loss]
    gradient = temp_bytes(jax.value_and_grad(loss, (0, 1)))
    tied = temp_bytes(jax.value_and_grad(lambda h, e, y: loss(h, e.reshape(CLASSES, -1).T, y), 0))

    def curvature(h: Any, k: Any, y: Any) -> Any:
        return jax.jvp(lambda k: jax.grad(loss, 1)(h, k, y), (k,), (k,))[1]

    def twice(h: Any, k: Any, y: Any) -> Any:
        return jax.grad(lambda k: jnp.sum(k * jax.grad(loss, 1)(h, k, y)))(k)

    assert temp_bytes(loss) < 3 * chunk
    assert gradient < 3 * chunk < temp_bytes(jax.value_and_grad(naive, (0, 1))) / 10
    assert tied < 3 * chunk + 2 * KERNEL
    assert temp_bytes(curvature) < 12 * chunk + 4 * KERNEL
    assert temp_bytes(twice) < 12 * chunk + 6 * KERNEL


def test_a_teachers_distributions_are_those_of_a_chunk():
    def taught(h: Any, k: Any, y: Any) -> Any:
        del y
        return linear_cross_entropy(h, k, (h, k), chunk_size=16)

    assert temp_bytes(taught) < 6 * CHUNK[walked]


@pytest.mark.thin(4)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("rows", "reduction", "chunk_size", "part"),
    [
        (1024, "none", None, 30),
        (1024, "mean", 16, 30),
        (1024, "mean", None, 5),
        (512, "mean", None, 5),
    ],
)
def test_a_part_of_the_logits(rows: int, reduction: str, chunk_size: int | None, part: int, dtype: Any):
    """Of what optax takes: a thirtieth with one value per row, a fifth for a mean, by default."""
    shapes = ((rows, 64), (64, 32_000))
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def loss(h: Any, k: Any, y: Any) -> Any:
        found = linear_cross_entropy(h, k, y, reduction=reduction, chunk_size=chunk_size)
        return jnp.sum(jnp.sin(found))

    def by_optax(h: Any, k: Any, y: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ k, y))

    ours, theirs = (
        jax.jit(jax.value_and_grad(f, (0, 1))).lower(*operands, labels).compile().memory_analysis()
        for f in (loss, by_optax)
    )
    assert ours is not None
    assert theirs is not None
    if part == 5 and jax.__version_info__ < (0, 10):
        # There, XLA:CPU gives the logits of a chunk and their gradient a buffer each.
        part = 2
    assert ours.temp_size_in_bytes < theirs.temp_size_in_bytes / part
