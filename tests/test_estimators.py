"""Relaxed samples, and gradients through samples: as their papers have them, and with less variance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jsoftmax import sampling
from jsoftmax.sampling import _noise
from tests.oracles import sampling as oracle
from tests.truth import quick

pytestmark = pytest.mark.thin(6)


KEY = jax.random.key(4)
INF, NAN = np.inf, np.nan
Z = np.array([0.5, -1.0, 1.5, 0.0, -0.3], np.float32)
DRAWS = 20_000

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "gumbel": functools.partial(sampling.gumbel_softmax, hard=True),
    "straight_through": sampling.straight_through,
    "rao_blackwell": functools.partial(sampling.rao_blackwell_gumbel_softmax, num_samples=3),
    "reinmax": sampling.reinmax,
}
each = pytest.mark.parametrize("draw", ESTIMATORS.values(), ids=ESTIMATORS)


def many(function: Callable[..., Any], *arguments: Any, draws: int = DRAWS) -> np.ndarray:
    """`function(key, *arguments)` for many keys."""
    keys = jax.random.split(KEY, draws)
    return np.asarray(quick(jax.vmap(lambda key: function(key, *arguments)))(keys))


@pytest.mark.thin
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, INF])
@each
def test_values_are_one_hot_draws(draw: Callable[..., Any], temperature: float, dtype: str):
    z = jnp.asarray(Z, dtype)
    y = many(draw, z, temperature)
    assert y.dtype == dtype
    assert set(np.unique(y.astype(np.float32))) == {0.0, 1.0}
    counts = y.astype(np.float64).sum(axis=0)
    assert counts.sum() == DRAWS
    p = oracle.softmax(np.asarray(z, np.float64))
    assert stats.chisquare(counts, p * DRAWS).pvalue > 1e-6


def test_noise_of_sixteen_bits_would_be_far_off():
    # With noise of bfloat16, half of these classes get 0.98 of the draws.
    y = many(
        functools.partial(sampling.gumbel_softmax, hard=True), jnp.zeros(1024, jnp.bfloat16), draws=4000
    )
    lower = np.argmax(y.astype(np.float32), axis=-1) < 512
    assert abs(lower.mean() - 0.5) < 0.04


def test_noise_in_both_tails(monkeypatch: pytest.MonkeyPatch):
    bits = np.array([0, 1, 1000, 2**31 - 1, 2**31, 2**32 - 1000, 2**32 - 2, 2**32 - 1], np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda *_: jnp.asarray(bits))
    got = np.asarray(_noise.exponential(KEY, bits.shape, jnp.dtype("float32")), np.float64)
    u = (bits.astype(np.longdouble) + 0.5) / 2.0**32
    np.testing.assert_allclose(got, -np.log(u).astype(np.float64), rtol=3e-7)


def test_noise_has_its_distribution():
    e = np.asarray(_noise.exponential(KEY, (200_000,), jnp.dtype("float32")), np.float64)
    assert stats.kstest(e, "expon").pvalue > 1e-4


def test_large_scores_keep_the_digits_of_the_noise():
    shifted = np.asarray(sampling.gumbel_softmax(KEY, np.round(Z) + np.float32(2**23)))
    np.testing.assert_allclose(shifted, sampling.gumbel_softmax(KEY, np.round(Z)), rtol=1e-5)


def test_soft_samples():
    y = np.asarray(sampling.gumbel_softmax(KEY, Z, 0.5))
    bits = np.asarray(jax.random.bits(KEY, (5,)), np.float64)
    true = oracle.softmax(Z - np.log(-np.log((bits + 0.5) / 2**32)), 0.5)
    np.testing.assert_allclose(y, true, rtol=1e-5)
    hard = sampling.gumbel_softmax(KEY, Z, 0.5, hard=True)
    np.testing.assert_array_equal(hard, np.arange(5) == y.argmax())
    np.testing.assert_array_equal(sampling.gumbel_softmax(KEY, Z, 0.0), hard)
    np.testing.assert_allclose(sampling.gumbel_softmax(KEY, Z, 1e-4), hard, atol=1e-6)
    np.testing.assert_allclose(sampling.gumbel_softmax(KEY, Z, INF), np.full(5, 0.2), rtol=1e-6)
    per_row = sampling.gumbel_softmax(KEY, np.stack([Z, Z]), np.array([0.0, INF], np.float32))
    assert np.asarray(per_row[0]).max() == 1
    np.testing.assert_allclose(per_row[1], 0.2, rtol=1e-6)


def test_hard_has_the_derivatives_of_soft():
    worth = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])

    def value(z: Any, t: Any, hard: bool) -> Any:
        return sampling.gumbel_softmax(KEY, z, t, hard=hard) @ worth

    for derive in (jax.grad, jax.jacfwd):
        soft, hard = (
            derive(value, argnums=(0, 1))(jnp.asarray(Z), jnp.float32(0.7), hard)
            for hard in (False, True)
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), hard, soft)
        assert np.abs(np.asarray(jax.tree.leaves(soft)[0])).max() > 0.01


SPECIAL = [
    ([0.0, NAN, 1.0], [NAN] * 3),
    ([INF, INF, 0.0], [NAN] * 3),
    ([-INF, -INF, -INF], [NAN] * 3),
    ([0.0, INF, 1.0], [0.0, 1.0, 0.0]),
    ([-INF, 0.0, -INF], [0.0, 1.0, 0.0]),
    ([-3e38, 3e38, -INF], [0.0, 1.0, 0.0]),
]


@pytest.mark.parametrize("soft", [False, True])
@each
def test_special_rows(draw: Callable[..., Any], soft: bool):
    if soft:
        draw = sampling.gumbel_softmax
    z, expected = (jnp.array(side, jnp.float32) for side in zip(*SPECIAL, strict=True))

    def total(z: Any) -> Any:
        return jnp.sum(jnp.arange(3.0) * draw(KEY, z))

    np.testing.assert_array_equal(draw(KEY, z), expected)
    gradient = np.asarray(jax.grad(total)(z[3:]))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    where = jnp.array([True, False, True])
    hidden = jnp.array([[0.0, NAN, 1.0], [2.0, INF, 0.0], [-INF, 0.0, 1.0]])
    y = np.asarray(draw(KEY, hidden, where=where))
    assert (y[:, 1] == 0).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
    slope = np.asarray(jax.grad(lambda z: jnp.sum(jnp.arange(3.0) * draw(KEY, z, where=where)))(hidden))
    assert np.isfinite(slope).all()
    assert (slope[:, 1] == 0).all()
    assert np.abs(slope[:2, 0]).min() > 0
    np.testing.assert_array_equal(draw(KEY, hidden, where=where & False), np.zeros((3, 3)))
    np.testing.assert_array_equal(
        jax.grad(lambda z: jnp.sum(draw(KEY, z, where=where & False)))(hidden), np.zeros((3, 3))
    )


WORTH = np.random.default_rng(3).standard_normal((5, 5))
WORTH += WORTH.T


def quadratic(y: Any) -> Any:
    weights = jnp.asarray(WORTH, y.dtype)
    return y @ weights @ y / 2 + y @ jnp.sin(jnp.arange(5, dtype=y.dtype))


SLOPES = WORTH + np.sin(np.arange(5))
VALUES = np.diag(WORTH) / 2 + np.sin(np.arange(5))


def estimates(
    draw: Callable[..., Any], temperature: float, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn classes and the estimates of the gradient."""

    def estimate(key: Any) -> Any:
        y, pull = jax.vjp(lambda z: draw(key, z, temperature), jnp.asarray(Z))
        return jnp.concatenate([y, *pull(jax.grad(quadratic)(y))])

    both = many(estimate, draws=draws)
    return both[:, :5].argmax(axis=1), both[:, 5:]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("name", ["straight_through", "reinmax"])
