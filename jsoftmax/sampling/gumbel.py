"""Gumbel noise on the scores: soft samples that have a gradient, and draws without replacement.

Imports `_noise`, `maps`, `_labels`, `_rows`, `_pytrees`, `_checks`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import class_ids
from jsoftmax._numerics import by_rows, row
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import batch_of, checked_temperature, classes_back, rows_of
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.maps import softmax
from jsoftmax.sampling._noise import checked, in_place_of, perturbed


@takes_arrays
def gumbel_softmax(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    hard: bool = False,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""A random distribution near a one-hot vector, through which a gradient flows: a relaxed sample.

    .. math:: y = \mathrm{softmax}((z + g) / T), \quad g_k \sim \mathrm{Gumbel}(0, 1)

    The largest entry is that of a draw from `softmax(z)`; the lower the temperature, the nearer is `y`
    to its one-hot vector, and the larger is the variance of the gradient.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Logits of a floating dtype, any shape; noise and softmax are float32 or wider.
        temperature: `T ≥ 0`, a number or one per row (the shape of `logits` without `axis`), traced and
            differentiable. 0 gives the one-hot vector of the draw, inf a uniform distribution.
        hard: Whether the value is the one-hot vector of the draw, exactly, at any temperature; the
            derivatives stay those of the soft sample (straight-through).
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `logits`. The others get exactly 0.

    Returns:
        Distributions in the shape and dtype of `logits`. −inf gets exactly 0, one +inf 1; NaN, two
        +inf or nothing but −inf give a row of NaN; every class masked, 0.

    Gradient: that of `softmax` at the noisy logits, in `logits` and `temperature`; exactly 0 where
    masked. Every AD mode and order.

    Raises:
        TypeError: If `key` is no key, `logits` not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `logits`, or `temperature < 0`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
        >>> print(sampling.gumbel_softmax(jax.random.key(0), logits, 0.5, hard=True))
        [1. 0. 0.]

    References:
        Jang, Gu and Poole, `Categorical Reparameterization with Gumbel-Softmax
        <https://arxiv.org/abs/1611.01144>`_, 2017. Maddison, Mnih and Teh, `The Concrete Distribution
        <https://arxiv.org/abs/1611.00712>`_, 2017.
    """
    name = "gumbel_softmax"
    keys, array, axes = checked(name, key, logits, axis, where)
    _checks.flag(name, "hard", hard)
    t = checked_temperature(name, temperature, batch_of(array.shape, axes))
    # A float, as any other temperature: an integer would be traced for itself.
    return _gumbel_softmax(keys, array, where, 1.0 if t is None else t, axis=axes, hard=bool(hard))


@compiled("axis", "hard")
def _gumbel_softmax(
    key: Array, x: Array, where: Array | None, temperature: ArrayLike, *, axis: Any, hard: bool
) -> Array:
    v, allowed = rows_of(x, where, axis)
    scores = perturbed(key, v)
    y = softmax(scores, where=allowed, temperature=temperature)
    if hard and v.shape[-1]:
        one = class_ids(v, None) == row(jnp.argmax(scores, axis=-1).astype(jnp.int32))
        one = one if allowed is None else one & allowed
        y = in_place_of(y, one.astype(y.dtype))
    return classes_back(y, axis, x.shape).astype(x.dtype)


@takes_arrays
def gumbel_top_k(
    key: ArrayLike,
    logits: ArrayLike,
    k: int,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Draws `k` different classes, one after the other, from the softmax of what is left.

    .. math:: P(i_1, \dots, i_k) = \prod_{n=1}^k \frac{p_{i_n}}{1 - \sum_{m < n} p_{i_m}}

    This is the order of the `k` largest logits with Gumbel noise (Plackett and Luce's distribution).

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Unnormalized log-probabilities of a floating dtype, any shape; noise is float32.
        k: How many classes, static; at most all of them.
        axis: The class axis, or a tuple of axes; a class is then its index in those axes joined.
        where: Which classes take part: bool, broadcastable to `logits`.

    Returns:
        Classes `[*batch, k]` in the order drawn, int32. −1 in the last places where fewer classes than
        `k` have a positive probability, and in all of a row with NaN or two +inf.

    Gradient: none, classes are integers.

    Raises:
        TypeError: If `key` is no key, `logits` not floating, `where` not bool or `k` no integer.
        ValueError: If `axis` or `where` do not fit `logits`, or `k` is not in [0, classes].

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> print(sampling.gumbel_top_k(jax.random.key(0), jnp.array([50.0, 0.0, 25.0]), 2))
        [0 2]

    References:
        Kool, van Hoof and Welling, `Stochastic Beams and Where to Find Them
        <https://arxiv.org/abs/1903.06059>`_, 2019.
    """
    name = "gumbel_top_k"
    keys, array, axes = checked(name, key, logits, axis, where)
    _checks.integer(name, "k", k)
    classes = math.prod(array.shape[a] for a in axes)
    if not 0 <= k <= classes:
        raise ValueError(
            f"{name}: k must be in [0, classes] = [0, {classes}], since classes are not put "
            f"back, got {k}; draw them with replacement by categorical."
        )
    return _gumbel_top_k(keys, array, where, axis=axes, k=int(k))


@compiled("axis", "k")
def _gumbel_top_k(key: Array, x: Array, where: Array | None, *, axis: Any, k: int) -> Array:
    v = jax.lax.stop_gradient(rows_of(x, where, axis)[0])
    return by_rows(_largest, lambda rows: jax.sharding.PartitionSpec(*rows, None))(v, key, k=k)


def _largest(v: Array, key: Array, *, k: int) -> Array:
    scores = perturbed(key, v)
    found, ids = jax.lax.top_k(scores, k)
    surest = jnp.sum(v == jnp.inf, axis=-1)
    left = jnp.where(row(surest == 1), found == jnp.inf, found > -jnp.inf)
    spoiled = jnp.any(jnp.isnan(v), axis=-1) | (surest > 1)
    return jnp.where(left & ~row(spoiled), ids, -1)
