"""Adaptive softmax written out plainly in float64: one row and one cluster after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def log_softmax(
    hidden: ArrayLike,
    head: ArrayLike,
    head_bias: ArrayLike,
    tails: Sequence[tuple[ArrayLike, ArrayLike]],
    order: ArrayLike,
) -> np.ndarray:
    """`[rows, classes]`, by the user's ids; `order` holds the classes, the most frequent first."""
    x = np.asarray(hidden, np.float64)
    logits = x @ np.asarray(head, np.float64) + np.asarray(head_bias, np.float64)
    shortlist = logits.shape[1] - len(tails)
    top = _normalized(logits)
    parts = [top[:, :shortlist]]
    for i, (projection, kernel) in enumerate(tails):
        inside = x @ np.asarray(projection, np.float64) @ np.asarray(kernel, np.float64)
        parts.append(top[:, shortlist + i : shortlist + i + 1] + _normalized(inside))
    ranked = np.concatenate(parts, axis=1)
    found = np.empty_like(ranked)
    found[:, np.asarray(order)] = ranked
    return found


def _normalized(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cross_entropy_gradients(
    hidden: ArrayLike,
    head: ArrayLike,
    head_bias: ArrayLike,
    tails: Sequence[tuple[ArrayLike, ArrayLike]],
    places: ArrayLike,
    ct: ArrayLike,
) -> dict[str, object]:
    """Gradients of `Σ ct · loss`, row by row; `places` are the labels' in the order of frequency."""
    x, w = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    bias = np.asarray(head_bias, np.float64)
    pairs = [(np.asarray(p, np.float64), np.asarray(k, np.float64)) for p, k in tails]
    shortlist = w.shape[1] - len(pairs)
    ends = shortlist + np.cumsum([0] + [k.shape[1] for _, k in pairs])
    d_x, d_w, d_bias = np.zeros_like(x), np.zeros_like(w), np.zeros_like(bias)
    d_pairs = [(np.zeros_like(p), np.zeros_like(k)) for p, k in pairs]
    for n, (place, g) in enumerate(zip(np.asarray(places), np.asarray(ct), strict=True)):
        cluster = int(np.searchsorted(ends, place, side="right"))
        d = g * _slope(x[n] @ w + bias, place if not cluster else shortlist + cluster - 1)
        d_x[n] += w @ d
        d_w += np.outer(x[n], d)
        d_bias += d
        if cluster:
            projection, kernel = pairs[cluster - 1]
            z = x[n] @ projection
            d = g * _slope(z @ kernel, place - ends[cluster - 1])
            d_pairs[cluster - 1][1][...] += np.outer(z, d)
            d_z = kernel @ d
            d_pairs[cluster - 1][0][...] += np.outer(x[n], d_z)
            d_x[n] += projection @ d_z
    return {"hidden": d_x, "head": d_w, "head_bias": d_bias, "tails": d_pairs}


def _slope(z: np.ndarray, label: int) -> np.ndarray:
    p = np.exp(z - z.max())
    p /= p.sum()
    p[label] -= 1
    return p
