"""Tiles of the rows of one cluster, and what the loss of a tile is made of.

What a loss needs of a row's logits are two numbers relative to their maximum: the label's gap, and
the sum of the exponentials of the other classes. A row with the label −1 is not wanted in a cluster:
it is 0 there, and a tile without a wanted row is skipped. So a cluster that few rows are in is cheap,
whatever the labels, with static shapes and in every AD mode.

Imports `_labels`, `_numerics`, `_walks`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jsoftmax._labels import is_label
from jsoftmax._numerics import row
from jsoftmax._typing import Array
from jsoftmax._walks import careful_if


def tiles(x: Array, height: int, fill: int = 0) -> Array:
    """Rows cut into tiles of at most so many, the last padded: `[tiles, height, …]`."""
    rows = x.shape[0]
    size = max(1, min(height, rows)) if isinstance(rows, int) else height
    count = -(-rows // size)
    spare = ((0, count * size - rows), *[(0, 0)] * (x.ndim - 1))
    return jnp.pad(x, spare, constant_values=fill).reshape(count, size, *x.shape[1:])


def untiled(x: Array, rows: int) -> Array:
    """`[tiles, height, …]` as `[rows, …]`."""
    return x.reshape(-1, *x.shape[2:])[:rows]


def wanted(x: Array, y: Array) -> Array:
    """The rows, 0 for those without a label: 0 · NaN would reach the kernel's gradient."""
    return jnp.where(row(y >= 0), x, 0)


def product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The product of two matrices over these axes."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())))


def nothing(*arrays: Array) -> Array:
    """A zero that varies over every mesh axis that an array does, as the start of a loop must.

    Only their types are read.
    """
    return sum((jax.lax.full_like(x, 0, arrays[0].dtype, ()) for x in arrays[1:]),
               jax.lax.full_like(arrays[0], 0, shape=()))  # fmt: skip


def others_of(exponentials: Callable[[], Array], whole: Array, own: Array, local: Array) -> Array:
    """The sum of the exponentials of the classes that are not the label.

    XLA:CPU sums exponentials as it makes them, and stores what a comparison is made with first. So the
    label's is taken from the sum of all, unless it is most of a sum.

    Args:
        exponentials: Makes them, `[rows, classes]`; called where they are needed.
        whole: Their sums.
        own: That of the label.
        local: The label.
    """

    def careful() -> Array:
        e = exponentials()
        return jnp.sum(jnp.where(is_label(e, local, None), 0, e), axis=-1)

    return careful_if(own > whole / 2, careful, lambda: whole - own, None)


def loss_of(gap: Array, others: Array) -> Array:
    """The loss of rows by the gap of their label and the sum of the others' exponentials.

    Two forms of one function. The first keeps all digits of the loss and of its gradient where the
    label dominates; the second cannot overflow where it is far below.
    """
    near = gap > -1
    dominant = jnp.log1p(jnp.where(near, others * jnp.exp(-jnp.where(near, gap, 0)), 0))
    gap, others = jnp.where(near, -1, gap), jnp.where(near, 1, others)
    return jnp.where(near, dominant, jnp.log1p(others + jnp.expm1(gap)) - gap)
