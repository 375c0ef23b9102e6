"""A small problem of sampled softmax, and the proposals that it is tested with."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.negatives import Negatives, draw_negatives
from jsoftmax.hierarchical.proposals import LogUniform, Uniform, unigram_proposal
from jsoftmax.hierarchical.sampled import (
    noise_contrastive_loss,
    sampled_cross_entropy,
)
from tests.oracles import sampled as oracle

CLASSES, FEATURES, ROWS, SAMPLES = 9, 4, 7, 6
COUNTS = np.array([50, 0.5, 7, 7, 1, 30, 2, 11, 4])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scores"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Learned:
    """A proposal of a user's own, with a parameter."""

    scores: Any

    @property
    def num_classes(self) -> int:
        return self.scores.shape[-1]

    def sample(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.categorical(key, self.scores, shape=shape)

    def log_prob(self, ids: Any) -> Any:
        return jax.nn.log_softmax(self.scores)[ids]


PROPOSALS: dict[str, tuple[Any, np.ndarray]] = {
    "uniform": (Uniform(CLASSES), np.full(CLASSES, 1 / CLASSES)),
    "log uniform": (LogUniform(CLASSES), oracle.log_uniform(CLASSES)),
    "unigram": (unigram_proposal(COUNTS), oracle.unigram(COUNTS, 0.75)),
    "weights": (unigram_proposal(COUNTS, power=1), oracle.unigram(COUNTS, 1)),
    "learned": (Learned(jnp.log(jnp.arange(1.0, CLASSES + 1))), np.arange(1, CLASSES + 1) / 45),
}

LOSSES = {"cross_entropy": sampled_cross_entropy, "noise_contrastive": noise_contrastive_loss}
every_proposal = pytest.mark.parametrize("name", PROPOSALS)
every_loss = pytest.mark.parametrize("objective", LOSSES)
both_ways = pytest.mark.parametrize("replace", [True, False])


def problem(seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hidden vectors, kernel, bias and labels."""
    rng = np.random.default_rng(seed)
    shapes = (rows, FEATURES), (CLASSES, FEATURES), (CLASSES,)
    h, kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return h, kernel, bias, rng.integers(0, CLASSES, rows).astype(np.int32)


def drawn(name: str = "unigram", replace: bool = True, seed: int = 0) -> Negatives:
    return draw_negatives(jax.random.key(seed), PROPOSALS[name][0], SAMPLES, replace=replace)


H, KERNEL, _, Y = problem()
