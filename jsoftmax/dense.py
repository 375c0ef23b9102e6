"""The losses and statistics of logits that are held in memory, one row of classes per label.

Imports `statistics`, `transforms`, `_labels`, `_rows`, `_walks`, `_pytrees`, `_numerics`, `_checks`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices, at_label, comparable, first_largest, num_classes, settle
from jsoftmax._numerics import accumulator, aligned, nan_unless, row, scaled, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import all_masked, batch_of, checked_temperature, classes_last, row_temperature
from jsoftmax._typing import Array, ArrayLike, Axis, Shape
from jsoftmax._walks import total
from jsoftmax.statistics import (
    NEEDS,
    Reduction,
    RowStats,
    finish,
    log_normalizer,
    reduce,
    scores,
)
from jsoftmax.transforms import (
    Chain,
    LogitTransform,
    Temperature,
    chain,
    joined_transforms,
)


@takes_arrays
def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    transform: LogitTransform | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Cross-entropy of softmax against class indices or distributions, one value per row.

    .. math:: \ell = -\sum_k w_k q_k \log p_k + c \, \log^2 Z, \quad
        q = (1 - \varepsilon) \, \text{target} + \varepsilon / K

    with `p` and `Z` of `mask(softcap(transform(logits)) / T)` and `K` the number of classes that are
    not masked. No one-hot array is made, for smoothing either.

    Args:
        logits: `[*batch, classes]`, floating; float32 or wider inside.
        labels: Class indices `[*batch]` of an integer dtype, or distributions of a floating dtype in
            the shape of `logits` (they need not sum to 1).
        axis: The class axis of `logits` and of labels that are distributions; a tuple joins axes.
        where: Which classes take part: bool, broadcastable to `logits`. The others behave as if
            their column were deleted, whatever they hold.
        temperature: `T ≥ 0`, a number or one per row `[*batch]`.
        softcap: `c · tanh(z / c)` on the logits, `c > 0`.
        label_smoothing: `ε` in [0, 1].
        z_loss: The coefficient of `log² Z`.
        class_weights: `w [classes]`.
        ignore_index: The label of rows that do not count: their loss and gradient are 0, whatever
            the logits hold.
        transform: A `LogitTransform`, applied before `softcap` and `temperature`.
        axis_name: The mesh axis that shards the classes inside `shard_map`: `logits`, `where`,
            `class_weights` and distributions are local shards, class indices are global, and
            one value per row comes back on every device.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. An index outside [0, classes) gives NaN, and
        NaN gradients. Label mass on a masked or −inf class gives +inf, with a finite gradient; a
        zero there costs nothing. One +inf logit: 0 for its label, else +inf. NaN, two +inf, or
        nothing but −inf: NaN. Every class masked: 0.

    Gradient: `Σ w q · (p − …)`, which is `p − q` without weights, in `logits`, in labels that are
    distributions, and in every number above; exactly 0 where masked. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit: boolean or floating class indices among them.
        ValueError: For shapes that would broadcast or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import cross_entropy
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> print(cross_entropy(logits, jnp.array([0, 0, -100]), ignore_index=-100))
        [2.3954476e-01 4.1223074e-09 0.0000000e+00]

    References:
        Szegedy et al., Rethinking the Inception architecture, 2016 (smoothing); Chowdhery et al.,
        PaLM, 2022 (z-loss).
    """
    name = "cross_entropy"
    logits, labels, axes, ignore_index = _checked(name, logits, labels, axis, where, ignore_index)
    batch, classes = batch_of(logits.shape, axes), _classes(logits.shape, axes)
    transform = joined_transforms(name, transform, softcap, (*batch, classes))
    transform, t = with_last_temperature(name, transform, temperature, batch)
    smoothing, z_coefficient = loss_numbers(name, label_smoothing, z_loss)
    if class_weights is not None:
        _checks.class_vector(name, "class_weights", class_weights, (*batch, classes))
    return row_losses(
        logits,
        labels,
        where,
        t,
        transform,
        smoothing,
        z_coefficient,
        class_weights,
        ignore_index,
        axis=axes,
        axis_name=axis_name,
    )


