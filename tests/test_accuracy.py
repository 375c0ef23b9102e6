"""Errors in units in the last place, per dtype and input family, against extended precision."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from tests import families, sweep

# measure -> the largest and the mean error allowed, in ulp.
FLOAT32 = {
    "softmax": (10, 0.75),
    "log_softmax": (16, 1.5),
    "logsumexp": (4, 1.5),
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
