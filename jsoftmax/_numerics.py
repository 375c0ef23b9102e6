"""Floating-point building blocks of the normalizer: where accuracy and special values are decided.

A row of scores `v` is held as its maximum `m` and `rest = Σ exp((v - m)/T) - 1`, the sum without
the maximum's own term. A loss is `log1p(rest)` plus gaps, so it keeps its leading digits where one
class dominates and `log Σ exp` would round to zero.

Every function here is also right under plain autodiff, at any order, with `m` held constant: the
tied maxima keep their `exp(0)` terms, whose value is 1 and whose derivative is not.

Imports `_typing`.
"""

import jax
import jax.numpy as jnp

from jsoftmax._typing import Array

# A temperature below this acts as its limit 0; dividing by it cannot overflow a rounding error.
_COLDEST = 1e-30


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a row of `dtype` is reduced in: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def row(x: Array) -> Array:
    """Gives a per-row array its class axis back."""
    return x[..., None]


def safe_temperature(temperature: Array) -> Array:
    """The temperature to divide by: never zero, NaN where it is negative."""
    return jnp.maximum(temperature, _COLDEST) * nan_unless(temperature >= 0, temperature.dtype)


def nan_unless(valid: Array, dtype: jnp.dtype) -> Array:
    """1 where valid, else NaN: a factor, so that the gradient turns NaN with the value."""
    return jnp.where(valid, jnp.ones((), dtype), jnp.nan)


def maximum(v: Array, axis_name: str | None = None) -> Array:
    """The largest score of each row, over the whole mesh axis that shards the classes, constant."""
    m = jnp.max(jax.lax.stop_gradient(v), axis=-1, initial=-jnp.inf)
    return m if axis_name is None else jax.lax.pmax(m, axis_name)


def total(x: Array, axis_name: str | None = None) -> Array:
    """The sum over the classes of each row, over all shards of them."""
    s = jnp.sum(x, axis=-1)
    return s if axis_name is None else jax.lax.psum(s, axis_name)


def gaps(v: Array, m: Array, temperature: Array | None = None) -> tuple[Array, Array, Array]:
    """Returns `g = (v - m)/T`, `e = exp(g)`, and which classes have no chance at all.

    Those are infinitely far below the maximum: −inf, or finite beside +inf, or so far that the gap
    overflows. Their `g` is 0, so that nothing derived from it is a NaN, and their `e` is 0.

    Rounding `v - m` costs `exp` up to 64 ulp; the error is known exactly (Knuth's TwoDiff), and
    `exp` is corrected by it to first order.
    """
    m = row(m)
    centre = jnp.where(jnp.abs(m) < jnp.inf, m, 0)
    lowest = jnp.where(m < jnp.inf, float(jnp.finfo(v.dtype).min), jnp.inf)
    inside = v - centre > lowest
    hopeless = (v - centre <= lowest) & (v < jnp.inf)
    base = jnp.where(inside, v, centre)
    gap = base - centre
    back = gap - base
    error = (base - (gap - back)) - (centre + back)
    if temperature is not None:
        gap, error = gap / temperature, error / temperature
    e = jnp.where(inside, jnp.exp(gap) * (1 + error), jnp.where(v == jnp.inf, 1, 0).astype(v.dtype))
    return gap, e, hopeless


def rest_of(v: Array, m: Array, e: Array, empty: Array | bool, axis_name: str | None = None) -> Array:
    """`Σ e - 1` without cancellation; NaN where the row has no distribution.

    `empty` marks the rows with every class masked: their `rest` is 0, so that everything derived
    from it is finite.
    """
    below = v < row(m)
    rest = total(jnp.where(below, e, 0), axis_name)
    rest += total(jnp.where(below, 0, e), axis_name) - 1
    none = (m == -jnp.inf) & ~jnp.asarray(empty)
    undefined = jnp.isnan(m) | ((m == jnp.inf) & (rest > 0)) | none
    return jnp.where(undefined, jnp.nan, jnp.where(m == -jnp.inf, 0, rest))


def gap_at(v_at: Array, m: Array, temperature: Array | None = None) -> Array:
    """`(v_k - m)/T` for one class per row, as a true number: −inf for an impossible class."""
    finite = jnp.abs(m) < jnp.inf
    gap = jnp.where(finite, v_at, 0) - jnp.where(finite, m, 0)
    if temperature is not None:
        gap = gap / temperature
    return jnp.where(v_at == m, jnp.where(finite, gap, 0), jnp.where(m == jnp.inf, -jnp.inf, gap))


def scaled(weight: Array, value: Array) -> Array:
    """`weight · value` with `0 · inf = 0`, keeping the weight's gradient where the value is finite."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)
