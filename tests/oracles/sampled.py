"""Sampled softmax and noise-contrastive estimation of rows one by one, given what was drawn.

Values and gradients in float64, written out; imports nothing of jsoftmax.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class Answer(NamedTuple):
    loss: np.ndarray
    d_hidden: np.ndarray
    d_kernel: np.ndarray
    d_bias: np.ndarray


def log_uniform(classes: int) -> np.ndarray:
    k = np.arange(classes, dtype=np.float64)
    return np.log((k + 2) / (k + 1)) / np.log(classes + 1)


def unigram(counts: np.ndarray, power: float) -> np.ndarray:
    weights = np.where(counts > 0, np.asarray(counts, np.float64) ** power, 0)
    return weights / weights.sum()


def expected_counts(q: np.ndarray, samples: int, time: float | None) -> np.ndarray:
    """With replacement, or where a time is given without it."""
    return samples * q if time is None else -np.expm1(-q * time)


def ordered_draws(q: np.ndarray, samples: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of distinct classes, each drawn from those that are left."""
    found = {}
    for ids in itertools.permutations(range(len(q)), samples):
        left, p = 1.0, 1.0
        for k in ids:
            p *= q[k] / left
            left -= q[k]
        found[ids] = p
    return found


def sampled(
    hidden: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
    *,
    objective: str,
    hits: bool,
    corrected: bool,
    class_weights: np.ndarray | None = None,
    ignore_index: int | None = None,
) -> Answer:
    """The losses of rows `[n]`, and the gradients of their sum; `counts` are per class."""
    hidden, kernel, bias = (np.asarray(x, np.float64) for x in (hidden, kernel, bias))
    loss = np.zeros(len(labels))
    d_hidden, d_kernel, d_bias = (np.zeros_like(x) for x in (hidden, kernel, bias))
    for i, y in enumerate(labels.tolist()):
        if y == ignore_index:
            continue
        w = 1.0 if class_weights is None else float(class_weights[y])
        others = [int(k) for k in ids if hits or k != y]
        read = [y, *others]
        z = kernel[read] @ hidden[i] + bias[read]
        if corrected:
            z[1:] -= np.log(counts[others])
            if objective == "noise_contrastive":
                z[0] -= np.log(counts[y])
        if objective == "cross_entropy":
            p = np.exp(z - z.max())
            p /= p.sum()
            loss[i] = -w * np.log(p[0])
        else:
            p = 1 / (1 + np.exp(-z))
            loss[i] = w * (np.log1p(np.exp(-z[0])) + np.log1p(np.exp(z[1:])).sum())
        p[0] -= 1
        for k, d in zip(read, w * p, strict=True):
            d_hidden[i] += d * kernel[k]
            d_kernel[k] += d * hidden[i]
            d_bias[k] += d
    return Answer(loss, d_hidden, d_kernel, d_bias)
