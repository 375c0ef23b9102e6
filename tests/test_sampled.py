"""Sampled softmax and noise-contrastive estimation: the draws, their weights, the losses made of them.

Draws are tested by their statistics, with fixed keys: five standard errors, or what a chi-square
exceeds once in a million times.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jsoftmax
from jsoftmax.hierarchical.negatives import Negatives, draw_negatives
from jsoftmax.hierarchical.proposals import LogUniform, Uniform, unigram_proposal
from jsoftmax.hierarchical.rows import apply_row_updates
from jsoftmax.hierarchical.sampled import (
    noise_contrastive_loss,
    sampled_cross_entropy,
    sampled_log_normalizer,
    sampled_row_gradients,
)
from tests.oracles import sampled as oracle

pytestmark = pytest.mark.thin(3)


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


def check_chi_square(counts: np.ndarray, p: np.ndarray) -> None:
    assert (counts[p == 0] == 0).all()
    expected = counts.sum() * p[p > 0]
    assert expected.min() > 5
    df = len(expected) - 1
    ratio = np.sum((counts[p > 0] - expected) ** 2 / expected) / df
    # Wilson and Hilferty: its cube root is nearly normal.
    assert (ratio ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df)) < 4.8


def check_mean(samples: Any, mean: Any, precision: float) -> None:
    """Within five standard errors, which are small enough to tell something."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - mean) <= 5 * error + 1e-6).all()
    assert (error <= precision * np.abs(mean)).all()


# The proposals.


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


@settings(deadline=None, max_examples=60)
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


# Negatives and their weights.


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


# The losses.


@every_loss
@pytest.mark.parametrize(
    ("replace", "hits", "corrected"),
    [
        (True, True, True),
        (True, True, False),
        (True, False, True),
        (True, False, False),
        (False, False, True),
    ],
)
def test_against_the_formula(objective: str, replace: bool, hits: bool, corrected: bool):
    h, kernel, bias, y = problem()
    y[2] = -100
    weights = np.linspace(0.5, 2, CLASSES).astype(np.float32)
    negatives = drawn("unigram", replace)
    ids = np.asarray(negatives.ids)
    assert np.isin(y, ids).any()
    assert replace or not np.isin(y, ids).all()
    time = None if replace else float(np.exp(negatives.log_rate))
    counts = oracle.expected_counts(PROPOSALS["unigram"][1], SAMPLES, time)
    answer = oracle.sampled(
        h, kernel, bias, y, ids, counts, objective=objective, hits=hits, corrected=corrected,
        class_weights=weights, ignore_index=-100,
    )  # fmt: skip
    options: dict[str, Any] = {"remove_accidental_hits": not hits, "log_q_correction": corrected}
    options |= {"class_weights": weights, "ignore_index": -100}

    @jax.jit
    def both(h: Any, k: Any, b: Any) -> Any:
        def loss(h: Any, k: Any, b: Any) -> Any:
            return LOSSES[objective](h, k, y, negatives, bias=b, **options)

        value, pull = jax.vjp(loss, h, k, b)
        rows = sampled_row_gradients(h, k, y, negatives, objective=objective, bias=b, **options)
        start = jnp.zeros_like(k), jnp.zeros_like(b)
        sums = apply_row_updates(start, rows.rows, rows.values)
        return (value, *pull(jnp.ones(ROWS))), (rows.loss, rows.d_hidden, *sums)

    for found in both(h, kernel, bias):
        assert found[0].dtype == jnp.float32
        for got, expected in zip(found, answer, strict=True):
            np.testing.assert_allclose(got, expected, 1e-5, 3e-6)


def test_defaults_about_hits():
    h, kernel, _, y = problem()
    negatives = drawn()
    for objective, removed in (("cross_entropy", True), ("noise_contrastive", False)):
        explicit = LOSSES[objective](h, kernel, y, negatives, remove_accidental_hits=removed)
        other = LOSSES[objective](h, kernel, y, negatives, remove_accidental_hits=not removed)
        default = LOSSES[objective](h, kernel, y, negatives)
        rows = sampled_row_gradients(h, kernel, y, negatives, objective=objective)
        np.testing.assert_array_equal(default, explicit)
        np.testing.assert_allclose(rows.loss, explicit, 1e-6)
        assert not np.allclose(default, other)


