"""The score below which `sample` leaves classes out: found by bisection, without a sort.

A sort of 32,000 classes takes 300 times as long as one pass over them. Floats are ordered as their bits
are, so 32 halvings of the bits, a pass each, find the very float; fewer where a number is met exactly.
Those of a NaN are in no order: a row with one is not searched, and keeps all its classes.

Imports `_walks`, `_numerics`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jsoftmax._numerics import accumulator, exponentials, repeated, row, shift, wide
from jsoftmax._typing import Array
from jsoftmax._walks import by_chunks, maximum, total


def restricted(
    v: Array, temperature: Array | None, top_k: Array | None, top_p: Array | None, min_p: Array | None
) -> Array:
    """The scores, −inf where the options leave a class out.

    Args:
        v: `[*batch, classes]`.
        temperature: `[*batch, 1]`, or none.
        top_k: `[*batch]`, integers, or none.
        top_p: `[*batch]`, or none.
        min_p: `[*batch]`, or none.
    """
    if top_k is None and top_p is None and min_p is None:
        return v
    threshold = jnp.full(v.shape[:-1], -jnp.inf, accumulator(v.dtype))
    if top_k is not None or top_p is not None:
        threshold = by_chunks(_lowest, v, temperature, top_k, top_p)
    if min_p is not None:
        m = maximum(v)
        t = 1 if temperature is None else temperature[..., 0]
        lowest = m + t * jnp.log(min_p)
        threshold = jnp.maximum(threshold, jnp.where(jnp.isnan(lowest), -jnp.inf, lowest))
    return jnp.where(wide(v) < row(threshold), -jnp.inf, v)


def _lowest(v: Array, temperature: Array | None, top_k: Array | None, top_p: Array | None) -> Array:
    v, m = wide(v), maximum(v)
    low = jnp.full_like(m, -jnp.inf)
    high = jnp.where(jnp.isnan(m), low, m)
    if top_k is not None:
        low = _bisected(lambda t: jnp.sum(v >= row(t), axis=-1, dtype=jnp.int32), top_k, low, high)
    if top_p is None:
        return low
    weights = exponentials(v, shift(m, v.shape[-1], temperature), temperature)

    def mass(t: Array) -> Array:
        return total(jnp.where(v >= row(t), weights, 0))

    # What a sum rounds away at the low end must not leave classes out where all are wanted.
    found = _bisected(mass, top_p * mass(low), low, high)
    return jnp.where(top_p >= 1, low, found)


def _bisected(measure: Callable[[Array], Array], target: Array, low: Array, high: Array) -> Array:
    """The largest float in `[low, high]` at which a falling measure is `target` or more, else `low`."""

    def halfway(low: Array, high: Array) -> Array:
        return (low & high) + ((low ^ high) >> 1)

    def unfinished(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return jnp.any(halfway(low, high) != low)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = halfway(low, high)
        measured = measure(_float(middle, dtype))
        return (
            jnp.where(measured >= target, middle, low),
            jnp.where(measured > target, high, middle),
        )

    dtype = low.dtype
    # As many halvings as there are bits leave one number of any range.
    bounds = repeated(unfinished, halve, (_order(low), _order(high) + 1), 8 * dtype.itemsize)
    return _float(bounds[0], dtype)


def _order(x: Array) -> Array:
    """Integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32 if x.dtype.itemsize == 4 else jnp.int64)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _float(order: Array, dtype: jnp.dtype) -> Array:
    bits = jnp.where(order < 0, order ^ jnp.iinfo(order.dtype).max, order)
    return jax.lax.bitcast_convert_type(bits, dtype)
