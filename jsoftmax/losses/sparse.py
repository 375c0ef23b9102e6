"""Losses whose gradient is exactly 0 for classes that are far enough behind: the entmax family.

Imports `maps`, `_fenchel_young`, `_arrange`, `_labels`, `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices, at_label, comparable, first_largest, is_label, settle
from jsoftmax._numerics import accumulator, nan_unless, over_temperature, row, scaled, wide, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import batch_of, checked_temperature, classes_last, masked, row_temperature
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.losses._arrange import both, class_mask, pair
from jsoftmax.losses._fenchel_young import Form, loss_of_rows, negentropy
from jsoftmax.maps.entmax import checked_alpha, empty_rows, entmax_of_rows, row_alpha


class EntmaxStats(NamedTuple):
    """What `entmax_stats` returns, each `[*batch]`.

    Attributes:
        loss: The `fenchel_young_loss`.
        support_size: How many classes have a probability above 0, int32.
        margin: The label's score less the largest of the others', in units of the temperature. The loss
            of an index is 0 from `1 / (α − 1)` on.
    """

    loss: Array
    support_size: Array
    margin: Array


@takes_arrays
def fenchel_young_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> Array:
    r"""Fenchel–Young loss of α-entmax: 0 where the labels are what the scores say, else more.

    .. math:: \ell = \Omega^*(z / T) + \Omega(q) - \langle z / T, q \rangle, \quad
        \Omega(p) = \sum_k \frac{p_k^\alpha - p_k}{\alpha (\alpha - 1)}

    The divergence of the family: for α = 1 it is `Σ q log(q / p)`, and for an index
    cross-entropy. `entmax_loss` has the labels' own entropy in it, as cross-entropy has.

    Args:
        logits: `[*batch, classes]`, floating; float32 or wider inside.
        labels: Class indices `[*batch]` of an integer dtype, or distributions of a floating dtype in
            the shape of `logits`.
        alpha: `α ≥ 1`, a number or one per row, as in `entmax`.
        axis: The class axis of `logits`, and of labels that are distributions; a tuple joins axes.
        where: Which classes take part: bool, broadcastable to `logits`. Label mass on
            the others is dropped; an index of one of them costs +inf.
        temperature: `T ≥ 0`, a number or one per row.
        ignore_index: The label of rows that do not count: their loss and gradient are 0.

    Returns:
        The losses `[*batch]`, float32 or wider, accurate near 0; exactly 0 where an index leads by
        `T / (α − 1)`. An index outside [0, classes) gives NaN, value and gradient; mass on a −inf
        logit +inf; NaN, two +inf or nothing but −inf NaN; every class masked 0.

    Gradient: `(p − q) / T` in `logits` with `p = entmax(logits)`, from the same solve; and in `labels`
    that are distributions, `alpha` and `temperature`. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
        >>> [round(x, 4) for x in losses.fenchel_young_loss(logits, jnp.array([0, 0])).tolist()]
        [0.0, 0.2801]

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses, 2020.
    """
    given = checked_rows(
        "fenchel_young_loss", logits, labels, alpha, axis, where, temperature, ignore_index
    )
    return _losses(*given, divergence=True)


@takes_arrays
def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> Array:
    r"""The loss of α-entmax as cross-entropy is that of softmax: the mean over the labels' classes.

    .. math:: \ell = \sum_k q_k \, \ell_\alpha(z; e_k) = \Omega^*(z / T) - \langle z / T, q \rangle

    For an index the `fenchel_young_loss`; for distributions that plus the labels' own entropy, so that
    α = 1 is `cross_entropy`.

    Args:
        logits: `[*batch, classes]`, floating; float32 or wider inside.
        labels: Class indices `[*batch]` of an integer dtype, or distributions of a floating dtype in
            the shape of `logits`.
        alpha: `α ≥ 1`, a number or one per row, as in `entmax`.
        axis: The class axis of `logits`, and of labels that are distributions; a tuple joins axes.
        where: Which classes take part: bool, broadcastable to `logits`. Label mass on
            the others is dropped; an index of one of them costs +inf.
        temperature: `T ≥ 0`, a number or one per row.
        ignore_index: The label of rows that do not count: their loss and gradient are 0.

    Returns:
        The losses `[*batch]`, float32 or wider. An index outside [0, classes) gives NaN, value and
        gradient; mass on a −inf logit +inf; every class masked 0.

    Gradient: `(p − q) / T` in `logits` with `p = entmax(logits)`; and in `labels` that are
    distributions, `alpha` and `temperature`. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> logits = jnp.array([0.5, 0.0, 0.0])
        >>> print(losses.entmax_loss(logits, jnp.array(0), alpha=2.0).round(4))
        0.0833

    References:
        Peters, Niculae, Martins, Sparse Sequence-to-Sequence Models, 2019.
    """
    given = checked_rows("entmax_loss", logits, labels, alpha, axis, where, temperature, ignore_index)
    return _losses(*given, divergence=False)


@takes_arrays
def entmax_stats(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> EntmaxStats:
    r"""The `fenchel_young_loss` of each row, the size of its support, and the label's margin.

    .. math:: \text{margin} = z_y / T - \max_{k \ne y} z_k / T

    Args:
        logits: `[*batch, classes]`, floating; with the other arguments as in `fenchel_young_loss`.
        labels: Class indices `[*batch]`, or distributions, of which the first largest class counts.
        alpha: `α ≥ 1`.
        axis: The class axis.
        where: Which classes take part.
        temperature: `T ≥ 0`.
        ignore_index: Rows with this label have loss 0 and the margin 0.

    Returns:
        An `EntmaxStats`. An index outside [0, classes) gives NaN in `loss` and `margin`; a row
        without a distribution has support 0.

    Gradient: of `loss` and `margin`. Every AD mode.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> stats = losses.entmax_stats(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]), alpha=2.0)
        >>> print(stats.loss, stats.support_size, stats.margin)
        [0.0625] [2] [0.5]

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses, 2020, section 5 (margins).
    """
    given = checked_rows("entmax_stats", logits, labels, alpha, axis, where, temperature, ignore_index)
    return _stats(*given)


@takes_arrays
def multiclass_sparsemax_loss(scores: ArrayLike, labels: ArrayLike) -> Array:
    r"""Sparsemax loss of class indices: `fenchel_young_loss` for α = 2.

    .. math:: \ell = \tfrac12 \sum_{k \in S} (z_k^2 - \tau^2) - z_y + \tfrac12

    Args:
        scores: `[*batch, classes]`, floating.
        labels: Class indices `[*batch]` of an integer dtype.

    Returns:
        The losses `[*batch]`, float32 or wider, accurate near 0 and at any offset. An index outside
        [0, classes) gives NaN, value and gradient; a −inf score of the label +inf.

    Gradient: `sparsemax(scores) − y`. Every AD mode and order.

    Raises:
        TypeError: If `scores` is not floating or `labels` not of an integer dtype.
        ValueError: If `labels` is not `[*batch]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> scores = jnp.array([[0.5, 0.0], [2.0, 0.0]])
        >>> print(losses.multiclass_sparsemax_loss(scores, jnp.array([0, 0])))
        [0.0625 0.    ]

    References:
        Martins, Astudillo, From Softmax to Sparsemax, 2016.
    """
    name = "multiclass_sparsemax_loss"
    given = checked_rows(name, scores, labels, 2.0, -1, None, 1.0, None, "scores")
    _checks.indices_only(name, "labels", given[1], "distributions go to fenchel_young_loss.")
    return _losses(*given, divergence=True)


@takes_arrays
def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Binary sparsemax loss, elementwise: 0 beyond a margin of 1.

    .. math:: \ell = \begin{cases} 0 & s \le -1 \\ (s + 1)^2 / 4 & -1 < s < 1 \\ s & s \ge 1
        \end{cases}, \quad s = (1 - 2 y) z

    Args:
        logits: Floating, any shape: the score of class 1.
        labels: 0 or 1 (or bool), of any real dtype, broadcastable with `logits`.

    Returns:
        The losses in the broadcast shape, float32 or wider. A label that is neither 0 nor 1 gives NaN,
        value and gradient; +inf logits cost +inf for label 0 and nothing for label 1.

    Gradient: `jax.nn.sparse_sigmoid(z) − y`. Every AD mode and order.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes do not broadcast.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.sparsemax_loss(jnp.array([-2.0, 0.0, 2.0]), jnp.array([1, 1, 1])))
        [2.   0.25 0.  ]

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses, 2020, section 4.4.
    """
    z, y = both("sparsemax_loss", logits, labels)
    _checks.floating("sparsemax_loss", "logits", z)
    return _binary(z, y)


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Array]:
    r"""Makes a Fenchel–Young loss of a convex function of scores, such as `logsumexp`.

    .. math:: \ell = \Omega^*(z) - \langle q, z \rangle

    Args:
        max_fun: `Ω*`: takes scores `[classes]`, and whatever else, and returns a scalar.

    Returns:
        `loss(scores, targets, *args, **kwargs)` of `[*batch, classes]` each: losses `[*batch]`, float32
        or wider. A target of 0 costs nothing on a −inf score. `Ω(q)`, which no score can change, is
        left out: `fenchel_young_loss` has it, and its digits near 0.

    Gradient: that of `max_fun`, minus the targets. The AD modes of `max_fun`.

    Raises:
        TypeError: If `max_fun` is no function. By the loss, if `scores` is not floating.
        ValueError: By the loss, if the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import logsumexp, losses
        >>> loss = losses.make_fenchel_young_loss(logsumexp)
        >>> print(loss(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]])).round(4))
        [0.3133]

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses, 2020.
    """
    _checks.callback("make_fenchel_young_loss", "max_fun", max_fun, "scores [classes]")

    def fenchel_young(scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        z, q, _ = pair("make_fenchel_young_loss", ("scores", "targets"), (scores, targets), -1, None)
        z = wide(z)
        conjugate = jnp.vectorize(lambda z: max_fun(z, *args, **kwargs), signature="(n)->()")(z)
        return conjugate - jnp.sum(scaled(q, z), axis=-1)

    return fenchel_young


def checked_rows(
    name: str,
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    temperature: ArrayLike,
    ignore_index: int | None,
    scores: str = "logits",
) -> tuple[Any, ...]:
    """The arguments of a loss as rows, checked."""
    z = _checks.array(name, scores, logits)
    y, ignore_index = comparable(name, labels, ignore_index)
    _checks.floating(name, scores, z)
    axes = _checks.axes(name, axis, z.ndim)
    batch = batch_of(z.shape, axes)
    indices = _checks.labels(name, z.shape, batch, y)
    _checks.ignored(name, ignore_index, indices)
    n, traced = checked_alpha(name, alpha, batch)
    t = checked_temperature(name, temperature, batch)
    mask = class_mask(name, where, z.shape, axes)
    y = widened(y) if indices else classes_last(y, axes)
    return classes_last(z, axes), y, mask, t, traced, ignore_index, n


@compiled("n", "divergence")
def _losses(
    z: Array,
    y: Array,
    mask: Array | None,
    temperature: ArrayLike | None,
    alpha: ArrayLike | None,
    ignore_index: ArrayLike | None,
    n: int,
    divergence: bool,
) -> Array:
    indices = are_indices(y)
    ignored = y == ignore_index if ignore_index is not None else None
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient.
        z = jnp.where(row(ignored), 0, z)
    if not indices:
        y = y.astype(accumulator(z.dtype))
        y = y if mask is None else jnp.where(mask, y, 0)
    empty = empty_rows(mask, z)
    a = None if alpha is None else row_alpha(alpha, z)
    loss = loss_of_rows(Form(n), masked(z, mask), y, row_temperature(temperature, z), a, empty).loss
    if not indices and not divergence:
        loss = loss - jnp.sum(negentropy(1 / n if a is None else a - 1, y), axis=-1)
    return settle(loss, y, z.shape[-1], ignored)


@compiled("n")
def _stats(
    z: Array,
    y: Array,
    mask: Array | None,
    temperature: ArrayLike | None,
    alpha: ArrayLike | None,
    ignore_index: ArrayLike | None,
    n: int,
) -> EntmaxStats:
    loss = _losses(z, y, mask, temperature, alpha, ignore_index, n, divergence=True)
    ignored = y == ignore_index if ignore_index is not None else None
    if ignored is not None:
        z = jnp.where(row(ignored), 0, z)
    v, t = masked(z, mask), row_temperature(temperature, z)
    a = None if alpha is None else row_alpha(alpha, z)
    empty = empty_rows(mask, z)
    p = entmax_of_rows(n, v, t, a, empty)
    ids = y if are_indices(y) else first_largest(y, None)
    hit = is_label(v, ids, None)
    best = jnp.max(jnp.where(hit, -jnp.inf, wide(v)), axis=-1, initial=-jnp.inf)
    margin = wide(at_label(v, ids)) - best
    margin = margin if t is None else over_temperature(margin, t[..., 0])
    size = jnp.sum((p > 0).astype(jnp.int32), axis=-1)
    return EntmaxStats(loss, size, settle(margin, y, z.shape[-1], ignored))


@compiled()
def _binary(logits: Array, labels: Array) -> Array:
    z = wide(logits)
    y = labels.astype(z.dtype)
    s = jnp.where(y == 1, -z, z) * nan_unless((y == 0) | (y == 1), z.dtype)
    inner = (jnp.clip(s, -1, 1) + 1) / 2
    return inner * inner + jnp.maximum(s - 1, 0)