def test_row_gradients_with_weights():
    h, kernel, _, y = problem()
    negatives, weights = drawn(), np.linspace(0, 1, ROWS).astype(np.float32)
    got = sampled_row_gradients(h, kernel, y, negatives, weights=weights)
    np.testing.assert_array_equal(got.rows, np.concatenate([y, negatives.ids]))
    assert got.values.dtype == jnp.float32

    def total(h: Any, k: Any) -> Any:
        return jnp.sum(weights * sampled_cross_entropy(h, k, y, negatives))

    d_hidden, d_kernel = jax.grad(total, (0, 1))(h, kernel)
    np.testing.assert_allclose(got.d_hidden, d_hidden, 1e-5, 1e-7)
    sums = apply_row_updates(jnp.zeros_like(kernel), got.rows, got.values)
    np.testing.assert_allclose(sums, d_kernel, 1e-5, 1e-6)


@every_proposal
def test_all_classes_without_replacement_are_the_softmax(name: str):
    h, kernel, bias, y = problem()
    negatives = draw_negatives(jax.random.key(0), PROPOSALS[name][0], CLASSES, replace=False)
    z = h @ kernel.T + bias
    np.testing.assert_allclose(
        sampled_log_normalizer(h, kernel, negatives, bias=bias), jsoftmax.logsumexp(z), 2e-6
    )

    def few(h: Any, k: Any, b: Any) -> Any:
        return sampled_cross_entropy(h, k, y, negatives, bias=b)

    def full(h: Any, k: Any, b: Any) -> Any:
        return jsoftmax.cross_entropy(h @ k.T + b, y)

    (a, pull_a), (b, pull_b) = (jax.vjp(f, h, kernel, bias) for f in (few, full))
    np.testing.assert_allclose(a, b, 2e-6, 2e-6)
    for got, expected in zip(pull_a(jnp.ones(ROWS)), pull_b(jnp.ones(ROWS)), strict=True):
        np.testing.assert_allclose(got, expected, 1e-5, 2e-6)


@both_ways
@every_proposal
def test_unbiased(name: str, replace: bool):
    h, kernel, bias, y = problem(rows=3)
    z = (h @ kernel.T + bias).astype(np.float64)

    def estimates(key: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS[name][0], 4, replace=replace)
        every = jnp.arange(CLASSES)
        times = jnp.sum(negatives.ids[:, None] == every, axis=0).astype(jnp.float32)
        weighed = times / jnp.exp(negatives.log_expected_counts(every))
        normalizer = sampled_log_normalizer(h, kernel, negatives, bias=bias)
        # The denominator of the loss, the label's own term included.
        loss = sampled_cross_entropy(h, kernel, y, negatives, bias=bias)
        denominator = loss + z[np.arange(3), y].astype(np.float32)
        return weighed, jnp.exp(normalizer), jnp.exp(denominator)

    keys = jax.random.split(jax.random.key(10), 20_000)
    weighed, normalizer, denominator = jax.jit(jax.vmap(estimates))(keys)
    # Each class counts once, so the sum of anything over the classes is estimated without bias.
    check_mean(weighed, np.ones(CLASSES), 0.1)
    check_mean(normalizer, np.exp(z).sum(axis=-1), 0.03)
    check_mean(denominator, np.exp(z).sum(axis=-1), 0.03)


@pytest.mark.parametrize("name", ["unigram", "log uniform"])
def test_many_samples_with_replacement_are_the_softmax(name: str):
    h, kernel, bias, y = problem()
    negatives = draw_negatives(jax.random.key(11), PROPOSALS[name][0], 400_000)
    few = sampled_cross_entropy(h, kernel, y, negatives, bias=bias)
    full = jsoftmax.cross_entropy(h @ kernel.T + bias, y)
    np.testing.assert_allclose(few, full, atol=0.03)


