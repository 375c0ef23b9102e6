"""optax's own tests of its losses, run with our functions in place of theirs.

optax installs its tests with the package. Every test there that touches a name which
jsoftmax.losses has too becomes one item here, so that a failure carries optax's name for it.
"""

import functools
import importlib
import inspect
import sys
import types
import unittest
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

from jsoftmax import losses

# A module of optax.losses and the tests of it.
MODULES = {
    "_classification": "_classification_test",
    "_smoothing": "_smoothing_test",
    "_fenchel_young": "_fenchel_young_test",
}
OURS = {
    name: value
    for name, value in vars(losses).items()
    if not name.startswith("_") and inspect.isfunction(inspect.unwrap(value))
}


def load(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(f"optax.losses.{name}")
    except ModuleNotFoundError:
        return None


def names_in(code: types.CodeType) -> set[str]:
    """The attributes and globals that a function mentions, in its inner functions too."""
    inner = (names_in(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*inner)


def optax_cases() -> Iterator[tuple[type[unittest.TestCase], str, set[str]]]:
    """Every optax test that mentions a function of ours: its class, its name, those functions."""
    for test_module in filter(None, map(load, MODULES.values())):
        for _, case in inspect.getmembers(test_module, inspect.isclass):
            if case.__module__ != test_module.__name__ or not issubclass(case, unittest.TestCase):
                continue
            for name in unittest.defaultTestLoader.getTestCaseNames(case):
                method = inspect.unwrap(getattr(case, name))
                used = names_in(method.__code__) & OURS.keys()
                if used:
                    yield case, name, used


CASES = list(optax_cases())


def test_suite_is_installed():
    missing = [f"optax.losses.{name}" for name in MODULES.values() if load(name) is None]
    assert missing == [], "this optax comes without the tests that our losses are held to"


def test_suite_covers_the_shared_names():
    shared = {name for name in OURS for module in MODULES if hasattr(load(module), name)}
    assert "softmax_cross_entropy" in shared
    assert shared == set().union(*(used for _, _, used in CASES))


@pytest.mark.parametrize(
    ("case", "name", "used"), [pytest.param(*c, id=f"{c[0].__name__}.{c[1]}") for c in CASES]
)
def test_optax(
    case: type[unittest.TestCase], name: str, used: set[str], monkeypatch: pytest.MonkeyPatch
):
    called: set[str] = set()

    def counted(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        @functools.wraps(function)
        def call(*args: object, **options: object) -> jax.Array:
            called.add(function.__name__)
            return function(*args, **options)

        return call

    for module in MODULES:
        for ours, function in OURS.items():
            if hasattr(load(module), ours):
                monkeypatch.setattr(f"optax.losses.{module}.{ours}", counted(function))
    # unittest reads `__warningregistry__` of every module there is, and some of mpmath's warn of that.
    for module in [name for name in sys.modules if name.startswith("mpmath.")]:
        monkeypatch.delitem(sys.modules, module)
    # optax's tests draw from the global generator and mix dtypes in their own reference formulas.
    np.random.seed(0)  # noqa: NPY002
    with jax.numpy_dtype_promotion("standard"):
        case(name).debug()
    assert called >= used
