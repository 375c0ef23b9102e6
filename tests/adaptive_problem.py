"""A small problem of adaptive softmax, its formula in float64, and one cluster in every AD mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.adaptive_params import (
    AdaptiveParams,
    adaptive_init,
)
from tests.oracles import adaptive as oracle

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


def check_gradients(params: Any, hidden: Any, places: Any, ct: Any, found: tuple[Any, Any]) -> None:
    """The gradients in the parameters and in `hidden`, by the oracle's for cotangents `ct [rows]`."""
    d_params, d_hidden = found
    expected: Any = oracle.cross_entropy_gradients(hidden, *oracle_parts(params), places, ct)
    got = [d_hidden, d_params.head_kernel, d_params.head_bias]
    got += [x for pair in zip(d_params.projections, d_params.tail_kernels, strict=True) for x in pair]
    want = [expected["hidden"], expected["head"], expected["head_bias"]]
    want += [x for pair in expected["tails"] for x in pair]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5)


def at(log_probs: Any, labels: Any) -> np.ndarray:
    return np.take_along_axis(np.asarray(log_probs), np.asarray(labels)[..., None], -1)[..., 0]


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
EVERY_MODE = pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] * (mode in SLOW)) for mode in MODES]
)