def test_noise_contrastive_loss_is_least_at_the_truth():
    """Scores that are log-probabilities of the labels have an expected gradient of 0."""
    y = np.repeat(np.arange(CLASSES), [9, 7, 5, 4, 3, 3, 2, 2, 1])
    truth = np.log(np.bincount(y) / len(y)).astype(np.float32)
    h, kernel = np.zeros((len(y), 1), np.float32), np.zeros((CLASSES, 1), np.float32)

    def loss(bias: Any, key: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS["unigram"][0], 5)
        return jnp.mean(noise_contrastive_loss(h, kernel, y, negatives, bias=bias))

    keys = jax.random.split(jax.random.key(12), 40_000)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(truth, keys), np.float64)
    error = slopes.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(slopes.mean(axis=0)) < 5 * error + 1e-7).all()
    assert error.max() < 1e-3


def test_hits_of_every_negative():
    """A row all of whose negatives are its label has nothing to choose from: cost 0, no gradient."""
    h, kernel, _, y = problem()
    proposal = unigram_proposal(np.eye(CLASSES)[y[0]])
    negatives = draw_negatives(jax.random.key(0), proposal, 3)
    value, pull = jax.vjp(lambda h: sampled_cross_entropy(h, kernel, y, negatives), h)
    slope = pull(jnp.ones(ROWS))[0]
    same = y == y[0]
    np.testing.assert_array_equal(np.asarray(value)[same], 0)
    np.testing.assert_array_equal(np.asarray(slope)[same], 0)
    assert (np.asarray(value)[~same] > 0).all()


@every_loss
def test_labels(objective: str):
    h, kernel, bias, y = problem()
    y = y.astype(np.int8)
    y[:4] = [-1, CLASSES, 127, -100]
    h[3], h[0] = np.nan, 1.0
    negatives = drawn()

    def loss(h: Any, k: Any, b: Any) -> Any:
        return LOSSES[objective](h, k, y, negatives, bias=b, ignore_index=-100)

    value, pull = jax.vjp(loss, h, kernel, bias)
    assert np.isnan(value[:3]).all()
    assert value[3] == 0
    assert np.isfinite(value[4:]).all()
    d_hidden, d_kernel, _ = pull(jnp.ones(ROWS))
    assert np.isnan(d_hidden[:3]).all()
    np.testing.assert_array_equal(d_hidden[3], 0)
    assert np.isfinite(d_hidden[4:]).all()
    assert np.isnan(d_kernel).any()

    # An ignored row alone does no harm to anything that is shared, nor does a NaN in the kernel to it.
    def ignored(h: Any, k: Any) -> Any:
        return LOSSES[objective](h, k, np.array([-100, 1]), negatives, ignore_index=-100)

    value, pull = jax.vjp(ignored, h[3:5], kernel)
    d_hidden, d_kernel = pull(jnp.ones(2))
    assert np.isfinite(d_hidden).all()
    assert np.isfinite(d_kernel).all()
    value, pull = jax.vjp(ignored, h[3:5], np.full_like(kernel, np.nan))
    assert value[0] == 0
    np.testing.assert_array_equal(pull(jnp.ones(2))[0][0], 0)
    assert np.isnan(value[1])


def test_a_proposal_that_draws_what_is_no_class():
    h, kernel, _, y = problem()
    for wrong in (-1, CLASSES):
        ids = jnp.array([1, wrong], jnp.int32)
        negatives = Negatives(ids, jnp.float32(0), Uniform(CLASSES), replace=True)
        for corrected in (True, False):
            value = sampled_cross_entropy(h, kernel, y, negatives, log_q_correction=corrected)
            assert np.isnan(value).all()
            assert np.isnan(sampled_log_normalizer(h, kernel, negatives)).all()


