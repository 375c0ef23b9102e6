"""Divergences between distributions given as (log-)probabilities, and the smoothing of labels.

Imports `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import accumulator, nan_unless, scaled
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import classes_back, classes_last
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.losses._arrange import class_mask, pair


@takes_arrays
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of predictions from targets.

    .. math:: \mathrm{KL}(t \,\|\, p) = \sum_k t_k (\log t_k - \log p_k)

    Args:
        log_predictions: `log p [*batch, classes]`, floating.
        targets: `t`, probabilities in the shape of `log_predictions`.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable.

    Returns:
        The divergences `[*batch]` in nats, float32 or wider. A target 0 contributes 0; a positive one
        where `log p` is −inf gives +inf; a negative one NaN.

    Gradient: `−t` in `log_predictions`, `log t + 1 − log p` in `targets` (at 0 its finite part,
    `−log p`); exactly 0 where masked. Every AD mode.

    Raises:
        TypeError: If `log_predictions` is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0])))
        0.6931

    References:
        Kullback and Leibler, On information and sufficiency, 1951.
    """
    names = ("log_predictions", "targets")
    return _kl(*pair("kl_divergence", names, (log_predictions, targets), axis, where))


@takes_arrays
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of predictions from targets, both in logarithms.

    .. math:: \mathrm{KL}(t \,\|\, p) = \sum_k t_k (\log t_k - \log p_k)

    Args:
        log_predictions: `log p [*batch, classes]`, floating.
        log_targets: `log t`, floating, in the shape of `log_predictions`.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable.

    Returns:
        The divergences `[*batch]` in nats, float32 or wider. A log-target −inf contributes 0; a finite
        one where `log p` is −inf gives +inf.

    Gradient: `−t` in `log_predictions`, `t (log t + 1 − log p)` in `log_targets`; exactly 0 where
    masked. Every AD mode.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> log_p, log_t = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
        >>> print(losses.kl_divergence_with_log_targets(log_p, log_t))
        0.6931

    References:
        Kullback and Leibler, On information and sufficiency, 1951.
    """
    name = "kl_divergence_with_log_targets"
    log_targets = _checks.array(name, "log_targets", log_targets)
    _checks.floating(name, "log_targets", log_targets)
    names = ("log_predictions", "log_targets")
    return _kl_log(*pair(name, names, (log_predictions, log_targets), axis, where))


@takes_arrays
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of positive measures that need not sum to 1.

    .. math:: \sum_k t_k (\log t_k - \log p_k) + p_k - t_k

    Args:
        log_predictions: `log p [*batch, classes]`, floating.
        targets: `t ≥ 0` in the shape of `log_predictions`.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable.

    Returns:
        The divergences `[*batch]`, float32 or wider, as `kl_divergence` at 0 and −inf.

    Gradient: `p − t` in `log_predictions`, `log t − log p` in `targets` (at 0 its finite part);
    exactly 0 where masked. Every AD mode.

    Raises:
        TypeError: If `log_predictions` is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.generalized_kl_divergence(jnp.zeros(2), jnp.array([1.0, 1.0])))
        0.0

    References:
        Blondel et al., Learning with Fenchel-Young losses, 2020, section 3.
    """
    names = ("log_predictions", "targets")
    return _generalized(
        *pair("generalized_kl_divergence", names, (log_predictions, targets), axis, where)
    )


@takes_arrays
def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Mixes labels with the uniform distribution over the classes that take part.

    .. math:: (1 - \alpha) \, y_k + \alpha / K

    `cross_entropy(label_smoothing=…)` does the same to a loss without this array.

    Args:
        labels: Distributions `[*batch, classes]`, floating.
        alpha: The share of the uniform distribution in [0, 1], a scalar; NaN comes back for a traced
            one outside.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part, `K` of them: bool, broadcastable. The others get nothing and
            keep `(1 − α) y`.

    Returns:
        The smoothed labels in the shape and dtype of `labels`.

    Gradient: in `labels` and `alpha`. Every AD mode.

    Raises:
        TypeError: If `labels` is not floating.
        ValueError: If `alpha` is outside [0, 1], or `where` does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.smooth_labels(jnp.array([1.0, 0.0]), 0.1))
        [0.95 0.05]

    References:
        Szegedy et al., Rethinking the Inception architecture, 2016.
    """
    y = _checks.array("smooth_labels", "labels", labels)
    _checks.floating("smooth_labels", "labels", y)
    _checks.scalar("smooth_labels", "alpha", alpha)
    _checks.number("smooth_labels", "alpha", alpha, lambda a: 0 <= a <= 1, "in [0, 1]")
    axes = _checks.axes("smooth_labels", axis, y.ndim, none=True)
    mask = class_mask("smooth_labels", where, y.shape, axes)
    smoothed = _smooth(classes_last(y, axes), mask, alpha)
    return classes_back(smoothed, axes, y.shape)


def _excess(t: Array) -> Array:
    """`t log t`, 0 at 0, with a finite derivative there."""
    some = t != 0
    return jnp.where(some, t * jnp.log(jnp.where(some, t, 1)), 0)


def _summed(terms: Array, where: Array | None) -> Array:
    return jnp.sum(terms if where is None else jnp.where(where, terms, 0), axis=-1)


def _inputs(x: Array, y: Array, where: Array | None) -> tuple[Array, Array]:
    x = x.astype(y.dtype)
    return (x, y) if where is None else (jnp.where(where, x, 0), jnp.where(where, y, 0))


@compiled()
def _kl(log_p: Array, t: Array, where: Array | None) -> Array:
    log_p, t = _inputs(log_p, t, where)
    return _summed(_excess(t) - scaled(t, log_p), where)


@compiled()
def _kl_log(log_p: Array, log_t: Array, where: Array | None) -> Array:
    log_p, log_t = _inputs(log_p, log_t, where)
    some = log_t > -jnp.inf
    ratio = jnp.where(some, log_t, 0) - jnp.where(some, log_p, 0)
    terms = jnp.where(some | jnp.isnan(log_t), jnp.exp(log_t) * ratio, 0)
    return _summed(terms, where)


@compiled()
def _generalized(log_p: Array, t: Array, where: Array | None) -> Array:
    log_p, t = _inputs(log_p, t, where)
    plain = _excess(t) - scaled(t, log_p) + (jnp.exp(log_p) - t)
    some = (t > 0) & (log_p > -jnp.inf)
    d = jnp.where(some, jnp.log(jnp.where(some, t, 1)) - jnp.where(some, log_p, 0), 1)
    near = jnp.abs(d) < 0.3
    d = jnp.where(near, d, 0)
    # Where t and p are alike nothing is left of those terms: `t (d + e^−d − 1)` by its series.
    series = jnp.ones_like(d)
    for k in range(15, 2, -1):
        series = 1 - d / k * series
    return _summed(jnp.where(near, t * d * d / 2 * series, plain), where)


@compiled()
def _smooth(y: Array, where: Array | None, alpha: ArrayLike) -> Array:
    dtype = accumulator(y.dtype)
    a = jnp.asarray(alpha, dtype)
    a = a * nan_unless((a >= 0) & (a <= 1), dtype)
    if where is None:
        uniform = 1 / max(y.shape[-1], 1)
    else:
        share = where.astype(dtype)
        uniform = share / jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1)
    return ((1 - a) * y.astype(dtype) + a * uniform).astype(y.dtype)