@takes_arrays
def row_stats(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    ignore_index: int | None = None,
    transform: LogitTransform | None = None,
    axis_name: str | None = None,
    statistics: tuple[str, ...] | None = None,
) -> RowStats:
    r"""What a loss of your own needs to know of each row: a few numbers, all differentiable.

    Args:
        logits: As in `cross_entropy`, and so are `labels`, `axis`, `where`, `temperature`,
            `softcap`, `ignore_index`, `transform` and `axis_name`.
        labels: Class indices `[*batch]` or distributions.
        axis: The class axis.
        where: Which classes take part.
        temperature: `T ≥ 0`.
        softcap: `c > 0`.
        ignore_index: Rows with this label have `nll` and `target_log_prob` 0 and `correct` false,
            whatever `logits` holds there; their other statistics are those of equal logits.
        transform: A `LogitTransform`.
        axis_name: The mesh axis that shards the classes.
        statistics: The names of the fields to compute; all by default. Under `jit` an unused field
            costs nothing.

    Returns:
        A `RowStats`; fields not asked for are `None`. An invalid label gives NaN in `nll` and
        `target_log_prob` and false in `correct`.

    Gradient: of every floating field in `logits`, distributions and numbers. Every AD mode.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast, options out of range, unknown statistics.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import row_stats
        >>> s = row_stats(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        >>> print(s.nll.round(4), s.entropy.round(4), s.correct)
        [0.1269] [0.3653] [ True]

    References:
        The statistics are those of an exponential family: Blondel et al., Learning with
        Fenchel-Young losses, 2020.
    """
    name = "row_stats"
    logits, labels, axes, ignore_index = _checked(name, logits, labels, axis, where, ignore_index)
    batch, classes = batch_of(logits.shape, axes), _classes(logits.shape, axes)
    transform = joined_transforms(name, transform, softcap, (*batch, classes))
    transform, t = with_last_temperature(name, transform, temperature, batch)
    return statistics_of_rows(
        logits,
        labels,
        where,
        t,
        transform,
        ignore_index,
        axis=axes,
        axis_name=axis_name,
        statistics=wanted_statistics(name, statistics),
    )


@compiled("axis", "axis_name")
def row_losses(
    logits: Array,
    labels: Array,
    where: Array | None,
    temperature: ArrayLike | None,
    transform: LogitTransform | None,
    smoothing: ArrayLike | None,
    z_loss: ArrayLike | None,
    weights: Array | None,
    ignore_index: ArrayLike | None,
    *,
    axis: tuple[int, ...],
    axis_name: str | None,
) -> Array:
    """The formula of `cross_entropy`; `None` stands for what changes nothing."""
    logits, labels, where = rows(logits, labels, where, axis)
    dtype = accumulator(logits.dtype)
    ignored = labels == ignore_index if ignore_index is not None else None
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient. And what is masked, since
        # `jax.debug_nans` objects to a NaN in a copy that it let pass in an argument.
        unread = row(ignored) if where is None else row(ignored) | ~where
        logits = jnp.where(unread, 0, logits)
    q = labels
    if weights is not None:
        weights = jnp.asarray(weights, dtype)
        q = labels if are_indices(labels) else labels * aligned(weights, labels)
    empty = all_masked(where, logits, axis_name)
    t = row_temperature(temperature, logits)
    wanted = wanted_of(smoothing, z_loss)
    raw = reduce(Reduction(wanted, axis_name), logits, q, where, empty, transform, t, weights)
    allowed = num_classes(logits, axis_name)
    if where is not None and smoothing is not None:
        allowed = jnp.maximum(total(where.astype(dtype), axis_name), 1)
    return settle(
        losses_of(raw, labels, allowed, empty, t, smoothing, z_loss, weights, axis_name),
        labels,
        num_classes(logits, axis_name),
        ignored,
    )


def losses_of(
    raw: Mapping[str, Array],
    labels: Array,
    allowed: Array | int,
    empty: Array | None,
    temperature: Array | None,
    smoothing: ArrayLike | None,
    z_loss: ArrayLike | None,
    weights: Array | None,
    axis_name: str | None,
) -> Array:
    """The formula of `cross_entropy` over the numbers of rows; `allowed` classes are not masked.

    The class weights are still to be counted where labels are indices; soft labels have them.
    """
    loss = raw["nll"]
    if are_indices(labels) and weights is not None:
        loss = scaled(at_label(weights, labels, axis_name), loss)
    if smoothing is not None:
        eps = jnp.asarray(smoothing, loss.dtype)
        loss = scaled(1 - eps, loss) + scaled(eps / allowed, raw["uniform"])
        loss = loss * nan_unless((eps >= 0) & (eps <= 1), loss.dtype)
    if z_loss is not None:
        log_z = log_normalizer(raw, temperature)
        log_z = log_z if empty is None else jnp.where(empty, 0, log_z)
        loss = loss + scaled(jnp.asarray(z_loss, loss.dtype), jnp.square(log_z))
    return loss


def wanted_of(smoothing: ArrayLike | None, z_loss: ArrayLike | None) -> frozenset[str]:
    """The numbers that the formula is of."""
    wanted = {"nll"} if smoothing is None else {"nll", "uniform"}
    return frozenset(wanted if z_loss is None else wanted | {"log_normalizer"})


