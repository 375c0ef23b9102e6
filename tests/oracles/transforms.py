"""Logit transforms and their elementwise derivatives.

A transform is a function ``(logits, labels) -> (output, d output / d logits)`` on
[*batch, classes]; an impossible class (-inf) stays impossible.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from tests.oracles.rows import per_row, real

Transform = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def temperature(value: ArrayLike) -> Transform:
    scale = per_row(value)

    def apply(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return z / scale, np.broadcast_to(1 / scale, z.shape)

    return apply


def softcap(cap: ArrayLike) -> Transform:
    limit = real(cap)

    def apply(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = np.tanh(z / limit)
        with np.errstate(over="ignore"):
            slope = 1 / np.cosh(z / limit) ** 2
        return np.where(np.isneginf(z), z, limit * t), slope

    return apply


def logit_adjustment(log_prior: ArrayLike, scale: ArrayLike = 1.0) -> Transform:
    shift = real(scale) * real(log_prior)

    def apply(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return z + shift, np.ones_like(z)

    return apply


def margin(value: ArrayLike, scale: ArrayLike = 1.0, kind: str = "additive") -> Transform:
    m, s = real(value), real(scale)

    def apply(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = np.arange(z.shape[-1]) == labels[..., None]
        if kind == "angular":
            angle = np.arccos(np.clip(z, -1, 1))
            moved = np.cos(angle + m)
            with np.errstate(invalid="ignore", divide="ignore"):
                slope = np.sin(angle + m) / np.sin(angle)
        else:
            moved, slope = z - m, np.ones_like(z)
        return s * np.where(target, moved, z), s * np.where(target, slope, 1)

    return apply


def chain(*transforms: Transform) -> Transform:
    """Left to right."""

    def apply(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = np.ones_like(z)
        for transform in transforms:
            z, inner = transform(z, labels)
            slope = slope * inner
        return z, slope

    return apply
