"""Every public function through `jax.export`: lowered here for CPU, GPU and TPU, for any batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from tests.conformance import CASES, ROWS, Case, Inputs, named
from tests.truth import agree, cotangent, cotangents, quick, truth, weigh

PLATFORMS = ("cpu", "cuda", "tpu")


def program(case: Case, inputs: Inputs, by: Any) -> tuple[Any, Inputs]:
    """The outputs, and the gradient of `phi` in the floating arguments."""
    fixed = {name: x for name, x in inputs.items() if name not in case.floats(inputs)}

    def phi(floats: Inputs) -> tuple[Any, Any]:
        out = case.call(**floats, **fixed)
        return weigh(out, by), out

    (_, out), gradient = jax.value_and_grad(phi, has_aux=True)(case.floats(inputs))
    return out, gradient


def shapes(tree: Any, batch: Any) -> Any:
    """The types of arrays, with a symbol for the number of rows."""

    def like(x: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (batch, *x.shape[1:]) if x.shape[:1] == (ROWS,) else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(like, tree)


@pytest.mark.thin(2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_export_for_any_batch(case: Case):
    given, by = case.inputs(), cotangents(case)
    rows = export.symbolic_shape("rows")[0]
    lower = export.export(jax.jit(lambda x, c: program(case, x, c)), platforms=PLATFORMS)
    stored = lower(shapes(given, rows), shapes(by, rows)).serialize()
    loaded = export.deserialize(stored)
    assert loaded.platforms == PLATFORMS
    value, gradient = quick(loaded.call)(given, by)
    true = truth(case)
    agree(value, true.value)
    agree(gradient, cotangent(case) @ true.jacobian)


# One of each kind: a map, the loss with all its options, statistics, a rule of a user's own.
KINDS = ("softmax", "cross_entropy_integer_everything", "row_stats_soft", "custom_vjp")


@pytest.mark.parametrize("name", KINDS)
def test_derivative_of_what_was_stored(name: str):
    case = named(name)
    given = case.inputs()
    lower = export.export(jax.jit(lambda inputs: case.call(**inputs)), platforms=PLATFORMS)
    loaded = export.deserialize(lower(shapes(given, ROWS)).serialize(vjp_order=1))
    fixed = {name: x for name, x in given.items() if name not in case.floats(given)}

    def phi(floats: Inputs) -> Any:
        return weigh(loaded.call(floats | fixed), cotangents(case))

    agree(quick(jax.grad(phi))(case.floats(given)), cotangent(case) @ truth(case).jacobian)