@compiled("axis", "axis_name", "statistics")
def statistics_of_rows(
    logits: Array,
    labels: Array,
    where: Array | None,
    temperature: ArrayLike | None,
    transform: LogitTransform | None,
    ignore_index: ArrayLike | None,
    *,
    axis: tuple[int, ...],
    axis_name: str | None,
    statistics: frozenset[str],
) -> RowStats:
    """What `row_stats` returns; `None` stands for what changes nothing."""
    logits, labels, where = rows(logits, labels, where, axis)
    ignored = labels == ignore_index if ignore_index is not None else None
    if ignored is not None:
        logits = jnp.where(row(ignored), 0, logits)
    empty = all_masked(where, logits, axis_name)
    t = row_temperature(temperature, logits)
    raw_names = frozenset(NEEDS[name] for name in statistics if name in NEEDS)
    raw = reduce(Reduction(raw_names, axis_name), logits, labels, where, empty, transform, t, None)
    if "correct" in statistics:
        v = scores(*jax.lax.stop_gradient((logits, labels)), where, transform, axis_name)
        truth = labels if are_indices(labels) else first_largest(labels, axis_name)
        raw["correct"] = (first_largest(v, axis_name) == truth) & ~jnp.isnan(raw["rest"])
    return stats_of(raw, labels, num_classes(logits, axis_name), empty, t, ignored, statistics)


def stats_of(
    raw: Mapping[str, Array],
    labels: Array,
    classes: int,
    empty: Array | None,
    temperature: Array | None,
    ignored: Array | None,
    statistics: frozenset[str],
) -> RowStats:
    """The statistics of the numbers of rows, by the label policy."""
    stats = finish(raw, temperature, empty, statistics)
    if stats.nll is not None:
        stats = dataclasses.replace(stats, nll=settle(stats.nll, labels, classes, ignored))
    if stats.target_log_prob is not None:
        log_prob = settle(stats.target_log_prob, labels, classes, ignored)
        stats = dataclasses.replace(stats, target_log_prob=log_prob)
    if "correct" in statistics:
        correct = raw["correct"] if empty is None else raw["correct"] & ~empty
        correct = correct if ignored is None else correct & ~ignored
        stats = dataclasses.replace(stats, correct=correct)
    return stats


def rows(
    logits: Array, labels: Array, where: Array | None, axis: tuple[int, ...]
) -> tuple[Array, Array, Array | None]:
    """Brings the classes to one last axis; small integer labels are widened, so none can wrap."""
    if where is not None:
        where = classes_last(jnp.broadcast_to(where, logits.shape), axis)
    logits = classes_last(logits, axis)
    if are_indices(labels):
        return logits, widened(labels), where
    labels = classes_last(labels, axis)
    return logits, labels.astype(accumulator(logits.dtype)), where


def _checked(
    name: str, logits: ArrayLike, labels: ArrayLike, axis: Axis, where: Any, ignore_index: Any
) -> tuple[Array, Array, tuple[int, ...], Any]:
    z = _checks.array(name, "logits", logits)
    y, ignore_index = comparable(name, labels, ignore_index)
    _checks.floating(name, "logits", z)
    axes = _checks.axes(name, axis, z.ndim)
    indices = _checks.labels(name, z.shape, batch_of(z.shape, axes), y)
    _checks.mask(name, z.shape, where)
    _checks.ignored(name, ignore_index, indices)
    return z, y, axes, ignore_index


def _classes(shape: Shape, axes: tuple[int, ...]) -> int:
    return math.prod(shape[a] for a in axes)


def loss_numbers(
    name: str, label_smoothing: ArrayLike, z_loss: ArrayLike
) -> tuple[ArrayLike | None, ArrayLike | None]:
    """The coefficients of the smoothing and the z-loss, `None` for those that change nothing."""
    for option, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        _checks.scalar(name, option, value)
    _checks.number(name, "label_smoothing", label_smoothing, lambda e: 0 <= e <= 1, "in [0, 1]")
    return _checks.unless_neutral(label_smoothing, 0), _checks.unless_neutral(z_loss, 0)


def wanted_statistics(name: str, statistics: tuple[str, ...] | None) -> frozenset[str]:
    """The statistics asked for, all by default."""
    for wanted in statistics or ():
        _checks.one_of(name, "statistics", wanted, RowStats.names())
    return frozenset(RowStats.names() if statistics is None else statistics)


def with_last_temperature(
    name: str, transform: LogitTransform | None, temperature: ArrayLike, batch: Shape
) -> tuple[LogitTransform | None, ArrayLike | None]:
    """The transform, and the temperature, checked; `None` for what changes nothing.

    A `Temperature` that nothing follows comes as the option, which has its limit at 0.
    """
    t = checked_temperature(name, temperature, batch)
    parts = () if transform is None else (transform,)
    parts = transform.transforms if isinstance(transform, Chain) else parts
    last = parts[-1] if parts else None
    if t is not None or not isinstance(last, Temperature) or type(last) is not Temperature:
        return transform, t
    _checks.per_row("Temperature", "value", last.value, batch)
    return chain(*parts[:-1]) if len(parts) > 1 else None, last.value
