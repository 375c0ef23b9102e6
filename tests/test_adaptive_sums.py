"""The mean and the sum of an adaptive softmax, whose gradient is made beside the value."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jsoftmax
from jsoftmax.hierarchical import _blocks, _sums
from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy
from tests.adaptive_problem import (
    CLASSES,
    EVERY_MODE,
    MODES,
    at,
    check_gradients,
    made,
    oracle_log_softmax,
    plain,
    rows,
    tail,
)
from tests.mesh import use_mesh

pytestmark = pytest.mark.thin(6)
WEIGHTS = jnp.linspace(0.5, 2.0, 10)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tiles of two rows for the 13 classes of `tail`, of two and of one for the clusters of `made`."""
    monkeypatch.setattr(_sums, "_LOGITS", 40)
    monkeypatch.setattr(_sums, "_LEAST", 1)
    monkeypatch.setattr(_blocks, "_FEW", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradient(reduction: str):
    """Of a weighted sum, against the oracle, whatever clusters the labels are in."""
    params = made(seed=1)
    hidden, _ = rows(11)
    weights = np.linspace(-1.0, 2.0, 11, dtype=np.float32)
    shares = weights / (weights.sum() if reduction == "mean" else 1)

    @jax.jit
    def gradients(p: Any, x: Any, labels: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return adaptive_cross_entropy(x, p, labels, weights=weights, reduction=reduction)

        return jax.value_and_grad(loss, (0, 1))(p, x)

    for low, high in ((0, CLASSES), (0, 7), (20, CLASSES)):
        places = low + np.arange(11) * 5 % (high - low)
        labels = params.ranking.classes[places]
        loss, (d_params, d_hidden) = gradients(params, hidden, labels)
        losses = -at(oracle_log_softmax(params, hidden), labels)
        np.testing.assert_allclose(loss, np.sum(shares * losses), 1e-5)
        check_gradients(params, hidden, places, shares, (d_params, d_hidden))


def test_every_option_is_that_of_the_rows():
    """Value and gradients, also in the options, by those of one value per row."""
    params, (hidden, labels) = made(), rows(12)
    labels[[2, 5]] = -1
    options = {
        "class_weights": np.linspace(0.5, 2, CLASSES, dtype=np.float32),
        "weights": np.linspace(0.2, 1, 12, dtype=np.float32),
        "denominator": np.float32(5),
    }

    def mean(p: Any, x: Any, options: Any) -> Any:
        return adaptive_cross_entropy(x, p, labels, ignore_index=-1, reduction="mean", **options)

    def of_rows(p: Any, x: Any, options: Any) -> Any:
        weights, by = options["weights"], options["denominator"]
        losses = adaptive_cross_entropy(
            x, p, labels, ignore_index=-1, class_weights=options["class_weights"], weights=weights
        )
        return jnp.sum(losses) / by

    given = params, hidden, jax.tree.map(jnp.asarray, options)
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*given) for f in (mean, of_rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), got, want)
    # Without a denominator: the sum of the weights of the rows that count.
    losses = adaptive_cross_entropy(hidden, params, labels, ignore_index=-1)
    counted = np.where(labels == -1, 0, options["weights"])
    found = adaptive_cross_entropy(
        hidden, params, labels, ignore_index=-1, weights=options["weights"], reduction="mean"
    )
    np.testing.assert_allclose(found, jsoftmax.weighted_mean(losses, counted), 1e-6)


@EVERY_MODE
@pytest.mark.parametrize("rule", [True, False], ids=["with its rule", "without"])
def test_sums_in_every_mode(rule: bool, mode: str):
    """Also what makes the gradient, differentiated as it stands: jax may lose a rule in a scan."""
    x, kernel, labels = tail()
    tangents = tail(1)[:2]

    def found(x: Any, kernel: Any) -> Any:
        if rule:
            return _sums.weighted_sum(x, kernel, labels, WEIGHTS)
        return _sums._with_gradient.fun(x, kernel, labels, WEIGHTS)[0]

    def true(x: Any, kernel: Any) -> Any:
        return jnp.sum(WEIGHTS * plain(x, kernel, labels))

    got, want = (
        jax.jit(lambda *given, f=f: MODES[mode](f, *given))(x, kernel, tangents) for f in (found, true)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-4, 2e-5), got, want)


def test_small_losses_keep_their_digits():
    gaps = np.array([0.0, 0.9, 1.1, 5.0, 20.0, 40.0, 80.0, -30.0, -200.0])

    @jax.jit
    @jax.value_and_grad
    def loss(gap: jax.Array) -> jax.Array:
        kernel = jnp.zeros((1, 13)).at[0, 6].set(gap)
        label = jnp.full(1, 6, jnp.int32)
        return _sums.weighted_sum(jnp.ones((1, 1)), kernel, label, jnp.ones(1))

    values, slopes = zip(*(loss(jnp.float32(gap)) for gap in gaps), strict=True)
    exactly = np.float32(gaps).astype(np.float64)
    np.testing.assert_allclose(values, np.log1p(12 * np.exp(-exactly)), 1e-6)
    np.testing.assert_allclose(slopes, -12 / (12 + np.exp(exactly)), 1e-6)


