"""Noise in float32 or wider, accurate in both tails, and scores that take it.

A uniform number of float32 has steps of 2⁻²³ next to 1: the Gumbel noise made of it ends at 16, that of
bfloat16 at 5. Here an exponential is made of 32 bits by whichever logarithm is accurate there: it
reaches from 2⁻³³ to 22.9, so that Gumbel noise reaches from −3.1 to 22.9.

Imports `_walks`, `_numerics`, `_checks`.
"""

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._numerics import row, sharded_like, wide
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax._walks import maximum


def exponential(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Standard exponential noise of a dtype of 32 bits or more, never 0 or infinite."""
    bits = jax.random.bits(key, shape, jnp.uint32)
    upper = (bits >> 31) == 1
    # The distance from the nearer end of (0, 1), which a float holds to its last digit.
    end = (jnp.where(upper, ~bits, bits).astype(dtype) + 0.5) * 2.0**-32
    return -jnp.where(upper, jnp.log1p(-end), jnp.log(end))


def perturbed(key: Array, v: Array) -> Array:
    """The scores `[*batch, classes]`, widened, less their maximum, plus Gumbel noise.

    Added to large scores as they are, noise would lose its digits.
    """
    m = maximum(v)
    gap = wide(v) - row(jnp.where(jnp.isfinite(m), m, 0))
    # A gap beyond all floats is not an impossible class.
    gap = jnp.where(v == -jnp.inf, gap, jnp.maximum(gap, -jnp.finfo(m.dtype).max))
    noise = -jnp.log(exponential(key, v.shape, gap.dtype))
    return gap + sharded_like(noise, v)


def moving(v: Array) -> Array:
    """0 with the derivative of the scores, that of an infinite one 0."""
    finite = wide(jnp.where(jnp.isfinite(v), v, 0))
    return finite - jax.lax.stop_gradient(finite)


def in_place_of(soft: Array, value: Array) -> Array:
    """`value` with the derivatives of `soft`, NaN where that is: straight through."""
    return jax.lax.stop_gradient(value) + (soft - jax.lax.stop_gradient(soft))


def checked(
    function: str, key: ArrayLike, logits: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[Array, Array, tuple[int, ...]]:
    """The key, the logits and the class axes, the arguments that all functions have checked."""
    keys, array = _checks.key(function, key), _checks.array(function, "logits", logits)
    _checks.floating(function, "logits", array)
    _checks.mask(function, array.shape, where)
    return keys, array, _checks.axes(function, axis, array.ndim)
