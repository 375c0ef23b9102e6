"""Floating-point building blocks of the normalizer: where accuracy and special values are decided.

A row of scores `v` is held as its maximum `m` and `rest = Σ exp((v - m)/T) - 1`, the sum without
the maximum's own term. A loss is `log1p(rest)` plus gaps, so it keeps its leading digits where one
class dominates and `log Σ exp` would round to zero.

Every function here is also right under plain autodiff, at any order, with `m` held constant: the
tied maxima keep their `exp(0)` terms, whose value is 1 and whose derivative is not.

Imports `_typing`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jsoftmax._typing import Array

# A temperature below this acts as its limit 0; dividing by it cannot overflow a rounding error.
_COLDEST = 1e-30

# Below this sum of exponentials, subtracting the maximum's 1 would cost more than 2 bits.
_DOMINATED = 1.5

# Below this sum of the others, their gaps are so large that rounding them costs more than 4 bits.
_FAR = 2e-4

# The gap at which exp is 0, by the size of the dtype.
_UNDERFLOW = {4: 110.0, 8: 800.0}

# Rows are reduced in blocks of columns on a CPU if they are this wide and their array this large.
_BLOCK = 4096
_WIDE = 40_000
_MANY = 1 << 23


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a row of `dtype` is reduced in: float32 or wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(labels: Array) -> Array:
    """Integer labels as int32, which no number of classes overflows; what does not fit stays wrong."""
    info, fits = jnp.iinfo(labels.dtype), jnp.iinfo(jnp.int32)
    if info.max > fits.max:
        labels = jnp.minimum(labels, fits.max)
    if info.min < fits.min:
        labels = jnp.maximum(labels, fits.min)
    return labels.astype(jnp.int32)


def sharded_like(x: Array, like: Array) -> Array:
    """`x` laid out as `like` on a mesh with explicit axes; elsewhere `x`."""
    sharding = jax.typeof(like).sharding
    return x if jax.typeof(x).sharding.spec == sharding.spec else jax.sharding.reshard(x, sharding)


def row(x: Array) -> Array:
    """Gives a per-row array its class axis back."""
    return x[..., None]


def safe_temperature(temperature: Array) -> Array:
    """The temperature to divide by: never zero, NaN where it is negative."""
    return jnp.maximum(temperature, _COLDEST) * nan_unless(temperature >= 0, temperature.dtype)


def nan_unless(valid: Array, dtype: jnp.dtype) -> Array:
    """1 where valid, else NaN: a factor, so that the gradient turns NaN with the value."""
    return jnp.where(valid, jnp.ones((), dtype), jnp.nan)


def over_classes(
    v: Array,
    term: Callable[[Array], Array],
    fold: Callable[[Array], Array],
    join: Callable[[Array, Array], Array],
) -> Array:
    """`fold(term(v))` over the last axis, in blocks where XLA:CPU would fall off a cliff.

    From about 40,000 columns on, with rows enough, its one-pass reduction takes three times as long
    as a loop over blocks of columns; below, and on accelerators, the loop only costs.
    """

    def whole(v: Array) -> Array:
        return fold(term(v))

    def in_blocks(v: Array) -> Array:
        count = v.shape[-1] // _BLOCK
        ends = join(whole(v[..., :_BLOCK]), whole(v[..., count * _BLOCK :]))

        def step(i: Array, so_far: Array) -> Array:
            block = jax.lax.dynamic_slice_in_dim(v, i * _BLOCK, _BLOCK, axis=-1)
            return join(so_far, whole(block))

        return jax.lax.fori_loop(1, count, step, ends)

    if v.shape[-1] < _WIDE or v.size < _MANY:
        return whole(v)
    return jax.lax.platform_dependent(v, cpu=in_blocks, default=whole)


def maximum(v: Array, axis_name: str | None = None) -> Array:
    """The largest score of each row, over the whole mesh axis that shards the classes, constant."""
    v = jax.lax.stop_gradient(v)
    m = over_classes(v, lambda v: v, lambda v: jnp.max(v, axis=-1, initial=-jnp.inf), jnp.maximum)
    return m if axis_name is None else jax.lax.pmax(m, axis_name)


def total(x: Array, axis_name: str | None = None) -> Array:
    """The sum over the classes of each row, over all shards of them."""
    return total_of(x, lambda x: x, axis_name)


def total_of(v: Array, term: Callable[[Array], Array], axis_name: str | None) -> Array:
    """The sum of `term(v)`, elementwise, over the classes of each row, over all shards of them."""
    s = over_classes(v, term, lambda x: jnp.sum(x, axis=-1), jnp.add)
    return s if axis_name is None else jax.lax.psum(s, axis_name)


def _centre(v: Array, m: Array) -> tuple[float, Array]:
    """The largest finite number, and what to subtract: `m`, finite, 0 in a row without a score."""
    largest = float(jnp.finfo(v.dtype).max)
    return largest, row(jnp.where(m == -jnp.inf, 0, jnp.minimum(m, largest)))


def _floor(v: Array, m: Array, temperature: Array | None) -> Array:
    """A score so far below the maximum that its exponential is 0."""
    largest, centre = _centre(v, m)
    reach = _UNDERFLOW[v.dtype.itemsize] * (1.0 if temperature is None else temperature)
    reach = jnp.minimum(jnp.maximum(reach, jnp.abs(centre) * 1e-5), largest / 2)
    return jnp.maximum(centre - reach, -largest)


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """`a - b` rounded, and its rounding error, exactly (Knuth's TwoDiff)."""
    gap = a - b
    back = gap - a
    return gap, (a - (gap - back)) - (b + back)


def exponentials(v: Array, m: Array, temperature: Array | None = None) -> Array:
    """`exp((v - m)/T)` to the last digits: 1 for the maximum, 0 for −inf and beside +inf.

    Rounding `v - m` would cost up to 64 ulp; `exp` is corrected by the error to first order.
    """
    largest, centre = _centre(v, m)
    floor = _floor(v, m, temperature)
    near = jnp.where(v > floor, jnp.where(v < jnp.inf, v, largest), floor)
    gap, error = _difference(near, centre)
    if temperature is None:
        return jnp.exp(gap) * (1 + error)
    e = jnp.exp(gap / temperature) * (1 + error / temperature)
    return jnp.where(v == -jnp.inf, 0, e)


def gaps(v: Array, m: Array, temperature: Array | None = None) -> tuple[Array, Array]:
    """Returns `(v - m)/T`, kept finite, and which classes have no chance at all.

    Those are infinitely far below the maximum: −inf, or finite beside +inf, or so far that the gap
    overflows; their gap is given as 0.
    """
    largest, centre = _centre(v, m)
    lowest = jnp.where(row(m) == jnp.inf, jnp.inf, jnp.maximum(centre - largest, -largest))
    hopeless = v < lowest
    gap = jnp.where(hopeless, 0, jnp.minimum(v, largest) - centre)
    if temperature is not None:
        gap = jnp.maximum(gap / temperature, -largest)
    return gap, hopeless


def deleted(v: Array, m: Array) -> Array:
    """Which classes have no gradient, as if they were not there: −inf, or finite beside +inf."""
    return (v == -jnp.inf) | ((v < jnp.inf) & row(m == jnp.inf))


def rest_of(
    scores: Callable[[], Array],
    m: Array,
    temperature: Array | None,
    empty: Array | bool,
    axis_name: str | None = None,
) -> Array:
    """`Σ exp((v - m)/T) - 1` without cancellation; NaN where the row has no distribution.

    Args:
        scores: Makes `v`; called where it is needed, so that a branch not taken does not store it.
        m: The maxima of the rows.
        temperature: `[*batch, 1]`, or none.
        empty: The rows with every class masked: their `rest` is 0, and what follows from it finite.
        axis_name: The mesh axis that shards the classes.
    """

    def plain(v: Array) -> Array:
        centre = row(jnp.where(jnp.abs(m) < jnp.inf, m, 0))
        if temperature is None:
            return jnp.exp(v - centre)
        floor = _floor(v, m, temperature)
        e = jnp.exp((jnp.where(v < floor, floor, v) - centre) / temperature)
        return jnp.where(v == -jnp.inf, 0, e)

    def other(v: Array, corrected: bool) -> Array:
        largest, centre = _centre(v, m)
        near = jnp.minimum(jnp.maximum(v, _floor(v, m, temperature)), largest)
        gap, error = _difference(near, centre)
        if temperature is not None:
            gap, error = gap / temperature, error / temperature
        e = jnp.exp(gap) * (1 + error) if corrected else jnp.exp(gap)
        # In such a row the maximum is the only class with a gap above log 1/2. Asking for a gap of 0
        # would miss it where XLA rounds a transform one way here and another way in `m`.
        return e * jnp.clip(-1000.0 * (gap + 0.6), 0, 1)

    def sum_of(term: Callable[[Array], Array]) -> Array:
        return total_of(scores(), term, None)

    def rough() -> Array:
        return sum_of(lambda v: other(v, corrected=False))

    def fine() -> Array:
        return sum_of(lambda v: other(v, corrected=True))

    def tied_infinities() -> Array:
        return sum_of(lambda v: (v == jnp.inf).astype(v.dtype)) - 1

    # On a CPU, XLA sums a chain of plain arithmetic in one pass over memory, and puts the operand of
    # anything else, a comparison or a selection, into an array of full size first. So the common
    # case is the plain sum, as fast as any; the others cost a pass each and run only if a row needs
    # them: where one class dominates, the sum without the maximum; where it does so by more than 8,
    # the same of corrected terms. The plain sum also tells of a NaN, which XLA's maximum of a long
    # row on a CPU may not.
    def in_passes() -> Array:
        s = sum_of(plain)
        dominated, infinite = s < _DOMINATED, m == jnp.inf
        rest = _where_any(dominated, rough, s - 1)
        rest = _where_any(dominated & (rest < _FAR), fine, rest)
        rest = jnp.where(jnp.isnan(s), s, _where_any(infinite, tied_infinities, rest))
        # Whatever way the value took, its derivative is the plain sum's.
        moving = jnp.where(jnp.isfinite(s), s, 0)
        return jax.lax.stop_gradient(rest) + (moving - jax.lax.stop_gradient(moving))

    def in_one_pass() -> Array:
        v = scores()
        e, below = exponentials(v, m, temperature), v < row(m)
        tied = total(jnp.where(below, 0, e), axis_name)
        return total(jnp.where(below, e, 0), axis_name) + (tied - 1)

    if axis_name is None:
        rest = jax.lax.platform_dependent(cpu=in_passes, default=in_one_pass)
    else:
        # Devices that disagree about a branch would wait for each other in its collectives.
        rest = in_one_pass()
    none = (m == -jnp.inf) & ~jnp.asarray(empty)
    undefined = jnp.isnan(rest) | jnp.isnan(m) | ((m == jnp.inf) & (rest > 0)) | none
    return jnp.where(undefined, jnp.nan, jnp.where(m == -jnp.inf, 0, rest))


def _where_any(flag: Array, make: Callable[[], Array], other: Array) -> Array:
    """`where(flag, make(), other)`, without calling `make` at run time where no row needs it."""
    return jnp.where(flag, jax.lax.cond(jnp.any(flag), make, lambda: other), other)


def gap_at(v_at: Array, m: Array, temperature: Array | None = None) -> Array:
    """`(v_k - m)/T` for one class per row, as a true number: −inf for an impossible class."""
    finite = jnp.abs(m) < jnp.inf
    gap = jnp.where(finite, v_at, 0) - jnp.where(finite, m, 0)
    if temperature is not None:
        possible = gap > -jnp.inf
        gap = jnp.where(possible, jnp.where(possible, gap, 0) / temperature, -jnp.inf)
    return jnp.where(v_at == m, jnp.where(finite, gap, 0), jnp.where(m == jnp.inf, -jnp.inf, gap))


def scaled(weight: Array, value: Array) -> Array:
    """`weight · value` with `0 · inf = 0`, keeping the weight's gradient where the value is finite."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)
