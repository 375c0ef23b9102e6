"""Floating-point building blocks of the normalizer: where accuracy and special values are decided.

A row of scores `v` is held as its maximum `m` and `rest = Σ exp((v - m)/T) - 1`, the sum without
the maximum's own term. A loss is `log1p(rest)` plus gaps, so it keeps its leading digits where one
class dominates and `log Σ exp` would round to zero. The exponentials themselves are taken over a
`shift` that costs no digit.

Every function here is also right under plain autodiff, at any order, with `m` held constant: the
tied maxima keep their `exp(0)` terms, whose value is 1 and whose derivative is not.

Imports `_typing`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._typing import Array

# A temperature below this acts as its limit 0; dividing by it cannot overflow a rounding error. Scores
# are shifted in steps of the temperature up to the other.
_COLDEST, _HOTTEST = 1e-30, 1e30

# By the size of the dtype: the gap at which exp is 0; the logarithm of a sum whose inverse is not
# subnormal; how far above the shift a maximum may be.
_UNDERFLOW = {4: 110.0, 8: 800.0}
_OVERFLOW = {4: 86.0, 8: 707.0}
_LIFT = {4: 79, 8: 640}


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a row of `dtype` is reduced in: float32 or wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def log_of(classes: Any) -> float:
    """The logarithm of a number of classes; where that is a symbol, of the largest that there is."""
    return math.log(max(classes, 1)) if isinstance(classes, int) else math.log(2.0**31)


def widened(labels: Array) -> Array:
    """Integer labels as int32, which no number of classes overflows; what does not fit stays wrong."""
    info, fits = jnp.iinfo(labels.dtype), jnp.iinfo(jnp.int32)
    if info.max > fits.max:
        labels = jnp.minimum(labels, fits.max)
    if info.min < fits.min:
        labels = jnp.maximum(labels, fits.min)
    return labels.astype(jnp.int32)


def unwrapped(rows: Array, count: int) -> Array:
    """Indices of rows as int32, `count` for negative ones, which would wrap to the last rows."""
    rows = widened(rows)
    return jnp.where(rows < 0, count, rows)


def layout(like: Array, *others: Array) -> jax.sharding.NamedSharding:
    """How `like` lies on a mesh with explicit axes.

    What was made outside of it, as NumPy arrays are, lies whole on each device of the others' mesh.
    """
    shardings = [jax.typeof(x).sharding for x in (like, *others)]
    mesh = next((sharding.mesh for sharding in shardings if not sharding.mesh.empty), shardings[0].mesh)
    return jax.sharding.NamedSharding(mesh, shardings[0].spec)


def is_sharded(*arrays: Array) -> bool:
    """Whether one of them is spread over an axis of a mesh with explicit axes."""
    return any(any(jax.typeof(x).sharding.spec) for x in arrays)


def has_whole_rows(x: Array) -> bool:
    """Whether the last axis is not spread over an axis of such a mesh."""
    return jax.typeof(x).sharding.spec[-1:] in ((), (None,))


def sharded_like(x: Array, like: Array) -> Array:
    """`x` laid out as `like`, or its leading axes, on a mesh with explicit axes; elsewhere `x`."""
    whole = layout(like, x)
    leading = jax.sharding.PartitionSpec(*whole.spec[: x.ndim])
    sharding = jax.sharding.NamedSharding(whole.mesh, leading)
    return x if jax.typeof(x).sharding.spec == sharding.spec else jax.sharding.reshard(x, sharding)


def by_rows(
    function: Callable[..., Any],
    results: Callable[[Any], Any] = lambda rows: rows,
    trailing: int = 1,
) -> Callable[..., Any]:
    """Makes `function(x, …)`, which gathers, work on a mesh with explicit axes too.

    A gather cannot say there how its result lies: XLA finds out, and only the results are laid out,
    as the rows of `x` or as `results` says. All but the `trailing` axes of `x` are rows.
    """

    @functools.wraps(function)
    def wrapped(x: Array, *others: Any, **static: Any) -> Any:
        specs = [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves((x, others))]
        whole = functools.partial(function, **static)
        if any(map(any, specs)):
            rows = jax.sharding.PartitionSpec(*specs[0][: x.ndim - trailing])
            whole = jax.sharding.auto_axes(whole, out_sharding=results(rows))
        return whole(x, *others)

    return wrapped


def repeated(going: Callable[[Any], Array], step: Callable[[Any], Any], start: Any, most: Any) -> Any:
    """`step` from `start` on while `going`, `most` times at most: the one loop here with a condition.

    A condition on floats alone has bits for which it never fails, such as those of a NaN with its sign
    set, which integers order below −inf.
    """

    def unfinished(carry: Any) -> Array:
        return (carry[0] < most) & going(carry[1])

    def onward(carry: Any) -> Any:
        return carry[0] + 1, step(carry[1])

    return jax.lax.while_loop(unfinished, onward, (jnp.zeros((), jnp.int32), start))[1]


def row(x: Array) -> Array:
    """Gives a per-row array its class axis back."""
    return x[..., None]


def aligned(x: Array, like: Array) -> Array:
    """`x` with axes of size 1 in front of its own, until it has as many as `like`.

    JAX would add them by itself, unless it is told to refuse: `jax_numpy_rank_promotion="raise"`.
    """
    return jax.lax.expand_dims(x, range(like.ndim - x.ndim))


def safe_temperature(temperature: Array) -> Array:
    """The temperature to divide by: never zero, NaN where it is negative."""
    # A selection, so that no derivative in a temperature of 0 is 0 · inf.
    cold = (temperature >= 0) & (temperature <= _COLDEST)
    warm = jnp.where(cold, _COLDEST, temperature)
    return warm * nan_unless(temperature >= 0, temperature.dtype)


def is_cold(temperature: Array) -> Array:
    """Where a temperature that is safe to divide by stands for its limit 0."""
    return temperature <= _COLDEST


def per_degree(x: Array, temperature: Array) -> Array:
    """`x / T` for a derivative: 0 at `T = 0`, where what it is of is constant almost everywhere."""
    cold = is_cold(temperature)
    return jnp.where(cold, 0, x / jnp.where(cold, 1, temperature))


def over_temperature(x: Array, temperature: Array) -> Array:
    """`x / T` for a number per row, ±inf at `T = 0`; there 0 stays 0."""
    cold = is_cold(temperature)
    limit = jnp.where(x == 0, 0, jnp.where(jnp.isnan(x), x, jnp.where(x > 0, jnp.inf, -jnp.inf)))
    return jnp.where(cold, jax.lax.stop_gradient(limit), x / jnp.where(cold, 1, temperature))


def warmed(temperature: Array) -> Array:
    """The temperature, or one next to 0 at which all gaps are finite, so that they can be summed."""
    return jnp.maximum(temperature, 2 * _COLDEST)


def nan_unless(valid: Array, dtype: jnp.dtype) -> Array:
    """1 where valid, else NaN: a factor, so that the gradient turns NaN with the value."""
    return jnp.where(valid, jnp.ones((), dtype), jnp.nan)


def wide(x: Array) -> Array:
    """`x` in the dtype its rows are reduced in."""
    return x.astype(accumulator(x.dtype))


def without_tiny_dtypes(x: Array) -> Array:
    """`x`, in float32 where its floating dtype has fewer than 16 bits.

    Most of those have no infinity, some no NaN, no zero or no sign: nothing may be filled in, compared
    or summed in them.
    """
    tiny = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 16
    return x.astype(jnp.float32) if tiny else x


def shift(m: Array, classes: int, temperature: Array | None = None) -> Array:
    """What to subtract from the scores of a row so that no digit is lost: `[*batch, 1]`.

    The maximum itself, as everyone subtracts, rounds a gap of 80 by 64 ulp of its exponential. Here
    the shift is 0 where `exp` can take the scores as they are, else a whole number that leaves the
    maximum as large as the sum of `classes` terms can stand: the scores that matter then are of one
    size with the shift, and their differences exact (Sterbenz), but for those whose
    exponentials are next to the smallest that there are.

    A temperature scales all of that, in steps of powers of two. The shift is −inf nowhere.
    """
    size, m = m.dtype.itemsize, row(jax.lax.stop_gradient(m))
    lift = min(_LIFT[size], int(_OVERFLOW[size] - log_of(classes)))

    def of_units(u: Array, lift: Array | int) -> Array:
        whole = jnp.floor(u)
        return jnp.maximum(jnp.minimum(whole, 0), whole - lift)

    if temperature is None:
        c = of_units(m, lift)
    else:
        finite = jnp.minimum(jax.lax.stop_gradient(temperature), _HOTTEST)
        step = _power_of_two(finite)
        u = m / step
        # Beyond 2²⁴ every number is whole.
        whole = of_units(u, jnp.floor(lift * (finite / step))) * step
        c = jnp.where(jnp.abs(u) < 2.0**24, whole, m)
    return jnp.maximum(c, -jnp.finfo(m.dtype).max)


def _power_of_two(x: Array) -> Array:
    """The largest power of two that is not above a positive number: only its first digit."""
    bits, digits = (jnp.int32, 23) if x.dtype.itemsize == 4 else (jnp.int64, 52)
    cleared = jax.lax.bitcast_convert_type(x, bits) & jnp.asarray(-(1 << digits), bits)
    return jax.lax.bitcast_convert_type(cleared, x.dtype)


def unit(m: Array, c: Array, temperature: Array | None = None) -> Array:
    """The exponential of the maximum `[*batch]`, over which a sum of exponentials is `1 + rest`."""
    return jnp.where(jnp.abs(m) < jnp.inf, exponentials(row(m), c, temperature)[..., 0], 1)


def exponentials(v: Array, c: Array, temperature: Array | None = None) -> Array:
    """`exp((v - c)/T)` to the last digits: 0 for −inf and beside +inf, which itself gives 1."""
    gap = jnp.where(v == jnp.inf, 0, wide(v) - c)
    if temperature is None:
        return jnp.exp(gap)
    hopeless, lowest = gap == -jnp.inf, -_UNDERFLOW[gap.dtype.itemsize]
    largest = jnp.finfo(gap.dtype).max
    gap = jnp.maximum(gap, jnp.maximum(lowest * temperature, -largest))
    quotient = gap / temperature
    # The quotient of 80 is off by 40 ulp of its exponential.
    error = jax.lax.stop_gradient(_remainder(gap, quotient, temperature) / temperature)
    return jnp.where(hopeless, 0, jnp.exp(quotient) * (1 + error))


def _remainder(a: Array, quotient: Array, b: Array) -> Array:
    """`a - quotient * b` without rounding error, 0 where that overflows (Dekker's product)."""
    half = 2.0 ** (12 if a.dtype.itemsize == 4 else 27) + 1

    def split(x: Array) -> tuple[Array, Array]:
        high = half * x
        high = high - (high - x)
        return high, x - high

    (q, q_low), (d, d_low) = split(quotient), split(b)
    left = (((a - q * d) - q * d_low) - q_low * d) - q_low * d_low
    return jnp.where(jnp.abs(left) < jnp.inf, left, 0)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum, and what it rounds away, a constant (Knuth's two-sum); 0 where the sum is no number."""
    s = a + b
    a, b, held = jax.lax.stop_gradient((a, b, s))
    part = held - a
    lost = (a - (held - part)) + (b - part)
    return s, jnp.where(jnp.abs(held) < jnp.inf, lost, 0)


def below(v: Array, m: Array, temperature: Array | None) -> Array:
    """Which classes are below the dominant one, in a row that has one.

    Those have a gap below log 1/2. Asking for a gap of 0 would miss the dominant class where XLA
    rounds a transform one way here and another way in `m`.
    """
    return below_top(v, m) < (-0.6 if temperature is None else -0.6 * temperature)


def below_top(v: Array, m: Array) -> Array:
    """`v - m` in plain arithmetic, never NaN but for a NaN: beside infinities too."""
    largest = jnp.finfo(m.dtype).max
    return wide(v) - row(jnp.clip(m, -largest, largest))


def dominant(v: Array, m: Array, rest: Array, temperature: Array | None) -> Array:
    """Which class has more than two thirds of its row."""
    return row(rest < 0.5) & ~below(v, m, temperature)


def share_of(m: Array, c: Array, rest: Array, temperature: Array | None) -> Array:
    """What to multiply the exponentials of a row with to get its probabilities."""
    return 1 / (unit(m, c, temperature) * (1 + rest))


def others_share(p: Array, rest: Array) -> Array:
    """`1 - p` of a row's maximum, without cancellation, its derivative that of `-p`."""
    still = jax.lax.stop_gradient
    return still(rest / (1 + rest)) + (still(p) - p)


def gaps(v: Array, m: Array, temperature: Array | None = None) -> Array:
    """`(v - m)/T`, −inf for a class without a chance.

    Those are infinitely far below the maximum: −inf, or finite beside +inf, or so far that the gap
    overflows, or anywhere below it at a temperature of 0.
    """
    gap = jnp.where(v == jnp.inf, 0, wide(v) - row(jnp.where(m == -jnp.inf, 0, m)))
    if temperature is None:
        return gap
    hopeless = (gap == -jnp.inf) | (is_cold(temperature) & (gap < 0))
    lowest = -jnp.finfo(gap.dtype).max
    return jnp.where(hopeless, -jnp.inf, jnp.maximum(jnp.where(hopeless, 0, gap) / temperature, lowest))


def finite_gaps(v: Array, m: Array, temperature: Array | None) -> tuple[Array, Array]:
    """The gaps, 0 for a class without a chance, and which classes those are."""
    gap = gaps(v, m, temperature)
    hopeless = gap == -jnp.inf
    return jnp.where(hopeless, 0, gap), hopeless


def deleted(v: Array, m: Array) -> Array:
    """Which classes have no gradient, as if they were not there: −inf, or finite beside +inf."""
    return (v == -jnp.inf) | ((v < jnp.inf) & row(m == jnp.inf))


def gap_at(v_at: Array, m: Array, temperature: Array | None = None) -> Array:
    """`(v_k - m)/T` for one class per row, as a true number: −inf for an impossible class."""
    finite = jnp.abs(m) < jnp.inf
    gap = jnp.where(finite, v_at, 0) - jnp.where(finite, m, 0)
    if temperature is not None:
        possible = (gap > -jnp.inf) & ~(is_cold(temperature) & (gap < 0))
        gap = jnp.where(possible, jnp.where(possible, gap, 0) / temperature, -jnp.inf)
    return jnp.where(v_at == m, jnp.where(finite, gap, 0), jnp.where(m == jnp.inf, -jnp.inf, gap))


def scaled(weight: Array, value: Array) -> Array:
    """`weight · value` with `0 · inf = 0`, keeping the weight's gradient where the value is finite."""
    return weight * jnp.where((weight == 0) & jnp.isinf(value), 0, value)


def weighed(weight: Array, value: Array) -> Array:
    """The same for rows, of which one without weight is left out, whatever it holds."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)


def behind(x: Any) -> Any:
    """`x` behind a barrier on a CPU: what makes it, or reads it, is not repeated or shared across."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def upright(h: Array) -> Array:
    """`hᵀ`, stored: XLA:CPU's fast products contract the last axis of what stands on the left.

    Without the barrier the transposition would be a part of the product again, at half the speed.
    """
    return jax.lax.platform_dependent(
        h, cpu=lambda h: jax.lax.optimization_barrier(h.mT), default=lambda h: h.mT
    )


def own(like: Array, *numbers: float) -> tuple[Array, ...]:
    """Constants in the dtype of `like` for one sum alone.

    XLA:CPU sums a chain of plain arithmetic without storing it if nothing in it is read elsewhere, and
    stores, as large as the array, what is; other code has a 0 and a 1 too.
    """
    return behind(tuple(jnp.asarray(x, like.dtype) for x in numbers))


def product(cost: Array, weight: Array) -> Array:
    """`cost · weight` with `0 · inf = 0`, for a cost of 0 or more, in plain arithmetic.

    The bounded cost, times what is 1, and enormous at the bound.
    """
    info = jnp.finfo(cost.dtype)
    zero, one, largest, almost = own(cost, 0.0, 1.0, float(info.max), float(info.max * (1 - info.eps)))
    bounded = jnp.minimum(cost, largest)
    beyond = jnp.maximum(bounded - almost, zero) + one
    return weight * beyond * beyond * bounded
