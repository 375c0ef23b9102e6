"""Class ids drawn from logits: the whole softmax, or what temperature and truncation leave of it.

Imports `_draw`, `_threshold`, `_noise`, `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import accumulator, by_rows, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import batch_of, checked_temperature, row_temperature, rows_of
from jsoftmax._typing import Array, ArrayLike, Axis, Shape
from jsoftmax.sampling._draw import drawn
from jsoftmax.sampling._noise import checked
from jsoftmax.sampling._threshold import restricted


@takes_arrays
def categorical(
    key: ArrayLike,
    logits: ArrayLike,
    axis: Axis = -1,
    shape: Shape | None = None,
    where: ArrayLike | None = None,
) -> Array:
    r"""Draws classes from the softmax of logits.

    .. math:: P(k) = p_k = \frac{e^{z_k}}{\sum_j e^{z_j}}

    A drop-in for `jax.random.categorical`, of another stream of draws: two random numbers for a draw
    in place of one for each class.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Unnormalized log-probabilities of a floating dtype, any shape; float32 or wider inside.
        axis: The class axis, or a tuple of axes that hold the classes together; a class is then
            its index in those axes joined.
        shape: The shape of the result, to which `[*batch]`, the shape of `logits` without `axis`, must
            broadcast: leading axes hold independent draws. `[*batch]` by default.
        where: Which classes take part: bool, broadcastable to `logits`.

    Returns:
        Classes, int32. A probability is met to 2⁻³² beside the rounding of float32, whatever the dtype.
        A class of probability 0 is never drawn; one logit of +inf always is. −1 in a row without a
        distribution: NaN, two +inf, nothing but −inf, or every class masked.

    Gradient: none, classes are integers; see `straight_through`.

    Raises:
        TypeError: If `key` is no key, `logits` not floating or `where` not bool.
        ValueError: If `axis`, `shape` or `where` do not fit `logits`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
        >>> ids = sampling.categorical(jax.random.key(0), logits, shape=(100_000,))
        >>> print((jnp.bincount(ids) / ids.size).round(2))
        [0.7 0.2 0.1]

    References:
        Devroye, Non-Uniform Random Variate Generation, 1986, chapter III.2.
    """
    keys, array, axes = checked("categorical", key, logits, axis, where)
    batch = batch_of(array.shape, axes)
    return _categorical(keys, array, where, axes, _result_shape(shape, batch))


def _result_shape(shape: Any, batch: Shape) -> Shape:
    if shape is None:
        return batch
    from jax import export

    wanted = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    for n in wanted:
        if not export.is_symbolic_dim(n):
            _checks.integer("categorical", "shape", n)
            _checks.number("categorical", "shape", n, lambda n: n >= 0, "of sizes of at least 0")
    fits = len(wanted) >= len(batch) and all(
        a in (1, b) for a, b in zip(batch[::-1], wanted[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"categorical: shape must be one that [*batch] = {list(batch)} of logits broadcasts to, "
            f"got {list(wanted)}; put the number of draws before the axes of the batch."
        )
    return wanted


@compiled("axis", "shape")
def _categorical(key: Array, x: Array, where: Array | None, axis: Any, shape: Shape) -> Array:
    return drawn(key, rows_of(x, where, axis)[0], None, shape)


@takes_arrays
def sample(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Draws one class per row from a softmax cut to its likelier classes, as decoders of text do.

    .. math:: P(k) \propto e^{z_k / T} \, [z_k \ge \theta]

    The restrictions apply in this order, each to what the one before has left: `temperature`,
    `top_k`, `top_p`, `min_p`. All are numbers or one per row, traced: a change never retraces. Nothing
    is sorted; `θ` is found by bisection.

    Args:
        key: A key of `jax.random`, typed or raw.
        logits: Unnormalized log-probabilities of a floating dtype, any shape; float32 or wider inside.
        temperature: `T ≥ 0`. 0 draws a maximum, each of several with equal probability.
        top_k: Keeps the `k ≥ 1` largest logits; all, where there are fewer.
        top_p: In [0, 1]: keeps the likeliest classes, as few as have this much of the probability.
        min_p: In [0, 1]: keeps the classes with at least this share of the likeliest one's probability.
        axis: The class axis, or a tuple of axes; a class is then its index in those axes joined.
        where: Which classes take part: bool, broadcastable to `logits`.

    Returns:
        Classes `[*batch]`, int32. Equal logits stay or go together, so that ties at `θ` all stay; the
        likeliest class always stays. −1 in a row without a distribution, as in `categorical`, and where
        a traced option is out of its range.

    Gradient: none, classes are integers.

    Raises:
        TypeError: If `key` is no key, `logits` not floating, `where` not bool or `top_k` no integer.
        ValueError: If shapes do not fit `logits`, or a number is out of its range.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sampling
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]))
        >>> many = jax.vmap(lambda key: sampling.sample(key, logits, top_p=0.6, temperature=0.8))
        >>> print(many(jax.random.split(jax.random.key(0), 1000)).max(axis=0))
        [1 0]

    References:
        Fan et al., `Hierarchical Neural Story Generation <https://arxiv.org/abs/1805.04833>`_ (top-k),
        2018. Holtzman et al., `The Curious Case of Neural Text Degeneration
        <https://arxiv.org/abs/1904.09751>`_ (top-p), 2020. Nguyen et al., `Turning Up the Heat: Min-p
        Sampling <https://arxiv.org/abs/2407.01082>`_, 2024.
    """
    name = "sample"
    keys, array, axes = checked(name, key, logits, axis, where)
    batch = batch_of(array.shape, axes)
    t = checked_temperature(name, temperature, batch)
    if top_k is not None:
        top_k = _counts(name, top_k, batch, math.prod(array.shape[a] for a in axes))
    for option, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None:
            _checks.number(name, option, value, lambda p: 0 <= p <= 1, "in [0, 1]")
            _checks.per_row(name, option, value, batch)
    neutral = [_checks.unless_neutral(top_p, 1), _checks.unless_neutral(min_p, 0)]
    return _sample(keys, array, where, t, top_k, *neutral, axis=axes)


