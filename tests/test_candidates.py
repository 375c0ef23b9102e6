"""Long rows, of which sparsemax and entmax read a few blocks: the same numbers as of all classes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from tests.oracles import entmax as oracle

# Whole blocks, blocks of another size, a last block that is not full.
CLASSES = (4096, 5000, 4099)


def rows(kind: str, classes: int) -> np.ndarray:
    rng = np.random.default_rng([5, classes])
    drawn = {
        "few": rng.standard_normal((6, classes)),
        "one": rng.standard_t(1.2, (6, classes)),
        "many": rng.random((6, classes)),
        "offset": 1e5 + 3 * rng.standard_normal((6, classes)),
    }[kind]
    # The maximum in the last place, and a row for which blocks do not suffice among others.
    drawn[1, -1] = drawn[1].max() + 0.1
    if kind == "one":
        drawn[2] = 0.3
    return drawn.astype(np.float32)


@pytest.mark.thin(2)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kind", ["few", "one", "many", "offset"])
def test_as_extended_precision(kind: str, classes: int):
    z = rows(kind, classes)
    for alpha in (2.0, 1.5, 1.25):
        p = np.asarray(jsoftmax.entmax(z, alpha), np.longdouble)
        true = oracle.rows(z, alpha)
        assert np.max(np.abs(p - true)) <= 2.5e-7
        assert np.max(np.abs(p.sum(-1) - 1)) <= 1e-6
        assert ((p > 0) == (true > 0))[(true == 0) | (true > 1e-9)].all()


@pytest.mark.thin(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("classes", CLASSES)
def test_a_nan_anywhere_spoils_its_row(classes: int, dtype: str):
    z = jnp.asarray(rows("few", classes), dtype)
    places = jnp.array([0, 130, classes // 2, classes - 2, classes - 1])
    z = z.at[jnp.arange(5), places].set(jnp.nan)
    z = z.at[4, 3].set(jnp.inf)
    for p in (jsoftmax.sparsemax(z), jax.jit(jsoftmax.entmax)(z)):
        assert jnp.isnan(p[:5]).all()
        assert jnp.isfinite(p[5]).all()


def test_special_rows():
    """Infinities and masks, in one batch with a plain row."""
    z = rows("few", 4096)
    z[0, 17] = z[1, 18] = z[1, 4000] = np.inf
    z[2], z[3, 100:] = -np.inf, -np.inf
    where = np.ones(z.shape, bool)
    where[4], where[5, 50:] = False, False
    p = np.asarray(jsoftmax.sparsemax(z, where=where))
    np.testing.assert_array_equal(p[0], np.eye(4096)[17])
    assert np.isnan(p[1:3]).all()
    np.testing.assert_allclose(p[3, :100], oracle.rows(z[3:4, :100], 2.0)[0], 0, 2.5e-7)
    np.testing.assert_array_equal(p[3, 100:], 0)
    np.testing.assert_array_equal(p[4], 0)
    np.testing.assert_allclose(p[5, :50], oracle.rows(z[5:, :50], 2.0)[0], 0, 2.5e-7)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_derivatives(alpha: float):
    """In every mode as those of the classes in the support, deleted from the others."""
    z = rows("few", 4099)[:2]
    inside = np.argsort(-z, -1)[:, :200]
    short = np.take_along_axis(z, inside, -1)
    ct = np.random.default_rng(3).standard_normal(short.shape).astype(np.float32)
    spread = np.zeros_like(z)
    np.put_along_axis(spread, inside, ct, -1)

    def of(x: Any, ct: Any, by: Any) -> Any:
        def weighed(x: Any, t: Any) -> Any:
            return jnp.sum(ct * jsoftmax.entmax(x, alpha, temperature=t) ** 2)

        slope = jax.grad(weighed, (0, 1))(x, 0.9)
        step = jax.lax.scan(lambda c, _: (c - 0.1 * jax.grad(weighed)(c, 0.9), None), x, None, 2)[0]
        return slope, jax.jvp(lambda x: jax.grad(weighed)(x, 0.9), (x,), (by,))[1], step

    (d_x, d_t), along, step = jax.jit(of)(z, spread, spread)
    (s_x, s_t), s_along, s_step = jax.jit(of)(short, ct, ct)
    for long, want in ((d_x, s_x), (along, s_along), (step, s_step)):
        np.testing.assert_allclose(np.take_along_axis(long, inside, -1), want, 1e-4, 1e-6)
    np.testing.assert_allclose(d_t, s_t, 1e-5)
    chosen = np.zeros(z.shape, bool)
    np.put_along_axis(chosen, inside, True, -1)
    np.testing.assert_array_equal(np.asarray(d_x)[~chosen], 0)


def test_under_vmap_and_in_other_layouts():
    z = rows("one", 5000)
    want = jsoftmax.entmax(z)
    np.testing.assert_allclose(jax.vmap(jsoftmax.entmax)(z), want, 0, 2e-7)
    np.testing.assert_allclose(jsoftmax.entmax(z[0]), want[0], 0, 2e-7)
    np.testing.assert_allclose(jsoftmax.entmax(z.T, axis=0), want.T, 0, 2e-7)
    np.testing.assert_allclose(jsoftmax.entmax(z.reshape(2, 3, 5000)), want.reshape(2, 3, -1), 0, 2e-7)
