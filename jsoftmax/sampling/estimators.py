r"""Samples whose gradient is an estimate: one-hot vectors in value, soft in derivative.

Each returns `D`, the one-hot vector of a draw from `softmax(z)`, and what a function does to `D`
has as its gradient in `z` an estimate of :math:`\nabla E f(D)`: biased, but of far less variance than
the score function's. The temperature shapes the estimate only: no gradient goes into it.

Imports `_draw`, `_noise`, `maps`, `_labels`, `_rows`, `_pytrees`, `_checks`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import class_ids
from jsoftmax._numerics import accumulator, row, wide
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import batch_of, checked_temperature, classes_back, rows_of
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.maps import softmax
from jsoftmax.sampling._draw import drawn
from jsoftmax.sampling._noise import checked, exponential, in_place_of, moving


@takes_arrays
def straight_through(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""A one-hot sample with the gradient of a softmax: the oldest estimator.

    .. math:: D \sim \mathrm{softmax}(z), \quad \partial D := \partial\, \mathrm{softmax}(z / T)

    Exact in expectation for linear functions of `D` at `T = 1`. `reinmax` is exact for quadratic ones
    too, at little more cost.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Logits of a floating dtype, any shape; float32 or wider inside.
        temperature: `T ≥ 0` of the gradient, a number or one per row; the sample knows nothing of it.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `logits`. The others get exactly 0.

    Returns:
        One-hot vectors in the shape and dtype of `logits`; NaN in a row with NaN, two +inf or nothing
        but −inf; 0 where every class is masked.

    Gradient: that of `softmax(logits, temperature=T)` in `logits`, 0 in `temperature`. Every AD mode.

    Raises:
        TypeError: If `key` is no key, `logits` not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `logits`, or `temperature < 0`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> worth = jnp.array([1.0, 2.0, 4.0])
        >>> mean = lambda z: sampling.straight_through(jax.random.key(0), z) @ worth
        >>> print(mean(jnp.zeros(3)), jax.grad(mean)(jnp.zeros(3)).round(3))
        4.0 [-0.444 -0.111  0.556]

    References:
        Bengio, Léonard and Courville, `Estimating or Propagating Gradients Through Stochastic Neurons
        <https://arxiv.org/abs/1308.3432>`_, 2013.
    """
    return _estimate("straight_through", _straight_through, key, logits, temperature, axis, where)


