"""The losses that are not the one formula of `cross_entropy`, written out plainly.

Values only, over the last axis; `gradient` differentiates any of them. Extended precision makes up
for the digits that plain formulas lose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from tests.oracles.rows import REAL, real, rows


def gradient(loss: Callable[[np.ndarray], np.ndarray], x: ArrayLike) -> np.ndarray:
    """Of the sum of the losses, by central differences of fourth order: eleven digits or more."""
    point = real(x)
    step = REAL(1e-4)
    found = np.zeros(point.shape, REAL)
    for index in np.ndindex(point.shape):
        shift = np.zeros(point.shape, REAL)
        shift[index] = step
        near = loss(point + shift).sum() - loss(point - shift).sum()
        far = loss(point + 2 * shift).sum() - loss(point - 2 * shift).sum()
        found[index] = (8 * near - far) / (12 * step)
    return found


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    z, y = real(logits), real(labels)
    return y * _softplus(-z) + (1 - y) * _softplus(z)


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, alpha: float | None = None, gamma: float = 2.0
) -> np.ndarray:
    z, y = real(logits), real(labels)
    wrong = np.exp(-_softplus(-z)) * (1 - y) + np.exp(-_softplus(z)) * y
    loss = sigmoid_binary_cross_entropy(z, y) * wrong**gamma
    return loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss


def multilabel_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike = 1.0,
    where: ArrayLike = True,
) -> np.ndarray:
    z, y = real(logits), real(labels)
    return np.where(where, real(pos_weight) * y * _softplus(-z) + (1 - y) * _softplus(z), 0).sum(-1)


def poly_loss_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, epsilon: float = 2.0, where: ArrayLike | None = None
) -> np.ndarray:
    row, q = rows(logits, where), real(labels)
    kept = np.broadcast_to(True if where is None else where, q.shape)
    costs = np.where(kept & (q != 0), row.log_probs, 0)
    fit = -(q * costs).sum(-1)
    return fit + epsilon * np.where(kept, q * row.one_minus_probs, 0).sum(-1)


def kl_divergence(log_predictions: ArrayLike, targets: ArrayLike) -> np.ndarray:
    q = real(targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(q == 0, 0, q * (np.log(q) - real(log_predictions))).sum(-1)


def kl_divergence_with_log_targets(log_predictions: ArrayLike, log_targets: ArrayLike) -> np.ndarray:
    log_q = real(log_targets)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(log_q), 0, np.exp(log_q) * (log_q - real(log_predictions))).sum(-1)


def generalized_kl_divergence(log_predictions: ArrayLike, targets: ArrayLike) -> np.ndarray:
    excess = (np.exp(real(log_predictions)) - real(targets)).sum(-1)
    return kl_divergence(log_predictions, targets) + excess


def smooth_labels(labels: ArrayLike, alpha: ArrayLike) -> np.ndarray:
    return (1 - real(alpha)) * real(labels) + real(alpha) / np.shape(labels)[-1]


def _target(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``p_y``, ``1 - p_y`` and ``log p_y`` of integer labels."""
    row = rows(logits)
    index = np.asarray(labels)[..., None].astype(np.int64)
    picked = (np.take_along_axis(x, index, -1)[..., 0] for x in row[:3])
    probs, one_minus, log_probs = picked
    return probs, one_minus, log_probs


def softmax_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, gamma: float = 2.0, alpha: ArrayLike = 1.0
) -> np.ndarray:
    """`alpha` is one weight, or one per class."""
    _, one_minus, log_probs = _target(logits, labels)
    weight = real(alpha)
    weight = weight[np.asarray(labels)] if weight.ndim else weight
    return -weight * one_minus**gamma * log_probs


def generalized_cross_entropy(logits: ArrayLike, labels: ArrayLike, *, q: float = 0.7) -> np.ndarray:
    """``(1 - p_y^q) / q``, and its limit, cross-entropy, at q = 0."""
    _, _, log_probs = _target(logits, labels)
    return -log_probs if q == 0 else -np.expm1(q * log_probs) / q
