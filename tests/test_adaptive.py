"""Adaptive softmax: values and gradients by an oracle, labels, training, decoding, cutoffs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy, adaptive_log_softmax
from jsoftmax.hierarchical.adaptive_decoding import adaptive_sample, adaptive_top_k
from jsoftmax.hierarchical.adaptive_params import (
    AdaptiveParams,
    Ranking,
    adaptive_cutoffs,
    adaptive_init,
)
from tests.adaptive_problem import CLASSES, FEATURES, at, counts_of, made, oracle_log_softmax, rows

pytestmark = pytest.mark.thin(6)


@pytest.mark.parametrize("ranked", [False, True])
def test_values(ranked: bool):
    params = made(counts=counts_of(0) if ranked else None, head_bias=ranked)
    hidden, labels = rows(40)
    expected = oracle_log_softmax(params, hidden)
    log_probs = adaptive_log_softmax(hidden, params)
    np.testing.assert_allclose(log_probs, expected, 1e-5, 1e-5)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-5)
    loss = adaptive_cross_entropy(hidden, params, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -at(expected, labels), 1e-5, 1e-5)


def test_label_policy():
    params = made()
    hidden, labels = rows(6)
    hidden[0] = np.nan
    labels[:3] = [-100, CLASSES, -1]

    @jax.jit
    def pulled(p: Any, x: Any, labels: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return adaptive_cross_entropy(x, p, labels, ignore_index=-100)

        value, pull = jax.vjp(loss, p, x)
        return value, *pull(jnp.ones_like(value))

    value, _, slope = pulled(params, hidden, labels)
    for found in (np.asarray(value), np.asarray(slope)):
        assert (found[0] == 0).all()
        assert np.isnan(found[1:3]).all()
        assert np.isfinite(found[3:]).all()
    value, grads, slope = pulled(params, hidden, np.full(6, -100, np.int32))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves((value, grads, slope)))


def test_class_weights_small_labels_and_batch_ranks():
    params, (hidden, labels) = made(), rows(12)
    weights = np.linspace(0.5, 2, CLASSES, dtype=np.float32)
    plain_loss = adaptive_cross_entropy(hidden, params, labels)
    weighted = adaptive_cross_entropy(hidden, params, labels.astype(np.int8), class_weights=weights)
    np.testing.assert_allclose(weighted, weights[labels] * plain_loss, 1e-6)
    slope = jax.jit(
        jax.grad(lambda w: jnp.sum(adaptive_cross_entropy(hidden, params, labels, class_weights=w)))
    )(weights)
    expected = np.zeros(CLASSES)
    np.add.at(expected, labels, np.asarray(plain_loss))
    np.testing.assert_allclose(slope, expected, 1e-5, 1e-6)
    shaped = adaptive_cross_entropy(hidden.reshape(2, 3, 2, -1), params, labels.reshape(2, 3, 2))
    np.testing.assert_allclose(shaped.reshape(-1), plain_loss, 1e-6)
    one = adaptive_cross_entropy(hidden[0], params, labels[0])
    np.testing.assert_allclose(one, plain_loss[0], 1e-6)
    assert adaptive_cross_entropy(hidden[:0], params, labels[:0]).shape == (0,)


def test_bfloat16():
    params = made(dtype=jnp.bfloat16)
    hidden, labels = rows(20)
    hidden = jnp.asarray(hidden, jnp.bfloat16)

    @jax.jit
    def pulled(p: Any, x: Any) -> Any:
        loss, pull = jax.vjp(lambda p, x: adaptive_cross_entropy(x, p, labels), p, x)
        return loss, pull(jnp.ones_like(loss))

    loss, gradients = pulled(params, hidden)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = oracle_log_softmax(wide, hidden.astype(jnp.float32))
    assert loss.dtype == adaptive_log_softmax(hidden, params).dtype == jnp.float32
    np.testing.assert_allclose(loss, -at(expected, labels), 1e-5, 1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}


def test_large_logits_are_finite():
    params = jax.tree.map(lambda leaf: 300 * jnp.sign(leaf), made(head_bias=False))
    hidden = np.eye(FEATURES, dtype=np.float32)
    assert np.isfinite(adaptive_log_softmax(hidden, params)).all()


def test_no_cutoffs_make_a_plain_softmax():
    params = adaptive_init(jax.random.key(0), FEATURES, CLASSES, ())
    hidden, labels = rows(5)
    np.testing.assert_allclose(
        adaptive_cross_entropy(hidden, params, labels),
        optax.softmax_cross_entropy_with_integer_labels(hidden @ params.head_kernel, labels),
        1e-5,
    )
    assert adaptive_top_k(hidden, params, 2)[1].shape == (5, 2)


def test_optax_trains_the_parameters_without_retracing():
    params, (hidden, labels) = made(1.0), rows(30)
    optimizer = optax.adamw(3e-2)
    traces = []

    def loss(p: AdaptiveParams) -> Any:
        traces.append(1)
        return jnp.mean(adaptive_cross_entropy(hidden, p, labels))

    @jax.jit
    def step(p: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = optimizer.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    values = []
    # Equal counts give an equal tree structure: a run that starts anew finds what was compiled.
    for start in (params, made(1.0)):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes.
            state = optimizer.init(start)
            for _ in range(10):
                start, state, value = step(start, state)
                values.append(float(value))
    assert len(traces) == 1
    assert values[9] < 0.7 * values[0]
    assert values[:10] == values[10:]


def test_rankings_are_equal_by_content():
    one, same, other = (Ranking(np.asarray(p)) for p in ([1, 0, 2], [1, 0, 2], [2, 0, 1]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert list(other.classes) == [1, 2, 0]
    assert made(seed=0).ranking == made(seed=0).ranking != made(seed=1).ranking


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([1, 3, 9, CLASSES]),
    scale=st.sampled_from([0.0, 1.0, 9.0]),
)
def test_top_k_is_exact(seed: int, k: int, scale: float):
    params = jax.tree.map(lambda leaf: scale * leaf, made())
    hidden, _ = rows(5, seed)
    log_probs, ids = adaptive_top_k(hidden, params, k)
    everything = np.asarray(adaptive_log_softmax(hidden, params))
    np.testing.assert_allclose(log_probs, np.sort(everything)[:, ::-1][:, :k], 1e-5, 1e-5)
    np.testing.assert_allclose(
        log_probs, np.take_along_axis(everything, np.asarray(ids), 1), 1e-5, 1e-5
    )
    assert all(len(set(row)) == k for row in np.asarray(ids).tolist())


def test_top_k_is_differentiable():
    params, (hidden, _) = made(), rows(5)

    def best(x: Any) -> Any:
        return jnp.sum(adaptive_top_k(x, params, 4)[0] ** 2)

    ids = adaptive_top_k(hidden, params, 4)[1]

    def found(x: Any) -> Any:
        return jnp.sum(jnp.take_along_axis(adaptive_log_softmax(x, params), ids, -1) ** 2)

    np.testing.assert_allclose(
        jax.jit(jax.grad(best))(hidden), jax.jit(jax.grad(found))(hidden), 1e-4, 1e-4
    )


def test_samples_follow_the_distribution():
    params = made(1.5)
    hidden = np.broadcast_to(rows(1)[0], (30_000, FEATURES))
    ids = np.asarray(adaptive_sample(jax.random.key(4), hidden, params))
    expected = len(ids) * np.exp(oracle_log_softmax(params, hidden[:1]))[0]
    chi_square = np.sum((np.bincount(ids, minlength=CLASSES) - expected) ** 2 / expected)
    # 59 degrees of freedom: above 120 in one of 300,000 draws; the key is fixed.
    assert chi_square < 120


def test_cutoffs_are_the_cheapest():
    """Against the model written out, over every choice on a coarse grid."""
    rng = np.random.default_rng(0)
    counts = rng.permutation(1 / np.arange(1, 2001))
    mass = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    batch, features = 512, 64

    def cost(cutoffs: tuple[int, ...]) -> float:
        bounds = (*cutoffs, 2000)
        total = batch * (bounds[0] + len(cutoffs)) * (features + 48.0)
        for i in range(len(cutoffs)):
            size, width = bounds[i + 1] - bounds[i], features // 4 ** (i + 1)
            likely = max(batch * (mass[bounds[i + 1] - 1] - mass[bounds[i] - 1]), 64)
            total += likely * size * (width + 48) + width * size + batch * features * width
        return total

    found = adaptive_cutoffs(counts, num_features=features, batch_size=batch, max_clusters=2)
    grid = np.unique(np.geomspace(1, 1999, 40).astype(int)).tolist()
    others = [(a,) for a in grid] + [(a, b) for a in grid for b in grid if a < b] + [()]
    assert cost(found) <= 1.01 * min(map(cost, others))
    assert adaptive_cutoffs(np.ones(1), num_features=8) == ()


def test_init_chooses_cutoffs_and_keeps_the_order_of_frequency():
    counts = np.random.default_rng(0).permutation(1 / np.arange(1, 3001))
    params = adaptive_init(jax.random.key(0), 32, 3000, counts=counts)
    assert params.ranking is not None
    np.testing.assert_array_equal(params.ranking.classes, np.argsort(-counts))
    assert params.cutoffs == adaptive_cutoffs(counts, num_features=32)
    assert adaptive_init(jax.random.key(0), 32, 3000).cutoffs == params.cutoffs
    assert adaptive_init(jax.random.key(0), 32, 10, (3,), counts=np.arange(10, 0, -1)).ranking is None


def test_shard_map_sums_the_gradients_of_the_parameters():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    params, (hidden, labels) = made(), rows(8)
    split, whole = PartitionSpec("data"), PartitionSpec()

    def loss(p: AdaptiveParams, x: Any, y: Any) -> Any:
        return jax.lax.psum(jnp.sum(adaptive_cross_entropy(x, p, y)), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(whole, split, split), out_specs=whole)
    got = jax.jit(jax.grad(sharded))(params, hidden, labels)
    want = jax.jit(jax.grad(lambda p: jnp.sum(adaptive_cross_entropy(hidden, p, labels))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), got, want)
