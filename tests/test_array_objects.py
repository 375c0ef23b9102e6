"""Whatever has `__jax_array__` is an array, wherever a function takes one, under `grad` too.

`flax.nnx.Param` is such an object, and a pytree: a rule must not see it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical
from tests.conformance import CASES
from tests.test_flags import OPTIONS, random
from tests.truth import quick


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(eq=False)
class Box:
    """A parameter as modules hold them."""

    value: Any

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.value)

    def tree_flatten(self) -> tuple[Any, None]:
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Box":
        return cls(*children)


def gradient_of(call: Callable[..., Any], given: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
    """The function's value and its gradient, and the arguments that have one and the others."""
    arrays = {name: jnp.asarray(x) for name, x in given.items()}
    floats = {k: x for k, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    others = {k: x for k, x in arrays.items() if k not in floats}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def both(floats: Any, others: Any) -> Any:
        out = call(**floats, **others)
        leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        finite = (jnp.sum(jnp.where(jnp.isfinite(x), x, 0)) for x in leaves)
        return sum(finite, jnp.zeros(())), out

    return both, floats, others


def boxed(x: Any) -> Any:
    return jax.tree.map(Box, x)


def assert_objects_are_traced_as_arrays(call: Callable[..., Any], given: dict[str, Any]) -> None:
    both, floats, others = gradient_of(call, given)
    found, gradient = jax.eval_shape(both, boxed(floats), boxed(others))
    plain, expected = jax.eval_shape(both, floats, others)
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    assert jax.tree.leaves(found) == jax.tree.leaves(plain)
    assert {name: box.value for name, box in gradient.items()} == expected


def assert_objects_are_arrays(call: Callable[..., Any], given: dict[str, Any]) -> None:
    both, floats, others = gradient_of(call, given)
    found = jax.tree.leaves(quick(both)(boxed(floats), boxed(others)))
    expected = jax.tree.leaves(quick(both)(floats, others))
    assert len(found) == len(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# The function under test there is the user's own, whose arguments are what it says they are.
PLAIN = [case for case in CASES if case.name != "custom_vjp" and "adaptive" not in case.name]


# Not by a parameter named `case`, of which slow tests take their part.
@pytest.mark.parametrize("number", range(len(PLAIN)), ids=[case.name for case in PLAIN])
def test_every_argument_may_be_an_object(number: int):
    assert_objects_are_traced_as_arrays(PLAIN[number].call, PLAIN[number].inputs())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_may_be_an_object(name: str):
    assert_objects_are_traced_as_arrays(*OPTIONS[name])


@pytest.mark.parametrize("name", ["cross_entropy", "transforms", "linear", "sampled_rows", "row_adam"])
def test_objects_have_the_values_of_their_arrays(name: str):
    assert_objects_are_arrays(*OPTIONS[name])


def test_parameters_inside_a_pytree_may_be_objects():
    params = hierarchical.adaptive_init(jax.random.key(0), 3, 6, (2, 4), division=1.5, head_bias=True)
    hidden, labels = random(4, 3), np.arange(4)

    def loss(params: Any) -> Any:
        return hierarchical.adaptive_cross_entropy(hidden, params, labels, reduction="mean")

    boxed = jax.grad(loss)(jax.tree.map(lambda x: Box(x) if x.dtype == jnp.float32 else x, params))
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.leaves(boxed), jax.tree.leaves(jax.grad(loss)(params))
    )


def test_counts_and_ids_may_be_objects():
    counts: Any = Box(jnp.array([8, 4, 2, 2]))
    tree = hierarchical.huffman_tree(counts)
    assert tree.num_classes == 4
    assert hierarchical.unigram_proposal(counts).num_classes == 4
    labels: Any = Box(jnp.array([0, 3]))
    ignored: Any = Box(jnp.array(3))
    assert hierarchical.tree_distance(labels, labels, tree).tolist() == [0, 0]
    loss = jsoftmax.cross_entropy(jnp.zeros((2, 4)), labels, ignore_index=ignored)
    assert loss[1] == 0


def test_row_optimizers_take_objects():
    init, update = hierarchical.row_adagrad(0.1)
    kernel, rows, values = Box(jnp.zeros((3, 1))), jnp.array([1, 1]), Box(jnp.ones((2, 1)))
    updates, _ = update(values, init(kernel), rows)
    updated = hierarchical.apply_row_updates(kernel, rows, updates)
    assert isinstance(updated, jax.Array)


def test_an_array_in_an_object_costs_no_trace():
    traced = []

    @jax.jit
    def step(bias: Any) -> Any:
        traced.append(0)
        return jsoftmax.linear_cross_entropy(
            jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.arange(2), bias=bias
        )

    for seed in range(3):
        step(Box(jnp.asarray(random(4, seed=seed))))
    assert len(traced) == 1
