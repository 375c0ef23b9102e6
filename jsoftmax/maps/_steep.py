"""Entmax for α > 2, where a probability rises from 0 with infinite slope.

There the norm of `_threshold` is not convex, and `σ` in one float does not hold what the smallest
probabilities need. So the search has two parts: by bisection, the float next to `σ` from above, the
pivot; then the probability that a class at the pivot has, which is all that is left to know.

Imports `autodiff`, `_numerics`.
"""

import jax
import jax.numpy as jnp

from jsoftmax._numerics import log_of, row
from jsoftmax._typing import Array
from jsoftmax.autodiff import with_derivatives_of

# Halvings of the level, by the size of the dtype.
_STEPS = {4: 40, 8: 72}
# Above this α the distribution is that of α = ∞.
_STEEPEST = 1e30


def steep_levels(a: Array, gaps: Array, zero: Array) -> tuple[Array, Array, Array, Array]:
    """The pivot of each row, the logarithm of a probability there, an offset and the sum.

    For `a = α − 1 > 1`, `[*batch, 1]`; `zero` as in `levels` of `_threshold`. Pivot and level are
    constants; the offset is 0 and has the derivatives of the threshold, after two of Newton's steps to
    third order.
    """
    a = jnp.clip(a, 1, _STEEPEST)
    held, g = jax.lax.stop_gradient((a, gaps))
    pivot = _pivot(held, g, zero)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(_Above(held, g, pivot, middle).p(zero), axis=-1) >= 1
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    lowest = zero - (log_of(g.shape[-1]) + 90)
    level = jax.lax.fori_loop(0, _STEPS[g.dtype.itemsize], halve, (lowest, zero))[1]
    above = _Above(a, gaps, pivot, level)

    def better(offset: Array) -> Array:
        slope = jnp.sum(above.slopes(offset), axis=-1)
        excess = jnp.sum(above.p(offset), axis=-1) - 1
        return offset - jnp.where(slope > 0, excess / jnp.where(slope > 0, slope, 1), 0)

    offset = with_derivatives_of(lambda: better(zero), zero)
    offset = with_derivatives_of(lambda: better(offset), zero)
    return pivot, level, offset, jnp.sum(above.p(offset), axis=-1)


def steep_distribution(
    a: Array, gaps: Array, found: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    """As `distribution` of `_threshold`, from `steep_levels`."""
    pivot, level, offset, total = found
    above = _Above(jnp.clip(a, 1, _STEEPEST), gaps, pivot, level)
    return above.p(offset) / row(total), above.y(offset)


class _Above:
    """Rows of gaps above their pivots: `u = a (g − pivot) + exp(a level) + unit · offset`.

    In the offset, `u` is linear, so that derivatives of high order have nothing to cancel. Its unit is
    `exp(a level)` in a row with a class at the pivot, whose slope may be beyond all floats; else 1.
    """

    def __init__(self, a: Array, gaps: Array, pivot: Array, level: Array):
        self.a, self.level = a, row(level)
        self.height = gaps - row(pivot)
        held = jax.lax.stop_gradient(self.height)
        self.inside, self.at_pivot = held >= 0, held == 0
        self.inner = jnp.where(self.inside, self.height, 0)
        self.base = jnp.exp(a * self.level)
        steep = jnp.any(self.at_pivot, axis=-1, keepdims=True) & (a * self.level > -80)
        self.moving = self.at_pivot & steep
        self.unit = jnp.where(steep, self.base, 1)

    def _ratio(self, offset: Array) -> Array:
        """`u / exp(a level) − 1` of a class at the pivot: 0, but not its derivatives."""
        rise = self.a * self.inner * jnp.exp(jnp.minimum(-self.a * self.level, 80))
        return jnp.where(self.moving, rise + row(offset), 0)

    def _beyond(self, offset: Array) -> Array:
        """`u` of the other classes, never too small for its logarithm."""
        u = self.a * self.inner + self.base + self.unit * row(offset)
        return jnp.where(self.at_pivot, 1, jnp.maximum(u, 1e-37))

    def p(self, offset: Array) -> Array:
        """The probabilities, up to their sum."""
        pivot = self.level + jnp.log1p(self._ratio(offset)) / self.a
        log_p = jnp.where(self.at_pivot, pivot, jnp.log(self._beyond(offset)) / self.a)
        return jnp.where(self.inside, jnp.exp(log_p), 0)

    def slopes(self, offset: Array) -> Array:
        """The derivatives of the probabilities by the offset."""
        pivot = jnp.where(self.moving, 1 / (1 + self._ratio(offset)), 0)
        by_u = jnp.where(self.at_pivot, pivot, self.unit / self._beyond(offset))
        return self.p(offset) * by_u / self.a

    def y(self, offset: Array) -> Array:
        """`u / a`, of every class."""
        return self.height + (self.base + self.unit * row(offset)) / self.a


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