def test_formula_of_the_paper(name: str, temperature: float):
    classes, gradients = estimates(ESTIMATORS[name], temperature, 300)
    assert set(classes) == set(range(5))
    for drawn, gradient in zip(classes, gradients, strict=True):
        true = getattr(oracle, name)(Z, drawn, SLOPES[drawn], temperature)
        np.testing.assert_allclose(gradient, true, rtol=1e-4, atol=1e-5)


def test_what_the_oracles_are_exact_for():
    exact = oracle.exact_gradient(Z, VALUES)
    second = oracle.mean_over_draws(oracle.reinmax, Z, SLOPES)
    np.testing.assert_allclose(second, exact, atol=1e-12)
    first = oracle.mean_over_draws(oracle.straight_through, Z, SLOPES)
    assert np.abs(first - exact).max() > 0.05
    linear = np.tile(VALUES, (5, 1))
    np.testing.assert_allclose(
        oracle.mean_over_draws(oracle.straight_through, Z, linear), exact, atol=1e-12
    )


def test_reinmax_is_unbiased_for_a_quadratic():
    _, gradients = estimates(sampling.reinmax, 1.0, DRAWS)
    error = gradients.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(gradients.mean(axis=0) - oracle.exact_gradient(Z, VALUES)) < 5 * error).all()


def test_rao_blackwell_is_the_mean_given_the_draw():
    averaged = functools.partial(sampling.rao_blackwell_gumbel_softmax, num_samples=2000)
    classes, gradients = estimates(averaged, 0.6, 60)
    for drawn in (0, 2):
        samples = oracle.conditional_gumbel(Z, drawn, SLOPES[drawn], 0.6, 400_000, drawn)
        got = gradients[classes == drawn]
        assert len(got) > 5
        error = samples.std(axis=0) * np.sqrt(1 / len(samples) + 1 / (2000 * len(got)))
        assert (np.abs(got.mean(axis=0) - samples.mean(axis=0)) < 5 * error).all()
        # Each is a mean of 2000, so that it varies as little as that says.
        assert (got.std(axis=0) < 2 * samples.std(axis=0) / np.sqrt(2000)).all()


def test_rao_blackwell_takes_variance_away_and_nothing_else():
    plain, averaged = (
        estimates(draw, 0.6, DRAWS)[1]
        for draw in (
            ESTIMATORS["gumbel"],
            functools.partial(sampling.rao_blackwell_gumbel_softmax, num_samples=20),
        )
    )
    error = np.sqrt((plain.var(axis=0) + averaged.var(axis=0)) / DRAWS)
    assert (np.abs(plain.mean(axis=0) - averaged.mean(axis=0)) < 5 * error).all()
    assert averaged.var(axis=0).sum() < 0.8 * plain.var(axis=0).sum()


def test_the_sample_knows_nothing_of_the_temperature():
    for draw in (sampling.straight_through, sampling.reinmax, sampling.rao_blackwell_gumbel_softmax):
        slope = jax.grad(lambda t, draw=draw: quadratic(draw(KEY, jnp.asarray(Z), t)))(0.7)
        assert slope == 0
        np.testing.assert_array_equal(draw(KEY, Z, 0.1), draw(KEY, Z, 10.0))
