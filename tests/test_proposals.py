"""Proposals of sampled softmax: what they draw, how often, and what their log-probabilities are.

Draws are tested by their statistics, with fixed keys: five standard errors, or what a chi-square
exceeds once in a million times.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jsoftmax
from jsoftmax.hierarchical.negatives import draw_negatives
from jsoftmax.hierarchical.proposals import LogUniform, Uniform, unigram_proposal
from jsoftmax.hierarchical.sampled import (
    sampled_log_normalizer,
)
from tests.oracles import sampled as oracle
from tests.sampled_problem import CLASSES, PROPOSALS, every_proposal

pytestmark = pytest.mark.thin(6)


def check_chi_square(counts: np.ndarray, p: np.ndarray) -> None:
    assert (counts[p == 0] == 0).all()
    expected = counts.sum() * p[p > 0]
    assert expected.min() > 5
    df = len(expected) - 1
    ratio = np.sum((counts[p > 0] - expected) ** 2 / expected) / df
    # Wilson and Hilferty: its cube root is nearly normal.
    assert (ratio ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df)) < 4.8


@every_proposal
def test_draws_follow_the_proposal(name: str):
    proposal, q = PROPOSALS[name]
    ids = proposal.sample(jax.random.key(1), (50, 1000))
    assert ids.shape == (50, 1000)
    check_chi_square(np.bincount(np.ravel(ids), minlength=CLASSES), q)
    np.testing.assert_allclose(np.exp(proposal.log_prob(jnp.arange(CLASSES))), q, 2e-6)


@pytest.mark.parametrize("classes", [1, 2, 65, 1000])
def test_log_uniform_of_any_size(classes: int):
    proposal, q = LogUniform(classes), oracle.log_uniform(classes)
    np.testing.assert_allclose(np.exp(proposal.log_prob(np.arange(classes))), q, 2e-6)
    ids = np.asarray(proposal.sample(jax.random.key(2), (100_000,)))
    assert ids.dtype == np.int32
    if classes == 1:
        assert (ids == 0).all()
    else:
        check_chi_square(np.bincount(ids, minlength=classes), q)


def test_log_uniform_misses_no_class_of_a_million():
    classes, draws = 10**6, 2 * 10**6
    ids = np.asarray(jax.jit(lambda key: LogUniform(classes).sample(key, (draws,)))(jax.random.key(3)))
    assert ids.min() == 0
    assert ids.max() < classes
    q = oracle.log_uniform(classes)[classes // 2 :]
    seen = 1 - np.exp(-draws * q)
    found = len(np.unique(ids[ids >= classes // 2]))
    assert abs(found - seen.sum()) < 5 * np.sqrt(np.sum(seen * (1 - seen)))


def table_law(proposal: Any) -> np.ndarray:
    """What the two random numbers of an alias table give, class by class."""
    own = np.asarray(proposal.thresholds, np.float64) / 2**32
    law = own + np.bincount(np.asarray(proposal.aliases), 1 - own, len(own))
    return law / len(own)


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=40).filter(any),
    st.sampled_from([0.0, 0.75, 1.0, 3.0]),
)
def test_alias_tables(counts: list[float], power: float):
    proposal = unigram_proposal(counts, power=power)
    law = table_law(proposal)
    weights = np.where(np.array(counts) > 0, (np.array(counts) / max(counts)) ** power, 0)
    np.testing.assert_allclose(law, weights / weights.sum(), 1e-9, 2.0**-31)
    assert ((law > 0) == (weights > 0)).all()
    np.testing.assert_allclose(np.exp(np.asarray(proposal.log_probs)), law, 1e-5)


def test_alias_table_of_many_classes():
    counts = 1e9 / np.arange(1, 300_001) ** 1.1
    np.testing.assert_allclose(table_law(unigram_proposal(counts)), oracle.unigram(counts, 0.75), 1e-6)


def test_what_is_no_class_is_never_drawn():
    outside = np.array([-1, CLASSES, 127], np.int8)
    for name in ("uniform", "log uniform", "unigram"):
        proposal = PROPOSALS[name][0]
        assert (proposal.log_prob(outside) == -np.inf).all()
        assert proposal.log_prob(np.uint8(3)) == proposal.log_prob(3)


@every_proposal
def test_without_replacement(name: str):
    proposal, q = PROPOSALS[name]
    draw = jax.vmap(lambda key: draw_negatives(key, proposal, 2, replace=False).ids)
    ids = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(5), 100_000)))
    law = oracle.ordered_draws(q, 2)
    at = {pair: i for i, pair in enumerate(law)}
    found = np.bincount([at[a, b] for a, b in ids.tolist()], minlength=len(law))
    p = np.array(list(law.values()))
    common = 100_000 * p > 5
    rare = [np.sum(x[~common]) for x in (found, p)]
    if rare[1] * 100_000 > 5:
        found, p = np.append(found[common], rare[0]), np.append(p[common], rare[1])
    else:
        found, p = found[common], p[common]
        p = p / p.sum()
    check_chi_square(found, p)


def test_distinct_among_many_classes():
    classes = 100_000
    negatives = draw_negatives(jax.random.key(6), LogUniform(classes), 2000, replace=False)
    ids = np.asarray(negatives.ids)
    assert len(np.unique(ids)) == 2000
    q, time = oracle.log_uniform(classes), np.exp(np.float64(negatives.log_rate))
    counts = oracle.expected_counts(q, 2000, time)
    np.testing.assert_allclose(np.exp(negatives.log_expected_counts(jnp.arange(classes))), counts, 1e-5)
    # The number drawn is nearly the sum of the probabilities of being drawn.
    assert abs(counts.sum() - 2000) < 5 * np.sqrt(2000)


def test_ties_are_rare_among_a_million():
    """Uniforms of 23 bits would give the first thousand some ten different times."""
    draw = functools.partial(draw_negatives, proposal=Uniform(10**6), num_samples=1000, replace=False)
    ids = np.asarray(draw(jax.random.key(7)).ids)
    assert len(np.unique(ids)) == 1000
    # Ties go to the first class: they would show in the order.
    assert np.mean(np.diff(ids) > 0) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(1000))


def test_classes_that_are_never_drawn():
    proposal = unigram_proposal([3, 0, 2, 0, 1])
    negatives = draw_negatives(jax.random.key(8), proposal, 3, replace=False)
    assert sorted(np.asarray(negatives.ids).tolist()) == [0, 2, 4]
    every = jnp.arange(5)
    np.testing.assert_array_equal(negatives.log_expected_counts(every), [0, -np.inf, 0, -np.inf, 0])
    rng = np.random.default_rng(0)
    h, kernel = rng.standard_normal((2, 3)), rng.standard_normal((5, 3))
    h, kernel = h.astype(np.float32), kernel.astype(np.float32)
    only = jsoftmax.logsumexp((h @ kernel.T)[:, [0, 2, 4]])
    for samples in (3, 4):
        negatives = draw_negatives(jax.random.key(8), proposal, samples, replace=False)
        value, pull = jax.vjp(lambda h, n=negatives: sampled_log_normalizer(h, kernel, n), h)
        np.testing.assert_allclose(value, only, 1e-6)
        assert np.isfinite(pull(jnp.ones(2))[0]).all()
    # What is drawn of all classes is all of them.
    every_class = draw_negatives(jax.random.key(8), proposal, 5, replace=False)
    full = jsoftmax.logsumexp(h @ kernel.T)
    np.testing.assert_allclose(sampled_log_normalizer(h, kernel, every_class), full, 1e-6)


def test_keys_of_either_kind():
    new, old = jax.random.key(9), jax.random.PRNGKey(9)
    for name, (proposal, _) in PROPOSALS.items():
        for replace in (True, False):
            a, b = (draw_negatives(key, proposal, 4, replace=replace) for key in (new, old))
            np.testing.assert_array_equal(a.ids, b.ids, err_msg=name)