@takes_arrays
def rao_blackwell_gumbel_softmax(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    num_samples: int = 10,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""A one-hot sample with the mean gradient of Gumbel-softmax samples that agree with it.

    .. math::
        \partial D := \frac{1}{n} \sum_{i=1}^n \partial\, \mathrm{softmax}((z + g^{(i)}) / T), \quad
        g^{(i)} \sim \mathrm{Gumbel} \mid \arg\max (z + g^{(i)}) = D

    It has the expectation of `gumbel_softmax(hard=True)` and less variance; `f` is evaluated once.
    Its memory and time grow with `num_samples`.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Logits of a floating dtype, any shape; float32 or wider inside.
        temperature: `T ≥ 0` of the gradient, a number or one per row; the sample knows nothing of it.
        num_samples: How many soft samples are averaged, `n`, static.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `logits`. The others get exactly 0.

    Returns:
        One-hot vectors in the shape and dtype of `logits`; NaN in a row with NaN, two +inf or nothing
        but −inf; 0 where every class is masked.

    Gradient: as above in `logits`, the noise held constant; 0 in `temperature`. Every AD mode.

    Raises:
        TypeError: If `key` is no key, `logits` not floating, `where` not bool, `num_samples` not int.
        ValueError: If `axis`, `where` or `temperature` do not fit `logits`, or a number is too small.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> draw = sampling.rao_blackwell_gumbel_softmax
        >>> print(draw(jax.random.key(0), jnp.array([0.0, 30.0, 0.0]), 0.5, num_samples=100))
        [0. 1. 0.]

    References:
        Paulus, Maddison and Krause, `Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient
        Estimator <https://arxiv.org/abs/2010.04838>`_, 2021.
    """
    name = "rao_blackwell_gumbel_softmax"
    _checks.integer(name, "num_samples", num_samples)
    if num_samples < 1:
        raise ValueError(
            f"{name}: num_samples must be at least 1, got {num_samples}; the gradient is the mean "
            "of those of so many soft samples."
        )
    return _estimate(name, _rao_blackwell, key, logits, temperature, axis, where, int(num_samples))


@takes_arrays
def reinmax(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""A one-hot sample with a gradient of second order, as Heun's method has it.

    .. math::
        \partial D := 2 J\Bigl(\frac{D + \mathrm{softmax}(z / T)}{2}\Bigr)\, \partial z
        - \frac{1}{2} J(\mathrm{softmax}(z))\, \partial z, \quad J(p) = \mathrm{diag}(p) - p p^\top

    Exact in expectation for quadratic functions of `D` at `T = 1`; its authors find temperatures of 1
    and above best.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Logits of a floating dtype, any shape; float32 or wider inside.
        temperature: `T ≥ 0` of the gradient, a number or one per row; the sample knows nothing of it.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `logits`. The others get exactly 0.

    Returns:
        One-hot vectors in the shape and dtype of `logits`; NaN in a row with NaN, two +inf or nothing
        but −inf; 0 where every class is masked.

    Gradient: as above in `logits`, 0 in `temperature`. Every AD mode.

    Raises:
        TypeError: If `key` is no key, `logits` not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `logits`, or `temperature < 0`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> worth = jnp.array([1.0, 2.0, 4.0])
        >>> mean = lambda z: sampling.reinmax(jax.random.key(0), z) @ worth
        >>> print(mean(jnp.zeros(3)), jax.grad(mean)(jnp.zeros(3)).round(3))
        4.0 [-0.5   -0.333  0.833]

    References:
        Liu et al., `Bridging Discrete and Backpropagation: Straight-Through and Beyond
        <https://arxiv.org/abs/2304.08612>`_, 2023, algorithm 2.
    """
    return _estimate("reinmax", _reinmax, key, logits, temperature, axis, where)


def _estimate(
    name: str,
    soft: "Soft",
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    num_samples: int = 1,
) -> Array:
    keys, array, axes = checked(name, key, logits, axis, where)
    t = checked_temperature(name, temperature, batch_of(array.shape, axes))
    # A float, as any other temperature: an integer would be traced for itself.
    t = 1.0 if t is None else t
    return _sampled(keys, array, where, t, axis=axes, soft=soft, num_samples=num_samples)


@compiled("axis", "soft", "num_samples")
def _sampled(
    key: Array,
    x: Array,
    where: Array | None,
    temperature: ArrayLike,
    *,
    axis: Any,
    soft: "Soft",
    num_samples: int,
) -> Array:
    v, allowed = rows_of(x, where, axis)
    keys = jax.random.split(key)
    chosen = drawn(keys[0], v, None, v.shape[:-1])
    one = class_ids(v, None) == row(chosen)
    t = jnp.broadcast_to(jnp.asarray(temperature, accumulator(v.dtype)), v.shape[:-1])
    y = soft(keys[1], v, allowed, jax.lax.stop_gradient(t), one, num_samples)
    return classes_back(in_place_of(y, one.astype(y.dtype)), axis, x.shape).astype(x.dtype)


def _straight_through(
    key: Array, v: Array, allowed: Array | None, temperature: Array, one: Array, num_samples: int
) -> Array:
    del key, one, num_samples
    return softmax(wide(v), where=allowed, temperature=temperature)


def _reinmax(
    key: Array, v: Array, allowed: Array | None, temperature: Array, one: Array, num_samples: int
) -> Array:
    del key, num_samples
    plain = softmax(wide(v), where=allowed)
    tempered = softmax(wide(v), where=allowed, temperature=temperature)
    # The softmax at another place than the scores', and its derivative there.
    middle = jax.lax.stop_gradient(jnp.log((tempered + one.astype(plain.dtype)) / 2))
    return 2 * softmax(middle + moving(v), where=allowed) - plain / 2


def _rao_blackwell(
    key: Array, v: Array, allowed: Array | None, temperature: Array, one: Array, num_samples: int
) -> Array:
    p = softmax(jax.lax.stop_gradient(wide(v)), where=allowed)
    shape = (num_samples, *v.shape)
    noise = exponential(key, shape, p.dtype)
    first = row(jnp.sum(jnp.where(one, noise, 0), axis=-1))
    # Clocks that run out after rates p: the drawn one's first, the others' as much later as ever.
    scores = -jnp.log(jnp.where(one, noise, noise / p[None] + first))
    given = None if allowed is None else jnp.broadcast_to(allowed, shape)
    t = jnp.broadcast_to(temperature, shape[:-1])
    return jnp.mean(softmax(scores + moving(v)[None], where=given, temperature=t), axis=0)


Soft = Callable[[Array, Array, Array | None, Array, Array, int], Array]
