"""Passes over the class axis: the maximum, sums, and the sum of exponentials without its cancellation.

How often an array is read decides what a loss costs, so this is where the forms are that XLA:CPU
walks well. It sums a chain of plain arithmetic in one pass, if no intermediate and no constant of the
chain has a reader elsewhere; what a selection, a comparison or a clamp gives, it puts into an array of
full size first. Scores come in any dtype, and each pass widens them for itself: two readers of wide
scores would make XLA store those. Barriers keep readers apart.

Imports `_numerics`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._numerics import (
    behind,
    below,
    below_top,
    exponentials,
    is_sharded,
    own,
    row,
    two_sum,
    unit,
    wide,
)
from jsoftmax._typing import Array

# Below this sum of exponentials, subtracting the maximum's 1 would cost more than 2 bits.
_DOMINATED = 1.5

# Up to so many classes, one pass for two sums costs less than asking whether the second is needed.
_FEW = 16

# Where no more than one row in so many needs a pass, those are gathered for it.
_SHARE = 16

# What is gone through many times goes in chunks of rows of so many numbers, which a CPU's cache holds.
_CACHED = 1 << 19

# Rows are reduced in blocks of columns on a CPU if they are this wide and their array this large.
_BLOCK = 4096
_WIDE = 40_000
_MANY = 1 << 23


def maximum(x: Array, axis_name: str | None = None) -> Array:
    """The largest score of each row, over the whole mesh axis that shards the classes, constant."""
    m = wide(jax.lax.stop_gradient(x).max(axis=-1, initial=-jnp.inf))
    return m if axis_name is None else jax.lax.pmax(m, axis_name)


def apart(v: Array) -> Array:
    """`v` for one reader of its own: for two of them, XLA:CPU widens 16 bits first, and stores all."""
    return v if v.dtype.itemsize > 2 else behind(v)


def total(x: Array, axis_name: str | None = None) -> Array:
    """The sum over the classes of each row, over all shards of them."""
    s = jnp.sum(x, axis=-1)
    return s if axis_name is None else jax.lax.psum(s, axis_name)


def total_of(term: Callable[..., Array], axis_name: str | None, *arrays: Array) -> Array:
    """The sum over the classes of `term(*arrays)`, elementwise, of what is not needed otherwise.

    From about 40,000 columns on, with rows enough, XLA:CPU puts the terms into an array of full size
    before it sums them, three times as slow as a loop over blocks of columns; below, and on
    accelerators, the loop only costs.
    """

    def whole(*arrays: Array) -> Array:
        return jnp.sum(term(*map(apart, arrays)), axis=-1)

    def in_blocks(*arrays: Array) -> Array:
        count = arrays[0].shape[-1] // _BLOCK

        def step(i: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
            def block(x: Array) -> Array:
                # Tied to the loop's index, 16 bits cannot be widened as a whole ahead of the loop.
                x, at = jax.lax.optimization_barrier((x, i)) if x.dtype.itemsize == 2 else (x, i)
                return jax.lax.dynamic_slice_in_dim(x, at * _BLOCK, _BLOCK, axis=-1)

            added, lost = two_sum(so_far[0], whole(*map(block, arrays)))
            return added, so_far[1] + lost

        first = whole(*(apart(x)[..., :_BLOCK] for x in arrays))
        last = whole(*(apart(x)[..., count * _BLOCK :] for x in arrays))
        # What each addition of thousands rounds away is summed beside the sum.
        s, lost = jax.lax.fori_loop(1, count, step, two_sum(first, last))
        return s + lost

    v = arrays[0]
    if not isinstance(v.size, int) or v.shape[-1] < _WIDE or v.size < _MANY:
        s = whole(*arrays)
    else:
        s = jax.lax.platform_dependent(*arrays, cpu=in_blocks, default=whole)
    return s if axis_name is None else jax.lax.psum(s, axis_name)


def rest_of(
    scores: Callable[[], Array],
    m: Array,
    c: Array,
    temperature: Array | None,
    empty: Array | bool,
    axis_name: str | None = None,
    kept: bool = False,
    matters: Array | bool = True,
) -> tuple[Array, Array]:
    """`Σ exp((v - m)/T) - 1` without cancellation, NaN where the row has no distribution; and `m`.

    The latter comes back NaN for a row with a NaN.

    Where one class dominates, taking its 1 from the sum would leave few digits of the rest: it is
    summed without that class. On a CPU that pass is made only if a row needs it.

    Args:
        scores: Makes `v`; called where it is needed, so that a branch not taken does not store it.
        m: The maxima of the rows.
        c: Their shift.
        temperature: `[*batch, 1]`, or none.
        empty: The rows with every class masked: their rest is 0, and what follows finite.
        axis_name: The mesh axis that shards the classes.
        kept: Whether the `exponentials` themselves are needed too, so that the compiler keeps them.
        matters: The rows of which the digits of the rest will be read.
    """
    v = scores()
    top = unit(m, c, temperature)

    def odd() -> Array:
        """The number of +inf; NaN if there is a NaN."""

        def term(v: Array) -> Array:
            # In plain arithmetic, as in `_plain`; a NaN is the second operand, which XLA:CPU returns.
            one, largest = own(m, 1.0, float(jnp.finfo(m.dtype).max))
            return jnp.minimum(one, jnp.maximum(largest, wide(v)) - largest)

        return total_of(term, axis_name, scores())

    def others(v: Array, m: Array, c: Array, temperature: Array | None, top: Array) -> Array:
        return total_of(lambda v: _lower(v, m, c, temperature), axis_name, v) / top

    if isinstance(v.shape[-1], int) and v.shape[-1] <= _FEW:
        e = exponentials(v, c, temperature)
        s, rest = _two_totals(e, jnp.where(below(v, m, temperature), e, 0), axis_name)
        s, rest = s / top, rest / top
    elif kept:
        e = exponentials(v, c, temperature)
        s = total(e, axis_name) / top
        # A comparison in plain arithmetic: beside a dominant class, the others have less than half.
        steep = 1e4 / row(top)
        rest = total(e * jnp.minimum(jnp.maximum(6e3 - steep * e, 0), 1), axis_name) / top
    else:
        s = total_of(lambda v: _plain(v, m, c, temperature), axis_name, v)
        full = ~jnp.asarray(empty)
        s = jnp.where(full, _where_any((jnp.abs(m) == jnp.inf) & full, odd, s, axis_name), 1)
        flag = (s < _DOMINATED) & full & matters
        rest = _where_some(
            flag, others, lambda: (scores(), m, c, temperature, top), s - 1, v, axis_name
        )
    s, m = _settled(s, m, empty)
    return _moving(s, jnp.where(s < _DOMINATED, rest, s - 1)), m


def rest_around(
    others: Array,
    v_at: Array,
    m: Array,
    c: Array,
    temperature: Array | None,
    empty: Array | bool,
    axis_name: str | None,
) -> tuple[Array, Array]:
    """As `rest_of`, where its digits are read only if one given class dominates the row.

    Args:
        others: The `exponentials` with a 0 for that class.
        v_at: Its score, −inf for none.
        m: The maxima of the rows, and so on as in `rest_of`.
        c: Their shift.
        temperature: `[*batch, 1]`, or none.
        empty: The rows with every class masked.
        axis_name: The mesh axis that shards the classes.
    """
    top, rest = unit(m, c, temperature), total(others, axis_name)
    s = (rest + exponentials(row(v_at), c, temperature)[..., 0]) / top
    s, m = _settled(s, m, empty)
    dominates = ~below(row(v_at), m, temperature)[..., 0] & (s < _DOMINATED)
    return _moving(s, jnp.where(dominates, rest / top, s - 1)), m


def defined(s: Array, m: Array, empty: Array | bool) -> Array:
    """The sum, NaN where there is no distribution: no exponential but 0, or two infinities."""
    s = jnp.where((s == 0) | ((m == jnp.inf) & (s > 1)), jnp.nan, s)
    return s if empty is False else jnp.where(empty, 1, s)


def _settled(s: Array, m: Array, empty: Array | bool) -> tuple[Array, Array]:
    """The sum as `defined`, and the maximum: XLA's of a long row on a CPU drops a NaN, the sum not."""
    s = jnp.where(empty, 1, s)
    return defined(s, m, empty), jnp.where(jnp.isnan(s), jnp.nan, m)


