"""Entmax for α > 2, where a probability rises from 0 with infinite slope.

There the norm of `_threshold` is not convex, and `σ` in one float does not hold what the smallest
probabilities need. So the search has two parts: by bisection, the float next to `σ` from above, the
pivot; then the probability that a class at the pivot has, which is all that is left to know.

Imports `_numerics`.
"""

import jax
import jax.numpy as jnp

from jsoftmax._numerics import log_of, row
from jsoftmax._typing import Array

_STEPS = 40
# Above this α the distribution is that of α = ∞.
_STEEPEST = 1e30


def steep_levels(a: Array, gaps: Array, zero: Array) -> tuple[Array, Array, Array]:
    """The pivot of each row, the logarithm of a probability there, and their sum.

    For `a = α − 1 > 1`, `[*batch, 1]`; `zero` as in `levels` of `_threshold`.
    """
    a = jnp.clip(a, 1, _STEEPEST)
    held, g = jax.lax.stop_gradient((a, gaps))
    pivot = _pivot(held, g, zero)
    above = _Above(gaps, pivot)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jax.lax.stop_gradient(jnp.sum(above.p(held, middle), axis=-1)) >= 1
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    lowest = zero - (log_of(g.shape[-1]) + 90)
    level = jax.lax.fori_loop(0, _STEPS, halve, (lowest, zero))[1]
    level = jax.lax.stop_gradient(level)
    for _ in range(2):
        p = above.p(a, level)
        share = p * jnp.exp(jnp.minimum(a * (row(level) - above.log_p(a, level)), 0))
        slope = jnp.sum(jnp.where(above.at_pivot, p, share), axis=-1)
        # Where no class is near the pivot, the level hardly shows in the sum, nor does it matter.
        moved = (jnp.sum(p, axis=-1) - 1) / jnp.where(slope > 0, slope, 1)
        level = jnp.minimum(level - jnp.clip(jnp.where(slope > 0, moved, 0), -0.1, 0.1), 0)
    return pivot, level, jnp.sum(above.p(a, level), axis=-1)


def steep_distribution(a: Array, gaps: Array, found: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """As `distribution` of `_threshold`, from `steep_levels`."""
    a = jnp.clip(a, 1, _STEEPEST)
    pivot, level, total = found
    above = _Above(gaps, pivot)
    return above.p(a, level) / row(total), above.height + jnp.exp(a * row(level)) / a


class _Above:
    """Rows of gaps above their pivots."""

    def __init__(self, gaps: Array, pivot: Array):
        self.height = gaps - row(pivot)
        held = jax.lax.stop_gradient(self.height)
        self.inside, self.at_pivot = held >= 0, held == 0
        self.inner = jnp.where(self.inside, self.height, 0)

    def log_p(self, a: Array, level: Array) -> Array:
        """The logarithms of the probabilities, where they are not 0."""
        beyond = jnp.where(self.at_pivot, 1, a * self.inner + jnp.exp(a * row(level)))
        # At the pivot itself, to first order: its slope may be beyond all floats.
        pivot = row(level) + self.inner * jnp.exp(jnp.minimum(-a * row(level), 80))
        return jnp.where(self.at_pivot, pivot, jnp.log(jnp.maximum(beyond, 1e-37)) / a)

    def p(self, a: Array, level: Array) -> Array:
        """The probabilities, up to their sum."""
        return jnp.where(self.inside, jnp.exp(self.log_p(a, level)), 0)


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