@every_loss
def test_large_scores(objective: str):
    h, kernel, bias, y = problem()
    negatives = drawn()
    for scale in (200.0, 1e4):
        value, pull = jax.vjp(
            lambda h, k, s=scale: LOSSES[objective](s * h, k, y, negatives, bias=bias), h, kernel
        )
        assert np.isfinite(value).all()
        assert all(np.isfinite(x).all() for x in pull(jnp.ones(ROWS)))


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(objective: str, dtype: Any):
    """Every row has one label: the gradient of its row is a sum of a thousand terms, rounded once."""
    h, kernel, bias, _ = problem(rows=1000)
    y, negatives = np.full(1000, 3, np.int32), drawn()
    args = [jnp.asarray(0.1 * x, dtype) for x in (h, kernel, bias)]
    value, pull = jax.vjp(
        lambda h, k, b: LOSSES[objective](h, k, y, negatives, bias=b, remove_accidental_hits=True),
        *args,
    )
    assert value.dtype == jnp.float32
    counts = oracle.expected_counts(PROPOSALS["unigram"][1], SAMPLES, None)
    exact_h, exact_kernel, exact_bias = (np.asarray(x, np.float64) for x in args)
    answer = oracle.sampled(
        exact_h, exact_kernel, exact_bias, y, np.asarray(negatives.ids), counts,
        objective=objective, hits=False, corrected=True,
    )  # fmt: skip
    np.testing.assert_allclose(value, answer.loss, 1e-5, 1e-6)
    for got, expected in zip(pull(jnp.ones(1000)), answer[1:], strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(got, np.float64), expected, float(jnp.finfo(dtype).eps), 1e-4
        )
    got = sampled_row_gradients(args[0], args[1], y, negatives, objective=objective)
    assert (got.d_hidden.dtype, got.values.dtype) == (dtype, jnp.float32)


def test_mixed_precision():
    h, kernel, bias, y = problem()
    negatives = drawn()
    value, pull = jax.vjp(
        lambda h, k, b: sampled_cross_entropy(h, k, y, negatives, bias=b),
        jnp.asarray(h, jnp.bfloat16), kernel, jnp.asarray(bias, jnp.float16),
    )  # fmt: skip
    expected = sampled_cross_entropy(
        np.asarray(jnp.asarray(h, jnp.bfloat16), np.float32), kernel, y, negatives,
        bias=np.asarray(bias, np.float16).astype(np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(value, expected, 1e-6)
    assert [x.dtype for x in pull(jnp.ones(ROWS))] == [jnp.bfloat16, jnp.float32, jnp.float16]


# Transforms.


@every_loss
@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_batches_of_any_rank(objective: str, shape: tuple[int, ...]):
    h, kernel, bias, y = problem(rows=int(np.prod(shape)))
    negatives = drawn()
    flat = LOSSES[objective](h, kernel, y, negatives, bias=bias)
    h, y = h.reshape(*shape, FEATURES), y.reshape(shape)
    together = LOSSES[objective](h, kernel, y, negatives, bias=bias)
    assert together.shape == shape
    np.testing.assert_allclose(np.ravel(together), flat, 1e-6)
    got = sampled_row_gradients(h, kernel, y, negatives, objective=objective)
    assert (got.d_hidden.shape, got.rows.shape) == (h.shape, (y.size + SAMPLES,))
    assert sampled_log_normalizer(h, kernel, negatives).shape == shape


@every_loss
@both_ways
def test_own_negatives_for_each_row(objective: str, replace: bool):
    h, kernel, bias, y = problem()
    keys = jax.random.split(jax.random.key(13), ROWS)

    def one(key: Any, h: Any, y: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS["unigram"][0], SAMPLES, replace=replace)
        return LOSSES[objective](h, kernel, y, negatives, bias=bias)

    together = jax.jit(jax.vmap(one))(keys, h, y)
    alone = [one(*args) for args in zip(keys, h, y, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), 1e-5, 1e-6)


def modes(loss: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """The gradient of the summed losses, in ways that have to agree."""

    def total(x: Any) -> Any:
        return jnp.sum(loss(x))

    def scanned(x: Any) -> Any:
        return jax.lax.scan(lambda s, _: (s + total(x), None), jnp.float32(0), None, length=2)[0]

    return {
        "jacfwd": jax.jacfwd(total),
        "jacrev": lambda x: jnp.sum(jax.jacrev(loss)(x), axis=0),
        "remat": jax.grad(jax.checkpoint(total)),
        "scan": lambda x: jax.grad(scanned)(x) / 2,
        "linearize": lambda x: jax.vmap(jax.linearize(total, x)[1])(jnp.eye(x.size)),
    }


@pytest.mark.slow  # the conformance table has the modes with replacement
@pytest.mark.parametrize(
    ("objective", "replace"),
    [("cross_entropy", False), ("noise_contrastive", True)],
)
def test_every_mode(objective: str, replace: bool):
    h, kernel, bias, y = problem(rows=3)
    sizes = np.cumsum([h.size, kernel.size])
    key = jax.random.key(14)

    def loss(x: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS["unigram"][0], SAMPLES, replace=replace)
        of_h, of_kernel, b = jnp.split(x, sizes)
        of_h, of_kernel = of_h.reshape(h.shape), of_kernel.reshape(kernel.shape)
        return LOSSES[objective](of_h, of_kernel, y, negatives, bias=b)

    x = jnp.concatenate([h.ravel(), kernel.ravel(), bias])
    step = jax.random.normal(jax.random.key(15), x.shape)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))
    slope = grad(x)

    @jax.jit
    def every(x: Any) -> Any:
        return {name: mode(x) for name, mode in modes(loss).items()}, jax.jvp(grad, (x,), (step,))[1]

    found, product = every(x)
    for name, got in found.items():
        np.testing.assert_allclose(got, slope, 1e-5, 2e-6, err_msg=name)
    numeric = (grad(x + 1e-2 * step) - grad(x - 1e-2 * step)) / 2e-2
    np.testing.assert_allclose(product, numeric, 5e-3, 5e-3)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(loss(x))))(x)
    np.testing.assert_allclose(hessian @ step, product, 1e-4, 1e-5)


