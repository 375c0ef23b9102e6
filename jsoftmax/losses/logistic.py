"""Losses of independent classes, each with its own sigmoid.

Imports `autodiff`, `_walks`, `_pytrees`, `_numerics`, `_checks`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import accumulator, nan_unless, product, scaled, wide
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax._walks import apart
from jsoftmax.autodiff import custom_vjp
from jsoftmax.losses._arrange import both, pair


@custom_vjp
def sigmoid(x: Array) -> Array:
    """`σ(x)`; `1 − σ(x)` is better asked for as `σ(−x)`, with all its digits."""
    return jax.lax.logistic(x)


# Plain autodiff of it, `p · (1 − p)`, loses the digits of a large x.
sigmoid.defvjp(lambda x: (sigmoid(x), x), lambda x, ct: (ct * (sigmoid(x) * sigmoid(-x)),))


@custom_vjp
def logistic_cost(x: Array, y: Array, pos_weight: Array | None = None) -> Array:
    """`w y · log(1 + e^−x) + (1 − y) · log(1 + e^x)`: what a sigmoid pays for a yes and for a no.

    XLA:CPU sums a chain of plain arithmetic in one pass if no intermediate and no constant in it is
    read elsewhere; what is, and what a selection gives, it puts into an array of full size first.
    Hence the sign, and 16 bits widened by each reader of them.
    """

    def size() -> Array:
        return jnp.abs(wide(apart(x)))

    cost = jnp.log1p(jnp.exp(-size()))
    sign, y = jnp.sign(wide(apart(x))), wide(apart(y))
    yes = jnp.maximum(sign, 0)
    if pos_weight is None:
        return product(size(), sign * (yes - y)) + cost
    y, no = pos_weight * y, 1 - y
    return product(size(), yes * no + (1 - yes) * y) + (y + no) * cost


def _logistic_bwd(residuals: tuple[Array, Array, Array | None], ct: Array) -> tuple[Any, ...]:
    x, y, pos_weight = wide(residuals[0]), wide(residuals[1]), residuals[2]
    weighted = y if pos_weight is None else pos_weight * y
    if_no = jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0)
    d_x = ct * ((1 - y) * sigmoid(x) - weighted * sigmoid(-x))
    if pos_weight is None:
        return d_x, ct * -x, None
    if_yes = jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(-x, 0)
    return d_x, ct * (scaled(pos_weight, if_yes) - if_no), ct * scaled(y, if_yes)


logistic_cost.defvjp(lambda x, y, w: (logistic_cost(x, y, w), (x, y, w)), _logistic_bwd)


@custom_vjp
def yes_cost(x: Array) -> Array:
    """`log(1 + e^−x)`: what a sigmoid pays for a certain yes; of `−x`, for a certain no."""
    return logistic_cost(x, jnp.ones_like(x))


# One exponential, where that of any label takes two.
yes_cost.defvjp(lambda x: (yes_cost(x), x), lambda x, ct: (-ct * sigmoid(-x),))


@takes_arrays
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
    x, y = both("sigmoid_binary_cross_entropy", logits, labels)
    _checks.floating("sigmoid_binary_cross_entropy", "logits", x)
    return _binary(x, y)


@takes_arrays
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
        where: Which classes take part: bool, broadcastable to `logits`.

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
    if pos_weight is not None:
        _checks.class_vector(name, "pos_weight", pos_weight, x.shape, scalar=True)
    return _multilabel(x, y, mask, pos_weight)


@takes_arrays
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
    x, y = both(name, logits, labels)
    _checks.floating(name, "logits", x)
    _checks.scalar(name, "gamma", gamma)
    _checks.number(name, "gamma", gamma, lambda g: g >= 0, "at least 0")
    if alpha is not None:
        _checks.scalar(name, "alpha", alpha)
    return _focal(x, y, alpha, gamma)


@compiled()
def _binary(x: Array, y: Array) -> Array:
    return logistic_cost(x, y if y.dtype == x.dtype else y.astype(accumulator(x.dtype)))


@compiled()
def _multilabel(x: Array, y: Array, where: Array | None, pos_weight: ArrayLike | None) -> Array:
    x = x.astype(y.dtype)
    if where is not None:
        x, y = jnp.where(where, x, 0), jnp.where(where, y, 0)
    w = None if pos_weight is None else jnp.broadcast_to(jnp.asarray(pos_weight, y.dtype), y.shape)
    cost = logistic_cost(x, y, w)
    return jnp.sum(cost if where is None else jnp.where(where, cost, 0), axis=-1)


@compiled()
def _focal(x: Array, y: Array, alpha: ArrayLike | None, gamma: ArrayLike) -> Array:
    dtype = accumulator(x.dtype)
    x, y, gamma = x.astype(dtype), y.astype(dtype), jnp.asarray(gamma, dtype)
    gamma = gamma * nan_unless(gamma >= 0, dtype)
    # Beyond these bounds the factor is constant; at ±inf its derivative 0 would meet an infinite cost.
    bounded = jnp.where(jnp.abs(x) < 80, x, 80 * jnp.sign(x))
    missed = (1 - y) * sigmoid(bounded) + y * sigmoid(-bounded)
    cost = logistic_cost(x, y)
    # A miss of 0 has a derivative only through its cost: 0^γ would give it a NaN.
    some = missed > 0
    factor = jnp.where(some, jnp.power(jnp.where(some, missed, 1), gamma), jnp.where(gamma > 0, 0, 1))
    loss = jnp.where(jnp.isnan(missed), jnp.nan, factor * cost)
    if alpha is None:
        return loss
    alpha = jnp.asarray(alpha, dtype)
    return scaled(alpha * y + (1 - alpha) * (1 - y), loss)
