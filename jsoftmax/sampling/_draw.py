"""Drawing a class: a block of classes by its mass, then a class of that block.

Two uniform numbers per draw stand in place of one Gumbel number per class, and the classes are read
twice, for the maximum and for the masses. Weights become whole numbers of 32 bits before they are
summed and compared: sums of them are exact, so a rare class is as rare as it should be wherever it
stands, where float32 sums next to 1 have steps of 6e-8.

Imports `_walks`, `_numerics`.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jsoftmax._numerics import aligned, by_rows, exponentials, row, shift, wide
from jsoftmax._typing import Array
from jsoftmax._walks import apart, careful_if, defined, maximum

# Up to so many classes, one block is as quick as several.
_FEW = 256

# What a distribution's whole numbers sum to; their rounding must not carry it beyond 32 bits.
_UNITS = 2.0**32 * (1 - 2.0**-8)


def drawn(key: Array, v: Array, temperature: Array | None, shape: tuple[int, ...]) -> Array:
    """Classes of `shape`, to which the batch broadcasts, by scores `[*batch, classes]`.

    −1 for a row without a distribution.
    """
    ahead = (None,) * (len(shape) - (v.ndim - 1))
    place = by_rows(_drawn, lambda rows: PartitionSpec(*ahead, *rows))
    return place(jax.lax.stop_gradient(v), key, temperature, shape=shape)


def _drawn(v: Array, key: Array, temperature: Array | None, *, shape: tuple[int, ...]) -> Array:
    batch, classes = v.shape[:-1], v.shape[-1]
    if classes == 0:
        return jnp.full(shape, -1, jnp.int32)
    m = maximum(v)
    c = shift(m, classes, temperature)
    if not isinstance(classes, int) or classes <= _FEW:
        weights = exponentials(v, c, temperature)
        ids = _pick(key, weights, shape)
        return jnp.where(jnp.isnan(defined(jnp.sum(weights, axis=-1), m, False)), -1, ids)

    size = 2 ** round(math.log2(classes) / 2)
    masses = _masses(v, m, c, temperature, size)
    keys = jax.random.split(key)
    block = _pick(keys[0], masses, shape)

    rows = math.prod(batch)
    at = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32).reshape(batch), shape)
    # The last block ends with the classes; what it shares with the one before is left out.
    first = jnp.minimum(block * size, classes - size)
    ids = row(first) + aligned(jnp.arange(size, dtype=jnp.int32), row(first))

    def of(x: Array, *index: Array) -> Array:
        return x.reshape(rows, *x.shape[len(batch) :]).at[index].get(mode="promise_in_bounds")

    scores = of(v, row(at), ids)
    weights = exponentials(scores, of(c, at), None if temperature is None else of(temperature, at))
    weights = jnp.where(ids < row(block * size), 0, weights)
    missing = jnp.isnan(defined(jnp.sum(masses, axis=-1), m, False))
    return jnp.where(missing, -1, first + _pick(keys[1], weights, shape))


def _masses(v: Array, m: Array, c: Array, temperature: Array | None, size: int) -> Array:
    """The sums of the exponentials of each block of so many classes; the last may have fewer."""

    def careful() -> Array:
        return _block_sums(exponentials(apart(v), c, temperature), size)

    if temperature is not None:
        return careful()
    masses = _block_sums(jnp.exp(wide(apart(v)) - row(m)), size)
    odd = ~jnp.isfinite(m) | jnp.isnan(jnp.sum(masses, axis=-1))
    return jnp.where(row(odd), careful_if(odd, careful, lambda: masses, None), masses)


def _block_sums(x: Array, size: int) -> Array:
    blocks = -(-x.shape[-1] // size)
    left = blocks * size - x.shape[-1]
    ahead = (1,) * (x.ndim - 1)

    def windows(x: Array) -> Array:
        window, zero = (*ahead, size), jnp.zeros((), x.dtype)
        padding = [(0, 0)] * len(ahead) + [(0, left)]
        return jax.lax.reduce_window(x, zero, jax.lax.add, window, window, padding)

    def folded(x: Array) -> Array:
        full = jnp.pad(x, [(0, 0)] * len(ahead) + [(0, left)])
        return jnp.sum(full.reshape(*x.shape[:-1], blocks, size), axis=-1)

    # XLA:CPU takes a fifth of the time for the windows.
    return jax.lax.platform_dependent(x, cpu=windows, default=folded)


def _pick(key: Array, weights: Array, shape: tuple[int, ...]) -> Array:
    """Places of the last axis, each drawn in proportion to its weight; one of weight 0 is never."""
    below = whole(weights)
    bits = jax.random.bits(key, shape, jnp.uint32)
    dart = row(_share_of(aligned(below[..., -1], bits), bits))
    found = jnp.sum(dart >= aligned(below, dart), axis=-1, dtype=jnp.int32)
    return jnp.minimum(found, weights.shape[-1] - 1)


def whole(weights: Array) -> Array:
    """Whole numbers in proportion to the weights, summed up along the last axis; 0 for NaN."""
    share = weights / row(jnp.sum(weights, axis=-1))
    units = jnp.round(jnp.where(share >= 0, share, 0) * _UNITS).astype(jnp.uint32)
    return jnp.cumsum(units, axis=-1)


def _share_of(total: Array, bits: Array) -> Array:
    """A random whole number below `total`: the upper 32 bits of its product with 32 random bits.

    A remainder, as `jax.random.randint` takes it, favours small numbers where `total` is so large.
    """
    (high, low), (top, rest) = ((x >> 16, x & 0xFFFF) for x in (bits, total))
    middle = high * rest + (low * rest >> 16)
    return high * top + (middle >> 16) + (low * top + (middle & 0xFFFF) >> 16)
