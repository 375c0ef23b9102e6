"""Every public function on several devices: `shard_map`, and meshes with automatic and explicit axes.

Each test compares the value and the gradient in every floating argument, those that all devices
share among them, with formulas in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.conformance import CASES, Case, Inputs
from tests.mesh import use_mesh
from tests.truth import agree, cotangent, cotangents, quick, truth, weigh

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_CLASSES = [case for case in CASES if case.over_classes is not None]


def mesh(rows: int, classes: int, kind: AxisType) -> Mesh:
    return jax.make_mesh((rows, classes), ("rows", "classes"), (kind, kind))


def specs(case: Case, rows: str | None, classes: str | None) -> dict[str, P]:
    """How the arguments lie on the mesh; what has neither rows nor classes is replicated."""

    def spec(name: str, x: np.ndarray) -> P:
        axes: list[str | None] = [rows] if case.rowwise(name) else []
        if case.has_classes(name):
            axes = [*axes, *[None] * (x.ndim - 1 - len(axes)), classes]
        return P(*axes) if case.rowwise(name) or len(axes) == x.ndim else P()

    return {name: spec(name, x) for name, x in case.inputs().items()}


def output_spec(case: Case, rows: str | None, classes: str | None) -> P:
    return {"rows": P(rows), "classes": P(rows, classes), "scalar": P()}[case.output]


def split(case: Case, inputs: Inputs) -> tuple[Inputs, Inputs]:
    floats = case.floats(inputs)
    return floats, {name: x for name, x in inputs.items() if name not in floats}


def value_and_gradient(case: Case, call: Callable[..., Any]) -> Callable[..., Any]:
    """Of `phi`, as a function of floating arguments, other arguments and the cotangent."""

    def phi(floats: Inputs, fixed: Inputs, by: Any) -> Any:
        out = call(**floats, **fixed)
        return weigh(out, by), out

    def run(floats: Inputs, fixed: Inputs, by: Any) -> tuple[Any, Inputs]:
        (_, out), gradient = jax.value_and_grad(phi, has_aux=True)(floats, fixed, by)
        return out, gradient

    return run


def check(case: Case, got: tuple[Any, Inputs]) -> None:
    true = truth(case)
    agree(got[0], true.value)
    agree(got[1], cotangent(case) @ true.jacobian)


def in_shard_map(case: Case, call: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """The function on shards of its arguments, as a function of the whole arguments."""
    rows, classes = (name if name in axes else None for name in ("rows", "classes"))
    inside = specs(case, rows, classes)
    # Every device has the rows' numbers; only maps return one per class.
    out = output_spec(case, rows, classes if case.output == "classes" else None)
    mapped = jax.shard_map(lambda given: call(**given), in_specs=(inside,), out_specs=out)
    return lambda **given: mapped(given)


@pytest.mark.thin(2)
@every_case
def test_shard_map_over_rows(case: Case):
    call = in_shard_map(case, case.over_rows or case.call, "rows")
    with use_mesh(mesh(2, 1, AxisType.Auto)):
        got = quick(value_and_gradient(case, call))(*split(case, case.inputs()), cotangents(case))
    check(case, got)


@pytest.mark.thin(3)
@every_case
def test_gradient_inside_shard_map(case: Case):
    """There the gradient of what all devices share must come back summed over them."""
    inside = specs(case, "rows", None)
    run = value_and_gradient(case, case.over_rows or case.call)
    floats, fixed = split(case, case.inputs())
    spec = output_spec(case, "rows", None)
    mapped = jax.shard_map(
        run,
        in_specs=({k: inside[k] for k in floats}, {k: inside[k] for k in fixed}, spec),
        out_specs=(spec, {k: inside[k] for k in floats}),
    )
    with use_mesh(mesh(2, 1, AxisType.Auto)):
        check(case, quick(mapped)(floats, fixed, cotangents(case)))


@pytest.mark.parametrize("case", BY_CLASSES, ids=lambda case: case.name)
@pytest.mark.parametrize("axes", [("classes",), ("rows", "classes")], ids="-".join)
def test_shard_map_over_classes(axes: tuple[str, ...], case: Case):
    assert case.over_classes is not None
    call = in_shard_map(case, case.over_classes, *axes)
    with use_mesh(mesh(2, 2, AxisType.Auto)):
        got = quick(value_and_gradient(case, call))(*split(case, case.inputs()), cotangents(case))
    check(case, got)


@pytest.mark.parametrize("case", BY_CLASSES, ids=lambda case: case.name)
def test_second_order_over_classes(case: Case):
    """The curvature along one direction, forward over reverse, through the collectives."""
    assert case.over_classes is not None
    call = in_shard_map(case, case.over_classes, "classes")
    floats, fixed = split(case, case.inputs())
    along = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), floats)

    def gradient(floats: Inputs) -> Inputs:
        return jax.grad(lambda x: weigh(call(**x, **fixed), cotangents(case)))(floats)

    with use_mesh(mesh(1, 2, AxisType.Auto)):
        got = quick(lambda x, t: jax.jvp(gradient, (x,), (t,))[1])(floats, along)
    t = np.concatenate([np.ravel(along[name]) for name in sorted(along)])
    agree(got, truth(case).hessian @ t, 5e-5)


@pytest.mark.thin(6)
@every_case
@pytest.mark.parametrize("order", ["jvp of grad", "grad of grad"])
def test_second_order_over_rows(order: str, case: Case):
    """The curvature along a direction; the gradient of what devices share is a sum over them."""
    call = in_shard_map(case, case.over_rows or case.call, "rows")
    floats, fixed = split(case, case.inputs())
    along = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), floats)

    def gradient(floats: Inputs) -> Inputs:
        return jax.grad(lambda x: weigh(call(**x, **fixed), cotangents(case)))(floats)

    def forward(floats: Inputs, along: Inputs) -> Inputs:
        return jax.jvp(gradient, (floats,), (along,))[1]

    def reverse(floats: Inputs, along: Inputs) -> Inputs:
        return jax.grad(lambda x: weigh(gradient(x), along))(floats)

    with use_mesh(mesh(2, 1, AxisType.Auto)):
        got = quick(forward if order == "jvp of grad" else reverse)(floats, along)
    t = np.concatenate([np.ravel(along[name]) for name in sorted(along)])
    agree(got, truth(case).hessian @ t, 5e-5)


def placed(case: Case, on: Mesh, rows: str | None, classes: str | None) -> Inputs:
    where = specs(case, rows, classes)
    return {
        name: jax.device_put(x, NamedSharding(on, where[name])) for name, x in case.inputs().items()
    }


def leave_out_keys_of_rows(case: Case) -> None:
    if "key" in case.inputs() and jax.__version_info__ < (0, 10):
        pytest.skip(reason="before jax 0.10 random.bits fails under vmap of keys on an explicit mesh")


@pytest.mark.thin(8)
@every_case
@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        (AxisType.Auto, ("rows", "classes")),
        (AxisType.Explicit, ("rows", None)),
        (AxisType.Explicit, (None, "classes")),
        (AxisType.Explicit, ("rows", "classes")),
    ],
    ids=["auto", "explicit-rows", "explicit-classes", "explicit-both"],
)
def test_mesh(kind: AxisType, axes: tuple[str | None, str | None], case: Case):
    if kind == AxisType.Explicit and axes[0] is not None:
        leave_out_keys_of_rows(case)
    devices = mesh(2, 2, kind)
    given = placed(case, devices, *axes)
    with use_mesh(devices):
        spec = output_spec(case, axes[0], axes[1])
        by = jax.tree.map(lambda c: jax.device_put(c, NamedSharding(devices, spec)), cotangents(case))
        got = quick(value_and_gradient(case, case.call))(*split(case, given), by)
    check(case, got)
    if kind == AxisType.Explicit:
        floats = case.floats(given)
        like = {name: x.sharding.is_equivalent_to(floats[name].sharding, x.ndim)
                for name, x in got[1].items()}  # fmt: skip
        chex.assert_trees_all_equal(like, dict.fromkeys(floats, True))


@pytest.mark.thin(3)
@every_case
def test_eager_on_an_explicit_mesh(case: Case):
    leave_out_keys_of_rows(case)
    devices = mesh(2, 1, AxisType.Explicit)
    with use_mesh(devices):
        got = case.call(**placed(case, devices, "rows", None))
    agree(got, truth(case).value)
    assert jnp.issubdtype(jax.tree.leaves(got)[0].dtype, jnp.floating)


@pytest.mark.thin(6)
@every_case
@pytest.mark.parametrize("devices", [1, 2])
def test_only_rows_are_on_an_explicit_mesh(devices: int, case: Case):
    """What rows share was made outside, as parameters from a file are."""
    leave_out_keys_of_rows(case)
    kinds = AxisType.Explicit, AxisType.Explicit
    on = jax.make_mesh((devices, 1), ("rows", "classes"), kinds, devices=jax.devices()[:devices])
    given = case.inputs() | {
        name: x for name, x in placed(case, on, "rows", None).items() if case.rowwise(name)
    }
    with use_mesh(on):
        spec = output_spec(case, "rows", None)
        by = jax.tree.map(lambda c: jax.device_put(c, NamedSharding(on, spec)), cotangents(case))
        got = quick(value_and_gradient(case, case.call))(*split(case, given), by)
    check(case, got)
