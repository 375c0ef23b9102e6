"""A small problem of linear losses, and the dense loss that they are held to."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax

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
