"""Adaptive softmax: values and gradients by an oracle, its blocks in every AD mode, its decoding."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, PartitionSpec

from jsoftmax.hierarchical import _blocks
from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy, adaptive_log_softmax
from jsoftmax.hierarchical.adaptive_decoding import adaptive_sample, adaptive_top_k
from jsoftmax.hierarchical.adaptive_params import (
    AdaptiveParams,
    Ranking,
    adaptive_cutoffs,
    adaptive_init,
)
from tests.oracles import adaptive as oracle

pytestmark = pytest.mark.thin(3)


CLASSES, FEATURES = 60, 16
CUTOFFS = (7, 20)


def counts_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(1.0 + np.arange(CLASSES))


def made(scale: float = 3.0, seed: int = 0, **options: Any) -> Any:
    options = {"counts": counts_of(seed), "head_bias": True, **options}
    params = adaptive_init(jax.random.key(seed), FEATURES, CLASSES, CUTOFFS, **options)
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), params)


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([7, seed])
    hidden = rng.standard_normal((count, FEATURES)).astype(np.float32)
    return hidden, rng.integers(0, CLASSES, count).astype(np.int32)


def order_of(params: AdaptiveParams) -> np.ndarray:
    return np.arange(CLASSES) if params.ranking is None else params.ranking.classes


def oracle_parts(params: AdaptiveParams) -> tuple[Any, Any, Any]:
    bias = 0.0 if params.head_bias is None else params.head_bias
    tails = list(zip(params.projections, params.tail_kernels, strict=True))
    return params.head_kernel, np.broadcast_to(bias, params.head_kernel.shape[1]), tails


def oracle_log_softmax(params: AdaptiveParams, hidden: Any) -> np.ndarray:
    return oracle.log_softmax(hidden, *oracle_parts(params), order_of(params))


def at(log_probs: Any, labels: Any) -> np.ndarray:
    return np.take_along_axis(np.asarray(log_probs), np.asarray(labels)[..., None], -1)[..., 0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Several tiles and blocks, with padding in the last of each, for few rows and classes."""
    monkeypatch.setattr(_blocks, "_ROWS", 4)
    monkeypatch.setattr(_blocks, "_COLUMNS", 5)
    monkeypatch.setattr(_blocks, "_FEW", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


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


@pytest.mark.usefixtures("small_blocks")
def test_gradients():
    """By the loops, against the oracle, whatever clusters the labels are in."""
    params = made(seed=1)
    hidden, _ = rows(11)
    ct = np.linspace(-1.0, 2.0, 11, dtype=np.float32)

    @jax.jit
    def gradients(p: Any, x: Any, labels: Any) -> Any:
        loss, pull = jax.vjp(lambda p, x: adaptive_cross_entropy(x, p, labels), p, x)
        return loss, *pull(jnp.asarray(ct))

    for low, high in ((0, CLASSES), (0, 7), (20, CLASSES)):
        places = low + np.arange(11) * 5 % (high - low)
        labels = params.ranking.classes[places]
        loss, d_params, d_hidden = gradients(params, hidden, labels)
        np.testing.assert_allclose(loss, -at(oracle_log_softmax(params, hidden), labels), 1e-5, 1e-6)
        expected: Any = oracle.cross_entropy_gradients(hidden, *oracle_parts(params), places, ct)
        np.testing.assert_allclose(d_hidden, expected["hidden"], 1e-4, 1e-5)
        np.testing.assert_allclose(d_params.head_kernel, expected["head"], 1e-4, 1e-5)
        np.testing.assert_allclose(d_params.head_bias, expected["head_bias"], 1e-4, 1e-5)
        for i, (projection, kernel) in enumerate(expected["tails"]):
            np.testing.assert_allclose(d_params.projections[i], projection, 1e-4, 1e-5)
            np.testing.assert_allclose(d_params.tail_kernels[i], kernel, 1e-4, 1e-5)


def tail(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng([3, seed])
    labels = rng.integers(0, 13, 10)
    labels[[0, 6, 7, 8, 9]] = -1
    x, kernel = rng.standard_normal((10, 3)), rng.standard_normal((3, 13))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), jnp.asarray(labels, jnp.int32)


def plain(x: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(x @ kernel)
    found = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[:, None], -1)[:, 0]
    return jnp.where(labels >= 0, -found, 0)


def _hessian_vector(f: Any, x: Any, kernel: Any, tangents: Any) -> Any:
    def squared(x: Any, kernel: Any) -> Any:
        return jnp.sum(jnp.square(f(x, kernel)))

    return jax.jvp(jax.grad(squared, (0, 1)), (x, kernel), tangents)


def _reverse_twice(f: Any, x: Any, kernel: Any, _: Any) -> Any:
    def slope(x: Any) -> Any:
        return jnp.sum(jnp.sin(jax.grad(lambda x: jnp.sum(jnp.square(f(x, kernel))))(x)))

    return jax.grad(slope)(x)


def _scanned(f: Any, x: Any, kernel: Any, _: Any) -> Any:
    def step(c: Any, _: None) -> Any:
        return c + 0.1 * jax.grad(lambda c: jnp.sum(f(c, kernel)))(c), None

    return jax.grad(lambda x: jnp.sum(jnp.square(jax.lax.scan(step, x, None, length=2)[0])))(x)


MODES = {
    "jvp": lambda f, x, kernel, tangents: jax.jvp(f, (x, kernel), tangents),
    "linearize": lambda f, x, kernel, tangents: jax.linearize(f, x, kernel)[1](*tangents),
    "jacrev": lambda f, x, kernel, _: jax.jacrev(f, (0, 1))(x, kernel),
    "vmap of grad": lambda f, x, kernel, tangents: jax.vmap(
        jax.grad(lambda x, kernel: jnp.sum(f(x, kernel)), (0, 1)), (0, None)
    )(jnp.stack([x, tangents[0]]), kernel),
    "remat": lambda f, x, kernel, _: jax.grad(
        lambda x: jnp.sum(jnp.square(jax.checkpoint(f)(x, kernel)))
    )(x),
    "hessian times vector": _hessian_vector,
    "reverse twice": _reverse_twice,
    "second order in a scan": _scanned,
}


SLOW = ("hessian times vector", "reverse twice", "vmap of grad")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] * (mode in SLOW)) for mode in MODES]
)
def test_blocks_in_every_mode(mode: str):
    x, kernel, labels = tail()
    tangents = tail(1)[:2]
    got, want = (
        jax.jit(lambda x, kernel, tangents, f=f: MODES[mode](
            lambda x, kernel: f(x, kernel, labels), x, kernel, tangents)
        )(x, kernel, tangents)
        for f in (_blocks.row_losses, plain)
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-4, 2e-5), got, want)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_keep_the_digits_of_small_losses():
    """Loss and gradient to a few units in the last place where the label dominates by any gap."""
    gaps = np.array([0.0, 0.9, 1.1, 5.0, 20.0, 40.0, 80.0, -30.0, -200.0])

    @jax.jit
    @jax.value_and_grad
    def loss(gap: jax.Array) -> jax.Array:
        kernel = jnp.zeros((1, 13)).at[0, 6].set(gap)
        return _blocks.row_losses(jnp.ones((1, 1)), kernel, jnp.full(1, 6, jnp.int32))[0]

    values, slopes = zip(*(loss(jnp.float32(gap)) for gap in gaps), strict=True)
    exactly = np.float32(gaps).astype(np.float64)
    np.testing.assert_allclose(values, np.log1p(12 * np.exp(-exactly)), 1e-6)
    np.testing.assert_allclose(slopes, -12 / (12 + np.exp(exactly)), 1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_rows_that_are_not_wanted_touch_nothing():
    x, kernel, labels = tail()
    x = jnp.where((labels < 0)[:, None], jnp.nan, x)

    @jax.jit
    def gradients(x: Any, kernel: Any) -> Any:
        return jax.grad(lambda x, kernel: jnp.sum(_blocks.row_losses(x, kernel, labels)), (0, 1))(
            x, kernel
        )

    d_x, d_kernel = gradients(x, kernel)
    assert np.all(np.isfinite(d_kernel))
    np.testing.assert_array_equal(np.asarray(d_x)[np.asarray(labels) < 0], 0)


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


@settings(max_examples=25, deadline=None)
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


@pytest.mark.usefixtures("small_blocks")
def test_blocks_under_shard_map_and_export():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    x, kernel, labels = tail()
    split, whole = PartitionSpec("data"), PartitionSpec()

    def loss(kernel: Any, x: Any, y: Any) -> Any:
        return jax.lax.psum(jnp.sum(_blocks.row_losses(x, kernel, y)), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(whole, split, split), out_specs=whole)
    want = jax.grad(lambda k: jnp.sum(plain(x, k, labels)))(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(sharded))(kernel, x, labels), want, 1e-4, 1e-5)

    (n,) = export.symbolic_shape("n")
    slope = jax.jit(jax.grad(lambda k, x, y: jnp.sum(_blocks.row_losses(x, k, y))))
    like = jax.ShapeDtypeStruct((n, 3), x.dtype), jax.ShapeDtypeStruct((n,), labels.dtype)
    exported = export.export(slope, platforms=("cpu", "tpu"))(kernel, *like)
    np.testing.assert_allclose(exported.call(kernel, x, labels), want, 1e-4, 1e-5)


