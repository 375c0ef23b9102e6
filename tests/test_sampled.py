"""Sampled softmax and noise-contrastive estimation: the losses, their expectations, their labels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax.hierarchical.negatives import Negatives, draw_negatives
from jsoftmax.hierarchical.proposals import Uniform, unigram_proposal
from jsoftmax.hierarchical.rows import apply_row_updates
from jsoftmax.hierarchical.sampled import (
    noise_contrastive_loss,
    sampled_cross_entropy,
    sampled_log_normalizer,
    sampled_row_gradients,
)
from tests.oracles import sampled as oracle
from tests.sampled_problem import (
    CLASSES,
    LOSSES,
    PROPOSALS,
    ROWS,
    SAMPLES,
    both_ways,
    drawn,
    every_loss,
    every_proposal,
    problem,
)

pytestmark = pytest.mark.thin(6)


def check_mean(samples: Any, mean: Any, precision: float) -> None:
    """Within five standard errors, which are small enough to tell something."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - mean) <= 5 * error + 1e-6).all()
    assert (error <= precision * np.abs(mean)).all()


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
