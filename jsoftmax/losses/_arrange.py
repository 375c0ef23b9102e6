"""Brings arguments in optax's conventions to rows with the classes last.

Imports `_rows`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._numerics import accumulator, without_tiny_dtypes
from jsoftmax._rows import batch_of, classes_last
from jsoftmax._typing import Array, ArrayLike, Axis, Shape


def mask_rows(
    function: str, where: ArrayLike | None, shape: Shape, axes: tuple[int, ...]
) -> Array | None:
    """A mask of any shape that optax takes, `[*batch]` among them, as `[*batch, classes]`."""
    if where is None:
        return None
    _checks.dtype_of(function, "where", where)
    mask = jnp.asarray(where)
    if mask.ndim < len(shape) and mask.shape == batch_of(shape, axes):
        mask = jnp.expand_dims(mask, axes)
    _checks.mask(function, shape, mask)
    return classes_last(jnp.broadcast_to(mask, shape), axes)


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
    axes = _checks.axes(function, axis, x.ndim)
    y = y.astype(accumulator(x.dtype))
    return classes_last(x, axes), classes_last(y, axes), mask_rows(function, where, x.shape, axes)


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
