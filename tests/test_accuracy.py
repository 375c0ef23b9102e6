"""Errors in units in the last place, per dtype and input family, against extended precision."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from tests import families, sweep
from tests.oracles.cross_entropy import cross_entropy
from tests.oracles.rows import FLUSHED_BELOW, rows
from tests.oracles.ulp import ulp_error

# measure -> the largest and the mean error allowed, in ulp.
FLOAT32 = {
    "softmax": (10, 0.75),
    "log_softmax": (16, 1.5),
    # The rounding of the sum shows fourfold where the maximum and the logarithm cancel.
    "logsumexp": (8, 1.5),
    "softmax_vjp": (16, 1.5),
    "log_softmax_vjp": (16, 1.5),
    "cross_entropy_value": (16, 1.5),
    "label_gradient": (16, 1.5),
}
# Losses come back in float32, whatever the logits' dtype; everything else is rounded once.
SIXTEEN_BITS = dict.fromkeys(sweep.MEASURES, (0.55, 0.5)) | {"cross_entropy_value": (16, 1.5)}
GATES = {"float32": FLOAT32, "bfloat16": SIXTEEN_BITS, "float16": SIXTEEN_BITS}

Function = Callable[..., jax.Array]


def compiled(function: Function) -> Callable[..., np.ndarray]:
    jitted = jax.jit(function)
    return lambda *arguments: np.asarray(jitted(*arguments))


def vjp(function: Function) -> Callable[..., np.ndarray]:
    return compiled(lambda x, cotangent: jax.vjp(function, x)[1](cotangent)[0])


def loss_gradient(z: jax.Array, y: jax.Array) -> jax.Array:
    return jax.grad(lambda z: jnp.sum(jsoftmax.cross_entropy(z, y)))(z)


LIBRARY = {
    "softmax": compiled(jsoftmax.softmax),
    "log_softmax": compiled(jsoftmax.log_softmax),
    "logsumexp": compiled(jsoftmax.logsumexp),
    "softmax_vjp": vjp(jsoftmax.softmax),
    "log_softmax_vjp": vjp(jsoftmax.log_softmax),
    "cross_entropy": compiled(jsoftmax.cross_entropy),
    "cross_entropy_gradient": compiled(loss_gradient),
}


def check(family: str, dtype: str, measures: list[str], seed: int) -> None:
    item = sweep.case(family, dtype, seed)
    beyond = {}
    for measure in measures:
        error = sweep.errors(LIBRARY, measure, item)
        assert error is not None
        worst, mean = GATES[dtype][measure]
        # Two to four rows: the mean is little more than the rounding of as many sums.
        mean *= 2 if family in families.LARGE else 1
        if error.max(initial=0) > worst or error.mean() > mean:
            beyond[measure] = f"max {error.max():.3g} (≤ {worst}), mean {error.mean():.3g} (≤ {mean})"
    assert beyond == {}, f"{family} {dtype}, in ulp"


GROUPS = {
    "softmax": ["softmax", "softmax_vjp"],
    "log_softmax": ["log_softmax", "log_softmax_vjp"],
    "logsumexp": ["logsumexp"],
    "cross_entropy": ["cross_entropy_value", "label_gradient"],
}
SMALL = [name for name in families.FAMILIES if name not in families.LARGE]


@pytest.mark.thin(3)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", families.DTYPES)
@pytest.mark.parametrize("family", SMALL)
def test_ulp(family: str, dtype: str, group: str):
    check(family, dtype, GROUPS[group], seed=2026)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("family", families.LARGE)
def test_ulp_of_long_rows(family: str, group: str):
    check(family, "float32", GROUPS[group], seed=2026)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("dtype", families.DTYPES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_ulp_of_every_family(family: str, dtype: str, seed: int):
    check(family, dtype, [m for group in GROUPS.values() for m in group], seed)


@pytest.mark.thin(2)
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 0.7, 2.0, 3.3, 100.0])
@pytest.mark.parametrize("classes", [3, 16, 17, 1000])
def test_ulp_at_a_temperature(classes: int, temperature: float):
    """A quotient that is rounded would cost as much as a difference that is."""
    rng = np.random.default_rng(classes)
    t = np.float32(temperature)
    offset = rng.choice([0, 70, 1e4, -1e4], (100, 1))
    z = (temperature * (10 * rng.standard_normal((100, classes)) + offset)).astype(np.float32)
    true = rows(z, temperature=t)
    y = np.where(np.arange(100) % 2, true.probs.argmax(-1), rng.integers(0, classes, 100))
    exact = cross_entropy(z, y.astype(np.int32), temperature=t)
    p = compiled(lambda z: jsoftmax.softmax(z, temperature=t))(z)
    tiny = np.where(true.probs < FLUSHED_BELOW, true.probs, 0)
    assert ulp_error(p, true.probs, slack=tiny).max() <= 10

    def loss(z: jax.Array) -> jax.Array:
        return jsoftmax.cross_entropy(z, y, temperature=t)

    with_gradient = compiled(lambda z: jax.vjp(loss, z)[0])(z)
    for value in (compiled(loss)(z), with_gradient):
        assert ulp_error(value, exact.value, slack=exact.flushed).max() <= 16
    slope = compiled(jax.grad(lambda z: jnp.sum(loss(z))))(z)[np.arange(100), y]
    exact_slope = exact.logits[np.arange(100), y]
    assert ulp_error(slope, exact_slope, slack=exact.flushed / t).max() <= 16


@pytest.mark.parametrize("classes", [2, 16, 17, 1000])
@pytest.mark.parametrize("top", [1e7, -1e7, 1e8, 3e38])
def test_a_runner_up_one_step_below(top: float, classes: int):
    """Neighbouring numbers may lie further apart than a whole gap, and a class counts once."""
    z = np.full((2, classes), -3e38, np.float32)
    z[:, 0] = top
    z[0, 1] = np.nextafter(z[0, 1:].dtype.type(top), np.float32(-np.inf))
    true = rows(z)
    y = np.zeros(2, np.int32)
    assert ulp_error(LIBRARY["cross_entropy"](z, y), -true.log_probs[:, 0]).max() <= 16
    assert ulp_error(LIBRARY["log_softmax"](z), true.log_probs).max() <= 16
    assert ulp_error(LIBRARY["softmax"](z), true.probs).max() <= 10


def test_entropy_and_smoothing_keep_their_digits_where_a_class_dominates():
    """What is summed of the others, not what is left of 1."""
    z = np.array([[20.0] + 19 * [0.0]], np.float32)
    true = rows(z)
    p = true.probs[0]
    exact = -(p * true.log_probs[0]).sum()

    def entropy(z: jax.Array) -> jax.Array:
        return jnp.asarray(jsoftmax.row_stats(z, np.array([0])).entropy)

    assert ulp_error(compiled(entropy)(z), np.array([exact])).max() <= 16
    slope = compiled(jax.grad(lambda z: entropy(z)[0]))(z)[0]
    assert ulp_error(slope, -p * (true.log_probs[0] + exact)).max() <= 16
    # Only the dominant class has a weight, and the label is another.
    options = {"label_smoothing": 0.1, "class_weights": np.eye(20, dtype=np.float32)[0]}
    loss = compiled(lambda z: jsoftmax.cross_entropy(z, np.array([1]), **options))
    assert ulp_error(loss(z), np.array([-true.log_probs[0, 0] * np.float32(0.1) / 20])).max() <= 16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_change_nothing_but_the_last_rounding(dtype: str):
    item = sweep.case("normal3", dtype)
    wide = item.logits.astype(np.float32)
    for name in ("softmax", "log_softmax", "logsumexp"):
        expected = LIBRARY[name](wide).astype(item.logits.dtype)
        np.testing.assert_array_equal(LIBRARY[name](item.logits), expected)
    loss = LIBRARY["cross_entropy"](item.logits, item.labels)
    assert loss.dtype == np.float32
    np.testing.assert_array_equal(loss, LIBRARY["cross_entropy"](wide, item.labels))
    gradient = LIBRARY["cross_entropy_gradient"](item.logits, item.labels)
    expected = LIBRARY["cross_entropy_gradient"](wide, item.labels).astype(item.logits.dtype)
    np.testing.assert_array_equal(gradient, expected)


def test_gates_can_fail():
    """The form that everyone writes first loses every digit of a small loss."""

    def naive(z: jax.Array, y: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], -1)[:, 0]

    item = sweep.case("dominant", "float32")
    error = sweep.errors({"cross_entropy": compiled(naive)}, "cross_entropy_value", item)
    assert error is not None
    assert error.max() > 1e6
