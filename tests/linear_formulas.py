"""The formulas of `jsoftmax.linear` in plain JAX, all logits in memory; no jsoftmax here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests import formulas


def logits(hidden: Any, kernel: Any, bias: Any = None) -> Any:
    z = hidden @ kernel
    return z if bias is None else z + bias


def linear_cross_entropy(
    hidden: Any,
    kernel: Any,
    labels: Any,
    *,
    bias: Any = None,
    weights: Any = None,
    denominator: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    **options: Any,
) -> Any:
    z = logits(hidden, kernel, bias)
    loss = formulas.cross_entropy(z, labels, ignore_index=ignore_index, **options)
    w = jnp.ones_like(loss) if weights is None else weights
    if reduction == "none":
        return w * loss
    counting = w if ignore_index is None else jnp.where(labels == ignore_index, 0, w)
    total = jnp.sum(w * loss)
    if reduction == "sum":
        return total
    return total / (jnp.sum(counting) if denominator is None else denominator)


def taught_cross_entropy(
    hidden: Any, kernel: Any, teacher_hidden: Any, teacher_kernel: Any, where: Any, **options: Any
) -> Any:
    labels = jax.nn.softmax(logits(teacher_hidden, teacher_kernel), where=where)
    return linear_cross_entropy(hidden, kernel, labels, reduction="none", where=where, **options)


def linear_row_stats(hidden: Any, kernel: Any, labels: Any, *, bias: Any = None, **options: Any) -> Any:
    return formulas.row_stats(logits(hidden, kernel, bias), labels, **options)


def squared_distance(logits: Any, targets: Any, scale: Any) -> Any:
    """A loss that is no softmax: for `chunked`."""
    return jnp.sum(jnp.square(jnp.tanh(scale * logits) - targets), axis=-1)


def linear_squared_distance(hidden: Any, kernel: Any, targets: Any, *, bias: Any, scale: Any) -> Any:
    return squared_distance(logits(hidden, kernel, bias), targets, scale)
