"""`custom_vjp` as a tool of its own: rules of every form, in every mode.

The rules here are wrong on purpose where it shows which code ran: their backward rule returns a
marked multiple of the true gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jsoftmax
from tests.mesh import use_mesh
from tests.truth import quick

MARK = 7.0


def marked_square() -> Any:
    """`x²`, with a backward rule that says `7 · x` in place of `2 · x`."""

    @jsoftmax.custom_vjp
    def square(x: Any) -> Any:
        return x * x

    square.defvjp(lambda x: (square(x), x), lambda x, ct: (MARK * x * ct,))
    return square


FIRST: dict[str, Callable[[Any, Any], Any]] = {
    "grad": lambda f, x: jax.grad(lambda x: jnp.sum(f(x)))(x),
    "vjp": lambda f, x: jax.vjp(f, x)[1](jnp.ones_like(x))[0],
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1],
    "linearize": lambda f, x: jax.linearize(f, x)[1](jnp.ones_like(x)),
    "jacfwd": lambda f, x: jnp.diagonal(jax.jacfwd(f)(x)),
    "jacrev": lambda f, x: jnp.diagonal(jax.jacrev(f)(x)),
    "vmap(grad)": lambda f, x: jax.vmap(jax.grad(f))(x),
    "vmap(jvp)": lambda f, x: jax.vmap(lambda x: jax.jvp(f, (x,), (1.0,))[1])(x),
    "checkpoint": lambda f, x: jax.grad(jax.checkpoint(lambda x: jnp.sum(f(x))))(x),
    "scan": lambda f, x: jax.grad(lambda x: jax.lax.scan(lambda c, v: (c + f(v), None), 0.0, x)[0])(x),
    "jvp of scan": lambda f, x: jax.lax.scan(
        lambda c, v: (c, jax.jvp(f, (v,), (jnp.ones_like(v),))[1]), 0.0, x
    )[1],
    "map": lambda f, x: jax.lax.map(jax.grad(f), x),
}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("mode", FIRST)
def test_every_mode_runs_the_rule(mode: str, jit: bool):
    x = jnp.array([1.0, -2.0, 3.0])
    run = quick(lambda x: FIRST[mode](marked_square(), x)) if jit else (
        lambda x: FIRST[mode](marked_square(), x))  # fmt: skip
    np.testing.assert_allclose(run(x), MARK * x, rtol=1e-6)


def test_second_order_differentiates_the_rule():
    """The derivative of `7 · x`, in the four orders, and of a rule that calls its function again."""
    square, x = marked_square(), jnp.array([1.0, -2.0])
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            hessian = outer(inner(lambda x: jnp.sum(square(x))))(x)
            np.testing.assert_allclose(hessian, MARK * np.eye(2))

    @jsoftmax.custom_vjp
    def exponential(x: Any) -> Any:
        return jnp.exp(x)

    def forward(x: Any) -> tuple[Any, Any]:
        y = exponential(x)
        return y, y

    exponential.defvjp(forward, lambda y, ct: (2 * y * ct,))
    derivative: Any = exponential
    for order in (1, 2, 3):
        derivative = jax.grad(derivative) if order % 2 else jax.jacfwd(derivative)
        np.testing.assert_allclose(derivative(0.5), 2**order * np.exp(0.5), rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


def affine() -> Any:
    """Pytrees in and out, an integer argument, several outputs, keywords and a default."""

    @jsoftmax.custom_vjp
    def f(layer: Layer, x: Any, index: Any, options: Any = None, scale: Any = 1.0) -> dict[str, Any]:
        del options
        row = layer.kernel[index]
        return {"y": scale * x * row + layer.bias["b"], "index": index + 1, "norm": jnp.sum(x * x)}

    def fwd(layer: Layer, x: Any, index: Any, options: Any, scale: Any) -> tuple[Any, Any]:
        return f(layer, x, index, options, scale), (layer, x, index, scale)

    def bwd(residuals: Any, ct: Any) -> tuple[Any, ...]:
        layer, x, index, scale = residuals
        row, g = layer.kernel[index], ct["y"]
        d_kernel = jnp.zeros_like(layer.kernel).at[index].set(scale * g * x)
        d_layer = Layer(d_kernel, {"b": g, "unused": None})
        return d_layer, scale * g * row + 2 * ct["norm"] * x, None, None, jnp.sum(g * x * row)

    f.defvjp(fwd, bwd)
    return f


def plain(layer: Layer, x: Any, index: Any, scale: Any = 1.0) -> dict[str, Any]:
    y = scale * x * layer.kernel[index] + layer.bias["b"]
    return {"y": y, "index": index + 1, "norm": jnp.sum(x * x)}


def operands() -> tuple[Layer, Any]:
    rng = np.random.default_rng(0)
    bias = {"b": jnp.asarray(rng.standard_normal(3), jnp.float32), "unused": jnp.ones(2)}
    return Layer(jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), bias), jnp.arange(3.0)


def test_pytrees_integers_keywords_and_several_outputs():
    ours, (layer, x), index = affine(), operands(), jnp.array(2)

    def total(f: Any) -> Callable[..., Any]:
        def call(layer: Layer, x: Any, scale: Any) -> Any:
            out = f(layer, x, scale=scale, index=index)
            return jnp.sum(out["y"] ** 2) + out["norm"]

        return call

    chex.assert_trees_all_close(ours(layer, x, index), plain(layer, x, index))
    arguments = (layer, x, jnp.float32(1.5))
    expected = jax.grad(total(plain), (0, 1, 2))(*arguments)
    chex.assert_trees_all_close(jax.grad(total(ours), (0, 1, 2))(*arguments), expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.jacfwd(total(ours), (0, 1, 2))(*arguments), expected, rtol=1e-5)
    directions = jax.tree.map(jnp.ones_like, arguments)
    chex.assert_trees_all_close(
        jax.jvp(jax.grad(total(ours), (0, 1, 2)), arguments, directions)[1],
        jax.jvp(jax.grad(total(plain), (0, 1, 2)), arguments, directions)[1],
        rtol=1e-4,
    )
    tangent = jax.jvp(lambda x: ours(layer, x, index), (x,), (jnp.ones_like(x),))[1]
    assert tangent["index"].dtype == jax.dtypes.float0


def test_nothing_to_differentiate():
    ours, (layer, x) = affine(), operands()
    assert jax.grad(lambda s: 2.0 * s + 0 * jax.lax.stop_gradient(ours(layer, x, 1)["norm"]))(1.0) == 2
    ids = jax.vmap(lambda i: ours(layer, x, i)["index"])(jnp.arange(3))
    np.testing.assert_array_equal(ids, [1, 2, 3])


@pytest.mark.parametrize("by", ["argnums", "argnames"])
def test_static_arguments(by: str):
    calls: list[str] = []

    def power(kind: str, x: Any, times: int = 2) -> Any:
        return x**times if kind == "power" else x

    named = {
        "argnums": {"nondiff_argnums": (0, 2)},
        "argnames": {"nondiff_argnames": ("kind", "times")},
    }
    f = jsoftmax.custom_vjp(power, **named[by])

    def bwd(kind: str, times: int, x: Any, ct: Any) -> tuple[Any]:
        calls.append(f"{kind} {times}")
        return (ct * times * x ** (times - 1) if kind == "power" else ct,)

    f.defvjp(lambda kind, x, times: (f(kind, x, times), x), bwd)
    assert jax.grad(lambda x: f("power", x, times=3))(2.0) == 12
    assert jax.jvp(lambda x: f("power", x), (2.0,), (1.0,))[1] == 4
    assert jax.grad(lambda x: f(kind="same", x=x))(2.0) == 1
    assert set(calls) == {"power 3", "power 2", "same 2"}


def test_mixed_dtypes():
    """Each cotangent comes back in the dtype of its argument, whatever the rule computes in."""

    @jsoftmax.custom_vjp
    def product(a: Any, b: Any) -> Any:
        return a.astype(jnp.float32) * b

    product.defvjp(
        lambda a, b: (product(a, b), (a, b)),
        lambda ab, ct: (ct * ab[1], ct * ab[0].astype(jnp.float32)),
    )
    a, b = jnp.asarray([1.5, 2.5], jnp.bfloat16), jnp.asarray([2.0, 3.0])
    gradient = jax.grad(lambda a, b: jnp.sum(product(a, b)), (0, 1))(a, b)
    assert (gradient[0].dtype, gradient[1].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(gradient[0].astype(jnp.float32), b)
    out, tangent = jax.jvp(product, (a, b), (jnp.ones_like(a), jnp.ones_like(b)))
    assert out.dtype == tangent.dtype == jnp.float32
    np.testing.assert_allclose(tangent, np.asarray(a, np.float32) + b)


def contraction() -> Any:
    """`x @ w`, marked."""

    @jsoftmax.custom_vjp
    def f(x: Any, w: Any) -> Any:
        return x @ w

    f.defvjp(lambda x, w: (f(x, w), (x, w)), lambda xw, ct: (MARK * ct @ xw[1].T, MARK * xw[0].T @ ct))
    return f


X = np.arange(8, dtype=np.float32).reshape(4, 2)
W = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


@pytest.mark.parametrize("inside", [True, False], ids=["gradient inside", "gradient outside"])
def test_shard_map_sums_the_gradient_of_what_is_replicated(inside: bool):
    f, mesh = contraction(), jax.make_mesh((2,), ("rows",), (AxisType.Auto,))
    specs: Any = {"in_specs": (P("rows"), P()), "mesh": mesh}

    def local(x: Any, w: Any) -> Any:
        return jnp.sum(f(x, w))

    if inside:
        run = jax.shard_map(jax.grad(local, (0, 1)), out_specs=(P("rows"), P()), **specs)
    else:
        whole = jax.shard_map(lambda x, w: jax.lax.psum(local(x, w), "rows"), out_specs=P(), **specs)
        run = jax.grad(whole, (0, 1))
    d_x, d_w = quick(run)(X, W)
    np.testing.assert_allclose(d_x, MARK * np.ones((4, 3)) @ W.T)
    np.testing.assert_allclose(d_w, MARK * X.T @ np.ones((4, 3)))
    along = jax.shard_map(lambda x, w: jax.jvp(f, (x, w), (x, w))[1], out_specs=P("rows"), **specs)
    np.testing.assert_allclose(quick(along)(X, W), 2 * MARK * X @ W)


def test_explicit_mesh():
    """A rule that only says what to sum; the sharding of each cotangent is its argument's."""

    @jsoftmax.custom_vjp
    def f(x: Any, w: Any) -> Any:
        return x * w

    f.defvjp(
        lambda x, w: (f(x, w), (x, w)),
        lambda xw, ct: (MARK * ct * xw[1], MARK * jnp.sum(ct * xw[0], axis=0)),
    )
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), (AxisType.Explicit, AxisType.Explicit))
    with use_mesh(mesh):
        x, w = jax.device_put(X, P("rows", "columns")), jax.device_put(W[0, :2], P(None))
        d_x, d_w = quick(jax.grad(lambda x, w: jnp.sum(f(x, w)), (0, 1)))(x, w)
        tangent = quick(lambda x, w: jax.jvp(f, (x, w), (x, w))[1])(x, w)
    np.testing.assert_allclose(d_x, MARK * np.ones((4, 2)) * W[0, :2])
    np.testing.assert_allclose(d_w, MARK * X.sum(0))
    np.testing.assert_allclose(tangent, 2 * MARK * X * W[0, :2])
    assert (d_x.sharding.spec, d_w.sharding.spec) == (P("rows", "columns"), P(None))


