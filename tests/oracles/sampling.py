"""Distributions of draws, gradients of estimators: float64, from their definitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def softmax(z: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Of one row; −inf is impossible; `T = 0` shares among the maxima."""
    z = np.asarray(z, np.float64)
    e = (z == z.max()) * 1.0 if temperature == 0 else np.exp((z - z.max()) / temperature)
    return e / e.sum()


def kept(
    z: ArrayLike,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> np.ndarray:
    """Which classes of one row are left, one restriction after the other, ties staying together."""
    z = np.asarray(z, np.float64)
    left = z > -np.inf
    if top_k is not None:
        left &= z >= np.sort(z)[::-1][min(top_k, len(z)) - 1]
    if top_p is not None and top_p < 1:
        p = softmax(np.where(left, z, -np.inf), temperature)
        order = np.argsort(-z, kind="stable")
        enough = np.searchsorted(np.cumsum(p[order]), top_p)
        left &= z >= z[order[min(enough, len(z) - 1)]]
    if min_p is not None and min_p > 0:
        p = softmax(np.where(left, z, -np.inf), temperature)
        left &= p >= min_p * p.max()
    return left


def plackett_luce(p: ArrayLike, k: int) -> dict[tuple[int, ...], float]:
    """The probability of each order of `k` classes drawn without replacement."""
    p = np.asarray(p, np.float64)
    found = {}
    for order in itertools.permutations(range(len(p)), k):
        probability, left = 1.0, p.sum()
        for i in order:
            probability *= p[i] / left
            left -= p[i]
        found[order] = probability
    return found


def jacobian(p: np.ndarray) -> np.ndarray:
    return np.diag(p) - np.outer(p, p)


def exact_gradient(z: ArrayLike, values: ArrayLike) -> np.ndarray:
    """Of `Σ p_k f(e_k)` in the logits, `values` being `f(e_k)`."""
    return jacobian(softmax(z)) @ np.asarray(values, np.float64)


def straight_through(
    z: ArrayLike, drawn: int, slope: ArrayLike, temperature: float = 1.0
) -> np.ndarray:
    """The estimate for one draw, `slope` being the gradient of `f` at its one-hot vector."""
    del drawn
    return jacobian(softmax(z, temperature)) @ np.asarray(slope, np.float64) / temperature


def reinmax(z: ArrayLike, drawn: int, slope: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    p, one = softmax(z), np.eye(len(np.asarray(z)))[drawn]
    middle = (one + softmax(z, temperature)) / 2
    return (2 * jacobian(middle) - jacobian(p) / 2) @ np.asarray(slope, np.float64)


def conditional_gumbel(
    z: ArrayLike, drawn: int, slope: ArrayLike, temperature: float, draws: int, seed: int
) -> np.ndarray:
    """Gumbel-softmax estimates `[some, classes]` with noise that agrees with the draw, by rejection."""
    z, slope = np.asarray(z, np.float64), np.asarray(slope, np.float64)
    noisy = z + np.random.default_rng(seed).gumbel(size=(draws, len(z)))
    noisy = noisy[noisy.argmax(axis=1) == drawn]
    soft = np.exp((noisy - noisy.max(axis=1, keepdims=True)) / temperature)
    soft /= soft.sum(axis=1, keepdims=True)
    return soft * (slope - soft @ slope[:, None]) / temperature


def mean_over_draws(
    estimate: Callable[..., np.ndarray], z: ArrayLike, slopes: ArrayLike, temperature: float = 1.0
) -> np.ndarray:
    """The expectation of an estimate, by going through all draws; `slopes[k]` is at `e_k`."""
    p = softmax(z)
    terms = [p[k] * estimate(z, k, slope, temperature) for k, slope in enumerate(np.asarray(slopes))]
    return np.sum(terms, axis=0)
