"""Logits that samplers are tested with, and the test that their samples pass."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from scipy import stats

KEY = jax.random.key(20)


def fits(ids: Any, p: np.ndarray) -> None:
    """Chi-square at 1e-6: impossible classes never, the others as often as `p` says."""
    ids = np.asarray(ids).ravel()
    counts = np.bincount(ids, minlength=len(p))
    assert len(counts) == len(p)
    assert counts[p == 0].sum() == 0
    rare = p * ids.size < 5
    counts, p = (np.append(x[~rare], x[rare].sum()) for x in (counts, p))
    some = p > 0
    assert stats.chisquare(counts[some], p[some] * ids.size, sum_check=False).pvalue > 1e-6


def many(classes: int) -> np.ndarray:
    return np.random.default_rng(classes).standard_normal(classes).astype(np.float32)
