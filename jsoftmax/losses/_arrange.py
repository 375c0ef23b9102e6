"""Brings arguments in optax's conventions to rows with the classes last.

Imports `_rows`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._numerics import accumulator, without_tiny_dtypes
from jsoftmax._rows import batch_of, classes_last
from jsoftmax._typing import Array, ArrayLike, Axis, Shape


def class_mask(
    function: str, where: ArrayLike | None, shape: Shape, axes: tuple[int, ...]
) -> Array | None:
    """A mask that broadcasts to the logits, as `[*batch, classes]`."""
    if where is None:
        return None
    _checks.mask(function, shape, where)
    return classes_last(jnp.broadcast_to(jnp.asarray(where), shape), axes)


def row_mask(function: str, where: ArrayLike | None, shape: Shape, axis: Axis | None) -> Array | None:
    """A mask as optax's cross-entropies read it: of fewer axes than the logits, it has none of classes.

    So one of shape `[*batch]` says which rows take part, whatever the sizes.
    """
    if where is None:
        return None
    _checks.dtype_of(function, "where", where)
    mask, axes = jnp.asarray(where), _checks.axes(function, axis, len(shape), none=True)
    if mask.ndim not in (0, len(shape)):
        # As they were given: optax counts those from the end in what has more axes by then.
        given = axes if axis is None else tuple(int(a) for a in np.atleast_1d(axis))
        ndim = mask.ndim + len(given)
        if ndim > len(shape) or not all(-ndim <= a < ndim for a in given):
            _refuse_row_mask(function, mask.shape, shape, axes)
        expanded = jnp.expand_dims(mask, given)
        try:
            jnp.broadcast_to(expanded, shape)
        except ValueError:
            _refuse_row_mask(function, mask.shape, shape, axes)
        mask = expanded
    return class_mask(function, mask, shape, axes)


def _refuse_row_mask(function: str, mask: Shape, shape: Shape, axes: tuple[int, ...]) -> None:
    raise ValueError(
        f"{function}: where of fewer axes than logits {list(shape)} must have shape [*batch] = "
        f"{list(batch_of(shape, axes))}, as in optax, got {list(mask)}; give a mask of classes all "
        "axes, those of the batch of size 1."
    )


def pair(
    function: str,
    names: tuple[str, str],
    arrays: tuple[ArrayLike, ArrayLike],
    axis: Axis | None,
    where: ArrayLike | None,
) -> tuple[Array, Array, Array | None]:
    """Two arrays of one shape, scores and a distribution, and the mask, as rows.

    The second may have any real dtype (one-hot rows are often integer); it leaves in the dtype that
    the first is reduced in.
    """
    x, y = (_checks.array(function, name, x) for name, x in zip(names, arrays, strict=True))
    _checks.floating(function, names[0], x)
    if x.shape != y.shape:
        raise ValueError(
            f"{function}: {names[1]} must have shape [*batch, classes] = {list(x.shape)} like "
            f"{names[0]}, got {list(y.shape)}; broadcast them explicitly."
        )
    if jnp.issubdtype(y.dtype, jnp.complexfloating):
        raise TypeError(
            f"{function}: {names[1]} must have a real dtype, got {y.dtype}; take the real part."
        )
    # As in optax, there may be none.
    axes = _checks.axes(function, axis, x.ndim, none=True)
    y = y.astype(accumulator(x.dtype))
    return classes_last(x, axes), classes_last(y, axes), class_mask(function, where, x.shape, axes)


def both(function: str, logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Logits and labels broadcast against each other."""
    a, b = _checks.array(function, "logits", logits), _checks.array(function, "labels", labels)
    if jnp.issubdtype(b.dtype, jnp.complexfloating):
        raise TypeError(
            f"{function}: labels must have a real dtype, got {b.dtype}; take the real part."
        )
    try:
        shape = jnp.broadcast_shapes(a.shape, b.shape)
    except ValueError as misfit:
        raise ValueError(
            f"{function}: labels must broadcast with logits {list(a.shape)}, got {list(b.shape)}; "
            "give them one shape."
        ) from misfit
    return jnp.broadcast_to(without_tiny_dtypes(a), shape), jnp.broadcast_to(b, shape)
