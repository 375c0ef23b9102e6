"""Softmax of one row, in ``np.longdouble``.

``np.longdouble`` has 64 bits of mantissa on x86. Where it is only float64 (some ARM systems,
Windows) the formulas still carry enough digits to judge float32, because none of them cancels: the
largest class is left out of the sum of exponentials, so that ``1 - p`` and ``log s`` stay exact
when tiny.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

REAL = np.longdouble

# XLA:CPU, GPU and TPU flush float32 results below this to zero, whatever the formula.
FLUSHED_BELOW = REAL(np.finfo(np.float32).tiny) * REAL(1.01)


class Rows(NamedTuple):
    """What a softmax over the last axis knows of each row."""

    probs: np.ndarray  # [*batch, classes]
    one_minus_probs: np.ndarray  # [*batch, classes], without cancellation
    log_probs: np.ndarray  # [*batch, classes]
    logsumexp: np.ndarray  # [*batch]
    maximum: np.ndarray  # [*batch]
    flushed: np.ndarray  # [*batch], the mass of the classes whose exponential float32 cannot hold


def real(x: ArrayLike) -> np.ndarray:
    """Exact conversion, also from bfloat16 and float16."""
    array = np.asarray(x)
    if array.dtype == REAL:
        return array
    return array.astype(np.float64).astype(REAL)


def classes_last(x: ArrayLike, axis: int | tuple[int, ...], ndim: int | None = None) -> np.ndarray:
    """Move the class axes to the end and merge them into one."""
    array = np.asarray(x)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % (ndim or array.ndim) for a in axes)
    batch = [a for a in range(array.ndim) if a not in axes]
    moved = np.transpose(array, [*batch, *axes])
    count = int(np.prod([array.shape[a] for a in axes]))
    return moved.reshape(*(array.shape[a] for a in batch), count)


def classes_back(x: np.ndarray, axis: int | tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `classes_last` for an array of `shape`."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % len(shape) for a in axes)
    batch = [a for a in range(len(shape)) if a not in axes]
    order = [*batch, *axes]
    return x.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def per_row(value: ArrayLike) -> np.ndarray:
    """A scalar or one value per row, ready to broadcast against [*batch, classes]."""
    array = real(value)
    return array[..., None] if array.ndim else array


def rows(x: ArrayLike, where: ArrayLike | None = None, temperature: ArrayLike = 1.0) -> Rows:
    """The row statistics of ``x / temperature`` over the last axis."""
    z = real(x)
    allowed = np.broadcast_to(True if where is None else np.asarray(where), z.shape)
    z = np.where(allowed, z, -np.inf)
    temp = per_row(temperature)
    if z.shape[-1] == 0:
        empty, lowest = np.zeros(z.shape, REAL), np.full(z.shape[:-1], -np.inf, REAL)
        return Rows(empty, empty, empty, lowest, lowest, np.zeros(z.shape[:-1], REAL))

    m = z.max(-1, keepdims=True)
    with np.errstate(all="ignore"):
        # Two infinite maxima have no limit; one has.
        undefined = np.isnan(m) | ((np.isposinf(z)).sum(-1, keepdims=True) > 1) | (temp < 0)
        undefined |= np.isneginf(m) & allowed.any(-1, keepdims=True)
        gap = np.where(z == m, REAL(0), z - m)
        gap = np.where(np.isneginf(gap) | (gap == 0), gap, gap / temp)
        first = np.arange(z.shape[-1]) == gap.argmax(-1)[..., None]
        weights = np.exp(gap)
        rest = np.where(first, 0, weights).sum(-1, keepdims=True)
        total = 1 + rest
        log_total = np.log1p(rest)
        probs = weights / total
        one_minus = np.where(first, rest / total, 1 - probs)
        log_probs = gap - log_total
        flushed = np.where(weights < FLUSHED_BELOW, weights, 0).sum(-1) / total[..., 0]
        logsumexp = (m / temp + log_total)[..., 0]

    nobody = ~allowed.any(-1, keepdims=True)
    probs = np.where(undefined, np.nan, np.where(nobody, 0, probs))
    one_minus = np.where(undefined, np.nan, np.where(nobody, 1, one_minus))
    log_probs = np.where(undefined, np.nan, np.where(nobody, -np.inf, log_probs))
    top = m[..., 0]
    logsumexp = np.where(np.isinf(top), top, logsumexp)
    # A masked class is deleted: its probability is 0 even in a row that is nan elsewhere.
    probs = np.where(allowed, probs, 0)
    log_probs = np.where(allowed, log_probs, -np.inf)
    one_minus = np.where(allowed, one_minus, 1)
    return Rows(probs, one_minus, log_probs, logsumexp, top, flushed)
