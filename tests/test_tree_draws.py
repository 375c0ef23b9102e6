"""Draws from a tree have the probabilities of its classes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jsoftmax import hierarchical
from jsoftmax.hierarchical import decoding
from tests.decoding_problem import BUSHY, FEATURES, WIDE, problem, scores
from tests.oracles.decoding import Oracle, random_parents

pytestmark = pytest.mark.thin(6)

THIN = random_parents(np.random.default_rng(3), 20, 2, "newest")

# What is drawn from, how often.
DRAWS = 200_000


def frequencies_fit(ids: np.ndarray, p: np.ndarray) -> None:
    """By a chi-square test at 1e-5; classes that are expected less than ten times are one."""
    counts = np.bincount(ids, minlength=len(p))
    assert counts.sum() == ids.size
    assert counts[p == 0].sum() == 0
    order = np.argsort(p)
    rare = max(1, int(np.searchsorted(np.cumsum(p[order]), 10 / ids.size)) + 1)
    seen, expected = (np.append(x[order[rare:]], x[order[:rare]].sum()) for x in (counts, ids.size * p))
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-5


def in_balance(parents: list[int], low: float) -> tuple[Oracle, Any, np.ndarray]:
    """A tree and a bias that makes one step at each node as improbable as `low`."""
    oracle = Oracle(parents)
    bias = np.zeros(oracle.num_rows)
    bias[::2] = np.log(low)
    return oracle, hierarchical.tree_from_parents(parents), bias


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("parents", [BUSHY, WIDE, THIN], ids=["bushy", "wide", "thin"])
@pytest.mark.parametrize("low", [0.3, 1e-4])
def test_frequencies_of_draws(parents: list[int], low: float, dtype: Any):
    """On the thin tree with tails of 1e-4 the likely classes are below twenty improbable turns."""
    oracle, tree, bias = in_balance(parents, low)
    bias = jnp.asarray(bias, dtype)
    hidden, kernel = jnp.zeros(FEATURES, dtype), jnp.zeros((tree.num_rows, FEATURES), dtype)
    ids = decoding.sample(jax.random.key(7), hidden, kernel, tree, node_bias=bias, num_samples=DRAWS)
    assert ids.shape == (DRAWS,)
    assert ids.dtype == jnp.int32
    p = np.exp(oracle.log_probs(np.asarray(bias, np.float64)[None])[0])
    frequencies_fit(np.asarray(ids), p)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_rows_are_independent(key: Any):
    """Pairs of draws, from two rows of one batch and from two draws of one row."""
    oracle, tree, (hidden, kernel, bias) = problem(
        random_parents(np.random.default_rng(5), 5, 2, "any")
    )
    two = jnp.stack([hidden[0], hidden[0]])
    ids = decoding.sample(key, two, kernel, tree, node_bias=bias, num_samples=100_000)
    assert ids.shape == (100_000, 2)
    p = np.exp(oracle.log_probs(scores(two[:1], kernel, bias))[0])
    pairs = np.outer(p, p).reshape(-1)
    frequencies_fit(np.asarray(ids[:, 0] * 5 + ids[:, 1]), pairs)
    frequencies_fit(np.asarray(ids[1:, 0] * 5 + ids[:-1, 0]), pairs)
    other = decoding.sample(jax.random.key(4), two, kernel, tree, node_bias=bias, num_samples=100_000)
    assert (ids != other).any()


def test_rare_steps_are_drawn_to_32_bits():
    """Between the 42nd and 43rd of 2³² numbers; at neither end of them is a class impossible."""
    rare, half = np.log(1e-8), np.log(0.5)
    log_p = np.array([[rare, 0], [0, rare], [half, half], [0, -np.inf]], np.float32)
    bits = jnp.array([0, 42, 43, 2**32 - 1], jnp.uint32)
    drawn = [decoding._drawn(jnp.asarray(log_p), jnp.full(4, b)).tolist() for b in bits]
    assert drawn == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
