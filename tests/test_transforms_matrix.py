"""Every public function under every transformation of JAX, against formulas in float64."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.conformance import CASES, Case, Inputs, named
from tests.mesh import use_mesh
from tests.truth import agree, cotangent, cotangents, flat, quick, tangent, truth, weigh, x64

Function = Callable[[Any], Any]
# One of each kind, for what takes long: a map, a loss, statistics, a rule of a user's own.
KINDS = [named(name) for name in ("softmax", "cross_entropy", "row_stats_soft", "custom_vjp")]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


FIRST: dict[str, Callable[[Function, Function, Any, Any, Any], Any]] = {
    "grad": lambda f, phi, x, c, t: jax.grad(phi)(x),
    "vjp": lambda f, phi, x, c, t: jax.vjp(f, x)[1](c),
    "checkpoint": lambda f, phi, x, c, t: jax.grad(jax.checkpoint(phi))(x),
    "jvp": lambda f, phi, x, c, t: jax.jvp(f, (x,), (t,))[1],
    "linearize": lambda f, phi, x, c, t: jax.linearize(f, x)[1](t),
    "jacfwd": lambda f, phi, x, c, t: jax.jacfwd(f)(x),
    "jacrev": lambda f, phi, x, c, t: jax.jacrev(f)(x),
}
SECOND: dict[str, Callable[[Function, Any, Any], Any]] = {
    "jacfwd(jacfwd)": lambda phi, x, t: jax.jacfwd(jax.jacfwd(phi))(x),
    "jacfwd(jacrev)": lambda phi, x, t: jax.jacfwd(jax.jacrev(phi))(x),
    "jacrev(jacfwd)": lambda phi, x, t: jax.jacrev(jax.jacfwd(phi))(x),
    "jacrev(jacrev)": lambda phi, x, t: jax.jacrev(jax.jacrev(phi))(x),
    "jvp(grad)": lambda phi, x, t: jax.jvp(jax.grad(phi), (x,), (t,))[1],
    "grad(grad)": lambda phi, x, t: jax.grad(lambda x: jnp.vdot(jax.grad(phi)(x), t))(x),
}


@pytest.mark.thin(5)
@every_case
@pytest.mark.parametrize("how", FIRST)
def test_first_order(how: str, case: Case):
    true, c, t = truth(case), cotangent(case), tangent(case)
    f, phi, x = flat(case, case.inputs())
    got = quick(lambda x: FIRST[how](f, phi, x, jnp.asarray(c), jnp.asarray(t)))(x)
    if how in ("grad", "vjp", "checkpoint"):
        agree(got, c @ true.jacobian)
    else:
        agree(got, true.jacobian @ t if how in ("jvp", "linearize") else true.jacobian)


@pytest.mark.thin(9)
@every_case
@pytest.mark.parametrize("how", SECOND)
def test_second_order(how: str, case: Case):
    true, t = truth(case), tangent(case)
    _, phi, x = flat(case, case.inputs())
    got = quick(lambda x: SECOND[how](phi, x, jnp.asarray(t)))(x)
    agree(got, true.hessian if "jac" in how else true.hessian @ t, 5e-5)


@pytest.mark.thin(2)
@every_case
def test_third_order(case: Case):
    t = jnp.asarray(tangent(case))
    _, phi, x = flat(case, case.inputs())

    def curvature(x: Any) -> Any:
        return jax.jvp(jax.grad(phi), (x,), (t,))[1]

    got = quick(lambda x: jax.jvp(curvature, (x,), (t,))[1])(x)
    agree(got, truth(case).third, 2e-4)


@every_case
def test_eager_and_jit(case: Case):
    given = case.inputs()
    expected = truth(case).value
    arrays = jax.tree.map(jnp.asarray, given)
    agree(case.call(**arrays), expected)
    agree(jax.jit(case.call)(**arrays), expected)
    shapes = jax.eval_shape(case.call, **arrays)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, case.call(**arrays))
    chex.assert_type(jax.tree.leaves(shapes), jnp.float32)


@every_case
def test_numpy_and_python_numbers(case: Case):
    given = case.inputs()
    numbers = {name: x for name, x in given.items() if x.ndim == 0}
    fixed = {name: x for name, x in given.items() if x.ndim and x.dtype != np.float32}
    arrays = {name: x for name, x in given.items() if x.ndim and x.dtype == np.float32}
    plain = {name: float(x) for name, x in numbers.items()}
    true = truth(case)
    agree(case.call(**arrays, **plain, **fixed), true.value)

    def phi(arrays: Inputs) -> Any:
        return weigh(case.call(**arrays, **plain, **fixed), cotangents(case))

    gradient = dict.fromkeys(case.floats(given), 0) | quick(jax.grad(phi))(arrays)
    start, full = 0, cotangent(case) @ true.jacobian
    for name in sorted(gradient):
        if name in arrays:
            agree(gradient[name], full[start : start + given[name].size])
        start += given[name].size


@pytest.mark.parametrize("name", ["cross_entropy", "custom_vjp"])
def test_disable_jit(name: str):
    """Operation by operation, each compiled alone: slow, so only where a rule is."""
    case = named(name)
    _, phi, x = flat(case, case.inputs())
    with jax.disable_jit():
        value, slope = jax.value_and_grad(phi)(x)
    agree(value, cotangent(case) @ truth(case).value)
    agree(slope, cotangent(case) @ truth(case).jacobian)


@every_case
def test_some_arguments_at_a_time(case: Case):
    """The others have no tangent then, and rules may not ask for one."""
    given = case.inputs()
    first, *others = case.floats(given)

    def gradients(inputs: Inputs) -> Inputs:
        def phi(some: Inputs) -> Any:
            return weigh(case.call(**(inputs | some)), cotangents(case))

        parts = [{first: inputs[first]}, {name: inputs[name] for name in others}]
        return jax.grad(phi)(parts[0]) | (jax.grad(phi)(parts[1]) if others else {})

    agree(quick(gradients)(given), cotangent(case) @ truth(case).jacobian)


SCALES = (0.9, 1.0)


def scaled(case: Case, scale: float) -> Inputs:
    inputs = case.inputs()
    return inputs | {name: np.float32(scale) * x for name, x in case.floats(inputs).items()}


def scan(phi: Function, x: Any, scales: Any) -> Any:
    return jax.lax.scan(lambda total, s: (total + phi(s * x), None), jnp.zeros(()), scales)[0]


def fori(phi: Function, x: Any, scales: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda i, total: total + phi(scales[i] * x), jnp.zeros(()))


def branches(phi: Function, x: Any, scales: Any) -> Any:
    both = (lambda x: phi(scales[0] * x), lambda x: phi(scales[1] * x))
    return jax.lax.cond(scales[0] < 1, *both, x) + jax.lax.switch(1, both, x)


def mapped(phi: Function, x: Any, scales: Any) -> Any:
    return jnp.sum(jax.lax.map(lambda s: phi(s * x), scales))


def loop(phi: Function, x: Any, scales: Any) -> Any:
    def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
        return state[0] + 1, state[1] + phi(scales[state[0]] * x)

    return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, jnp.zeros(())))[1]


@pytest.mark.thin(5)
@every_case
@pytest.mark.parametrize("walk", [scan, fori, branches, mapped])
def test_control_flow(walk: Callable[..., Any], case: Case):
    true = sum(s * (cotangent(case) @ truth(case, scaled(case, s)).jacobian) for s in SCALES)
    _, phi, x = flat(case, case.inputs())
    agree(quick(jax.grad(lambda x: walk(phi, x, jnp.asarray(SCALES))))(x), true)


@every_case
def test_while_loop_forward(case: Case):
    c, t = cotangent(case), tangent(case)
    true = sum(s * (c @ truth(case, scaled(case, s)).jacobian @ t) for s in SCALES)
    _, phi, x = flat(case, case.inputs())
    got = quick(lambda x: jax.jvp(lambda x: loop(phi, x, jnp.asarray(SCALES)), (x,), (t,)))(x)[1]
    agree(got, true, 3e-5)


@pytest.mark.parametrize(
    ("outer", "case"),
    [(outer, case) for case in CASES for outer in ("jvp(grad)", "grad(grad)")],
    ids=lambda x: getattr(x, "name", x),
)
def test_second_order_in_scan(outer: str, case: Case):
    """There, jax drops a custom_jvp rule and differentiates the function itself."""
    t = tangent(case)
    true = sum(s**2 * (truth(case, scaled(case, s)).hessian @ t) for s in SCALES)
    _, phi, x = flat(case, case.inputs())

    def walk(x: Any) -> Any:
        return scan(phi, x, jnp.asarray(SCALES))

    agree(quick(lambda x: SECOND[outer](walk, x, jnp.asarray(t)))(x), true, 5e-5)


# What searches in a loop, which has no backward pass of its own.
SEARCHES = ("entmax", "entmax_traced", "sparsemax", "entmax_loss", "bi_tempered_logistic_loss")


@pytest.mark.thin(3)
@pytest.mark.parametrize("walk", [scan, fori, mapped])
@pytest.mark.parametrize("name", SEARCHES)
def test_grad_of_grad_of_a_search_in_a_loop(name: str, walk: Callable[..., Any]):
    case = named(name)
    t = tangent(case)
    true = sum(s**2 * (truth(case, scaled(case, s)).hessian @ t) for s in SCALES)
    _, phi, x = flat(case, case.inputs())

    def whole(x: Any) -> Any:
        return walk(phi, x, jnp.asarray(SCALES))

    agree(quick(lambda x: SECOND["grad(grad)"](whole, x, jnp.asarray(t)))(x), true, 5e-5)


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", SEARCHES)
def test_third_order_of_a_search_in_scan(name: str):
    case = named(name)
    t = jnp.asarray(tangent(case))
    _, phi, x = flat(case, case.inputs())

    def slope(f: Function) -> Function:
        return lambda x: jnp.vdot(jax.grad(f)(x), t)

    def walk(x: Any) -> Any:
        return scan(phi, x, jnp.ones(1))

    agree(quick(jax.grad(slope(slope(walk))))(x), truth(case).third, 2e-4)


def batch_of_two(case: Case, names: tuple[str, ...]) -> tuple[Inputs, list[np.ndarray]]:
    """The named arguments in two draws on a new leading axis; the gradients of both."""
    draws = [case.inputs(0), case.inputs(1)]
    points = [draws[0], draws[0] | {name: draws[1][name] for name in names}]
    stacked = draws[0] | {name: np.stack([d[name] for d in draws]) for name in names}
    return stacked, [cotangent(case) @ truth(case, point).jacobian for point in points]


def unstack(tree: Any, axis: int) -> list[Any]:
    parts = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), axis, 0), tree)
    return [jax.tree.map(operator.itemgetter(i), parts) for i in range(2)]


def gradient(case: Case, inputs: Inputs) -> Inputs:
    fixed = {k: v for k, v in inputs.items() if k not in case.floats(inputs)}
    return jax.grad(lambda x: weigh(case.call(**x, **fixed), cotangents(case)))(case.floats(inputs))


SINGLE = [(case, name) for case in CASES for name in case.draws]


@pytest.mark.thin(5)
@pytest.mark.parametrize(("case", "name"), SINGLE, ids=[f"{c.name}-{n}" for c, n in SINGLE])
def test_vmap_of_one_argument(case: Case, name: str):
    stacked, true = batch_of_two(case, (name,))
    axes = {other: 0 if other == name else None for other in stacked}
    got = quick(jax.vmap(lambda inputs: gradient(case, inputs), in_axes=(axes,)))(stacked)
    for one, expected in zip(unstack(got, 0), true, strict=True):
        agree(one, expected)


@every_case
def test_vmap_of_all_arguments_over_a_mesh_axis(case: Case):
    stacked, true = batch_of_two(case, tuple(case.draws))
    last = {name: np.moveaxis(x, 0, -1) for name, x in stacked.items()}
    mapped = jax.vmap(
        lambda inputs: gradient(case, inputs), in_axes=-1, out_axes=-1, spmd_axis_name="examples"
    )
    with use_mesh(jax.make_mesh((2,), ("examples",), (jax.sharding.AxisType.Auto,))):
        got = quick(mapped)(last)
    for one, expected in zip(unstack(got, -1), true, strict=True):
        agree(one, expected)


def doubled(case: Case) -> Inputs:
    single = case.inputs()
    return single | {name: x.astype(np.float64) for name, x in case.floats(single).items()}


@every_case
def test_float64(case: Case):
    true, t = truth(case), tangent(case)
    with x64():
        f, phi, x = flat(case, doubled(case))

        def both(x: Any) -> tuple[Any, Any, Any]:
            curvature = jax.jvp(jax.grad(phi), (x,), (jnp.asarray(t, x.dtype),))
            return f(x), *curvature

        value, slope, along = quick(both)(x)
        assert value.dtype == slope.dtype == np.float64
        agree(value, true.value, 1e-13)
        agree(slope, cotangent(case) @ true.jacobian, 1e-12)
        agree(along, true.hessian @ t, 1e-11)


def test_finite_differences():
    """What no formula of ours or of JAX takes part in."""
    with x64():
        case = named("cross_entropy")
        _, phi, x = flat(case, doubled(case))
        check_grads(jax.jit(phi), (x,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