def _counts(function: str, top_k: ArrayLike, batch: Shape, classes: int) -> ArrayLike:
    """`top_k` checked; a Python number no larger than it need be, so that it fits 32 bits."""
    _checks.number(function, "top_k", top_k, lambda k: k >= 1, "at least 1")
    if isinstance(top_k, int):
        return min(top_k, max(classes, 1))
    counts = _checks.array(function, "top_k", top_k)
    _checks.indices_only(function, "top_k", counts, "it is a number of classes.")
    _checks.per_row(function, "top_k", counts, batch)
    return widened(counts)


@compiled("axis")
def _sample(
    key: Array,
    x: Array,
    where: Array | None,
    temperature: ArrayLike | None,
    top_k: ArrayLike | None,
    top_p: ArrayLike | None,
    min_p: ArrayLike | None,
    *,
    axis: Any,
) -> Array:
    v = jax.lax.stop_gradient(rows_of(x, where, axis)[0])
    t = jax.lax.stop_gradient(row_temperature(temperature, v))

    def per_row(number: ArrayLike | None, dtype: Any) -> Array | None:
        if number is None:
            return None
        return jnp.broadcast_to(jnp.asarray(number, dtype), v.shape[:-1])

    options = per_row(top_k, jnp.int32), *(per_row(p, accumulator(v.dtype)) for p in (top_p, min_p))
    return _restricted_draw(v, key, t, *options)


@by_rows
def _restricted_draw(
    v: Array,
    key: Array,
    temperature: Array | None,
    top_k: Array | None,
    top_p: Array | None,
    min_p: Array | None,
) -> Array:
    if v.shape[-1]:
        v = restricted(v, temperature, top_k, top_p, min_p)
    ids = drawn(key, v, temperature, v.shape[:-1])
    # The NaN that stands for a temperature below 0 is asked about here rather than where it leads:
    # XLA:CPU (jaxlib 0.10.2) gives garbage for the exponentials of some selections of NaN.
    invalid = [] if temperature is None else [jnp.isnan(temperature[..., 0])]
    invalid += [] if top_k is None else [top_k < 1]
    invalid += [~((p >= 0) & (p <= 1)) for p in (top_p, min_p) if p is not None]
    return functools.reduce(lambda ids, wrong: jnp.where(wrong, -1, ids), invalid, ids)
