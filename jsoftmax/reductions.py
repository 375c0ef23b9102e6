"""From one value per row to one number: the mean that adds up over microbatches and devices.

What a loss with a `reduction` of its own multiplies its rows with is settled here too.

Imports `_labels`, `_pytrees`, `_numerics`, `_checks`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices
from jsoftmax._numerics import accumulator, row, sharded_like, weighed
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike

REDUCTIONS = ("mean", "sum", "none")


@takes_arrays
def weighted_mean(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    denominator: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Weighted mean of per-row values; 0 where nothing has weight.

    .. math:: \frac{\sum_i w_i v_i}{\sum_i w_i}

    A mean of means over microbatches or devices weighs their rows unequally. Pass the sum of the
    weights of the whole step as `denominator` and add up the results instead.

    Args:
        values: Floating, any shape `[*batch]`.
        weights: `[*batch]`, of any real or bool dtype; 1 each by default. A row of weight 0 does not
            count, even where its value is inf or NaN.
        denominator: What to divide by, a scalar, in place of the sum of the weights.
        axis_name: A mesh axis that shards the rows inside `shard_map` or `vmap`: numerator and
            weights are summed over it; a given `denominator` counts as global already.

    Returns:
        A scalar of float32 or wider; 0 where the denominator is 0.

    Gradient: `w / Σw` in `values`, and in `weights` and `denominator`. Every AD mode. The loss that
    made a NaN may still give a NaN gradient, for a gradient of 0: leave such a row out there, by
    `ignore_index` or `weights`.

    Raises:
        TypeError: If `values` is not floating.
        ValueError: If `weights` has another shape or `denominator` is not a scalar.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import weighted_mean
        >>> print(weighted_mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([3, 1, 0])))
        1.25

    References:
        The defect it avoids: huggingface/transformers issue 34242, gradient accumulation.
    """
    array = _checks.array("weighted_mean", "values", values)
    _checks.floating("weighted_mean", "values", array)
    if weights is not None:
        _checks.weights("weighted_mean", weights, array.shape, "like values")
    if denominator is not None:
        _checks.scalar("weighted_mean", "denominator", denominator)
    return _weighted_mean(array, weights, denominator, axis_name)


@compiled("axis_name")
def _weighted_mean(
    values: Array, weights: Array | None, denominator: ArrayLike | None, axis_name: str | None
) -> Array:
    dtype = accumulator(values.dtype)
    w = jnp.ones_like(values, dtype) if weights is None else jnp.asarray(weights).astype(dtype)
    sums = jnp.sum(weighed(w, values.astype(dtype))), jnp.sum(w)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    by = sums[1] if denominator is None else jnp.asarray(denominator, dtype)
    return _quotient(sums[0], by)


def _quotient(x: Array, by: Array) -> Array:
    """`x / by`, and 0 for a mean of nothing."""
    return jnp.where(by == 0, 0, x / jnp.where(by == 0, 1, by))


def check_reduction(
    function: str, reduction: str, weights: ArrayLike | None, denominator: Any, hidden: Array
) -> None:
    """Refuses an unknown reduction, weights that are not one per row, a denominator of no mean."""
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    if weights is not None:
        _checks.weights(function, weights, hidden.shape[:-1], f"to match hidden {list(hidden.shape)}")
    if denominator is not None:
        _checks.scalar(function, "denominator", denominator)
        if reduction != "mean":
            raise ValueError(
                f"{function}: denominator must be None for reduction {reduction!r}, got "
                f"{denominator!r}; divide the result."
            )


def row_shares(
    hidden: Array,
    labels: Any,
    classes: int,
    weights: ArrayLike | None,
    ignored: Array | None,
    reduction: str,
    denominator: ArrayLike | None,
    dtype: Any,
) -> tuple[Array, Any, Array | None]:
    """What to multiply the loss of each row with, or none, beside what the row then is.

    A row of weight 0 with a NaN in `hidden`, or with a class index that is no class, becomes one of
    zeros and of class 0: as in an ignored row, 0 · NaN would reach the gradient of what rows share.

    A mean is scaled before the rows are walked over, so that the gradient that is made on the way is
    the one asked for.
    """
    w = None
    if weights is not None:
        w = sharded_like(jnp.asarray(weights).astype(dtype), hidden)
        indices = isinstance(labels, jax.Array) and are_indices(labels)
        wrong = (labels < 0) | (labels >= classes) if indices else False
        spoiled = (w == 0) & (~jnp.all(jnp.isfinite(hidden), axis=-1) | wrong)
        hidden = jnp.where(row(spoiled), 0, hidden)
        labels = jnp.where(spoiled, 0, labels) if indices else labels
        # No derivative either: that of a row which is not the one given would be.
        w = jnp.where(spoiled, 0, w)
    if reduction == "mean":
        count = jnp.ones(hidden.shape[:-1], dtype) if w is None else w
        count = count if ignored is None else jnp.where(ignored, 0, count)
        w = _quotient(count, jnp.sum(count) if denominator is None else jnp.asarray(denominator, dtype))
    return hidden, labels, w
