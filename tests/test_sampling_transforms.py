"""Samplers under transforms: the same draws everywhere, and nothing is traced twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jsoftmax import sampling
from tests.mesh import use_mesh
from tests.oracles import sampling as oracle
from tests.sampling_problem import KEY, fits, many

pytestmark = pytest.mark.thin(6)

DRAWS: dict[str, Callable[..., Any]] = {
    "categorical": sampling.categorical,
    "categorical shape": lambda key, z: sampling.categorical(key, z, shape=(2, *z.shape[:-1])),
    "sample": lambda key, z: sampling.sample(key, z, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01),
    "gumbel_top_k": lambda key, z: sampling.gumbel_top_k(key, z, 3),
    "gumbel_softmax": sampling.gumbel_softmax,
    "gumbel_softmax hard": lambda key, z: sampling.gumbel_softmax(key, z, 0.5, hard=True),
    "straight_through": sampling.straight_through,
    "rao_blackwell": lambda key, z: sampling.rao_blackwell_gumbel_softmax(key, z, num_samples=2),
    "reinmax": sampling.reinmax,
}

# In each run one that draws by blocks, one that bisects, one with noise; all of them now and then.
QUICK = ("categorical", "sample", "gumbel_softmax")
SLOW = {name: () if name in QUICK else (pytest.mark.slow,) for name in DRAWS}


@pytest.mark.parametrize(
    "draw", [pytest.param(draw, id=name, marks=SLOW[name]) for name, draw in DRAWS.items()]
)
def test_reproducible(draw: Callable[..., Any]):
    z = jnp.asarray(np.stack([many(600)] * 2))
    eager = np.asarray(draw(KEY, z))
    agree = np.testing.assert_allclose
    agree(jax.jit(draw)(KEY, z), eager, rtol=1e-6)
    agree(draw(jax.random.key_data(KEY), z), eager, rtol=0)
    assert not np.array_equal(draw(jax.random.key(21), z), eager)
    keys = jax.random.split(KEY, 2)
    alone = np.stack([draw(key, row) for key, row in zip(keys, z, strict=True)])
    agree(jax.vmap(draw)(keys, z), alone, rtol=1e-5, atol=1e-30)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,), devices=jax.devices()[:2])
        with use_mesh(mesh):
            sharded = jax.device_put(z, NamedSharding(mesh, P("rows", None)))
            agree(draw(KEY, sharded), eager, rtol=1e-6)


def test_a_typed_key_of_another_kind():
    ids = sampling.categorical(jax.random.key(0, impl="rbg"), many(1000), shape=(20_000,))
    fits(ids // 100, oracle.softmax(many(1000)).reshape(10, 100).sum(axis=1))


def test_annealed_numbers_never_retrace():
    z = many(300)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key: Any, t: Any, k: Any, p: Any) -> Any:
        soft = sampling.gumbel_softmax(key, z, t)
        return sampling.sample(key, z, temperature=t, top_k=k, top_p=p, min_p=p / 10), soft

    for i in range(3):
        step(jax.random.key(i), 1.0 / (i + 1), i + 1, 0.9 - i / 10)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("gumbel_softmax", "temperature"),
        ("sample", "temperature"),
        ("sample", "top_k"),
        ("sample", "top_p"),
    ],
)
def test_eager_calls_never_retrace(name: str, number: str, monkeypatch: pytest.MonkeyPatch):
    inner = "perturbed" if name == "gumbel_softmax" else "drawn"
    module = sys.modules[getattr(sampling, name).__module__]
    traces, original = [], getattr(module, inner)
    monkeypatch.setattr(module, inner, lambda *a: traces.append(1) or original(*a))
    for i in range(2, 5):
        value = i if number == "top_k" else 1 / i
        getattr(sampling, name)(KEY, np.zeros((3, 77), np.float32), **{number: value})
    assert len(traces) == 1


def test_no_derivative_and_no_obstacle():
    def loss(z: Any) -> Any:
        ids = sampling.categorical(KEY, z)
        cut = sampling.sample(KEY, z, top_k=5, top_p=0.9, min_p=0.1)
        return jnp.sum(z[ids]) + jnp.sum(z[cut]) + jnp.sum(z[sampling.gumbel_top_k(KEY, z, 2)])

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(many(400))))
    assert gradient.sum() == 4
    assert set(gradient) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    np.testing.assert_array_equal(jax.jacfwd(loss)(jnp.asarray(many(400))), gradient)
