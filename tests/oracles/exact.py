"""mpmath at 60 digits, one row at a time: what the longdouble oracles are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np

Number = Any  # an mpmath.mpf, which has no type to name


def _numbers(row: Sequence[Any]) -> list[Number]:
    return [mpmath.mpf(float(x)) for x in row]


def probabilities(row: Sequence[Any]) -> tuple[list[Number], Number]:
    """The softmax of a row, and its logsumexp."""
    with mpmath.workdps(60):
        z = _numbers(row)
        top = max(z)
        weights = [mpmath.exp(x - top) for x in z]
        total = mpmath.fsum(weights)
        return [w / total for w in weights], top + mpmath.log(total)


def cross_entropy(
    row: Sequence[Any],
    target: Sequence[Any],
    *,
    weights: Sequence[Any] | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Number, list[Number]]:
    """The loss of one row and its gradient by the logits, which mpmath differentiates itself."""
    size = len(row)

    def loss(*z: Number) -> Number:
        with mpmath.workdps(120):
            if softcap is not None:
                cap = mpmath.mpf(softcap)
                z = tuple(cap * mpmath.tanh(x / cap) for x in z)
            z = tuple(x / mpmath.mpf(temperature) for x in z)
            top = max(z)
            log_z = top + mpmath.log(mpmath.fsum(mpmath.exp(x - top) for x in z))
            eps = mpmath.mpf(smoothing)
            q = [(1 - eps) * mpmath.mpf(float(t)) + eps / size for t in target]
            w = [mpmath.mpf(1)] * size if weights is None else _numbers(weights)
            fit = mpmath.fsum(w[k] * q[k] * (log_z - z[k]) for k in range(size))
            return fit + mpmath.mpf(z_loss) * log_z**2

    with mpmath.workdps(120):
        point = tuple(_numbers(row))
        step = mpmath.mpf(10) ** -50
        grad = []
        for k in range(size):
            ahead = loss(*(x + step if j == k else x for j, x in enumerate(point)))
            back = loss(*(x - step if j == k else x for j, x in enumerate(point)))
            grad.append((ahead - back) / (2 * step))
        return loss(*point), grad


def to_longdouble(values: Sequence[Number]) -> np.ndarray:
    """As extended precision holds them; mpmath's exponents go further down than any format's."""
    return np.array([np.longdouble(mpmath.nstr(v, 25)) if abs(v) > 1e-300 else 0 for v in values])