def test_vmap_over_either_operand():
    f = contraction()
    several = np.stack([W, 2 * W])
    d_w = jax.vmap(jax.grad(lambda w, x: jnp.sum(f(x, w))), (0, None))(several, X)
    np.testing.assert_allclose(d_w, MARK * np.stack([X.T @ np.ones((4, 3))] * 2))
    d_x = jax.vmap(jax.grad(lambda x, w: jnp.sum(f(x, w))), (None, 0), -1)(X, several)
    np.testing.assert_allclose(d_x[..., 1], 2 * MARK * np.ones((4, 3)) @ W.T)


def test_export_keeps_the_rule():
    square = marked_square()
    lower = export.export(jax.jit(jax.grad(lambda x: jnp.sum(square(x)))), platforms=("cpu", "tpu"))
    batch = export.symbolic_shape("b")
    stored = lower(jax.ShapeDtypeStruct(batch, jnp.float32)).serialize()
    np.testing.assert_allclose(export.deserialize(stored).call(X[:, 1]), MARK * X[:, 1])


SIZE = 1 << 16


def deep(wrap: Callable[..., Any]) -> Any:
    """A function with many full-size intermediates, in its value and in its rule."""

    def value(x: Any) -> Any:
        return jnp.sum(jnp.tanh(jnp.sin(x) * jnp.exp(x)) ** 2)

    f = wrap(value)

    def bwd(x: Any, ct: Any) -> tuple[Any]:
        s, e = jnp.sin(x), jnp.exp(x)
        t = jnp.tanh(s * e)
        return (ct * 2 * t * (1 - t * t) * (jnp.cos(x) * e + s * e),)

    f.defvjp(lambda x: (f(x), x), bwd)
    return f


