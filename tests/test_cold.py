"""At a temperature of 0 a loss is its limit: 0 for the winner, +inf for a label that loses.

Its gradient is that of a constant, in every dtype, whether the 0 is Python's or traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import losses

INF, LOG2 = np.inf, np.log(2)
Z = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [-1.0, -3.0, -2.0], [0.0, 0.0, 0.0]])
# The label wins, is one of two maxima, loses, is one of three maxima.
Y = np.array([0, 1, 1, 0])
NLL = np.array([0, LOG2, INF, np.log(3)])
Q = np.eye(3)[Y]
COLD: dict[str, Any] = {"python": 0.0, "traced": jnp.float32(0), "rows": jnp.zeros(4)}

Loss = Callable[[Any, Any, Any], Any]


def linear(**options: Any) -> Loss:
    return lambda z, y, t: jsoftmax.linear_cross_entropy(
        z, jnp.eye(3, dtype=z.dtype), y, temperature=t, **options
    )


LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda z, y, t: jsoftmax.cross_entropy(z, y, temperature=t),
    "row_stats": lambda z, y, t: jsoftmax.row_stats(z, y, temperature=t).nll,
    "linear none": linear(reduction="none"),
    "linear blocks": linear(reduction="none", chunk_size=2),
    "fenchel_young_loss": lambda z, y, t: losses.fenchel_young_loss(z, y, 1.0, temperature=t),
    "entmax_loss": lambda z, y, t: losses.entmax_loss(z, y, jnp.float32(1), temperature=t),
}


@pytest.mark.thin(12)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cold", COLD)
@pytest.mark.parametrize("name", LOSSES)
def test_a_losing_label_costs_everything(name: str, cold: str, dtype: str):
    z, t = jnp.asarray(Z, dtype), COLD[cold]
    for y in (jnp.asarray(Y), jnp.asarray(Q, dtype)):
        loss, pull = jax.vjp(lambda z, t, y=y: LOSSES[name](z, y, t), z, t)
        np.testing.assert_allclose(loss, NLL, 1e-6, 1e-7)
        d_z, d_t = pull(jnp.ones_like(loss))
        np.testing.assert_array_equal(d_z, np.zeros_like(Z))
        np.testing.assert_array_equal(d_t, np.zeros(np.shape(t)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduced_loss(reduction: str):
    run = linear(reduction=reduction)
    z = jnp.asarray(Z, "float32")
    loss, d_z = jax.value_and_grad(lambda z: run(z, Y, 0.0))(z)
    assert loss == INF
    np.testing.assert_array_equal(d_z, np.zeros_like(Z))
    kept = np.array([0, 1, 3])
    expected = getattr(np, reduction)(NLL[kept])
    np.testing.assert_allclose(run(z[kept], Y[kept], 0.0), expected, 1e-6)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0, "traced"])
def test_losses_of_sparse_maps(alpha: Any):
    alpha = jnp.float32(1.3) if alpha == "traced" else alpha
    for function in (losses.fenchel_young_loss, losses.entmax_loss):
        loss, pull = jax.vjp(lambda z, f=function: f(z, Y, alpha, temperature=0.0), jnp.float32(Z))
        assert loss[0] == 0
        assert loss[2] == INF
        assert np.isfinite(loss[1::2]).all()
        np.testing.assert_array_equal(pull(jnp.ones(4))[0], np.zeros_like(Z))
    stats = losses.entmax_stats(jnp.float32(Z), Y, temperature=0.0)
    np.testing.assert_array_equal(stats.margin, [INF, 0, -INF, 0])


def test_labels_have_finite_gradients():
    for function in (jsoftmax.cross_entropy, losses.entmax_loss, losses.fenchel_young_loss):
        d_q = jax.grad(lambda q, f=function: jnp.sum(f(jnp.float32(Z), q, temperature=0.0)))
        assert np.isfinite(d_q(jnp.float32(Q))).all()


def test_log_softmax():
    z = jnp.float32(Z)
    out, pull = jax.vjp(lambda z, t: jsoftmax.log_softmax(z, temperature=t), z, 0.0)
    tied = [[0, -INF, -INF], [-LOG2, -LOG2, -INF], [0, -INF, -INF], [-np.log(3)] * 3]
    np.testing.assert_allclose(out, tied, 1e-6)
    assert all(np.all(x == 0) for x in pull(jnp.ones_like(z)))


def test_other_statistics_and_penalties():
    z = jnp.float32([*Z[:3], [1.0, -5.0, 0.0], Z[3]])
    y = jnp.zeros(5, jnp.int32)
    signs = {"log_normalizer": [1, 1, -1, 1, np.log(3) / INF], "mean_logit": [1, 1, -1, -1, 0]}
    for found in (
        jsoftmax.row_stats(z, y, temperature=0.0),
        jsoftmax.linear_row_stats(z, jnp.eye(3), y, temperature=0.0, chunk_size=2),
    ):
        values: dict[str, Any] = {name: getattr(found, name) for name in found.names()}
        for name, sign in signs.items():
            np.testing.assert_array_equal(values[name][:4], INF * np.array(sign[:4]))
        np.testing.assert_allclose(values["log_normalizer"][4], np.log(3), 1e-6)
        assert values["mean_logit"][4] == 0
        np.testing.assert_array_equal(values["expected_logit"], [INF, INF, -INF, INF, 0])
        np.testing.assert_allclose(values["entropy"], [0, LOG2, 0, 0, np.log(3)], 1e-6, 1e-7)
    for option in ({"label_smoothing": 0.1}, {"z_loss": 0.1}):
        loss, pull = jax.vjp(
            lambda z, t, option=option: jsoftmax.cross_entropy(z, y, temperature=t, **option), z, 0.0
        )
        assert (loss[:4] == INF).all()
        assert np.isfinite(loss[4])
        assert all(np.all(x == 0) for x in pull(jnp.ones(5)))


def test_second_derivatives():
    def run(z: Any, t: Any) -> jax.Array:
        return jnp.sum(jsoftmax.cross_entropy(z, Y, temperature=t))

    second = jax.hessian(run, (0, 1))(jnp.float32(Z), 0.0)
    assert all(np.all(x == 0) for x in jax.tree.leaves(second))
