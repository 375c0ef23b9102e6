"""The cases of `jsoftmax.sampling` in the conformance table: each row has a key of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import sampling
from tests import formulas
from tests.cases import CLASSES, ROWS, Case, logits, masks, number, per_row


def keys(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(2**32, size=(ROWS, 2), dtype=np.uint32)


def rowwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a key and logits, over the rows that both have; other arguments may have them."""

    def call(key: Any, logits: Any, **given: Any) -> Any:
        if jnp.ndim(key) == 1:
            return function(key, logits, **given)
        axes = {name: 0 if jnp.ndim(x) else None for name, x in given.items()}
        mapped = jax.vmap(lambda key, z, more: call(key, z, **more), in_axes=(0, 0, axes))
        return mapped(key, logits, given)

    return call


def gumbel_softmax(key: Any, logits: Any, temperature: Any, where: Any) -> Any:
    """The softmax of logits with noise, in their dtype, from the bits that the key gives."""
    bits = jax.random.bits(key, (CLASSES,), jnp.uint32).astype(logits.dtype)
    noise = -jnp.log(-jnp.log((bits + 0.5) / 2.0**32))
    return formulas.softmax(logits + noise, where, temperature=temperature)


def reinmax(key: Any, logits: Any, temperature: Any, where: Any) -> Any:
    """Algorithm 2 of the paper, for the sample that the library draws."""
    still = jax.lax.stop_gradient
    one = still(sampling.straight_through(key, logits, where=where))
    p = formulas.softmax(logits, where)
    mean = (one + formulas.softmax(logits, where, temperature=temperature)) / 2
    log_mean = jnp.log(mean if where is None else jnp.where(where, mean, 1))
    middle = formulas.softmax(still(log_mean - logits) + logits, where)
    soft = 2 * middle - p / 2
    return one + soft - still(soft)


def case(name: str, reference: Callable[..., Any], temperature: Any) -> Case:
    return Case(
        name,
        rowwise(getattr(sampling, name)),
        rowwise(reference),
        {"logits": logits, "key": keys, "temperature": temperature, "where": masks},
        output="classes",
    )


SAMPLING = (
    case("gumbel_softmax", gumbel_softmax, per_row(0.6, 1.8)),
    case("reinmax", reinmax, number(0.6, 1.8)),
)
