"""The entmax family in extended precision, row by row: sorted where there is a formula, else bisected.

Nothing here imports jsoftmax.
"""

from __future__ import annotations

import numpy as np

Real = np.longdouble


def sparsemax(row: np.ndarray) -> np.ndarray:
    """Martins & Astudillo, algorithm 1, on the differences to the maximum."""
    z = row.astype(Real) - row.max().astype(Real)
    descending = np.sort(z)[::-1]
    sums = np.cumsum(descending)
    counts = np.arange(1, len(z) + 1, dtype=Real)
    inside = 1 + counts * descending > sums
    size = int(np.sum(inside))
    return np.maximum(z - (sums[size - 1] - 1) / Real(size), 0)


def entmax(row: np.ndarray, alpha: float) -> np.ndarray:
    """`[(α−1) (z − σ)]₊^{1/(α−1)}`, with `σ` by bisection between two scores where that has digits.

    The support is all classes above some score; given it, what is found is the logarithm of the
    smallest bracket, so that probabilities near 0 have all their digits for α > 2 too.
    """
    z = row.astype(Real) - row.max().astype(Real)
    a = Real(alpha) - 1
    if a == 0:
        e = np.exp(z)
        return e / e.sum()
    levels = np.unique(z)[::-1]

    def mass(sigma: Real) -> Real:
        return np.sum((a * (z[z > sigma] - sigma)) ** (1 / a))

    # The lowest score in the support: the last at which the sum of those above is below 1.
    first, last = 0, len(levels) - 1
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if mass(levels[middle]) < 1 else (first, middle - 1)
    inside = z >= levels[first]
    above = z[inside] - levels[first]
    # Each class above adds at most 1, and those at the level share what is left: never below e⁻²⁰⁰.
    low, high = -Real(200), Real(0)
    for _ in range(90):
        level = (low + high) / 2
        found = (a * above + np.exp(a * level)) ** (1 / a)
        low, high = (level, high) if found.sum() < 1 else (low, level)
    p = np.zeros_like(z)
    p[inside] = (a * above + np.exp(a * low)) ** (1 / a)
    return p / p.sum()


def heavy_tailed(z: np.ndarray, t: float) -> np.ndarray:
    """`exp_t(z − λ)` of rows, `t ≥ 1`, that sum to 1; the normalizer by bisection."""
    a, gaps = 1 - Real(t), z.astype(Real) - z.max(-1, keepdims=True).astype(Real)

    def tail(level: np.ndarray) -> np.ndarray:
        return np.exp(gaps - level) if a == 0 else np.exp(np.log1p(a * (gaps - level)) / a)

    low, high = np.zeros((len(z), 1), Real), np.ones((len(z), 1), Real)
    while np.any(tail(high).sum(-1) > 1):
        high *= 2
    for _ in range(120):
        middle = (low + high) / 2
        enough = tail(middle).sum(-1, keepdims=True) > 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return tail(low)


def bi_tempered(p: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    """Amid et al., of one-hot rows: `Σ q (log_t q − log_t p) − (q^(2−t) − p^(2−t)) / (2 − t)`."""
    b = 1 - Real(t)
    log = np.log(p) if b == 0 else (p**b - 1) / b
    return np.sum(-np.where(q > 0, log, 0) - (q - p ** (1 + b)) / (1 + b), axis=-1)


def rows(z: np.ndarray, alpha: float) -> np.ndarray:
    """The map of every row `[rows, classes]`."""
    each = [sparsemax(r) if alpha == 2 else entmax(r, alpha) for r in np.asarray(z, Real)]
    return np.stack(each)


def negentropy(q: np.ndarray, alpha: float) -> np.ndarray:
    """Tsallis' `Ω(q) = Σ (q^α − q) / (α (α − 1))`, Shannon's for α = 1."""
    q = np.asarray(q, Real)
    if alpha == 1:
        return np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0), axis=-1)
    a = Real(alpha)
    return np.sum(q**a - q, axis=-1) / (a * (a - 1))


def loss(z: np.ndarray, q: np.ndarray, alpha: float) -> np.ndarray:
    """`Ω*(z) + Ω(q) − ⟨z, q⟩`, of distributions `q`."""
    z, q = np.asarray(z, Real), np.asarray(q, Real)
    p = rows(z, alpha)
    gaps = z - z.max(-1, keepdims=True)
    conjugate = np.sum(np.where(p > 0, p * gaps, 0), -1) - negentropy(p, alpha)
    return conjugate + negentropy(q, alpha) - np.sum(np.where(q > 0, q * gaps, 0), -1)


def jacobian(p: np.ndarray, alpha: float) -> np.ndarray:
    """`diag(s) − s sᵀ / Σs`, `s = p^(2−α)` on the support: of one row."""
    s = np.where(p > 0, np.where(p > 0, p, 1) ** Real(2 - alpha), 0)
    return np.diag(s) - np.outer(s, s) / s.sum()
