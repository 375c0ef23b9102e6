"""What is true of every case of `tests.conformance`: values and derivatives, in float64."""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tests.conformance import Case, Inputs, named


class Derivatives(NamedTuple):
    """What is true of one case at one point, in float64.

    The floating arguments are one vector `x` and the outputs one vector `f`; `phi = c · f` with the
    fixed cotangent `c` is what derivatives of second and third order are taken of.
    """

    value: np.ndarray  # [outputs]
    jacobian: np.ndarray  # [outputs, inputs]
    hessian: np.ndarray  # of phi, [inputs, inputs]
    third: np.ndarray  # of phi along the tangent twice, [inputs]


# Hundreds of programs run once each: what is tested is what JAX traces, not how well XLA compiles it.
_HURRY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@functools.cache
def _compiler_options() -> dict[str, Any]:
    try:
        jax.jit(lambda x: x, compiler_options=_HURRY)(0.0)
    except jax.errors.JaxRuntimeError:  # another release, other options: slower, and as good
        return {}
    return _HURRY


def quick(f: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, compiled four times as fast where this XLA has the options for it."""
    return jax.jit(f, compiler_options=_compiler_options())


def x64() -> AbstractContextManager[Any]:
    """64-bit mode, under the name it has in this release of JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64()


@functools.cache
def _cotangents(name: str) -> Any:
    case = named(name)
    rng, given = np.random.default_rng(3), case.inputs()
    out = jax.eval_shape(lambda: case.reference(**jax.tree.map(jnp.asarray, given)))
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), out)


def cotangents(case: Case) -> Any:
    """The fixed cotangent `c` in the structure of the outputs."""
    return _cotangents(case.name)


def cotangent(case: Case) -> np.ndarray:
    """The fixed cotangent `c` as a vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(cotangents(case))])


def tangent(case: Case) -> np.ndarray:
    """The fixed direction in `x`."""
    size = sum(x.size for x in case.floats(case.inputs()).values())
    return np.random.default_rng(4).standard_normal(size).astype(np.float32)


def weigh(outputs: Any, by: Any) -> jax.Array:
    """`phi` of outputs in their structure, and of a cotangent like them."""
    terms = jax.tree.map(lambda c, y: jnp.sum(jnp.asarray(c, y.dtype) * y), by, outputs)
    return functools.reduce(operator.add, jax.tree.leaves(terms))


def flat(
    case: Case, inputs: Inputs, call: Callable[..., Any] | None = None
) -> tuple[Callable[[Any], jax.Array], Callable[[Any], jax.Array], jax.Array]:
    """`f` and `phi` as functions of the vector `x`, and `x` itself."""
    fixed = {k: v for k, v in inputs.items() if k not in case.floats(inputs)}
    x, unravel = ravel_pytree(case.floats(inputs))
    c = jnp.asarray(cotangent(case), x.dtype)

    def f(x: Any) -> jax.Array:
        return ravel_pytree((call or case.call)(**unravel(x), **fixed))[0]

    return f, lambda x: jnp.dot(c, f(x)), x


@functools.cache
def _derivatives_of(name: str) -> Callable[[Inputs], tuple[jax.Array, ...]]:
    case = named(name)
    t = tangent(case)

    def derivatives(inputs: Inputs) -> tuple[jax.Array, ...]:
        f, phi, x = flat(case, inputs, case.reference)
        hessian = jax.hessian(phi)
        along = jnp.asarray(t, x.dtype)
        third = jax.jvp(lambda x: jnp.matmul(hessian(x), along), (x,), (along,))[1]
        return f(x), jax.jacfwd(f)(x), hessian(x), third

    return quick(derivatives)


def truth(case: Case, inputs: Inputs | None = None) -> Derivatives:
    """The derivatives of the reference, in float64, at the given arguments."""
    given = case.inputs() if inputs is None else inputs
    with x64():
        doubled = {
            k: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v
            for k, v in given.items()
        }
        found = _derivatives_of(case.name)({k: jnp.asarray(v) for k, v in doubled.items()})
        return Derivatives(*map(np.asarray, found))


def agree(got: Any, true: Any, tolerance: float = 1e-5) -> None:
    """The leaves of `got` against one vector, relative to its largest entry."""
    leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(got)]
    found, true = np.concatenate(leaves), np.ravel(np.asarray(true, np.float64))
    scale = np.max(np.abs(true), initial=1e-3)
    np.testing.assert_allclose(found, true, rtol=tolerance, atol=tolerance * scale)
