"""Dataclasses as pytrees that JAX can tell apart.

`jax.tree_util.register_dataclass` would be shorter. But up to jaxlib 0.10.2 the tree structures of two
such classes with as many fields compare equal, and `jit` then takes, in about one of 200 pairs, what it
compiled for one of them to run the other: a softcap in place of a temperature, without an error.

Imports nothing of this package.
"""

import dataclasses
from typing import Any

import jax


def register(cls: type) -> None:
    """Makes a dataclass a pytree: its fields are children, those marked `static` part of the tree.

    The fields are looked up when they are needed, so that a class can be registered before it is
    decorated.
    """

    def names(static: bool) -> list[str]:
        return [f.name for f in dataclasses.fields(cls) if f.metadata.get("static", False) is static]

    def flatten_with_keys(x: Any) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in names(False)]
        return children, tuple(getattr(x, name) for name in names(True))

    def unflatten(static: tuple[Any, ...], children: Any) -> Any:
        fields = zip(names(False) + names(True), (*children, *static), strict=True)
        return cls(**dict(fields))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
