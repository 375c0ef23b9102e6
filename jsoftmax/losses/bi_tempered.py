"""The bi-tempered logistic loss: bounded, with a heavy tail, for labels that are wrong now and then.

Its map is that of the entmax family at `α = 2 − t₂`, below 1 where the tail is heavy, and its loss the
Bregman divergence of the family at `2 − t₁`: solver, rule and divergence are those.

Imports `sparse`, `_fenchel_young`, `maps`, `_labels`, `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices, settle
from jsoftmax._numerics import accumulator, nan_unless, row
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import for_rows, masked
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.losses._fenchel_young import divergence, targets
from jsoftmax.losses.sparse import checked_rows
from jsoftmax.maps.entmax import empty_rows, entmax_of_rows


@takes_arrays
def bi_tempered_logistic_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    t1: ArrayLike,
    t2: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> Array:
    r"""Bi-tempered logistic loss: cross-entropy that outliers and wrong labels move less.

    .. math:: \ell = \sum_k q_k (\log_{t_1} q_k - \log_{t_1} p_k)
        - \frac{q_k^{2 - t_1} - p_k^{2 - t_1}}{2 - t_1}, \quad
        p = \exp_{t_2}(z - \lambda), \quad \sum_k p_k = 1

    with `log_t x = (x^(1−t) − 1) / (1 − t)` and `exp_t` its inverse. `t₁ < 1` bounds the loss, so that
    no outlier pulls without limit; `t₂ > 1` gives the probabilities a heavy tail, so that wrong labels
    near the boundary pull less. `t₁ = t₂ = 1` is the Kullback–Leibler divergence to the softmax, for an
    index cross-entropy. The paper trains with 0.8 and 1.2, or so.

    Args:
        logits: `[*batch, classes]`, floating; float32 or wider inside.
        labels: Class indices `[*batch]` of an integer dtype, or distributions of a floating dtype in
            the shape of `logits`, smoothed ones by `smooth_labels`.
        t1: `0 ≤ t₁ ≤ 1`, a number, traced or not.
        t2: `1 ≤ t₂ ≤ 4`, a number, traced or not.
        axis: The class axis of `logits`, and of labels that are distributions; a tuple joins axes.
        where: Which classes take part: bool, broadcastable to `logits`. Label mass on
            the others is dropped.
        ignore_index: The label of rows that do not count: their loss and gradient are 0.

    Returns:
        The losses `[*batch]`, float32 or wider; 0 or more, of an index at most `1 / (1 − t₁)`. An index
        outside [0, classes) gives NaN, value and gradient, and so does a traced temperature out of
        range; NaN, two +inf or nothing but −inf NaN; every class masked 0.

    Gradient: in `logits`, `Σ_j p_j^(t₂ − t₁) (p_j − q_j) (δ_jk − p_k^t₂ / Σ p^t₂)`; in labels that are
    distributions, `t1` and `t2`. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast or options out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [-20.0, 0.0, 0.0]])
        >>> print(losses.bi_tempered_logistic_loss(logits, jnp.array([0, 0]), 0.5, 1.5).round(3))
        [0.2   1.625]

    References:
        Amid, Warmuth, Anil, Koren, Robust Bi-Tempered Logistic Loss Based on Bregman Divergences, 2019.
    """
    name = "bi_tempered_logistic_loss"
    for option, given in (("t1", t1), ("t2", t2)):
        _checks.number_like(name, option, given)
        _checks.scalar(name, option, given)
    _checks.number(name, "t1", t1, lambda t: 0 <= t <= 1, "in [0, 1]")
    _checks.number(name, "t2", t2, lambda t: 1 <= t <= _HEAVIEST, f"in [1, {_HEAVIEST}]")
    given = checked_rows(name, logits, labels, 1.5, axis, where, 1.0, ignore_index)
    z, y, mask, _, _, ignore_index, _ = given
    return _losses(z, y, mask, t1, t2, ignore_index)


# Beyond, probabilities in many classes differ so little that float32 does not tell them.
_HEAVIEST = 4


@compiled()
def _losses(
    z: Array,
    y: Array,
    mask: Array | None,
    t1: ArrayLike,
    t2: ArrayLike,
    ignore_index: ArrayLike | None,
) -> Array:
    ignored = y == ignore_index if ignore_index is not None else None
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient.
        z = jnp.where(row(ignored), 0, z)
    dtype = accumulator(z.dtype)
    first, second = jnp.asarray(t1, dtype), jnp.asarray(t2, dtype)
    first = first * nan_unless((first >= 0) & (first <= 1), dtype)
    second = second * nan_unless((second >= 1) & (second <= _HEAVIEST), dtype)
    if not are_indices(y):
        y = y.astype(dtype)
        y = y if mask is None else jnp.where(mask, y, 0)
    v, empty = masked(z, mask), empty_rows(mask, z)
    p = entmax_of_rows(0, v, None, row(for_rows(2 - second, z)), empty)
    q, missing = targets(v, y, p)
    log_p = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), jnp.where(jnp.isnan(p), p, -jnp.inf))
    loss = jnp.sum(divergence(1 - first, q, p, missing, log_p), axis=-1)
    loss = loss if empty is None else jnp.where(empty, 0, loss)
    return settle(loss, y, z.shape[-1], ignored)
