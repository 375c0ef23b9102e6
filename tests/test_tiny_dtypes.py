"""Logits of fewer than 16 bits, and labels of every integer dtype.

Most of those floats have no infinity; some have no NaN, no zero or no sign. What they hold is widened
before anything is filled in or summed, so all is as with the same numbers in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses, sampling

TINY = [
    "float8_e4m3fn",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e5m2",
    "float4_e2m1fn",
]
# Positive, and numbers of each of those dtypes.
LOGITS = np.array([[1.0, 2.0, 4.0, 1.0], [2.0, 0.5, 1.0, 1.0], [4.0, 4.0, 1.0, 0.5]], np.float32)
LABELS = jnp.array([0, 2, 3])
MASK = jnp.array([True, True, True, False])
TREE = hierarchical.two_level_tree(4, 2)
NODES = jnp.arange(TREE.num_rows) % 3

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "softmax": jsoftmax.softmax,
    "softmax_masked": lambda z: jsoftmax.softmax(z, where=MASK),
    "log_softmax": jsoftmax.log_softmax,
    "logsumexp": lambda z: jsoftmax.logsumexp(z, where=MASK),
    "sparsemax": jsoftmax.sparsemax,
    "entmax": lambda z: jsoftmax.entmax(z, where=MASK),
    "cross_entropy": lambda z: jsoftmax.cross_entropy(z[:, :3], LABELS % 3, ignore_index=2),
    "cross_entropy_masked": lambda z: jsoftmax.cross_entropy(z, LABELS % 3, where=MASK, z_loss=0.1),
    "cross_entropy_soft": lambda z: jsoftmax.cross_entropy(z, jnp.full((3, 4), 0.25)),
    "cross_entropy_softcap": lambda z: jsoftmax.cross_entropy(z, LABELS, softcap=3.0, temperature=2.0),
    "row_stats": lambda z: jsoftmax.row_stats(z, LABELS),
    "linear": lambda z: jsoftmax.linear_cross_entropy(z, z.T, LABELS % 3, reduction="none"),
    "linear_mean": lambda z: jsoftmax.linear_cross_entropy(z, LOGITS.T, LABELS % 3, weights=LABELS),
    "weighted_mean": lambda z: jsoftmax.weighted_mean(z, jnp.ones((3, 4))),
    "focal": lambda z: losses.softmax_focal_loss(z, LABELS, where=MASK | (jnp.arange(4) == 3)),
    "sigmoid": lambda z: losses.sigmoid_binary_cross_entropy(z, jnp.zeros((3, 4))),
    "multilabel": lambda z: losses.multilabel_cross_entropy(z, jnp.zeros((3, 4)), where=MASK),
    "kl_divergence": lambda z: losses.kl_divergence(z, jnp.full((3, 4), 0.25)),
    "entmax_loss": lambda z: losses.entmax_loss(z, LABELS),
    "bi_tempered": lambda z: losses.bi_tempered_logistic_loss(z, LABELS, 0.8, 1.3),
    "tree": lambda z: hierarchical.hierarchical_cross_entropy(z, z[NODES], LABELS, TREE),
    "categorical": lambda z: sampling.categorical(jax.random.key(0), z, where=MASK),
    "sample": lambda z: sampling.sample(jax.random.key(0), z, top_k=2, top_p=0.9),
    "gumbel_top_k": lambda z: sampling.gumbel_top_k(jax.random.key(0), z, 2, where=MASK),
    "gumbel_softmax": lambda z: sampling.gumbel_softmax(jax.random.key(0), z),
}
# These return the dtype they are given.
MAPS = (
    "softmax",
    "softmax_masked",
    "log_softmax",
    "logsumexp",
    "sparsemax",
    "entmax",
    "gumbel_softmax",
)


GRADIENTS = (
    "softmax_masked",
    "entmax",
    "cross_entropy",
    "cross_entropy_masked",
    "linear_mean",
    "focal",
)


@pytest.mark.parametrize("dtype", TINY)
def test_values_are_those_of_the_same_numbers(dtype: str):
    tiny = jnp.asarray(LOGITS).astype(dtype)
    assert bool(jnp.all(tiny.astype(jnp.float32) == LOGITS))
    for name, function in FUNCTIONS.items():
        got, expected = function(tiny), function(jnp.asarray(LOGITS))
        if name in MAPS:
            assert got.dtype == tiny.dtype, name
            expected = expected.astype(dtype)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype, name
            a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2fnuz", "float8_e5m2"])
def test_gradients_are_those_of_the_same_numbers(dtype: str):
    tiny = jnp.asarray(LOGITS).astype(dtype)
    for name in (
        "softmax_masked",
        "entmax",
        "cross_entropy",
        "cross_entropy_masked",
        "linear_mean",
        "focal",
    ):

        def total(z: Any, name: str = name) -> Any:
            return jnp.sum(FUNCTIONS[name](z).astype(jnp.float32) * 3)

        got, expected = jax.grad(total)(tiny), jax.grad(total)(jnp.asarray(LOGITS)).astype(dtype)
        assert got.dtype == tiny.dtype
        np.testing.assert_allclose(
            np.asarray(got).astype(np.float32),
            np.asarray(expected).astype(np.float32),
            rtol=0.3,
            atol=float(jnp.finfo(dtype).smallest_normal),
            err_msg=name,
        )


def test_the_report_of_the_dtype_without_infinities():
    """It was 62.3, 0.0 or NaN, not the same at each call."""
    z = jnp.asarray([1.0, 2.0], "float8_e4m3fn")
    found = [float(jsoftmax.cross_entropy(z, jnp.asarray(0))) for _ in range(5)]
    np.testing.assert_allclose(found, np.log1p(np.e), rtol=1e-6)


@pytest.mark.parametrize("x64", [False, True])
def test_labels_of_every_integer_dtype(x64: bool):
    z = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    true = -np.asarray(jax.nn.log_softmax(z))[np.arange(3), [0, 1, 1]]
    with jax.enable_x64(x64):
        for name in ("int2", "int4", "int8", "int16", "int32", "int64"):
            for dtype in (name, f"u{name}"):
                if "64" in dtype and not x64:
                    continue
                labels = jnp.asarray(np.array([0, 1, 1])).astype(dtype)
                assert labels.dtype == dtype
                np.testing.assert_allclose(jsoftmax.cross_entropy(z, labels), true, rtol=1e-6)
