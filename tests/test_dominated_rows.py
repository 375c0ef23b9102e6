"""Rows that one class dominates, few of many: gathered for the pass that keeps their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax._walks import _SHARE

ROWS, CLASSES = 4 * _SHARE, 50
MOST = ROWS // _SHARE


def scores(dominated: int, dtype: str = "float32") -> np.ndarray:
    """Rows of which so many, spread over all, have one class far above the others."""
    random = np.random.default_rng(dominated)
    x = random.standard_normal((ROWS, CLASSES))
    x[random.permutation(ROWS)[:dominated], random.integers(CLASSES)] = 17
    return np.asarray(jnp.asarray(x, dtype), np.float64)


def logs(x: np.ndarray) -> np.ndarray:
    """Log-probabilities, the largest of a row by the sum of the others alone."""
    g = x - x.max(-1, keepdims=True)
    rest = np.sort(np.exp(g), -1)[..., :-1].sum(-1, keepdims=True)
    return g - np.log1p(rest)


@pytest.mark.parametrize("dominated", [0, 1, MOST, MOST + 1, ROWS])
def test_digits_of_few_rows_and_of_many(dominated: int) -> None:
    x = scores(dominated)
    expected, top = logs(x), x.argmax(-1)
    given = jnp.asarray(x, jnp.float32)
    for got in (jsoftmax.log_softmax(given), jax.jit(jax.vmap(jsoftmax.log_softmax))(given)):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=0)
    shaped = jsoftmax.log_softmax(given.reshape(2, ROWS // 2, CLASSES), temperature=1.0)
    np.testing.assert_allclose(shaped.reshape(x.shape), expected, rtol=2e-6)
    loss = jsoftmax.cross_entropy(given, jnp.asarray(top))
    np.testing.assert_allclose(loss, -expected[np.arange(ROWS), top], rtol=2e-6)
    halved = logs(x / 0.5)
    per_row = jnp.full(ROWS, 0.5)
    np.testing.assert_allclose(
        jsoftmax.log_softmax(given, temperature=per_row), halved, rtol=2e-6, atol=0
    )


def test_sixteen_bits() -> None:
    x = scores(2, "bfloat16")
    got = jsoftmax.cross_entropy(jnp.asarray(x, jnp.bfloat16), jnp.asarray(x.argmax(-1)))
    np.testing.assert_allclose(got, -logs(x).max(-1), rtol=2e-6)


def test_beside_rows_without_a_distribution() -> None:
    x = scores(1)
    x[3], x[5, 2], x[7, :2], x[9, 4] = -np.inf, np.inf, np.inf, np.nan
    fine = np.isfinite(x).all(-1)
    got = np.asarray(jsoftmax.log_softmax(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(got[fine], logs(x[fine]), rtol=2e-6)
    assert np.isnan(got[[3, 7, 9]]).all()
    assert got[5, 2] == 0
    assert np.isneginf(np.delete(got[5], 2)).all()
    sums = np.asarray(jsoftmax.logsumexp(jnp.asarray(x, jnp.float32)))
    np.testing.assert_array_equal(sums[[3, 5, 7]], [-np.inf, np.inf, np.inf])
    assert np.isnan(sums[9])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA:CPU stores")
@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA:CPU of before stores more")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_per_row_need_no_array_of_the_logits(dtype: str) -> None:
    x, y = jax.ShapeDtypeStruct((4096, 1000), dtype), jax.ShapeDtypeStruct((4096,), "int32")
    programs = [jax.jit(jsoftmax.logsumexp).lower(x), jax.jit(jsoftmax.cross_entropy).lower(x, y)]
    for program in programs:
        memory = program.compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < x.size * 4 / 12
