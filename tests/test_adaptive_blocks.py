"""Adaptive softmax in blocks of rows and classes: every derivative, digits, meshes, memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec

from jsoftmax.hierarchical import _blocks
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

pytestmark = pytest.mark.thin(6)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Several tiles and blocks, with padding in the last of each, for few rows and classes."""
    monkeypatch.setattr(_blocks, "_ROWS", 4)
    monkeypatch.setattr(_blocks, "_COLUMNS", 5)
    monkeypatch.setattr(_blocks, "_FEW", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


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
        check_gradients(params, hidden, places, ct, (d_params, d_hidden))


@pytest.mark.usefixtures("small_blocks")
@EVERY_MODE
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
