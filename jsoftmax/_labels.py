"""Where a row's label is among its classes, and what becomes of a row whose label is no class.

Imports `_walks`, `_numerics`.
"""

import jax
import jax.numpy as jnp

from jsoftmax._numerics import nan_unless, row, sharded_like, wide
from jsoftmax._typing import Array
from jsoftmax._walks import maximum, total


def are_indices(labels: Array) -> bool:
    """Whether labels are class indices, not distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def first_largest(v: Array, axis_name: str | None) -> Array:
    """The global id of the first largest class of each row; `2³¹ − 1` in a row of NaN."""
    last = jnp.iinfo(jnp.int32).max
    ids = jnp.where(wide(v) == row(maximum(v, axis_name)), class_ids(v, axis_name), last)
    first = jnp.min(ids, axis=-1, initial=last)
    return first if axis_name is None else jax.lax.pmin(first, axis_name)


def settle(loss: Array, labels: Array, classes: int, ignored: Array | None) -> Array:
    """The label policy: NaN, value and gradient, for an index of no class; 0 for an ignored row."""
    if are_indices(labels):
        valid = (labels >= 0) & (labels < classes)
        # An ignored row is valid: 0 · NaN would reach what it shares with the others.
        valid = valid if ignored is None else valid | ignored
        loss = loss * nan_unless(valid, loss.dtype)
    return loss if ignored is None else jnp.where(ignored, 0, loss)


def class_ids(v: Array, axis_name: str | None) -> Array:
    """The global ids of the classes held here, `[1, …, classes]`."""
    ids = jax.lax.broadcasted_iota(jnp.int32, (1,) * (v.ndim - 1) + v.shape[-1:], v.ndim - 1)
    return ids if axis_name is None else ids + jax.lax.axis_index(axis_name) * v.shape[-1]


def num_classes(v: Array, axis_name: str | None) -> int:
    """The number of classes over all shards."""
    return v.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def is_label(v: Array, labels: Array, axis_name: str | None) -> Array:
    """Where each row's label is, `[*batch, classes]`, laid out as `v`."""
    return sharded_like(class_ids(v, axis_name) == row(labels), v)


def at_label(v: Array, labels: Array, axis_name: str | None = None) -> Array:
    """The entry of `v`, `[*batch, classes]` or `[classes]`, at each label; 0 at a label of no class."""

    def compared(v: Array, labels: Array) -> Array:
        like = jnp.broadcast_to(v, labels.shape + v.shape[-1:])
        return total(jnp.where(is_label(like, labels, axis_name), like, 0), axis_name)

    def gathered(v: Array, labels: Array) -> Array:
        start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * v.shape[-1]
        local = labels - start
        here = (local >= 0) & (local < v.shape[-1])
        index = jnp.where(here, local, 0)
        if v.ndim == 1:
            found = jnp.take(v, index, mode="clip")
        else:
            found = jnp.take_along_axis(v, row(index), axis=-1, mode="clip")[..., 0]
        found = jnp.where(here, found, 0)
        return found if axis_name is None else jax.lax.psum(found, axis_name)

    classes_sharded = jax.typeof(v).sharding.spec[-1:] not in ((), (None,))
    rows_sharded = v.ndim == 1 and any(jax.typeof(labels).sharding.spec)
    if not v.shape[-1] or classes_sharded or rows_sharded:
        # On a mesh with explicit axes a gather cannot reach over the shards, a comparison can.
        return compared(v, labels)
    # A gather is the cheaper on a CPU. Elsewhere it needs `v` in memory, and a comparison joins the
    # pass over the logits that is made anyway.
    return jax.lax.platform_dependent(v, labels, cpu=gathered, default=compared)
