"""optax's own tests of its projection onto the simplex, run with our sparsemax in its place.

`test_optax_suite.py` does the same for the losses; the entmax package's tests need torch, and are run
by `benchmarks/entmax_suite.py`.
"""

import inspect
import unittest
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax.flatten_util import ravel_pytree
from optax import projections
from optax.projections import _projections, _projections_test

from jsoftmax import sparsemax

# Those of the simplex itself, and those of projections that go through it.
THROUGH = ("simplex", "l1_sphere", "l1_ball")


def cases() -> Iterator[tuple[type[unittest.TestCase], str]]:
    for _, case in inspect.getmembers(_projections_test, inspect.isclass):
        if issubclass(case, unittest.TestCase) and case.__module__ == _projections_test.__name__:
            for name in unittest.defaultTestLoader.getTestCaseNames(case):
                if any(part in name for part in THROUGH):
                    yield case, name


CASES = list(cases())


def test_suite_has_the_projection():
    names = [name for _, name in CASES if "simplex" in name]
    assert len(names) >= 8
    assert any("jacobian" in name for name in names)


@pytest.mark.parametrize(("case", "name"), [pytest.param(*c, id=c[1]) for c in CASES])
def test_optax_projection(case: type[unittest.TestCase], name: str, monkeypatch: pytest.MonkeyPatch):
    called = []

    def projection(tree: Any, scale: Any = 1.0) -> Any:
        called.append(name)
        flat, unravel = ravel_pytree(tree)
        return unravel(scale * sparsemax(flat / scale))

    for module in (projections, _projections):
        monkeypatch.setattr(module, "projection_simplex", projection)
    with jax.numpy_dtype_promotion("standard"):
        case(name).debug()
    assert called
