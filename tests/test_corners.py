"""Corners that a reading by an opponent found: each of these once came out wrong without an error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jsoftmax
from jsoftmax import losses, sampling

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("bad", [[NAN, 0.0, 1.0], [INF, INF, 1.0]], ids=["nan", "two-inf"])
def test_a_class_weight_of_zero_does_not_hide_a_row_without_a_distribution(bad: list[float]):
    z, w = jnp.array([bad]), jnp.array([0.0, 1.0, 1.0])
    for labels in (jnp.array([0]), jnp.array([[1.0, 0.0, 0.0]])):
        assert jnp.isnan(jsoftmax.cross_entropy(z, labels, class_weights=w)).all()
    assert jnp.isnan(losses.softmax_focal_loss(z, jnp.array([0]), alpha=w)).all()


def test_a_class_weight_of_zero_frees_an_impossible_label():
    z, w = jnp.array([[-INF, 0.0, 1.0]]), jnp.array([0.0, 1.0, 1.0])
    assert jsoftmax.cross_entropy(z, jnp.array([0]), class_weights=w) == 0


@pytest.mark.parametrize("bad", [[NAN, 1.0, 2.0], [INF, INF, 2.0]], ids=["nan", "two-inf"])
def test_an_ignored_row_has_no_gradient(bad: list[float]):
    z, labels = jnp.array([bad, [0.0, 1.0, 2.0]]), jnp.array([-1, 0])

    def summed(z: Any) -> Any:
        stats = jsoftmax.row_stats(z, labels, ignore_index=-1)
        sparse = losses.entmax_stats(z, labels, ignore_index=-1)
        assert stats.nll is not None
        return jnp.sum(stats.nll) + jnp.sum(sparse.loss) + jnp.sum(sparse.margin)

    slope = jax.grad(summed)(z)
    np.testing.assert_array_equal(slope[0], 0)
    assert jnp.isfinite(slope[1]).all()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_what_stands_in_a_masked_column_of_the_kernel(
    chunk_size: int | None, reduction: str, bad: float
):
    where = jnp.array([True, True, False])
    kernel = jnp.array([[1.0, 0.0, bad], [0.5, 1.0, bad]])
    hidden, labels = jnp.array([[1.0, 2.0], [0.3, -1.0]]), jnp.array([0, 1])

    def loss(hidden: Any, kernel: Any, where: Any) -> Any:
        return jnp.sum(
            jsoftmax.linear_cross_entropy(
                hidden, kernel, labels, where=where, reduction=reduction, chunk_size=chunk_size
            )
        )

    value, (d_hidden, d_kernel) = jax.value_and_grad(loss, (0, 1))(hidden, kernel, where)
    want, (e_hidden, e_kernel) = jax.value_and_grad(loss, (0, 1))(hidden, kernel[:, :2], None)
    np.testing.assert_allclose(value, want, 1e-6)
    np.testing.assert_allclose(d_hidden, e_hidden, 1e-6, 1e-7)
    np.testing.assert_allclose(d_kernel[:, :2], e_kernel, 1e-6, 1e-7)
    np.testing.assert_array_equal(d_kernel[:, 2], 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_row_without_weight_is_left_out_of_a_linear_loss(reduction: str):
    hidden, kernel = jnp.ones((3, 2)).at[1].set(NAN), jnp.eye(2, 4)
    labels, weights = jnp.array([0, 1, 2]), jnp.array([1.0, 0.0, 2.0])

    def loss(hidden: Any, kernel: Any, labels: Any, weights: Any) -> Any:
        return jnp.sum(
            jsoftmax.linear_cross_entropy(hidden, kernel, labels, weights=weights, reduction=reduction)
        )

    value, (d_hidden, d_kernel) = jax.value_and_grad(loss, (0, 1))(hidden, kernel, labels, weights)
    kept = jnp.array([0, 2])
    want, (e_hidden, e_kernel) = jax.value_and_grad(loss, (0, 1))(
        hidden[kept], kernel, labels[kept], weights[kept]
    )
    np.testing.assert_allclose(value, want, 1e-6)
    np.testing.assert_allclose(d_hidden[kept], e_hidden, 1e-6)
    np.testing.assert_allclose(d_kernel, e_kernel, 1e-6)
    np.testing.assert_array_equal(d_hidden[1], 0)


def test_margin_at_a_certain_label():
    z, margin = jnp.array([[INF, 1.0, 2.0]]), jsoftmax.Margin(0.3)
    for labels in (jnp.array([0]), jnp.array([[1.0, 0.0, 0.0]])):
        value, slope = jax.value_and_grad(
            lambda z, labels=labels: jsoftmax.cross_entropy(z, labels, transform=margin)[0]
        )(z)
        assert value == 0
        np.testing.assert_array_equal(slope, 0)


def test_gradients_in_numbers_beside_infinities():
    z = jnp.array([[INF, 1.0, 2.0]])
    slope = jax.grad(lambda c: jsoftmax.cross_entropy(z, jnp.array([0]), softcap=c)[0])(3.0)
    other = jax.grad(
        lambda c: jsoftmax.cross_entropy(z.at[0, 0].set(1e4), jnp.array([0]), softcap=c)[0]
    )
    np.testing.assert_allclose(slope, other(3.0), 1e-6)
    scores, labels = jnp.array([[-INF, 1.0]]), jnp.array([[0.0, 1.0]])
    by_weight = jax.grad(lambda w: losses.multilabel_cross_entropy(scores, labels, pos_weight=w)[0])
    np.testing.assert_allclose(by_weight(jnp.ones(2)), [0, np.log1p(np.exp(-1))], 1e-6)
    z = jnp.array([[INF, 1.0]])
    for none in (0.0, jnp.float32(0)):
        assert jsoftmax.cross_entropy(z, jnp.array([0]), z_loss=none) == 0


@pytest.mark.parametrize("alpha", [30.0, 1083.2856, 1e4, 1e8])
def test_a_large_alpha(alpha: float):
    z = jnp.array([5.0, 4.0, 2.0])
    np.testing.assert_array_equal(jsoftmax.entmax(z, alpha), [1, 0, 0])
    np.testing.assert_allclose(losses.fenchel_young_loss(z, jnp.array(1), alpha), 1, 1e-6)
    np.testing.assert_array_equal(jax.jacrev(jsoftmax.entmax)(z, alpha), 0)
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((50, 40)), jnp.float32)
    np.testing.assert_allclose(jnp.sum(jsoftmax.entmax(rows, alpha), -1), 1, 1e-6)


def test_derivatives_where_slopes_overflow():
    """Two classes share the row at α = 80: one slope is 1e4, the other 1e74, their joint one 1e4."""
    z = jnp.array([1.0, 1 - 1e-6, 0.0])
    p = np.asarray(jsoftmax.entmax(z, 80.0), np.float64)
    s = p[:2] ** -78.0
    want = s[0] / (1 + s[0] / s[1]) * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])
    for jacobian in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jacobian(jsoftmax.entmax)(z, 80.0), want, 1e-3)
    sure = jnp.array([5.0, 4.0, 2.0])
    np.testing.assert_array_equal(jax.jacrev(jsoftmax.entmax)(sure, np.inf), 0)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y: jsoftmax.softmax(z, axis=0),
        lambda z, y: jsoftmax.log_softmax(z, axis=0),
        lambda z, y: jsoftmax.logsumexp(z, axis=None),
        lambda z, y: jsoftmax.entmax(z, axis=0),
        lambda z, y: jsoftmax.entmax(z, jnp.float32(2.5), axis=0),
        lambda z, y: jax.grad(lambda z: jnp.sum(jsoftmax.cross_entropy(z, y, axis=0)))(z),
        lambda z, y: losses.entmax_loss(z, y, axis=0),
        lambda z, y: sampling.categorical(jax.random.key(0), z, axis=0),
    ],
    ids=["softmax", "log_softmax", "logsumexp", "entmax", "steep", "gradient", "loss", "categorical"],
)
def test_a_symbolic_number_of_classes(function: Any):
    """As in a contrastive loss, whose classes are the batch."""
    (b,) = export.symbolic_shape("b")
    y = jnp.array([0, 2, 1])
    run = jax.jit(lambda z: function(z, y))
    exported = export.export(run, platforms=("cpu", "tpu"))(jax.ShapeDtypeStruct((b, 3), jnp.float32))
    z = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3)), jnp.float32)
    np.testing.assert_allclose(exported.call(z), run(z), 1e-6, 1e-7)


def test_a_generalized_divergence_of_near_distributions():
    """Every term is 0 or more, and keeps the digits that the logarithms of its arguments have."""
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(20), 50).astype(np.float32)
    for size in (0.0, 1e-4, 1e-3, 0.1, 0.5):
        t = (p * (1 + size * rng.uniform(-1, 1, p.shape))).astype(np.float32)
        log_p = np.log(p)
        exact, log_exact = t.astype(np.float64), log_p.astype(np.float64)
        d = np.log(exact) - log_exact
        true = np.sum(exact * (d + np.expm1(-d)), -1)
        got = losses.generalized_kl_divergence(log_p, t)
        assert (got >= 0).all()
        np.testing.assert_allclose(got, true, 2e-6 + 3e-6 / max(size, 1e-6), 1e-12)
        slope = jax.grad(lambda x, t=t: losses.generalized_kl_divergence(x, t).sum())(log_p)
        np.testing.assert_allclose(slope, p - t, 1e-5, 1e-7)