def test_keeps_no_more_than_the_residuals():
    """Between the passes, and in the memory of one program, as `jax.custom_vjp`."""
    x = jnp.ones(SIZE)
    pull = jax.vjp(deep(jsoftmax.custom_vjp), x)[1]
    kept = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) >= SIZE]
    assert len(kept) == 1
    assert jax.tree.leaves(jax.vjp(deep(jax.custom_vjp), x)[1])

    def temporary(f: Any) -> int:
        # Several calls with a nonlinear step between them, so that what is kept adds up.
        def loss(x: Any) -> Any:
            for _ in range(4):
                x = x + f(x) * jnp.cos(x)
            return jnp.sum(x)

        memory = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    ours, theirs = temporary(deep(jsoftmax.custom_vjp)), temporary(deep(jax.custom_vjp))
    assert ours <= 1.01 * theirs + 4096


def test_cross_entropy_keeps_rows_and_the_logits():
    """No probabilities between the passes: the logits themselves, and numbers per row."""
    z, y = jnp.ones((32, 512)), jnp.zeros(32, jnp.int32)
    pull = jax.vjp(lambda z: jsoftmax.cross_entropy(z, y), z)[1]
    large = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) >= z.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], z)


def test_metadata_and_signature():
    def function(x: Any, y: Any = 2.0) -> Any:
        """What it does."""
        return x * y

    named: Any = jsoftmax.custom_vjp(function)
    named.defvjp(lambda x, y: (named(x, y), y), lambda y, ct: (ct * y, None))
    assert (named.__name__, named.__doc__) == ("function", "What it does.")
    assert named(3.0) == 6
    assert jax.grad(named)(3.0) == 2


