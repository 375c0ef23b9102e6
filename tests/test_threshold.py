"""The threshold: its digits where many scores are next to it, and its own derivatives.

Those are right where jax differentiates the map's body, not its rule.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import entmax
from jsoftmax.maps.entmax import distribution_of, solved
from tests.oracles import entmax as oracle
from tests.truth import x64

ROW = jnp.array([0.3, 1.9, 1.2, -0.4, 1.6, 0.9])
TEMPERATURE = 0.8


def body(n: int, dominated: bool, v: jax.Array) -> jax.Array:
    """The map of α = 1 + 1/n without its rule."""
    temperature = jnp.full((1,), TEMPERATURE)
    found = solved(n, dominated, v, temperature, None)
    return distribution_of(n, v, temperature, None, None, found)[1]


@pytest.mark.parametrize("dominated", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_first_and_second_order(n: int, dominated: bool) -> None:
    def rule(v: jax.Array) -> jax.Array:
        return entmax(v, 1 + 1 / n, temperature=TEMPERATURE)

    def plain(v: jax.Array) -> jax.Array:
        return body(n, dominated, v)

    np.testing.assert_allclose(plain(ROW), rule(ROW), atol=1e-7)
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jacobian(plain)(ROW), jacobian(rule)(ROW), atol=2e-6)
    second = jax.jacfwd(jax.jacfwd(plain))(ROW)
    np.testing.assert_allclose(second, jax.jacfwd(jax.jacfwd(rule))(ROW), atol=2e-5)
    assert np.abs(jax.jacfwd(rule)(ROW)).max() > 0.1


def test_of_a_traced_alpha() -> None:
    def plain(a: jax.Array) -> jax.Array:
        found = solved(0, False, ROW, None, a)
        return distribution_of(0, ROW, None, a, None, found)[1]

    alpha = jnp.full((1,), 1.4)
    expected = jax.jacfwd(lambda a: entmax(ROW, a[0]))(alpha)
    np.testing.assert_allclose(jax.jacfwd(plain)(alpha), expected, atol=2e-6)
    np.testing.assert_allclose(jax.jacrev(plain)(alpha), expected, atol=2e-6)


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
def test_many_scores_next_to_the_threshold(traced: bool):
    """Where a float is the difference between a support of one class and one of hundreds."""
    z = 2.0**-24 * np.random.default_rng(7).integers(-3, 4, (8, 900)) - 1
    z = np.pad(z, ((0, 0), (1, 0))).astype(np.float32)
    p = np.asarray(entmax(z, jnp.float32(2) if traced else 2.0), np.longdouble)
    np.testing.assert_allclose(p.sum(-1), 1, 0, 1e-6)
    np.testing.assert_allclose(p, oracle.rows(z, 2.0), 0, 5e-7)


@pytest.mark.parametrize("alpha", [1.0, 1.3, 2.0, 2.5])
def test_float64_of_a_traced_alpha(alpha: float) -> None:
    """Its gradient mixes no index of 64 bits with one of 32, and has the digits of 64 bits."""
    with x64():
        row, a = ROW.astype(np.float64), jnp.asarray(alpha, np.float64)
        ct = jnp.arange(row.size, dtype=np.float64)

        @jax.jit
        def loss(row: jax.Array, a: jax.Array) -> jax.Array:
            return jnp.vdot(ct, entmax(row, a))

        slope = jax.grad(loss, (0, 1))(row, a)
        assert slope[0].dtype == slope[1].dtype == np.float64
        step = 1e-6
        for i in range(row.size):
            moved = [loss(row.at[i].add(sign * step), a) for sign in (1, -1)]
            np.testing.assert_allclose(slope[0][i], (moved[0] - moved[1]) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("alpha", [2.5, 4.0])
def test_derivatives_of_a_large_alpha_without_the_rule(alpha: float):
    """As JAX takes them inside `scan`; they were silently wrong from the second order on."""
    with jax.enable_x64(True):
        z = jnp.array([0.13, -0.13, 0.64, 0.1]) / alpha
        t, w = jnp.array([0.9, -1.3, 0.4, 0.5]), jnp.array([1.0, 2.0, -0.5, 0.7])

        def loss(z: Any) -> Any:
            return jnp.vdot(entmax(z, jnp.asarray(alpha)), w)

        def in_scan(z: Any) -> Any:
            return jax.lax.scan(lambda s, _: (s + loss(z), None), 0.0, None, length=1)[0]

        def slope(f: Any) -> Any:
            return lambda z: jnp.vdot(jax.grad(f)(z), t)

        by_rule, without = slope(loss), slope(in_scan)
        for _ in range(2):
            expected, got = (jax.jit(jax.grad(f))(z) for f in (by_rule, without))
            assert float(jnp.max(jnp.abs(expected))) > 0.1
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            by_rule, without = slope(by_rule), slope(without)
