"""Losses of independent classes, each with its own sigmoid.

Imports `autodiff`, `_numerics`, `_checks`.
"""

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._numerics import accumulator, nan_unless, scaled
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.autodiff import custom_vjp
from jsoftmax.losses._arrange import both, pair


def sigmoids(x: Array) -> tuple[Array, Array]:
    """`σ(x)` and `σ(−x)`, each with all its digits: 1 − σ(x) would lose them."""
    e = jnp.exp(-jnp.abs(x))
    large, small = 1 / (1 + e), e / (1 + e)
    return jnp.where(x < 0, small, large), jnp.where(x < 0, large, small)


@custom_vjp
def logistic_cost(x: Array, a: Array, b: Array) -> Array:
    """`a · log(1 + e^−x) + b · log(1 + e^x)`: what a sigmoid pays for a yes and for a no."""
    both_ways = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return (scaled(a, jnp.maximum(-x, 0)) + scaled(b, jnp.maximum(x, 0))) + (a + b) * both_ways


def _logistic_bwd(residuals: tuple[Array, Array, Array], ct: Array) -> tuple[Array, Array, Array]:
    x, a, b = residuals
    yes, no = sigmoids(x)
    both_ways = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return (
        ct * (b * yes - a * no),
        ct * (jnp.maximum(-x, 0) + both_ways),
        ct * (jnp.maximum(x, 0) + both_ways),
    )


logistic_cost.defvjp(lambda x, a, b: (logistic_cost(x, a, b), (x, a, b)), _logistic_bwd)


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Cross-entropy of a sigmoid, element by element.

    .. math:: \ell = -y \log \sigma(x) - (1 - y) \log \sigma(-x)

    Args:
        logits: Floating, any shape.
        labels: Probabilities of any real or bool dtype, in the shape of `logits`, or one that
            broadcasts with it as in optax.

    Returns:
        The losses in the broadcast shape, in nats, float32 or wider. At ±inf: 0 for the label that is
        certain, else +inf. NaN stays NaN.

    Gradient: `σ(x) − y` in `logits`, without cancellation; `−x` in `labels`. No intermediate of full
    size is kept. Every AD mode and order.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes do not broadcast.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.sigmoid_binary_cross_entropy(jnp.array([20.0, 0.0]), jnp.array([1, 0])))
        [2.0611537e-09 6.9314718e-01]

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.
    """
    _checks.floating("sigmoid_binary_cross_entropy", "logits", logits)
    return _binary(*both("sigmoid_binary_cross_entropy", logits, labels))


def multilabel_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Sigmoid cross-entropy summed over the classes of a row, for labels that do not exclude.

    .. math:: \ell = -\sum_k \left[w_k y_k \log \sigma(x_k) + (1 - y_k) \log \sigma(-x_k)\right]

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Probabilities of any real or bool dtype in the shape of `logits`.
        pos_weight: `w [classes]`, or a scalar: what a missed yes costs; 1 by default.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable to `logits`, or `[*batch]`.

    Returns:
        The losses `[*batch]` in nats, float32 or wider; at ±inf as the sigmoid's.

    Gradient: `(1 − y) σ(x) − w y σ(−x)` in `logits`; in `labels` and `pos_weight` too; exactly 0
    where masked. Every AD mode and order.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If a shape does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.multilabel_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1, 0, 1]])))
        [2.0794]

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.
    """
    name = "multilabel_cross_entropy"
    x, y, mask = pair(name, ("logits", "labels"), (logits, labels), axis, where)
    if pos_weight is not None and jnp.ndim(pos_weight):
        _checks.class_vector(name, "pos_weight", jnp.shape(pos_weight), x.shape)
    return _multilabel(x, y, mask, pos_weight)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    r"""Focal loss of a sigmoid, element by element: cross-entropy that fades for what is right.

    .. math:: \ell = \alpha_t (1 - p_t)^\gamma \, \mathrm{BCE}(x, y), \quad
        1 - p_t = (1 - y) \sigma(x) + y \sigma(-x)

    Args:
        logits: Floating, any shape.
        labels: Probabilities of any real or bool dtype that broadcast with `logits`.
        alpha: Weighs yes by `α` and no by `1 − α`, a scalar; no weights by default.
        gamma: The exponent `γ ≥ 0`, a scalar; 0 gives the cross-entropy. NaN comes back for a
            negative traced one.

    Returns:
        The losses in the broadcast shape, float32 or wider; at ±inf as the sigmoid's.

    Gradient: in `logits`, `labels`, `alpha` and `gamma`. Every AD mode.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes do not broadcast or `gamma` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.sigmoid_focal_loss(jnp.array([0.0]), jnp.array([1.0])))
        [0.1733]

    References:
        Lin et al., Focal loss for dense object detection, 2017.
    """
    name = "sigmoid_focal_loss"
    _checks.floating(name, "logits", logits)
    _checks.scalar(name, "gamma", gamma)
    _checks.number(name, "gamma", gamma, lambda g: g >= 0, "at least 0")
    if alpha is not None:
        _checks.scalar(name, "alpha", alpha)
    return _focal(*both(name, logits, labels), alpha, gamma)


@jax.jit
def _binary(x: Array, y: Array) -> Array:
    dtype = accumulator(x.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    return logistic_cost(x, y, 1 - y)


@jax.jit
def _multilabel(x: Array, y: Array, where: Array | None, pos_weight: ArrayLike | None) -> Array:
    x = x.astype(y.dtype)
    if where is not None:
        x, y = jnp.where(where, x, 0), jnp.where(where, y, 0)
    positive = y if pos_weight is None else y * jnp.asarray(pos_weight, y.dtype)
    cost = logistic_cost(x, positive, 1 - y)
    return jnp.sum(cost if where is None else jnp.where(where, cost, 0), axis=-1)


@jax.jit
def _focal(x: Array, y: Array, alpha: ArrayLike | None, gamma: ArrayLike) -> Array:
    dtype = accumulator(x.dtype)
    x, y, gamma = x.astype(dtype), y.astype(dtype), jnp.asarray(gamma, dtype)
    gamma = gamma * nan_unless(gamma >= 0, dtype)
    # Beyond these bounds the factor is constant; at ±inf its derivative 0 would meet an infinite cost.
    yes, no = sigmoids(jnp.where(jnp.abs(x) < 80, x, 80 * jnp.sign(x)))
    missed = (1 - y) * yes + y * no
    cost = logistic_cost(x, y, 1 - y)
    # A miss of 0 has a derivative only through its cost: 0^γ would give it a NaN.
    some = missed > 0
    factor = jnp.where(some, jnp.power(jnp.where(some, missed, 1), gamma), jnp.where(gamma > 0, 0, 1))
    loss = jnp.where(jnp.isnan(missed), jnp.nan, factor * cost)
    if alpha is None:
        return loss
    alpha = jnp.asarray(alpha, dtype)
    return scaled(alpha * y + (1 - alpha) * (1 - y), loss)
