"""Functions compiled by themselves where they are called eagerly, and traced where a program is traced.

Eager use, under `grad` and `vmap` too, is one dispatch of a program that is compiled once. Inside an
outer trace, a function compiled by itself would come from JAX's cache as it was traced before: what
replaces operations while a model is traced, as quantisers replace `jax.lax.dot_general`, would not be
seen, or would stay in the cache for other models. There, the function is simply called.

Imports nothing of this package.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp

R = TypeVar("R")


def compiled(*static: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorates a function whose arguments of these names are static, all others arrays or trees."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        by_itself = jax.jit(function, static_argnames=static)
        names = list(inspect.signature(function).parameters)
        places = [names.index(name) for name in static if name in names]

        def arrays(x: Any) -> Any:
            return jax.tree.map(jnp.asarray, x)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> R:
            if not _is_staged(args, kwargs):
                return by_itself(*args, **kwargs)
            given = (x if i in places else arrays(x) for i, x in enumerate(args))
            named = {name: x if name in static else arrays(x) for name, x in kwargs.items()}
            return function(*given, **named)

        return wrapped

    return decorate


@functools.cache
def _staged() -> type:
    """The type of the values of a program that is being traced."""
    seen = []
    jax.eval_shape(lambda x: seen.append(type(x)), 0.0)
    return seen[0]


def _is_staged(*args: Any) -> bool:
    """Whether a program is being traced; not so in eager `grad` and `vmap`, which trace only values."""
    kinds = {type(x) for x in jax.tree.leaves(args) if isinstance(x, jax.core.Tracer)}
    if not kinds:
        return False
    # Their own values may be of a program; then, a constant becomes a value of that too.
    return _staged() in kinds or isinstance(jnp.asarray(0.0), _staged())
