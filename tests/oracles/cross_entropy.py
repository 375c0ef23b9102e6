"""The one formula for cross-entropy, its value and every first derivative in closed form.

``l = - sum_k w_k q_k log p_k + z_loss * log(Z)^2`` with ``p`` and ``Z`` of
``mask(softcap(transform(z)) / T)`` and ``q = (1 - eps) * target + eps / allowed classes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tests.oracles import transforms
from tests.oracles.rows import REAL, classes_back, classes_last, per_row, real, rows


@dataclass(frozen=True)
class CrossEntropy:
    """The loss of each row, and the derivative of the *sum* of the losses by each input."""

    value: np.ndarray  # [*batch]
    logits: np.ndarray  # the shape of the logits
    temperature: np.ndarray  # [*batch], per row
    softcap: np.ndarray  # [*batch], per row; zeros without a softcap
    labels: np.ndarray  # [*batch, classes] for soft labels
    label_smoothing: np.ndarray  # [*batch]
    z_loss: np.ndarray  # [*batch]
    class_weights: np.ndarray  # [classes]
    log_normalizer: np.ndarray  # [*batch]
    flushed: np.ndarray  # [*batch], see `rows.Rows`


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    transform: transforms.Transform | None = None,
) -> CrossEntropy:
    shape = np.shape(logits)
    z = classes_last(real(logits), axis)
    classes = z.shape[-1]
    hard = np.issubdtype(np.asarray(labels).dtype, np.integer)
    ids = np.asarray(labels).astype(np.int64) if hard else np.zeros(z.shape[:-1], np.int64)
    valid = (ids >= 0) & (ids < classes)
    ignored = (ids == ignore_index) if hard and ignore_index is not None else ~np.ones_like(valid)
    one_hot = np.arange(classes) == ids[..., None]
    target = one_hot.astype(REAL) if hard else classes_last(real(labels), axis)

    allowed = np.ones(z.shape, bool)
    if where is not None:
        allowed = classes_last(np.broadcast_to(where, shape), axis)
    possible = np.where(allowed, z, -np.inf)
    moved, slope = (transform or transforms.chain())(possible, ids)
    uncapped = moved
    if softcap is not None:
        moved, inner = transforms.softcap(softcap)(moved, ids)
        slope = slope * inner
    temp = per_row(temperature)
    row = rows(moved, allowed, temperature)

    count = allowed.sum(-1, keepdims=True)
    eps, weights = real(label_smoothing), _weights(class_weights, classes)
    share = np.where(count > 0, 1 / np.maximum(count, 1).astype(REAL), 0)
    smooth = (1 - eps) * target + np.where(allowed, eps * share, 0)
    mass = weights * smooth
    with np.errstate(all="ignore"):
        penalty = row.logsumexp
        value = -_times(mass, row.log_probs).sum(-1) + _times(real(z_loss), penalty**2)
        # p_k sum_{j != k} w_j q_j - w_k q_k (1 - p_k): exact also where p_k is nearly 1.
        others = mass.sum(-1, keepdims=True) - mass
        inside = row.probs * others - _times(mass, row.one_minus_probs)
        inside = inside + 2 * _times(real(z_loss), penalty)[..., None] * row.probs
        inside = np.where(allowed, inside, 0)
        grad = _times(inside, slope / temp)
        by_temp = -_times(inside, np.where(np.isfinite(moved), moved, 0) / temp**2).sum(-1)
        by_cap = np.zeros_like(value)
        if softcap is not None:
            ratio = np.where(np.isfinite(uncapped), uncapped, 0) / real(softcap)
            by_cap = (inside * (np.tanh(ratio) - ratio / np.cosh(ratio) ** 2) / temp).sum(-1)
        surprise = -np.where(allowed, row.log_probs, 0)
        by_label = (1 - eps) * weights * surprise
        by_eps = _times(weights * (np.where(allowed, share, 0) - target), surprise).sum(-1)
        by_weight = _times(smooth, surprise)

    # Nothing allowed: nothing to lose. Ignored: not there. Any other bad label: nan all over.
    off = ignored | (count[..., 0] == 0)
    bad = ~(valid | off)

    def settle(x: np.ndarray) -> np.ndarray:
        over, gone = (bad, off) if x.ndim == bad.ndim else (bad[..., None], off[..., None])
        return np.where(over, np.nan, np.where(gone, 0, x))

    return CrossEntropy(
        value=settle(value),
        logits=classes_back(settle(grad), axis, shape),
        temperature=settle(by_temp),
        softcap=settle(by_cap),
        labels=classes_back(settle(by_label), axis, shape),
        label_smoothing=settle(by_eps),
        z_loss=settle(penalty**2),
        class_weights=settle(by_weight).reshape(-1, classes).sum(0),
        log_normalizer=row.logsumexp,
        flushed=row.flushed,
    )


def _weights(class_weights: ArrayLike | None, classes: int) -> np.ndarray:
    return np.ones(classes, REAL) if class_weights is None else real(class_weights)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product in which 0 * inf is 0: no mass on an impossible class costs nothing."""
    return np.where((a == 0) | (b == 0), 0, a * b)