@pytest.mark.slow  # seconds each, and beside the main way
@both_ways
def test_gradient_in_a_learned_proposal(replace: bool):
    """True for the draws as they stand, which move by steps only."""
    h, kernel, _, y = problem()

    def loss(scores: Any) -> Any:
        negatives = draw_negatives(jax.random.key(16), Learned(scores), SAMPLES, replace=replace)
        return jnp.sum(sampled_cross_entropy(h, kernel, y, negatives))

    scores, step = jnp.linspace(-1.0, 1.0, CLASSES), 1e-2 * jnp.cos(jnp.arange(CLASSES))
    numeric = (loss(scores + step) - loss(scores - step)) / 2
    exact = jnp.vdot(jax.grad(loss)(scores), step)
    np.testing.assert_allclose(exact, numeric, 1e-2)
    assert abs(exact) > 1e-3


@pytest.mark.slow  # seconds each, and beside the main way
def test_row_gradients_can_be_differentiated():
    h, kernel, bias, y = problem()
    negatives = drawn()

    def by_rows(h: Any) -> Any:
        return sampled_row_gradients(h, kernel, y, negatives, bias=bias).d_hidden

    def dense(h: Any) -> Any:
        return jax.grad(lambda h: jnp.sum(sampled_cross_entropy(h, kernel, y, negatives, bias=bias)))(h)

    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(by_rows)(h), jax.jacfwd(dense)(h), 1e-4, 1e-6)


def test_no_array_of_the_kernels_size():
    """The step of `sampled_row_gradients` with a donated kernel takes little beside it."""
    classes = 200_000
    shapes = [(64, 16), (classes, 16)]
    h, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    y = jax.ShapeDtypeStruct((64,), jnp.int32)

    def step(h: Any, kernel: Any, y: Any, key: Any) -> Any:
        negatives = draw_negatives(key, LogUniform(classes), 100)
        got = sampled_row_gradients(h, kernel, y, negatives)
        return apply_row_updates(kernel, got.rows, -0.1 * got.values)

    lowered = jax.jit(step, donate_argnums=1).lower(h, kernel, y, jax.random.key(0))
    analysis: Any = lowered.compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 1e6