def _moving(s: Array, rest: Array) -> Array:
    """`rest`; whatever way it took, its derivative is that of the sum `s`."""
    still = jax.lax.stop_gradient
    moving = jnp.where(jnp.isfinite(s), s, 0)
    return still(rest) + (moving - still(moving))


def _two_totals(a: Array, b: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Two sums over the classes in one pass."""
    zero = jnp.zeros((), a.dtype)
    sums = jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (a.ndim - 1,))
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _plain(v: Array, m: Array, c: Array, temperature: Array | None) -> Array:
    """The exponentials over that of the maximum, to be summed; NaN beside +inf.

    Plain arithmetic, without a comparison or a selection: XLA:CPU takes the maximum and sums such a
    chain in few passes over memory, and puts the operand of anything else into an array of full size
    first. The rounding of `v - m` does not show in the sum, and a NaN does, which XLA's maximum of a
    long row may drop.
    """
    if temperature is None:
        return jnp.exp(wide(v) - row(m))
    return exponentials(v, c, temperature) / row(unit(m, c, temperature))


def _lower(v: Array, m: Array, c: Array, temperature: Array | None) -> Array:
    """The exponentials of the classes below the dominant one, 0 for that."""
    if temperature is not None:
        return jnp.where(below(v, m, temperature), exponentials(v, c, temperature), 0)
    # A comparison in plain arithmetic, as in `_plain`, of the gap with -0.6.
    finite = jnp.minimum(c, jnp.finfo(c.dtype).max)
    return jnp.exp(jnp.minimum(wide(v) - finite, -1e4 * (below_top(v, m) + 0.6)))


def _where_any(flag: Array, make: Callable[[], Array], other: Array, axis_name: str | None) -> Array:
    """`where(flag, make(), other)`; on a CPU `make` does not run where no row needs it."""
    return jnp.where(flag, careful_if(flag, make, lambda: other, axis_name), other)


def _where_some(
    flag: Array,
    function: Callable[..., Array],
    arguments: Callable[[], tuple[Array | None, ...]],
    other: Array,
    like: Array,
    axis_name: str | None,
) -> Array:
    """`where(flag, function(*arguments()), other)`; on a CPU of few rows, if few need it."""
    rows = other.size if isinstance(other.size, int) else 0
    most = rows // _SHARE

    def whole() -> Array:
        return function(*arguments())

    def few() -> Array:
        ids = jax.lax.top_k(flag.reshape(-1).astype(other.dtype), most)[1]
        some = jax.tree.map(lambda x: x.reshape(rows, *x.shape[flag.ndim :])[ids], arguments())
        return other.reshape(-1).at[ids].set(function(*some)).reshape(other.shape)

    def needed() -> Array:
        count = jnp.sum(flag, dtype=jnp.int32)
        several = (count > most).astype(jnp.int32)
        return jax.lax.switch(jnp.sign(count) + several, (lambda: other, few, whole))

    # Rows that lie on several devices are not gathered.
    if axis_name or not most or is_sharded(like):
        return _where_any(flag, whole, other, axis_name)
    return jnp.where(flag, jax.lax.platform_dependent(cpu=needed, default=whole), other)


def careful_if(
    flag: Array, careful: Callable[[], Array], plain: Callable[[], Array], axis_name: str | None
) -> Array:
    """What `careful` makes, or on a CPU, where it is slower and no row needs it, `plain`."""

    def either() -> Array:
        return jax.lax.cond(jnp.any(flag), careful, plain)

    # Devices that disagree about a branch would wait for each other in its collectives.
    return careful() if axis_name else jax.lax.platform_dependent(cpu=either, default=careful)


def by_chunks(function: Callable[..., Any], v: Array, *per_row: Array | None) -> Any:
    """`function(v, *per_row)`, of rows that it treats alike, in the order that costs least.

    A CPU takes chunks of rows that stay in its cache while the function goes over them again and again;
    the last chunk starts early, so that all have one size. Elsewhere all rows are taken at once.
    """
    batch, classes = v.shape[:-1], v.shape[-1]
    known = all(isinstance(n, int) for n in v.shape)
    rows = math.prod(batch) if known else 0
    size = max(1, _CACHED // max(classes, 1)) if known else 0
    # Rows that lie on several devices stay there.
    if rows <= size or is_sharded(v):
        return function(v, *per_row)

    def in_chunks(*arrays: Array | None) -> Any:
        flat = jax.tree.map(lambda x: x.reshape(rows, *x.shape[len(batch) :]), arrays)

        def part(x: Array, i: Array) -> Array:
            # As in `total_of`: 16 bits are not to be widened ahead of the loop.
            x, i = jax.lax.optimization_barrier((x, i)) if x.dtype.itemsize == 2 else (x, i)
            return jax.lax.dynamic_slice_in_dim(x, jnp.minimum(i * size, rows - size), size)

        def chunk(i: Array) -> Any:
            return function(*jax.tree.map(lambda x: part(x, i), flat))

        def step(i: Array, out: Any) -> Any:
            at = jnp.minimum(i * size, rows - size)
            put = jax.lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda whole, made: put(whole, made, at, 0), out, chunk(i))

        # Of this one only the types are read: they say over which mesh axes the numbers vary. XLA:CPU
        # would store the constants of a chunk ahead of the loop, as large as the chunk.
        like = chunk(jnp.zeros((), jnp.int32))
        start = jax.tree.map(lambda x: jax.lax.full_like(x, 0, shape=(rows, *x.shape[1:])), like)
        out = jax.lax.fori_loop(0, -(-rows // size), step, start)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)

    return jax.lax.platform_dependent(v, *per_row, cpu=in_chunks, default=function)
