"""softmax, log_softmax, logsumexp and their vector-Jacobian products, along any axes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tests.oracles.rows import classes_back, classes_last, per_row, real, rows

Axis = int | tuple[int, ...]


def _merged(x: ArrayLike, where: ArrayLike | None, axis: Axis) -> tuple[np.ndarray, np.ndarray | None]:
    array = real(x)
    if where is None:
        return classes_last(array, axis), None
    return classes_last(array, axis), classes_last(np.broadcast_to(where, array.shape), axis)


def softmax(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
):
    z, mask = _merged(x, where, axis)
    return classes_back(rows(z, mask, temperature).probs, axis, np.shape(x))


def log_softmax(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
):
    z, mask = _merged(x, where, axis)
    return classes_back(rows(z, mask, temperature).log_probs, axis, np.shape(x))


def logsumexp(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, keepdims: bool = False):
    z, mask = _merged(x, where, axis)
    value = rows(z, mask).logsumexp
    axes = (axis,) if isinstance(axis, int) else axis
    return np.expand_dims(value, tuple(a % np.ndim(x) for a in axes)) if keepdims else value


def softmax_vjp(
    x: ArrayLike,
    cotangent: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
) -> np.ndarray:
    """``p_k (c_k - sum_j p_j c_j) / T``."""
    z, mask = _merged(x, where, axis)
    row = rows(z, mask, temperature)
    ct = classes_last(real(cotangent), axis)
    # Relative to the cotangent of the most probable class, whose own term would cancel otherwise.
    top = np.take_along_axis(ct, row.probs.argmax(-1)[..., None], -1)
    relative = np.where(row.probs > 0, ct - top, 0)
    mean = (row.probs * relative).sum(-1, keepdims=True)
    grad = row.probs * (relative - mean) / per_row(temperature)
    return classes_back(grad, axis, np.shape(x))


def log_softmax_vjp(
    x: ArrayLike,
    cotangent: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
) -> np.ndarray:
    """``(c_k - p_k sum_j c_j) / T`` over the allowed classes."""
    z, mask = _merged(x, where, axis)
    row = rows(z, mask, temperature)
    ct = classes_last(real(cotangent), axis)
    ct = ct if mask is None else np.where(mask, ct, 0)
    others = ct.sum(-1, keepdims=True) - ct
    grad = (ct * row.one_minus_probs - row.probs * others) / per_row(temperature)
    grad = grad if mask is None else np.where(mask, grad, 0)
    return classes_back(grad, axis, np.shape(x))


def logsumexp_vjp(x: ArrayLike, cotangent: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None):
    """``c p_k``."""
    z, mask = _merged(x, where, axis)
    return classes_back(per_row(cotangent) * rows(z, mask).probs, axis, np.shape(x))
