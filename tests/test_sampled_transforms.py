"""Sampled softmax under every transform: batches, derivatives of any order, meshes, export, memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.negatives import draw_negatives
from jsoftmax.hierarchical.proposals import LogUniform, unigram_proposal
from jsoftmax.hierarchical.rows import apply_row_updates
from jsoftmax.hierarchical.sampled import (
    sampled_cross_entropy,
    sampled_log_normalizer,
    sampled_row_gradients,
)
from tests.sampled_problem import (
    CLASSES,
    COUNTS,
    FEATURES,
    LOSSES,
    PROPOSALS,
    ROWS,
    SAMPLES,
    Learned,
    both_ways,
    drawn,
    every_loss,
    problem,
)

pytestmark = pytest.mark.thin(6)


@every_loss
@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_batches_of_any_rank(objective: str, shape: tuple[int, ...]):
    h, kernel, bias, y = problem(rows=int(np.prod(shape)))
    negatives = drawn()
    flat = LOSSES[objective](h, kernel, y, negatives, bias=bias)
    h, y = h.reshape(*shape, FEATURES), y.reshape(shape)
    together = LOSSES[objective](h, kernel, y, negatives, bias=bias)
    assert together.shape == shape
    np.testing.assert_allclose(np.ravel(together), flat, 1e-6)
    got = sampled_row_gradients(h, kernel, y, negatives, objective=objective)
    assert (got.d_hidden.shape, got.rows.shape) == (h.shape, (y.size + SAMPLES,))
    assert sampled_log_normalizer(h, kernel, negatives).shape == shape


@every_loss
@both_ways
def test_own_negatives_for_each_row(objective: str, replace: bool):
    h, kernel, bias, y = problem()
    keys = jax.random.split(jax.random.key(13), ROWS)

    def one(key: Any, h: Any, y: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS["unigram"][0], SAMPLES, replace=replace)
        return LOSSES[objective](h, kernel, y, negatives, bias=bias)

    together = jax.jit(jax.vmap(one))(keys, h, y)
    alone = [one(*args) for args in zip(keys, h, y, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), 1e-5, 1e-6)


def modes(loss: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """The gradient of the summed losses, in ways that have to agree."""

    def total(x: Any) -> Any:
        return jnp.sum(loss(x))

    def scanned(x: Any) -> Any:
        return jax.lax.scan(lambda s, _: (s + total(x), None), jnp.float32(0), None, length=2)[0]

    return {
        "jacfwd": jax.jacfwd(total),
        "jacrev": lambda x: jnp.sum(jax.jacrev(loss)(x), axis=0),
        "remat": jax.grad(jax.checkpoint(total)),
        "scan": lambda x: jax.grad(scanned)(x) / 2,
        "linearize": lambda x: jax.vmap(jax.linearize(total, x)[1])(jnp.eye(x.size)),
    }


@pytest.mark.slow  # the conformance table has the modes with replacement
@pytest.mark.parametrize(
    ("objective", "replace"),
    [("cross_entropy", False), ("noise_contrastive", True)],
)
def test_every_mode(objective: str, replace: bool):
    h, kernel, bias, y = problem(rows=3)
    sizes = np.cumsum([h.size, kernel.size])
    key = jax.random.key(14)

    def loss(x: Any) -> Any:
        negatives = draw_negatives(key, PROPOSALS["unigram"][0], SAMPLES, replace=replace)
        of_h, of_kernel, b = jnp.split(x, sizes)
        of_h, of_kernel = of_h.reshape(h.shape), of_kernel.reshape(kernel.shape)
        return LOSSES[objective](of_h, of_kernel, y, negatives, bias=b)

    x = jnp.concatenate([h.ravel(), kernel.ravel(), bias])
    step = jax.random.normal(jax.random.key(15), x.shape)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))
    slope = grad(x)

    @jax.jit
    def every(x: Any) -> Any:
        return {name: mode(x) for name, mode in modes(loss).items()}, jax.jvp(grad, (x,), (step,))[1]

    found, product = every(x)
    for name, got in found.items():
        np.testing.assert_allclose(got, slope, 1e-5, 2e-6, err_msg=name)
    numeric = (grad(x + 1e-2 * step) - grad(x - 1e-2 * step)) / 2e-2
    np.testing.assert_allclose(product, numeric, 5e-3, 5e-3)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(loss(x))))(x)
    np.testing.assert_allclose(hessian @ step, product, 1e-4, 1e-5)


@pytest.mark.slow  # seconds each, and beside the main way
@both_ways
def test_gradient_in_a_learned_proposal(replace: bool):
    """True for the draws as they stand, which move by steps only."""
    h, kernel, _, y = problem()

    def loss(scores: Any) -> Any:
        negatives = draw_negatives(jax.random.key(16), Learned(scores), SAMPLES, replace=replace)
        return jnp.sum(sampled_cross_entropy(h, kernel, y, negatives))

    scores, step = jnp.linspace(-1.0, 1.0, CLASSES), 1e-2 * jnp.cos(jnp.arange(CLASSES))
    numeric = (loss(scores + step) - loss(scores - step)) / 2
    exact = jnp.vdot(jax.grad(loss)(scores), step)
    np.testing.assert_allclose(exact, numeric, 1e-2)
    assert abs(exact) > 1e-3


@pytest.mark.slow  # seconds each, and beside the main way
def test_row_gradients_can_be_differentiated():
    h, kernel, bias, y = problem()
    negatives = drawn()

    def by_rows(h: Any) -> Any:
        return sampled_row_gradients(h, kernel, y, negatives, bias=bias).d_hidden

    def dense(h: Any) -> Any:
        return jax.grad(lambda h: jnp.sum(sampled_cross_entropy(h, kernel, y, negatives, bias=bias)))(h)

    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(by_rows)(h), jax.jacfwd(dense)(h), 1e-4, 1e-6)


def test_no_array_of_the_kernels_size():
    """The step of `sampled_row_gradients` with a donated kernel takes little beside it."""
    classes = 200_000
    shapes = [(64, 16), (classes, 16)]
    h, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    y = jax.ShapeDtypeStruct((64,), jnp.int32)

    def step(h: Any, kernel: Any, y: Any, key: Any) -> Any:
        negatives = draw_negatives(key, LogUniform(classes), 100)
        got = sampled_row_gradients(h, kernel, y, negatives)
        return apply_row_updates(kernel, got.rows, -0.1 * got.values)

    lowered = jax.jit(step, donate_argnums=1).lower(h, kernel, y, jax.random.key(0))
    analysis: Any = lowered.compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 1e6


def test_nothing_is_traced_again():
    h, kernel, bias, y = problem()
    traces = 0

    @jax.jit
    def loss(proposal: Any, key: Any) -> Any:
        nonlocal traces
        traces += 1
        return sampled_cross_entropy(h, kernel, y, draw_negatives(key, proposal, SAMPLES), bias=bias)

    for seed in range(3):
        loss(unigram_proposal(COUNTS + seed), jax.random.key(seed))
    assert traces == 1


@every_loss
def test_sharded_rows(objective: str):
    h, kernel, bias, y = problem(rows=16)
    negatives = drawn()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def loss(h: Any, k: Any, b: Any, y: Any) -> Any:
        return LOSSES[objective](h, k, y, negatives, bias=b)

    def slopes(loss: Any) -> Any:
        def total(h: Any, k: Any, b: Any) -> Any:
            return jnp.sum(loss(h, k, b, y))

        return jax.grad(total, (0, 1, 2))(h, kernel, bias)

    split = jax.shard_map(loss, mesh=mesh, in_specs=(spec, None, None, spec), out_specs=spec)
    np.testing.assert_allclose(split(h, kernel, bias, y), loss(h, kernel, bias, y), 1e-6)
    for got, expected in zip(slopes(jax.jit(split)), slopes(loss), strict=True):
        np.testing.assert_allclose(got, expected, 1e-4, 1e-5)


def test_draws_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    keys = jax.random.split(jax.random.key(17), 8)
    for proposal, replace in ((LogUniform(CLASSES), True), (PROPOSALS["unigram"][0], False)):
        draw = functools.partial(draw_negatives, proposal=proposal, num_samples=4, replace=replace)

        def one(key: Any, draw: Any = draw) -> Any:
            return draw(key[0]).ids

        ids = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
        expected = jnp.concatenate([draw(key).ids for key in keys])
        np.testing.assert_array_equal(ids, expected)


def test_export():
    h, kernel, bias, y = problem()

    def step(key: Any, h: Any, y: Any) -> Any:
        negatives = draw_negatives(key, LogUniform(CLASSES), SAMPLES, replace=False)
        return jax.value_and_grad(
            lambda h: jnp.sum(sampled_cross_entropy(h, kernel, y, negatives, bias=bias))
        )(h)

    rows = jax.export.symbolic_shape("n")[0]
    shapes = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        jax.ShapeDtypeStruct((rows, FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(*shapes)
    key = jax.random.PRNGKey(0)
    for got, expected in zip(exported.call(key, h, y), step(key, h, y), strict=True):
        np.testing.assert_allclose(got, expected, 1e-5, 1e-6)
