"""A small problem of linear losses, and the dense loss that they are held to."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from jsoftmax.linear import linear_cross_entropy

FEATURES, CLASSES = 3, 5


def draw(rows: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "hidden": rng.standard_normal((*rows, FEATURES)).astype(np.float32),
        "kernel": rng.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, rows).astype(np.int32),
    }


def dense(
    hidden: Any,
    kernel: Any,
    labels: Any,
    bias: Any = 0.0,
    weights: Any = None,
    ignore_index: int | None = None,
    **options: Any,
) -> jax.Array:
    z = hidden @ kernel + bias
    loss = jsoftmax.cross_entropy(z, labels, ignore_index=ignore_index, **options)
    return loss if weights is None else weights * loss


def close(got: Any, expected: Any, rtol: float = 2e-5) -> None:
    scale = max(1.0, *(float(jnp.max(jnp.abs(x), initial=0)) for x in jax.tree.leaves(expected)))
    chex.assert_trees_all_close(got, expected, rtol=rtol, atol=rtol * scale)


ROWS_BIG, FEATURES_BIG, CLASSES_BIG = 512, 32, 8192


def temp_bytes(function: Any) -> int:
    shapes = [(ROWS_BIG, FEATURES_BIG), (FEATURES_BIG, CLASSES_BIG)]
    operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    labels = jax.ShapeDtypeStruct((ROWS_BIG,), jnp.int32)
    analysis = jax.jit(function).lower(*operands, labels).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def walked(h: Any, k: Any, y: Any) -> Any:
    return linear_cross_entropy(h, k, y, chunk_size=16)


def walked_rows(h: Any, k: Any, y: Any) -> Any:
    rows = linear_cross_entropy(h, k, y, chunk_size=64, reduction="none")
    return jnp.sum(rows * jnp.arange(ROWS_BIG, dtype=jnp.float32))


# What the logits of a chunk take, of 16 rows or of 64 classes.
CHUNK = {walked: 16 * CLASSES_BIG * 4, walked_rows: ROWS_BIG * 64 * 4}
