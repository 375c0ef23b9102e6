"""Linear losses on meshes: random options against the dense loss, and what the devices exchange."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax.linear import linear_cross_entropy

ROWS, FEATURES, CLASSES = 6, 3, 8
MESH = jax.make_mesh((2, 4), ("rows", "classes"), (AxisType.Auto, AxisType.Auto))

# The options, and how each lies on the mesh.
OPTIONS: dict[str, tuple[Any, P]] = {
    "bias": (lambda rng: rng.standard_normal(CLASSES), P("classes")),
    "temperature": (lambda rng: rng.uniform(0.5, 2, ROWS), P("rows")),
    "softcap": (lambda rng: rng.uniform(1, 4), P()),
    "label_smoothing": (lambda rng: rng.uniform(0, 0.5), P()),
    "z_loss": (lambda rng: rng.uniform(0, 0.5), P()),
    "class_weights": (lambda rng: rng.uniform(0.5, 2, CLASSES), P("classes")),
    "weights": (lambda rng: rng.uniform(0, 2, ROWS), P("rows")),
}


def compare(chosen: set[str], soft: bool, masked: bool, reduction: str, seed: int) -> None:
    """Value and every gradient, on the mesh and on all logits, with unequal cotangents."""
    rng = np.random.default_rng(seed)
    moving = {
        "hidden": rng.standard_normal((ROWS, FEATURES)),
        "kernel": rng.standard_normal((FEATURES, CLASSES)),
    } | {name: OPTIONS[name][0](rng) for name in sorted(chosen)}
    moving = {name: jnp.asarray(x, jnp.float32) for name, x in moving.items()}
    specs = {name: OPTIONS[name][1] for name in chosen}
    specs |= {"hidden": P("rows"), "kernel": P(None, "classes")}
    fixed: dict[str, Any] = {"labels": jnp.asarray(rng.integers(0, CLASSES, ROWS))}
    fixed_specs = {"labels": P("rows")}
    static: dict[str, Any] = {} if soft else {"ignore_index": 2}
    if soft:
        fixed["labels"] = jnp.asarray(rng.dirichlet(np.ones(CLASSES), ROWS), jnp.float32)
        fixed_specs["labels"] = P("rows", "classes")
    if masked:
        # Masked classes without label mass, which would cost +inf.
        where = rng.random(CLASSES) < 0.7
        where |= np.arange(CLASSES) < 2
        fixed["where"] = jnp.asarray(where)
        fixed_specs["where"] = P("classes")
        share = jnp.where(where, fixed["labels"], 0) if soft else fixed["labels"] % 2
        fixed["labels"] = share
    by = jnp.asarray(rng.standard_normal(ROWS), jnp.float32)

    @functools.partial(
        jax.shard_map, mesh=MESH, in_specs=(specs, fixed_specs, P("rows")), out_specs=P()
    )
    def sharded(moving: Any, fixed: Any, by: Any) -> Any:
        given = moving | fixed | static
        if reduction == "sum":
            given["weights"] = by * given.get("weights", 1.0)
        loss = linear_cross_entropy(**given, reduction=reduction, chunk_size=2, axis_name="classes")
        return jax.lax.psum(loss if reduction == "sum" else jnp.dot(by, loss), "rows")

    def dense(moving: Any, fixed: Any, by: Any) -> Any:
        given = moving | fixed | static
        z = given.pop("hidden") @ given.pop("kernel") + given.pop("bias", 0.0)
        weights = given.pop("weights", 1.0)
        return jnp.dot(by, weights * jsoftmax.cross_entropy(z, **given))

    got, expected = (jax.jit(jax.value_and_grad(f))(moving, fixed, by) for f in (sharded, dense))
    assert np.isfinite(expected[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-5), got, expected)


@pytest.mark.thin(1)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_everything_at_once(soft: bool, reduction: str):
    compare(set(OPTIONS), soft=soft, masked=True, reduction=reduction, seed=0)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    chosen=st.sets(st.sampled_from(sorted(OPTIONS))),
    soft=st.booleans(),
    masked=st.booleans(),
    reduction=st.sampled_from(["sum", "none"]),
    seed=st.integers(0, 99),
)
def test_equals_dense(chosen: set[str], soft: bool, masked: bool, reduction: str, seed: int):
    compare(chosen, soft, masked, reduction, seed)


N, F, V = 256, 16, 1024


def compiled_step(hidden: P, kernel: P, labels: P, loss: Any) -> Any:
    shapes = (((N, F), hidden, jnp.float32), ((F, V), kernel, jnp.float32), ((N,), labels, jnp.int32))
    operands = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, spec))
        for shape, spec, dtype in shapes
    ]
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()


def gathered(compiled: Any) -> list[str]:
    """What is gathered, or moved from device to device as a whole, of the size of a kernel's shard."""
    text = compiled.as_text()
    found = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    shapes = [shape for result in found for shape in re.findall(r"\[([\d,]+)\]", result)]
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]
    return [shape for shape, size in zip(shapes, sizes, strict=True) if size >= F * V // 4]


def on_shards(hidden: Any, kernel: Any, labels: Any, reduction: str) -> Any:
    @functools.partial(
        jax.shard_map,
        mesh=MESH,
        in_specs=(P("rows"), P(None, "classes"), P("rows")),
        out_specs=P(),
    )
    def local(hidden: Any, kernel: Any, labels: Any) -> Any:
        loss = linear_cross_entropy(
            hidden, kernel, labels, reduction=reduction, axis_name="classes", chunk_size=64
        )
        return jax.lax.pmean(jnp.mean(jnp.sin(loss)), "rows")

    return local(hidden, kernel, labels)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("way", ["shard_map", "compiler"])
def test_no_class_travels(way: str, reduction: str):
    """Neither where each device is told what it has, nor where the compiler lays it out."""

    def left_to_compiler(hidden: Any, kernel: Any, labels: Any) -> Any:
        loss = linear_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=64)
        return jnp.mean(jnp.sin(loss))

    loss = functools.partial(on_shards, reduction=reduction) if way == "shard_map" else left_to_compiler
    assert gathered(compiled_step(P("rows"), P(None, "classes"), P("rows"), loss)) == []


def test_a_gather_would_be_seen():
    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(MESH, P()))
        return linear_cross_entropy(hidden, whole, labels)

    assert gathered(compiled_step(P("rows"), P(None, "classes"), P("rows"), loss))


@pytest.mark.parametrize(("axes", "share"), [(("classes",), 1 / 4), (("rows", "classes"), 1 / 8)])
def test_rows_on_several_devices_stay_there(axes: tuple[str, ...], share: float):
    """Every device has an even share of every chunk; of as many chunks, a loop's work counts once."""
    loss = functools.partial(linear_cross_entropy, chunk_size=64)
    alone = compiled_step(P(), P(), P(), loss).cost_analysis()["flops"]
    spread = compiled_step(P(axes), P(), P(axes), loss)
    assert spread.cost_analysis()["flops"] < 1.1 * share * alone
    assert gathered(spread) == []