def rule(bwd: Callable[..., Any]) -> Any:
    f = jsoftmax.custom_vjp(lambda x, y: x * y)
    f.defvjp(lambda x, y: (f(x, y), (x, y)), bwd)
    return f


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: jsoftmax.custom_vjp(np.sum)(1.0),
            "custom_vjp: sum has no rule yet, call its defvjp first.",
        ),
        (
            lambda: jax.grad(rule(lambda xy, ct: (ct,)))(1.0, 2.0),
            "must return a tuple of 2 cotangents, one per array argument (None for no derivative)",
        ),
        (
            lambda: jax.grad(rule(lambda xy, ct: ct))(1.0, 2.0),
            "must return a tuple of 2 cotangents, one per array argument (None for no derivative)",
        ),
        (
            lambda: jax.grad(rule(lambda xy, ct: (ct * jnp.ones(2), None)))(1.0, 2.0),
            "must return a cotangent of the argument's shape (), got (2,).",
        ),
    ],
    ids=["no rule", "too few", "no tuple", "wrong shape"],
)
def test_errors(call: Callable[[], Any], text: str):
    with pytest.raises(TypeError) as caught:
        call()
    assert text in str(caught.value)
    assert str(caught.value).startswith("custom_vjp: ")


def test_keyword_only_arguments_are_refused():
    def f(x: Any, *, y: Any) -> Any:
        return x * y

    wrapped = jsoftmax.custom_vjp(f)
    wrapped.defvjp(lambda x, y: (x * y, y), lambda y, ct: (ct * y, None))
    with pytest.raises(TypeError) as caught:
        wrapped(1.0, y=2.0)
    assert str(caught.value) == (
        "custom_vjp: f takes keyword-only arguments ['y']; make them positional, the caller may "
        "still name them."
    )