def test_blocks_take_no_memory():
    """No array of the size of the logits, neither forward nor backward."""
    n, width, classes = 512, 8, 100_000

    def temp(function: Any) -> int:
        shapes = (
            jax.ShapeDtypeStruct((n, width), jnp.float32),
            jax.ShapeDtypeStruct((width, classes), jnp.float32),
            jax.ShapeDtypeStruct((n,), jnp.int32),
        )
        analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    slope = jax.grad(lambda x, k, y: jnp.mean(_blocks.row_losses(x, k, y)), (0, 1))
    assert temp(slope) < 0.15 * 4 * n * classes


PARAMS = made()
NOT_PARAMS: Any = {}
HIDDEN = jnp.zeros((2, 3, FEATURES))
LABELS = jnp.zeros((2, 3), jnp.int32)
SMALL = adaptive_init(jax.random.key(0), 4, 6, (2,))
ERRORS = [
    (
        lambda: adaptive_cross_entropy(HIDDEN[..., :5], PARAMS, LABELS),
        ValueError,
        "adaptive_cross_entropy: hidden must have shape [*batch, features] with features = 16 to match "
        "params, got [2, 3, 5]; make params for these features with adaptive_init.",
    ),
    (
        lambda: adaptive_cross_entropy(LABELS, PARAMS, LABELS),
        TypeError,
        "adaptive_cross_entropy: hidden must have a floating dtype, got int32; "
        "convert with hidden.astype(jnp.float32).",
    ),
    (
        lambda: adaptive_log_softmax(jnp.ones((2, 4)), dataclasses.replace(SMALL, cutoffs=(3,))),
        ValueError,
        "adaptive_log_softmax: params must have arrays of shapes [(4, 4), (4, 1), (1, 3)] to match "
        "cutoffs (3,) of 6 classes, got [(4, 3), (4, 1), (1, 4)]; make them anew with adaptive_init.",
    ),
    (
        lambda: adaptive_log_softmax(HIDDEN, NOT_PARAMS),
        TypeError,
        "adaptive_log_softmax: params must be AdaptiveParams, got dict; make them with adaptive_init.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, LABELS[..., None]),
        ValueError,
        "adaptive_cross_entropy: labels must have shape [*batch] = [2, 3] to match hidden [2, 3, 16], "
        "got [2, 3, 1]; pass one class index per row.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, HIDDEN[..., 0]),
        TypeError,
        "adaptive_cross_entropy: labels must be class indices of an integer dtype, got float32; "
        "convert with labels.astype(jnp.int32).",
    ),
    (
        lambda: adaptive_top_k(HIDDEN, PARAMS, 61),
        ValueError,
        "adaptive_top_k: k must be in [1, classes] = [1, 60], got 61; choose a value in range.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (5, 10)),
        ValueError,
        "adaptive_init: cutoffs must increase within (0, classes) = (0, 10), got (5, 10); "
        "sort them, and leave out the number of classes itself.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2, 5)),
        ValueError,
        "adaptive_init: division must leave each of 2 clusters a feature of 8, got 4.0; "
        "take a smaller one or fewer cutoffs.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2,), dtype=jnp.int32),
        TypeError,
        "adaptive_init: dtype must be floating, got int32; choose jnp.float32 or another.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2,), counts=np.ones(9)),
        ValueError,
        "adaptive_init: counts must have shape [classes] = [10], got [9]; one number per class.",
    ),
    (
        lambda: adaptive_cutoffs(np.array([1.0, -2.0])),
        ValueError,
        "adaptive_cutoffs: counts must be finite and at least 0, got -2.0; count the labels.",
    ),
    (
        lambda: adaptive_cutoffs(np.zeros(3)),
        ValueError,
        "adaptive_cutoffs: counts must not all be 0, got no occurrence; count the labels.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Any, kind: type[Exception], text: str):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()
