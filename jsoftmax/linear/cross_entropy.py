"""Cross-entropy and row statistics of `hidden @ kernel + bias`, by the formulas of `dense`.

Imports `chunked`, `_blocks`, `_options`, `_walk`, `dense`, `statistics`, `reductions`, `transforms`,
`_labels`, `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import num_classes, settle
from jsoftmax._numerics import accumulator, weighed
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.dense import (
    loss_numbers,
    losses_of,
    row_losses,
    statistics_of_rows,
    stats_of,
    wanted_of,
    wanted_statistics,
    with_last_temperature,
)
from jsoftmax.linear._blocks import block_size, in_blocks, row_numbers
from jsoftmax.linear._options import Dealt, checked_labels, checked_transform, counting, put_together
from jsoftmax.linear._walk import common, without
from jsoftmax.linear.chunked import check_chunks, check_product, walked
from jsoftmax.reductions import check_reduction, row_shares
from jsoftmax.statistics import NEEDS, Reduction, RowStats
from jsoftmax.transforms import LogitTransform

# With a kernel of 16 bits, the sum over chunks of its gradient is in 32 bits, twice its size: for so
# few rows, and for chunks of fewer rows than the other, blocks of classes need less.
_FEW_ROWS, _SMALL_CHUNK = 512, 256


@takes_arrays
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    transform: LogitTransform | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: ArrayLike | None = None,
    chunk_size: int | None = None,
    accum_dtype: Any = None,
    axis_name: str | None = None,
) -> Array:
    r"""Cross-entropy of the softmax of `hidden @ kernel + bias`, which is never held as a whole.

    .. math:: \frac{\sum_i w_i \, \ell(\text{hidden}_i \cdot \text{kernel} + \text{bias}, y_i)}
        {\sum_i w_i}

    with `ℓ` of `cross_entropy`. A mean or a sum walks over chunks of rows and makes its gradient
    together with the value, in three matrix products. One value per row walks over blocks of classes,
    in the least memory, and makes the logits again for the gradient: four. Without differentiation
    there is one product.

    Args:
        hidden: `[*batch, features]`, floating.
        kernel: `[features, classes]`, floating; `embedding.T` costs no copy.
        labels: Class indices `[*batch]`, or distributions `[*batch, classes]` of a floating dtype, or
            a teacher's `(hidden, kernel)`: the softmax of its product, made in chunks of rows as well.
            Divide its hidden vectors by a temperature, if it has one.
        bias: `[classes]`.
        where: Which classes take part: bool, broadcastable to `[*batch, classes]`.
        temperature: As in `cross_entropy`, and so are `softcap`, `label_smoothing`, `z_loss`,
            `class_weights`, `ignore_index` and `transform`.
        softcap: `c > 0`.
        label_smoothing: `ε` in [0, 1].
        z_loss: The coefficient of `log² Z`.
        class_weights: `[classes]`.
        ignore_index: The label of rows that do not count, whatever `hidden` holds there.
        transform: A `LogitTransform`. Those of its arrays with the shape `[*batch]` are one number
            per row, all others the same for all rows.
        weights: `w [*batch]`, of any real or bool dtype; 1 each by default. A row of weight 0 is left
            out, whatever `hidden` holds there and whatever its class index is.
        reduction: "mean", "sum" (`Σ w ℓ`) or "none" (`w ℓ`, `[*batch]`).
        denominator: What a mean is divided by, a scalar, in place of the sum of the weights of the
            rows that count.
        chunk_size: The rows of a chunk at most; by default a quarter of them (of 16 bits a fifth) up to
            512, an eighth of more than 4096, and no fewer than 128, or than make 2²² logits. For "none"
            the classes of a block, by default a 128th of them, and no fewer than 256, or than make 2¹⁸
            logits. With a kernel of 16 bits, chunks of fewer than 256 rows, and by default 512 rows or
            fewer, are walked over in blocks of classes too, with no more logits; so is a number of rows
            that is a symbol, unless this or `accum_dtype` is given. With a teacher, and on a mesh left
            to the compiler or sharded explicitly, all walk over rows.
        accum_dtype: The dtype in which the gradients of `kernel` and `bias` are summed over chunks of
            rows; float32 or wider by default.
        axis_name: The mesh axis that shards the classes inside `shard_map`: `kernel`, `bias`,
            `where`, `class_weights` and distributions are local shards, class indices are global.

    Returns:
        A scalar or `[*batch]`, in nats, float32 or wider, as `cross_entropy` of the logits gives it:
        NaN, and NaN gradients, for an index outside [0, classes). A mean of nothing is 0.

    Gradient: that of the formula, in every floating argument; that of `kernel` is NaN if a row's is.
    Every AD mode and order, in the memory of a few chunks (the gradient of a `jvp` over blocks: of
    all logits and more; take the `jvp` of the gradient).

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit each other or options out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import linear_cross_entropy
        >>> hidden, kernel = jnp.ones((2, 3)), jnp.eye(3, 5)
        >>> labels = jnp.array([0, 4])
        >>> print(linear_cross_entropy(hidden, kernel, labels).round(4))
        1.818
        >>> print(jax.grad(linear_cross_entropy)(hidden, kernel, labels).round(3)[1])
        [0.134 0.134 0.134]

    References:
        Wijmans et al., Cut your losses in large-vocabulary language models, 2024; Hsu et al., Liger
        kernel, 2024.
    """
    name = "linear_cross_entropy"
    hidden, kernel = check_product(name, hidden, kernel, bias)
    labels, ignore_index = checked_labels(name, hidden, kernel, labels, where, ignore_index)
    batch, classes = hidden.shape[:-1], kernel.shape[1]
    transform = checked_transform(name, transform, softcap, batch, classes)
    transform, t = with_last_temperature(name, transform, temperature, batch)
    smoothing, z_coefficient = loss_numbers(name, label_smoothing, z_loss)
    if class_weights is not None:
        _checks.vector(name, "class_weights", class_weights, "classes", classes)
    check_reduction(name, reduction, weights, denominator, hidden)
    check_chunks(name, chunk_size, accum_dtype)
    return _linear_cross_entropy(
        hidden,
        kernel,
        labels,
        bias,
        where,
        t,
        transform,
        smoothing,
        z_coefficient,
        class_weights,
        ignore_index,
        weights,
        denominator,
        reduction=reduction,
        chunk_size=None if chunk_size is None else int(chunk_size),
        accum_dtype=None if accum_dtype is None else jnp.dtype(accum_dtype),
        axis_name=axis_name,
    )


@takes_arrays
def linear_row_stats(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    ignore_index: int | None = None,
    transform: LogitTransform | None = None,
    statistics: tuple[str, ...] | None = None,
    chunk_size: int | None = None,
    accum_dtype: Any = None,
    axis_name: str | None = None,
) -> RowStats:
    r"""`row_stats` of `hidden @ kernel + bias`, which is never held as a whole.

    Args:
        hidden: `[*batch, features]`, floating.
        kernel: `[features, classes]`, floating.
        labels: Class indices `[*batch]`, distributions `[*batch, classes]`, or a teacher's
            `(hidden, kernel)`.
        bias: `[classes]`.
        where: As in `row_stats`, and so are `temperature`, `softcap`, `ignore_index`, `transform`
            and `statistics`.
        temperature: `T ≥ 0`.
        softcap: `c > 0`.
        ignore_index: The label of rows that do not count, whatever `hidden` holds there.
        transform: A `LogitTransform`; see `linear_cross_entropy`.
        statistics: The names of the fields to compute; all by default. Name those you need: outside
            `jit` an unused one costs time.
        chunk_size: The classes of a block; see "none" of `linear_cross_entropy`.
        accum_dtype: The dtype in which the gradients of `kernel` and `bias` are summed.
        axis_name: The mesh axis that shards the classes.

    Returns:
        A `RowStats` of `[*batch]` arrays; an ignored row's are those of logits equal to the bias.

    Gradient: of every floating field in every floating argument. Every AD mode and order; memory as
    `linear_cross_entropy` has it for "none".

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit each other or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import linear_row_stats
        >>> s = linear_row_stats(jnp.ones((1, 2)), jnp.eye(2, 3), jnp.array([0]))
        >>> print(s.nll.round(4), s.entropy.round(4), s.correct)
        [0.862] [1.0174] [ True]
    """
    name = "linear_row_stats"
    hidden, kernel = check_product(name, hidden, kernel, bias)
    labels, ignore_index = checked_labels(name, hidden, kernel, labels, where, ignore_index)
    batch, classes = hidden.shape[:-1], kernel.shape[1]
    transform = checked_transform(name, transform, softcap, batch, classes)
    transform, t = with_last_temperature(name, transform, temperature, batch)
    check_chunks(name, chunk_size, accum_dtype)
    return _linear_row_stats(
        hidden,
        kernel,
        labels,
        bias,
        where,
        t,
        transform,
        ignore_index,
        statistics=wanted_statistics(name, statistics),
        chunk_size=None if chunk_size is None else int(chunk_size),
        accum_dtype=None if accum_dtype is None else jnp.dtype(accum_dtype),
        axis_name=axis_name,
    )


def _blocks_of(
    n: Any, kernel: Array, reduction: str, chunk_size: int | None, accum_dtype: Any
) -> tuple[bool, int | None]:
    """Whether to walk over blocks of classes, and the columns of one, if they are asked for."""
    if reduction == "none" or accum_dtype is not None:
        return reduction == "none", chunk_size
    if not isinstance(n, int):
        return chunk_size is None, None
    narrow = kernel.dtype.itemsize == 2
    if chunk_size is None:
        return narrow and n <= _FEW_ROWS, None
    columns = min(chunk_size * kernel.shape[1] // max(n, 1), block_size(n, kernel.shape[1], None))
    return narrow and chunk_size < min(n, _SMALL_CHUNK), max(1, columns)


@compiled("reduction", "chunk_size", "accum_dtype", "axis_name")
def _linear_cross_entropy(
    hidden: Array,
    kernel: Array,
    labels: Any,
    bias: Any,
    where: Any,
    temperature: Any,
    transform: Any,
    smoothing: Any,
    z_loss: Any,
    class_weights: Any,
    ignore_index: Any,
    weights: Any,
    denominator: Any,
    *,
    reduction: str,
    chunk_size: int | None,
    accum_dtype: Any,
    axis_name: str | None,
) -> Array:
    hidden, labels, ignored = counting(hidden, labels, ignore_index)
    classes, dtype = num_classes(kernel, axis_name), accumulator(common(hidden.dtype, kernel.dtype))
    hidden, labels, w = row_shares(
        hidden, labels, classes, weights, ignored, reduction, denominator, dtype
    )
    options = Dealt(hidden, labels, where, temperature, transform)
    rows = math.prod(hidden.shape[:-1])
    chosen, columns = _blocks_of(rows, kernel, reduction, chunk_size, accum_dtype)
    if chosen and in_blocks(hidden, kernel, labels):
        class_weights = None if class_weights is None else jnp.asarray(class_weights, dtype)
        wanted = Reduction(wanted_of(smoothing, z_loss), axis_name)
        raw, empty, t = row_numbers(wanted, options, hidden, kernel, bias, class_weights, columns)
        allowed = raw.get("count", classes)
        found = losses_of(raw, labels, allowed, empty, t, smoothing, z_loss, class_weights, axis_name)
        found = settle(found, labels, classes, ignored)
        found = found if w is None else weighed(w, found)
        return found if reduction == "none" else jnp.sum(found)

    transforms = options.treedef

    def loss(z: Array, rowwise: Any, shared: Any) -> Array:
        (row_options, w), (shared_options, numbers) = rowwise, shared
        labels, where, temperature, transform = put_together(
            transforms, row_options, shared_options, axis_name
        )
        smoothing, z_loss, class_weights, ignore_index = numbers
        found = row_losses(
            z,
            labels,
            where,
            temperature,
            transform,
            smoothing,
            z_loss,
            class_weights,
            ignore_index,
            axis=(1,),
            axis_name=axis_name,
        )
        return found if w is None else weighed(w, found)

    return walked(
        loss,
        hidden,
        without(options.shared[0], kernel),
        bias,
        (options.rowwise, w),
        (options.shared, (smoothing, z_loss, class_weights, ignore_index)),
        scalar=reduction != "none",
        chunk_size=chunk_size,
        accum_dtype=accum_dtype,
    )


@compiled("statistics", "chunk_size", "accum_dtype", "axis_name")
def _linear_row_stats(
    hidden: Array,
    kernel: Array,
    labels: Any,
    bias: Any,
    where: Any,
    temperature: Any,
    transform: Any,
    ignore_index: Any,
    *,
    statistics: frozenset[str],
    chunk_size: int | None,
    accum_dtype: Any,
    axis_name: str | None,
) -> RowStats:
    hidden, labels, ignored = counting(hidden, labels, ignore_index)
    options = Dealt(hidden, labels, where, temperature, transform)
    if in_blocks(hidden, kernel, labels):
        names = {NEEDS[name] for name in statistics if name in NEEDS} | (statistics & {"correct"})
        wanted = Reduction(frozenset(names), axis_name)
        raw, empty, t = row_numbers(wanted, options, hidden, kernel, bias, None, chunk_size)
        raw |= {"correct": raw["correct"] > 0} if "correct" in raw else {}
        return stats_of(raw, labels, num_classes(kernel, axis_name), empty, t, ignored, statistics)

    transforms = options.treedef

    def stats(z: Array, rowwise: Any, shared: Any) -> RowStats:
        shared_options, ignore_index = shared
        labels, where, temperature, transform = put_together(
            transforms, rowwise, shared_options, axis_name
        )
        made = statistics_of_rows(
            z,
            labels,
            where,
            temperature,
            transform,
            ignore_index,
            axis=(1,),
            axis_name=axis_name,
            statistics=statistics,
        )
        # A rule's output without a derivative has no type that shard_map would take.
        correct = None if made.correct is None else made.correct.astype(z.dtype)
        return dataclasses.replace(made, correct=correct)

    found = walked(
        stats,
        hidden,
        without(options.shared[0], kernel),
        bias,
        options.rowwise,
        (options.shared, ignore_index),
        scalar=False,
        chunk_size=chunk_size,
        accum_dtype=accum_dtype,
    )
    correct = None if found.correct is None else found.correct > 0
    return dataclasses.replace(found, correct=correct)
