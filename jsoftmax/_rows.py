"""Rows: an array brought into the form that all rules are written for, its classes last, and back.

What a map or a loss is told of its array (axis, mask, temperature) is checked and settled here, once.

Imports `_walks`, `_numerics`, `_checks`.
"""

import math

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._numerics import accumulator, row, safe_temperature, sharded_like, without_tiny_dtypes
from jsoftmax._typing import Array, ArrayLike, Axis, Shape
from jsoftmax._walks import total


def classes_last(x: Array, axis: tuple[int, ...]) -> Array:
    """Moves the class axes to the end, in their order, and joins them into one, of size 1 for none.

    Floats of fewer than 16 bits are widened.
    """
    x = without_tiny_dtypes(x)
    batch = [a for a in range(x.ndim) if a not in axis]
    if (*batch, *axis) != tuple(range(x.ndim)):
        x = jnp.transpose(x, (*batch, *axis))
    if len(axis) == 1:
        return x
    return x.reshape(*x.shape[: len(batch)], math.prod(x.shape[len(batch) :]))


def classes_back(x: Array, axis: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Undoes `classes_last` for an array of the given original shape."""
    batch = [a for a in range(len(shape)) if a not in axis]
    order = (*batch, *axis)
    if len(axis) != 1:
        x = x.reshape([shape[a] for a in order])
    if order == tuple(range(len(shape))):
        return x
    return jnp.transpose(x, [order.index(a) for a in range(len(shape))])


def masked(x: Array, where: Array | None) -> Array:
    """The scores, −inf where a class is masked."""
    return x if where is None else jnp.where(where, x, -jnp.inf)


def all_masked(where: Array | None, v: Array, axis_name: str | None = None) -> Array | None:
    """Which rows have no class at all, not those whose scores all are −inf; nothing if all rows have.

    Not `False`: it is an operand of rules, and who reads their jaxprs (folx) expects arrays there.
    """
    if v.shape[-1] == 0 and axis_name is None:
        return jnp.all(v == 0, axis=-1)
    if where is None:
        return None
    return total(jnp.broadcast_to(where, v.shape).astype(jnp.int32), axis_name) == 0


def rows_of(x: Array, where: Array | None, axis: tuple[int, ...]) -> tuple[Array, Array | None]:
    """The scores with their classes last, −inf where masked, and the mask in the same form."""
    if where is not None:
        where = classes_last(jnp.broadcast_to(where, x.shape), axis)
    return masked(classes_last(x, axis), where), where


def row_temperature(temperature: ArrayLike | None, v: Array) -> Array | None:
    """One temperature per row, `[*batch, 1]`, safe to divide by."""
    return None if temperature is None else row(safe_temperature(for_rows(temperature, v)))


def for_rows(x: ArrayLike, v: Array) -> Array:
    """A number, or one for each row, as one for each row `[*batch]`, laid out as the rows are."""
    per_row = jnp.broadcast_to(jnp.asarray(x, accumulator(v.dtype)), v.shape[:-1])
    return sharded_like(per_row, v)


def checked(
    function: str, x: ArrayLike, axis: Axis | None, where: ArrayLike | None, none: bool = False
) -> tuple[Array, tuple[int, ...]]:
    """The array and the class axes of a map, its arguments checked; `none` as in `_checks.axes`."""
    array = _checks.array(function, "x", x)
    _checks.floating(function, "x", array)
    _checks.mask(function, array.shape, where, "x")
    return array, _checks.axes(function, axis, array.ndim, none)


def batch_of(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """The shape without the class axes."""
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def checked_temperature(function: str, temperature: ArrayLike, batch: Shape) -> ArrayLike | None:
    """The temperature of a map or a loss, `None` for one that changes nothing."""
    _checks.number(function, "temperature", temperature, lambda t: t >= 0, "at least 0")
    _checks.per_row(function, "temperature", temperature, batch)
    return _checks.unless_neutral(temperature, 1)