def test_nothing_is_traced_again():
    h, kernel, bias, y = problem()
    traces = 0

    @jax.jit
    def loss(proposal: Any, key: Any) -> Any:
        nonlocal traces
        traces += 1
        return sampled_cross_entropy(h, kernel, y, draw_negatives(key, proposal, SAMPLES), bias=bias)

    for seed in range(3):
        loss(unigram_proposal(COUNTS + seed), jax.random.key(seed))
    assert traces == 1


@every_loss
def test_sharded_rows(objective: str):
    h, kernel, bias, y = problem(rows=16)
    negatives = drawn()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def loss(h: Any, k: Any, b: Any, y: Any) -> Any:
        return LOSSES[objective](h, k, y, negatives, bias=b)

    def slopes(loss: Any) -> Any:
        def total(h: Any, k: Any, b: Any) -> Any:
            return jnp.sum(loss(h, k, b, y))

        return jax.grad(total, (0, 1, 2))(h, kernel, bias)

    split = jax.shard_map(loss, mesh=mesh, in_specs=(spec, None, None, spec), out_specs=spec)
    np.testing.assert_allclose(split(h, kernel, bias, y), loss(h, kernel, bias, y), 1e-6)
    for got, expected in zip(slopes(jax.jit(split)), slopes(loss), strict=True):
        np.testing.assert_allclose(got, expected, 1e-4, 1e-5)


def test_draws_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    keys = jax.random.split(jax.random.key(17), 8)
    for proposal, replace in ((LogUniform(CLASSES), True), (PROPOSALS["unigram"][0], False)):
        draw = functools.partial(draw_negatives, proposal=proposal, num_samples=4, replace=replace)

        def one(key: Any, draw: Any = draw) -> Any:
            return draw(key[0]).ids

        ids = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
        expected = jnp.concatenate([draw(key).ids for key in keys])
        np.testing.assert_array_equal(ids, expected)


