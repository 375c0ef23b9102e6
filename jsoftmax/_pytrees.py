"""Dataclasses as pytrees that JAX can tell apart, and arguments that are pytrees and mean arrays.

`jax.tree_util.register_dataclass` would be shorter. But up to jaxlib 0.10.2 the tree structures of two
such classes with as many fields compare equal, and `jit` then takes, in about one of 200 pairs, what it
compiled for one of them to run the other: a softcap in place of a temperature, without an error.

Imports nothing of this package.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def register(cls: type) -> None:
    """Makes a dataclass a pytree: its fields are children, those marked `static` part of the tree.

    The fields are looked up when they are needed, so that a class can be registered before it is
    decorated. Its `__init__` is for its users: JAX puts anything in the place of a leaf, a mask or an
    object, and gets back what holds that, unchecked.
    """

    def names(static: bool) -> list[str]:
        return [f.name for f in dataclasses.fields(cls) if f.metadata.get("static", False) is static]

    def flatten_with_keys(x: Any) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in names(False)]
        return children, tuple(getattr(x, name) for name in names(True))

    def unflatten(static: tuple[Any, ...], children: Any) -> Any:
        made = object.__new__(cls)
        for name, x in zip(names(False) + names(True), (*children, *static), strict=True):
            # The class is frozen.
            object.__setattr__(made, name, x)
        return made

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)


def takes_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function take whatever has `__jax_array__`, anywhere in its arguments, as its array.

    `flax.nnx.Param` is a pytree too, and so are others: a rule would be asked for a gradient of that
    type, and `jit` would take the object for a tree.
    """

    @functools.wraps(function)
    def with_arrays(*args: P.args, **kwargs: P.kwargs) -> R:
        call: Callable[..., R] = function
        return call(*map(as_arrays, args), **{name: as_arrays(x) for name, x in kwargs.items()})

    return with_arrays


# What is no such object and holds none.
_PLAIN = (jax.Array, np.ndarray, np.generic, bool, int, float, complex, str, type(None))


def as_arrays(x: Any) -> Any:
    """`x`, or a pytree like it, with an array in place of every object that says it is one."""
    if isinstance(x, _PLAIN):
        return x
    if isinstance(x, list) and x and isinstance(x[0], int | float):
        # Numbers, maybe a million.
        return x
    leaves, tree = jax.tree.flatten(x, is_leaf=_stands_for_array)
    if not any(map(_stands_for_array, leaves)):
        return x
    return tree.unflatten([jnp.asarray(leaf) if _stands_for_array(leaf) else leaf for leaf in leaves])


def _stands_for_array(x: Any) -> bool:
    return hasattr(x, "__jax_array__") and not isinstance(x, jax.Array | type)
