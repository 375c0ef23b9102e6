"""Where a row's label is among its classes, and what becomes of a row whose label is no class.

Imports `_walks`, `_numerics`, `_checks`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._numerics import has_whole_rows, is_sharded, nan_unless, row, sharded_like, wide, widened
from jsoftmax._typing import Array
from jsoftmax._walks import maximum, total


def are_indices(labels: Array) -> bool:
    """Whether labels are class indices, not distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def comparable(function: str, labels: Any, ignore_index: Any) -> tuple[Array, Any]:
    """Labels and the one to ignore, so that as int32 they are equal where they were equal before.

    `widened` leaves what int32 does not hold at the ends of its range, where two labels, or a label and
    the index, may meet. Where they could, the rows to ignore are found here, and get a label that no
    other row has.
    """
    y = _checks.array(function, "labels", labels)
    if ignore_index is None:
        return y, None
    index = _one_index(function, ignore_index)
    if not are_indices(y):
        return y, index
    given = _checks.on_host(labels)
    given = given if isinstance(given, np.ndarray | np.generic) else y
    fits, known = jnp.iinfo(jnp.int32), jnp.iinfo(given.dtype)
    low, high = (index, index) if isinstance(index, int) else _ends(index)
    exact = fits.min <= known.min and known.max <= fits.max and fits.min <= low and high <= fits.max
    if exact or (fits.min < low and high < fits.max):
        return y, index if isinstance(index, int) else index.astype(jnp.int32)
    others = jnp.maximum(widened(y), fits.min + 1)
    return jnp.where(_equal(given, y, index), fits.min, others), fits.min


def _one_index(function: str, x: Any) -> Any:
    """An integer as Python's, or as an array of JAX if it is one; refuses anything else."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.integer) and x.shape == ():
        return x
    x = x[()] if isinstance(x, np.ndarray) and x.shape == () else x
    _checks.integer(function, "ignore_index", x)
    return int(x)


def _ends(x: Any) -> tuple[int, int]:
    info = jnp.iinfo(x.dtype)
    return int(info.min), int(info.max)


def _equal(given: Any, y: Array, index: Any) -> Any:
    """Where labels, given and as an array of JAX, are the index, whatever the dtypes: nothing wraps."""
    if isinstance(index, int):
        low, high = _ends(given)
        inside = low <= index <= high
        return (given == given.dtype.type(index if inside else 0)) & inside
    (low, high), (least, most) = _ends(y), _ends(index)
    equal = y == index.astype(y.dtype)
    equal = equal & (index >= low) if least < low else equal
    equal = equal & (index <= high) if most > high else equal
    if isinstance(given, jax.Array):
        return equal
    # What JAX has no dtype for is in `y` at the end of its range, and not there.
    return equal & np.asarray((given >= low) & (given <= high))


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

    rows_sharded = v.ndim == 1 and is_sharded(labels)
    if not v.shape[-1] or not has_whole_rows(v) or rows_sharded:
        # On a mesh with explicit axes a gather cannot reach over the shards, a comparison can.
        return compared(v, labels)
    # A gather is the cheaper on a CPU. Elsewhere it needs `v` in memory, and a comparison joins the
    # pass over the logits that is made anyway.
    return jax.lax.platform_dependent(v, labels, cpu=gathered, default=compared)


def with_label(x: Array, labels: Array, value: Array) -> Array:
    """`x`, `[rows, classes]`, with another entry at each label; a label of no class changes nothing."""

    def compared(x: Array, labels: Array, value: Array) -> Array:
        return jnp.where(is_label(x, labels, None), row(value), x)

    def written(x: Array, labels: Array, value: Array) -> Array:
        at = jnp.where((labels >= 0) & (labels < x.shape[-1]), labels, x.shape[-1])
        rows = jnp.arange(x.shape[0], dtype=at.dtype)
        return x.at[rows, at].set(value, mode="drop", unique_indices=True)

    # A CPU writes the few entries more quickly than it compares them all.
    return jax.lax.platform_dependent(x, labels, value, cpu=written, default=compared)