def test_label_policy():
    params = made()
    hidden, labels = rows(6)
    hidden[0], hidden[3] = np.nan, np.inf
    labels[:2] = -100, CLASSES
    weights = np.array([1, 1, 1, 0, 1, 1], bool)

    @jax.jit
    def pulled(labels: Any, weights: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return adaptive_cross_entropy(
                x, p, labels, ignore_index=-100, weights=weights, reduction="mean"
            )

        return jax.value_and_grad(loss, (0, 1))(params, hidden)

    value, (d_params, d_hidden) = pulled(labels, weights)
    assert np.isnan(value)
    assert np.isnan(d_params.head_kernel).all()
    assert np.isnan(d_hidden[1]).all()
    assert (np.asarray(d_hidden)[[0, 3]] == 0).all()
    assert np.isfinite(np.asarray(d_hidden)[[2, 4, 5]]).all()
    # A row of weight 0 is left out, whatever its label is.
    weights[1] = False
    value, gradients = pulled(labels, weights)
    count = adaptive_cross_entropy(hidden[[2, 4, 5]], params, labels[[2, 4, 5]], reduction="mean")
    np.testing.assert_allclose(value, count, 1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    nothing = pulled(np.full(6, -100, np.int32), weights)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(nothing))


def test_bfloat16():
    params = made(dtype=jnp.bfloat16)
    hidden, labels = rows(20)
    hidden = jnp.asarray(hidden, jnp.bfloat16)

    @jax.jit
    def pulled(p: Any, x: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return adaptive_cross_entropy(x, p, labels, reduction="sum")

        return jax.value_and_grad(loss, (0, 1))(p, x)

    loss, gradients = pulled(params, hidden)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, hidden.astype(jnp.float32)))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -at(oracle_log_softmax(*wide), labels).sum(), 1e-5)
    exact = pulled(*wide)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 5e-3, 1e-6), *(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), made) for made in (gradients, exact)
    ))  # fmt: skip


def test_empty_batch_and_ranks():
    params, (hidden, labels) = made(), rows(12)
    for reduction in ("mean", "sum"):
        assert adaptive_cross_entropy(hidden[:0], params, labels[:0], reduction=reduction) == 0
        flat, shaped, one = (
            adaptive_cross_entropy(x, params, y, reduction=reduction)
            for x, y in (
                (hidden, labels),
                (hidden.reshape(2, 6, -1), labels.reshape(2, 6)),
                (hidden[0], labels[0]),
            )
        )
        np.testing.assert_allclose(flat, shaped, 1e-6)
        np.testing.assert_allclose(one, adaptive_cross_entropy(hidden[0], params, labels[0]), 1e-6)


@pytest.mark.parametrize("mode", ["gradient", "hessian times vector", "reverse twice"])
def test_modes_over_devices(mode: str):
    """With the rows in `shard_map`: the gradient in the kernel is summed over the devices, once."""
    x, kernel, labels = tail()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split, whole = PartitionSpec("data"), PartitionSpec()

    def local(x: Any, kernel: Any, labels: Any, weights: Any) -> Any:
        return jax.lax.psum(jnp.sin(_sums.weighted_sum(x, kernel, labels, weights)), "data")

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(split, whole, split, split), out_specs=whole)

    def expected(x: Any, kernel: Any) -> Any:
        return jnp.sum(jnp.sin(jnp.sum((WEIGHTS * plain(x, kernel, labels)).reshape(2, -1), axis=1)))

    def run(f: Any) -> Any:
        if mode == "gradient":
            return jax.jit(jax.grad(f, (0, 1)))(x, kernel)
        return jax.jit(lambda *given: MODES[mode](f, *given))(x, kernel, tail(1)[:2])

    got, want = run(lambda x, kernel: sharded(x, kernel, labels, WEIGHTS)), run(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-4, 2e-5), got, want)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_on_several_devices(kind: AxisType):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    params, (hidden, labels) = made(), rows(8)

    def loss(p: Any, x: Any, y: Any) -> Any:
        return adaptive_cross_entropy(x, p, y, reduction="mean")

    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, hidden, labels)
    with use_mesh(mesh):
        split = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
        placed = jax.device_put(hidden, split), jax.device_put(labels, split)
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), got, want)


def test_exponentials_are_made_once():
    """In the compiled gradient, of the logits of a tile."""
    x, kernel, labels = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tail())
    weights = jax.ShapeDtypeStruct(WEIGHTS.shape, WEIGHTS.dtype)

    def count(loss: Any) -> int:
        text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel, labels, weights).as_text()
        return len(re.findall(r"stablehlo\.exponential \S+ : tensor<2x13xf32>", text))

    assert count(_sums.weighted_sum) == 1
    assert count(lambda x, k, y, w: jnp.sum(w * plain(x, k, y))) == 0


def test_sums_take_no_memory(monkeypatch: pytest.MonkeyPatch):
    """No array of the size of the logits where classes are many, and none but a tile's elsewhere."""
    monkeypatch.undo()
    n, width = 512, 8

    def temp(classes: int) -> int:
        shapes = (
            jax.ShapeDtypeStruct((n, width), jnp.float32),
            jax.ShapeDtypeStruct((width, classes), jnp.float32),
            jax.ShapeDtypeStruct((n,), jnp.int32),
            jax.ShapeDtypeStruct((n,), jnp.float32),
        )
        slope = jax.jit(jax.value_and_grad(_sums.weighted_sum, (0, 1)))
        analysis: Any = slope.lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temp(100_000) < 0.15 * 4 * n * 100_000
    assert temp(60_000) < 3 * 4 * _sums._LOGITS