def test_export():
    h, kernel, bias, y = problem()

    def step(key: Any, h: Any, y: Any) -> Any:
        negatives = draw_negatives(key, LogUniform(CLASSES), SAMPLES, replace=False)
        return jax.value_and_grad(
            lambda h: jnp.sum(sampled_cross_entropy(h, kernel, y, negatives, bias=bias))
        )(h)

    rows = jax.export.symbolic_shape("n")[0]
    shapes = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        jax.ShapeDtypeStruct((rows, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(*shapes)
    key = jax.random.PRNGKey(0)
    for got, expected in zip(exported.call(key, h, y), step(key, h, y), strict=True):
        np.testing.assert_allclose(got, expected, 1e-5, 1e-6)


# Errors.

H, KERNEL, _, Y = problem()
DRAWN = drawn()
CALL: Any = sampled_cross_entropy
OF: Any = LogUniform
UNIGRAM: Any = unigram_proposal
DRAW: Any = draw_negatives
KEY = jax.random.key(0)


class Bare:
    num_classes = 3

    def sample(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jnp.zeros(shape, jnp.int32)


class Complete(Bare):
    def log_prob(self, ids: Any) -> Any:
        return jnp.zeros(ids.shape)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: Uniform(0),
        ValueError,
        "Uniform: num_classes must be in [1, 2^31), got 0; pass the number of classes.",
    ),
    (
        lambda: OF(2.5),
        TypeError,
        "LogUniform: num_classes must be an integer, got 2.5; pass a Python int.",
    ),
    (
        lambda: UNIGRAM([1, 2], power=-1),
        ValueError,
        "unigram_proposal: power must be at least 0 and finite, got -1; choose a value in range.",
    ),
    (
        lambda: jax.jit(lambda c: UNIGRAM(c).log_probs)(np.ones(3)),
        TypeError,
        "unigram_proposal: counts must be known before tracing, got a traced array; make the proposal "
        "outside and pass it as an argument.",
    ),
    (
        lambda: UNIGRAM(np.ones((2, 2))),
        ValueError,
        "unigram_proposal: counts must have shape [classes], got [2, 2]; pass one number per class.",
    ),
    (
        lambda: UNIGRAM([]),
        ValueError,
        "unigram_proposal: counts must have shape [classes], got [0]; pass one number per class.",
    ),
    (
        lambda: UNIGRAM([1.0, -2.0]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got -2.0 for class 1; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: UNIGRAM([np.nan, 1]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got nan for class 0; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: UNIGRAM([0, 0]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got nothing but 0; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: DRAW(KEY, Bare(), 3),
        TypeError,
        "draw_negatives: proposal must be a pytree with num_classes, sample and log_prob, got a Bare "
        "without log_prob; see hierarchical.Proposal.",
    ),
    (
        lambda: DRAW(KEY, Complete(), 3),
        TypeError,
        "draw_negatives: proposal must be a pytree with num_classes, sample and log_prob, got a "
        "Complete that is no pytree; see hierarchical.Proposal.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 1.5),
        TypeError,
        "draw_negatives: num_samples must be an integer, got 1.5; pass a Python int.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 0),
        ValueError,
        "draw_negatives: num_samples must be at least 1, got 0; choose a value in range.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 4, replace=False),
        ValueError,
        "draw_negatives: num_samples must be in [1, classes] = [1, 3] without replacement, got 4; "
        "choose a value in range.",
    ),
    (
        lambda: CALL(H, KERNEL, Y, np.arange(3)),
        TypeError,
        "sampled_cross_entropy: negatives must be Negatives, got ndarray; make them with "
        "draw_negatives.",
    ),
    (
        lambda: CALL(H, KERNEL.T, Y, DRAWN),
        ValueError,
        "sampled_cross_entropy: class_kernel must have shape [classes, features] = [9, 4] to match "
        "hidden [7, 4], got [4, 9]; transpose it.",
    ),
    (
        lambda: CALL(H.astype(np.int32), KERNEL, Y, DRAWN),
        TypeError,
        "sampled_cross_entropy: hidden must have a floating dtype, got int32; convert with "
        "hidden.astype(jnp.float32).",
    ),
    (
        lambda: CALL(H, KERNEL, Y[:, None], DRAWN),
        ValueError,
        "sampled_cross_entropy: labels must have shape [*batch] = [7] to match hidden [7, 4], got "
        "[7, 1]; class indices have no class axis, squeeze the last one.",
    ),
    (
        lambda: CALL(H, KERNEL, np.ones((ROWS, CLASSES), np.float32), DRAWN),
        TypeError,
        "sampled_cross_entropy: labels must have an integer dtype, got float32; give every row one "
        "class.",
    ),
    (
        lambda: noise_contrastive_loss(H, KERNEL, Y, DRAWN, bias=H[0]),
        ValueError,
        "noise_contrastive_loss: bias must have shape [classes] = [9], got [4]; one value each.",
    ),
    (
        lambda: noise_contrastive_loss(
            H, KERNEL, Y, DRAWN, class_weights=np.arange(CLASSES, dtype=np.int32)
        ),
        TypeError,
        "noise_contrastive_loss: class_weights must have a floating dtype, got int32; convert with "
        "class_weights.astype(jnp.float32).",
    ),
    (
        lambda: CALL(H, KERNEL, Y, DRAWN, ignore_index=-1.0),
        TypeError,
        "sampled_cross_entropy: ignore_index must be an integer, got -1.0; pass a Python int.",
    ),
    (
        lambda: sampled_log_normalizer(H, KERNEL[:5], DRAWN),
        ValueError,
        "sampled_log_normalizer: class_kernel must have shape [classes, features] = [9, 4] to match "
        "hidden [7, 4], got [5, 4]; it is gathered by rows.",
    ),
    (
        lambda: sampled_row_gradients(H, KERNEL, Y, DRAWN, objective="nce"),
        ValueError,
        "sampled_row_gradients: objective must be one of 'cross_entropy', 'noise_contrastive', got "
        "'nce'; check the spelling.",
    ),
    (
        lambda: sampled_row_gradients(H, KERNEL, Y, DRAWN, weights=np.ones(3)),
        ValueError,
        "sampled_row_gradients: weights must be a scalar or have shape [*batch] = [7], got [3]; one "
        "value per row.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text
