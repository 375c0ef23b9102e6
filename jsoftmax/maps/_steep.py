"""Entmax for α > 2, where a probability rises from 0 with infinite slope.

There the norm of `_threshold` is not convex, and `σ` in one float does not hold what the smallest
probabilities need. So the search has two parts: by bisection, the float next to `σ` from above, the
pivot; then the probability that a class at the pivot has, which is all that is left to know.

Imports `_numerics`.
"""

import math

import jax
import jax.numpy as jnp

from jsoftmax._numerics import row
from jsoftmax._typing import Array

_STEPS = 40
# Above this α the distribution is that of α = ∞.
_STEEPEST = 1e30


def steep(a: Array, gaps: Array, zero: Array) -> tuple[Array, Array]:
    """As `distribution` of `_threshold`, for `a = α − 1 > 1`, `[*batch, 1]`."""
    a = jnp.clip(a, 1, _STEEPEST)
    held, g = jax.lax.stop_gradient((a, gaps))
    above = gaps - row(_pivot(held, g, zero))
    inside = jax.lax.stop_gradient(above) >= 0
    at_pivot = jax.lax.stop_gradient(above) == 0
    d = jnp.where(inside, above, 0)

    def log_p(a: Array, level: Array) -> Array:
        beyond = jnp.where(at_pivot, 1, a * d + jnp.exp(a * row(level)))
        # At the pivot itself, to first order: its slope may be beyond all floats.
        pivot = row(level) + d * jnp.exp(jnp.minimum(-a * row(level), 80))
        return jnp.where(at_pivot, pivot, jnp.log(jnp.maximum(beyond, 1e-37)) / a)

    def mass(a: Array, level: Array) -> Array:
        return jnp.sum(jnp.where(inside, jnp.exp(log_p(a, level)), 0), axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jax.lax.stop_gradient(mass(held, middle)) >= 1
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    lowest = zero - (math.log(max(g.shape[-1], 1)) + 90)
    level = jax.lax.fori_loop(0, _STEPS, halve, (lowest, zero))[1]
    level = jax.lax.stop_gradient(level)
    for _ in range(2):
        p = jnp.where(inside, jnp.exp(log_p(a, level)), 0)
        share = jnp.where(at_pivot, p, p * jnp.exp(jnp.minimum(a * (row(level) - log_p(a, level)), 0)))
        slope = jnp.sum(share, axis=-1)
        # Where no class is near the pivot, the level hardly shows in the sum, nor does it matter.
        moved = (jnp.sum(p, axis=-1) - 1) / jnp.where(slope > 0, slope, 1)
        level = level - jnp.clip(jnp.where(slope > 0, moved, 0), -0.1, 0.1)
    p = jnp.where(inside, jnp.exp(log_p(a, level)), 0)
    return p / row(jnp.sum(p, axis=-1)), above + jnp.exp(a * row(level)) / a


def _pivot(a: Array, g: Array, zero: Array) -> Array:
    """The lowest float at which the sum of `(a (g − σ))₊^(1/a)` is below 1."""
    bits = jnp.int32 if g.dtype.itemsize == 4 else jnp.int64

    def enough(magnitude: Array) -> Array:
        y = g + row(jax.lax.bitcast_convert_type(magnitude, g.dtype))
        p = jnp.exp(jnp.log(jnp.where(y > 0, a * y, 1)) / a)
        return jnp.sum(jnp.where(y > 0, p, 0), axis=-1) >= 1

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        return jnp.where(enough(middle), low, middle), jnp.where(enough(middle), middle, high)

    high = jax.lax.bitcast_convert_type(zero + 1 / a[..., 0], bits)
    count = 32 if g.dtype.itemsize == 4 else 64
    low, _ = jax.lax.fori_loop(0, count, halve, (jnp.zeros_like(high), high))
    return -jax.lax.bitcast_convert_type(low, g.dtype)
