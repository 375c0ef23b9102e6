"""Errors of any library's softmax functions over the input families, against the oracles.

A library is a mapping from names to functions of NumPy arrays; what it lacks is left out:

- ``softmax``, ``log_softmax``, ``logsumexp``: ``f(logits)``
- ``softmax_vjp``, ``log_softmax_vjp``: ``f(logits, cotangent)``, the cotangent in the logits' dtype
- ``cross_entropy``: ``f(logits, labels)``, one value per row
- ``cross_entropy_gradient``: ``f(logits, labels)``, the gradient of the sum of the losses
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from tests import families
from tests.oracles import maps
from tests.oracles.cross_entropy import cross_entropy
from tests.oracles.rows import FLUSHED_BELOW, real, rows
from tests.oracles.ulp import ulp_error

Library = Mapping[str, Callable[..., np.ndarray]]

FLOAT32_EPS = float(np.finfo(np.float32).eps)


class Judged(NamedTuple):
    got: np.ndarray
    true: np.ndarray
    slack: np.ndarray | float = 0.0
    at: np.ndarray | None = None


class Case:
    """One family in one dtype with everything true of it."""

    def __init__(self, name: str, dtype: str, seed: int) -> None:
        self.name, self.dtype = name, dtype
        self.logits, self.labels = families.make(name, dtype, seed)
        rng = np.random.default_rng([seed, 1])
        self.cotangent = rng.standard_normal(self.logits.shape).astype(self.logits.dtype)

    @cached_property
    def rows(self):
        return rows(self.logits)

    @cached_property
    def cross_entropy(self):
        return cross_entropy(self.logits, self.labels)

    # Each measure: the output of a library -> (output, truth, slack, where to take the unit).

    def softmax(self, got: np.ndarray) -> Judged:
        return Judged(got, self.rows.probs, _flushable(self.rows.probs))

    def log_softmax(self, got: np.ndarray) -> Judged:
        return Judged(got, self.rows.log_probs, self.rows.flushed[..., None])

    def logsumexp(self, got: np.ndarray) -> Judged:
        # A sum of the maximum and a logarithm: no better than the larger of them.
        true = self.rows.logsumexp
        return Judged(got, true, at=np.maximum(np.abs(true), np.abs(self.rows.maximum)))

    def softmax_vjp(self, got: np.ndarray) -> Judged:
        # p_k (c_k - mean): may cancel at will, so a float32 error of its terms is allowed.
        true = maps.softmax_vjp(self.logits, self.cotangent)
        ct, probs = np.abs(real(self.cotangent)), self.rows.probs
        terms = ct + (probs * ct).sum(-1, keepdims=True)
        slack = (10 * FLOAT32_EPS * probs + _flushable(probs)) * terms
        return Judged(got, true, slack + _flushable(true))

    def log_softmax_vjp(self, got: np.ndarray) -> Judged:
        true = maps.log_softmax_vjp(self.logits, self.cotangent)
        ct, probs = np.abs(real(self.cotangent)), self.rows.probs
        total = ct.sum(-1, keepdims=True)
        slack = 10 * FLOAT32_EPS * (ct + probs * total) + _flushable(probs) * total
        return Judged(got, true, slack + _flushable(true))

    def cross_entropy_value(self, got: np.ndarray) -> Judged:
        return Judged(got, self.cross_entropy.value, self.rows.flushed)

    def label_gradient(self, got: np.ndarray) -> Judged:
        index = self.labels[:, None].astype(np.int64)
        at_label = np.take_along_axis(got, index, -1)[:, 0]
        true = np.take_along_axis(self.cross_entropy.logits, index, -1)[:, 0]
        return Judged(at_label, true, self.rows.flushed)

    def cross_entropy_gradient(self, got: np.ndarray) -> Judged:
        true = self.cross_entropy.logits
        at_label = np.arange(true.shape[-1]) == self.labels[:, None]
        slack = np.where(at_label, self.rows.flushed[..., None], _flushable(true))
        return Judged(got, true, slack)


# measure -> the library function whose output it judges
MEASURES = {
    "softmax": "softmax",
    "log_softmax": "log_softmax",
    "logsumexp": "logsumexp",
    "softmax_vjp": "softmax_vjp",
    "log_softmax_vjp": "log_softmax_vjp",
    "cross_entropy_value": "cross_entropy",
    "label_gradient": "cross_entropy_gradient",
    "cross_entropy_gradient": "cross_entropy_gradient",
}


def _flushable(true: np.ndarray) -> np.ndarray:
    return np.where(np.abs(true) < FLUSHED_BELOW, np.abs(true), 0)


@lru_cache(maxsize=4)
def case(name: str, dtype: str, seed: int = 2026) -> Case:
    return Case(name, dtype, seed)


def errors(library: Library, measure: str, item: Case) -> np.ndarray | None:
    """The errors in ulp, or None where the library has no such function.

    Elements that float32 cannot hold (flushed to zero) are counted only where they are wrong.
    """
    function = library.get(MEASURES[measure])
    if function is None:
        return None
    if MEASURES[measure].startswith("cross_entropy"):
        second: tuple[np.ndarray, ...] = (item.labels,)
    else:
        second = (item.cotangent,) if measure.endswith("_vjp") else ()
    judged = getattr(item, measure)(np.asarray(function(item.logits, *second)))
    error = ulp_error(judged.got, judged.true, slack=judged.slack, at=judged.at)
    return error[(error > 0) | (_flushable(judged.true) == 0) | (judged.true == 0)]
