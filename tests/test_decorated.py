"""`custom_vjp` as the decorator of methods, and what it makes pickled, copied and read by others."""

import copy
import dataclasses
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import custom_vjp
from tests.conformance import CASES


@custom_vjp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, ct: (3 * ct,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """A pytree with a method: its leaves have gradients too."""

    scale: jax.Array

    @custom_vjp
    def apply(self, x: jax.Array) -> jax.Array:
        """Scales."""
        return self.scale * x

    def _fwd(self, x: jax.Array) -> Any:
        return self.apply(x), (self, x)

    @staticmethod
    def _bwd(residuals: Any, ct: jax.Array) -> Any:
        layer, x = residuals
        return Layer(10 * jnp.sum(ct * x)), layer.scale * ct

    apply.defvjp(_fwd, _bwd)


class Config:
    """A plain object with a method: static, since it is hashable."""

    def __init__(self, scale: float):
        self.scale = scale

    @functools.partial(custom_vjp, nondiff_argnums=(0,))
    def apply(self, x: jax.Array) -> jax.Array:
        return self.scale * x

    def _fwd(self, x: jax.Array) -> Any:
        return self.apply(x), None

    def _bwd(self, _: None, ct: jax.Array) -> Any:
        return (10 * self.scale * ct,)

    apply.defvjp(_fwd, _bwd)


def test_a_method_of_a_pytree_has_its_rule():
    layer, x = Layer(jnp.asarray(2.0)), jnp.array([1.0, 3.0])
    np.testing.assert_array_equal(layer.apply(x), 2 * x)
    grads = jax.grad(lambda layer, x: jnp.sum(layer.apply(x)), (0, 1))(layer, x)
    assert grads[0].scale == 40
    np.testing.assert_array_equal(grads[1], [2, 2])
    tangent = jax.jvp(lambda x: layer.apply(x=x), (x,), (x,))[1]
    np.testing.assert_array_equal(tangent, 2 * x)


def test_a_method_of_a_plain_object_has_its_rule():
    config, x = Config(2.0), jnp.array([1.0, 3.0])
    np.testing.assert_array_equal(jax.jit(config.apply)(x), 2 * x)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(config.apply(x)))(x), [20, 20])


def test_the_class_has_the_function_itself():
    assert Layer.apply.__doc__ == "Scales."
    np.testing.assert_array_equal(Layer.apply(Layer(jnp.asarray(2.0)), jnp.ones(2)), [2, 2])


@pytest.mark.parametrize("function", [doubled, Layer.apply, Config.apply], ids=lambda f: f.__qualname__)
def test_a_decorated_function_is_pickled_by_its_name(function: Any):
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.copy(function) is function
    assert copy.deepcopy({"loss": function})["loss"] is function


def test_a_function_of_no_module_is_not_pickled():
    def local(x: jax.Array) -> jax.Array:
        return x

    decorated = custom_vjp(local)
    assert copy.deepcopy(decorated) is decorated
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(decorated)


def literals(jaxpr: Any) -> list[Any]:
    """What stands as a bare Python value among the operands of rules, those of inner jaxprs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_jvp_call"):
            found += [x.val for x in equation.invars if hasattr(x, "val") and isinstance(x.val, bool)]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found += literals(inner) if hasattr(inner, "eqns") else []
    return found


# Not by a parameter named `case`, of which slow tests take their part.
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_no_operand_of_a_rule_is_a_python_bool(number: int):
    """What reads jaxprs, as folx does, asks every operand for its shape."""
    case = CASES[number]
    inputs = case.inputs()
    if "key" not in inputs and "where" in inputs:
        # Without a mask no row is empty, which is known before tracing.
        inputs = {name: x for name, x in inputs.items() if name != "where"}
        call = functools.partial(case.call, where=None)
    else:
        call = case.call
    assert literals(jax.make_jaxpr(lambda given: call(**given))(inputs).jaxpr) == []
