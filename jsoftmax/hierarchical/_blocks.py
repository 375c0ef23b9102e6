"""The losses of the rows of one cluster, over tiles of rows and blocks of classes.

What a loss needs of a row is gathered block by block, so that no array of the size of the logits is
ever stored, and the logits are made again for the backward pass. Under `vmap` over the labels no tile
is skipped.

Imports `_tiles`, `dense`, `autodiff`, `_labels`, `_numerics`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._labels import at_label, class_ids, with_label
from jsoftmax._numerics import row, two_sum, upright
from jsoftmax._recomputed import recomputed
from jsoftmax._typing import Array
from jsoftmax.autodiff import custom_vjp, scan_forgetting
from jsoftmax.dense import cross_entropy
from jsoftmax.hierarchical._tiles import (
    loss_of,
    nothing,
    others_of,
    product,
    tiles,
    untiled,
    wanted,
)

# A block of so many logits stays in the cache between the pass that makes it and those that read it.
_ROWS, _COLUMNS = 64, 32768

# Up to so many logits, all of them at once cost less than the loops.
_FEW = 1 << 16


def row_losses(hidden: Array, kernel: Array, labels: Array) -> Array:
    """The cross-entropy of `hidden @ kernel`, one value per row.

    Args:
        hidden: `[rows, features]`, float32 or wider; the rows with a label should stand together.
        kernel: `[features, classes]`.
        labels: `[rows]`, int32; −1 for a row that is not wanted: its loss is 0, and it has no
            gradient, whatever `hidden` holds.
    """
    if are_few(labels, kernel):
        loss = cross_entropy(
            wanted(hidden, labels) @ kernel.astype(hidden.dtype), jnp.maximum(labels, 0)
        )
        return jnp.where(labels >= 0, loss, 0)
    gap, others, _ = _row_numbers(hidden, kernel, labels)
    return loss_of(gap, others)


def are_few(labels: Array, kernel: Array) -> bool:
    """Whether all logits at once cost less than loops over parts of them."""
    logits = labels.size * kernel.shape[-1]
    return isinstance(logits, int) and logits <= _FEW


@custom_vjp
def _row_numbers(hidden: Array, kernel: Array, labels: Array) -> tuple[Array, Array, Array]:
    """`z_y − m`, `Σ exp(z_k − m)` over the other classes, and the maximum `m`, a constant."""
    blocks, none = _blocks(kernel), nothing(hidden, kernel)

    def over_tile(x: Array, y: Array) -> tuple[Array, Array, Array]:
        def over_block(so_far: tuple[Array, ...], block: Any) -> tuple[Any, None]:
            m, others, low, score = so_far
            v, local = _logits(x, y, block, kernel.shape[-1])
            top = jnp.maximum(m, jax.lax.stop_gradient(jnp.max(v, axis=-1)))
            here = (local >= 0) & (local < v.shape[-1])
            score = jnp.where(here, at_label(v, local), score)

            def exponentials() -> Array:
                return jnp.exp(v - row(top))

            own = jnp.where(here, jnp.exp(jnp.where(here, score - top, 0)), 0)
            added = others_of(exponentials, jnp.sum(exponentials(), axis=-1), own, local)
            scale = jnp.exp(m - top)
            others, lost = two_sum(others * scale, added)
            return (top, others, jax.lax.stop_gradient(low * scale) + lost, score), None

        zero = jnp.full(y.shape, none)
        start = (zero + jnp.finfo(zero.dtype).min, zero, zero, zero)
        (m, others, low, score), _ = jax.lax.scan(over_block, start, blocks)
        return jnp.where(y >= 0, score - m, 0), jnp.where(y >= 0, others + low, 0), m

    def tile(_: None, operands: tuple[Array, Array]) -> tuple[None, Any]:
        x, y = operands
        skipped = (jnp.full(y.shape, none),) * 3
        return None, jax.lax.cond(jnp.any(y >= 0), over_tile, lambda *_: skipped, x, y)

    _, numbers = jax.lax.scan(_lean(tile), None, (tiles(hidden, _ROWS), tiles(labels, _ROWS, -1)))
    gap, others, m = (untiled(x, labels.shape[0]) for x in numbers)
    return gap, others, m


def _fwd(hidden: Array, kernel: Array, labels: Array) -> tuple[Any, Any]:
    out = _row_numbers(hidden, kernel, labels)
    return out, (hidden, kernel, labels, out[2])


def _bwd(residuals: Any, cts: tuple[Array, Array, Array]) -> tuple[Any, ...]:
    hidden, kernel, labels, m = residuals
    none = nothing(hidden, kernel, *cts[:2])
    blocks = _blocks(kernel)[1]
    of_tiles = tiles(labels, _ROWS, -1), tiles(hidden, _ROWS), tiles(m, _ROWS)
    count, height, width = of_tiles[1].shape

    # Blocks outside, so that each block of the kernel's gradient is written once.
    def over_block(d_hidden: Array, i: Array, cts: list[Array]) -> tuple[Array, Array]:
        block = i, _at(blocks, i)

        def added(d_block: Array, y: Array, x: Array, m: Array, *cts: Array) -> tuple[Array, Array]:
            v, local = _logits(x, y, block, kernel.shape[-1])
            ct_gap, ct_others = (jnp.where(y >= 0, ct, 0) for ct in cts)
            d = with_label(row(ct_others) * jnp.exp(v - row(m)), local, ct_gap)
            d_x = product(d, block[1].astype(d.dtype), 1, 1)
            return d_block + product(upright(wanted(x, y)), d, 1, 0), d_x

        def skipped(d_block: Array, *_: Array) -> tuple[Array, Array]:
            return d_block, jnp.full((height, width), none)

        def tile(d_block: Array, j: Array, cts: list[Array]) -> tuple[Array, Array]:
            y, x, m, *of_tile = (_at(array, j) for array in (*of_tiles, *cts))
            return jax.lax.cond(jnp.any(y >= 0), _lean(added), skipped, d_block, y, x, m, *of_tile)

        start = jnp.full(block[1].shape, none)
        d_block, d_tiles = scan_forgetting(tile, start, count, cts)
        return d_hidden + d_tiles, d_block.astype(kernel.dtype)

    start = jnp.full((count, height, width), none)
    dealt = [tiles(ct, _ROWS) for ct in cts[:2]]
    d_hidden, d_blocks = scan_forgetting(over_block, start, blocks.shape[0], dealt)
    d_kernel = jnp.moveaxis(d_blocks, 0, 1).reshape(kernel.shape[0], -1)[:, : kernel.shape[-1]]
    return untiled(d_hidden, labels.shape[0]), d_kernel, None


_row_numbers.defvjp(_fwd, _bwd)


def _lean(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that keeps nothing but its arguments when a derivative takes its loop apart."""
    return recomputed(step)


def _logits(x: Array, y: Array, block: Any, classes: int) -> tuple[Array, Array]:
    """The logits of a tile in a block, and the places of its labels, some outside of it."""
    number, kernel = block
    v = product(wanted(x, y), kernel.astype(x.dtype), 1, 0)
    size = kernel.shape[-1]
    if classes % size:
        v = jnp.where(class_ids(v, None) < classes - number * size, v, -jnp.inf)
    return v, y - number * size


def _blocks(kernel: Array) -> tuple[Array, Array]:
    """The classes cut into numbered blocks of one size, the last padded: `[blocks, features, size]`."""
    features, classes = kernel.shape
    count = math.ceil(classes / _COLUMNS)
    size = math.ceil(classes / count)
    padded = jnp.pad(kernel, ((0, 0), (0, count * size - classes)))
    return jnp.arange(count, dtype=jnp.int32), jnp.moveaxis(padded.reshape(features, count, size), 1, 0)


def _at(x: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
