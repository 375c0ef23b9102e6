"""One derivative rule, every AD mode.

`jax.custom_vjp` keeps a hand-written backward rule and gives up forward mode: `jvp`, `jacfwd`,
`linearize` and `hessian` raise. `jax.custom_jvp` keeps forward mode and asks for the rule the wrong
way round: a loss knows its gradient, not its tangent. `custom_vjp` here takes the backward rule and
gets the tangent by transposing it.

Imports `_numerics`, `_typing`.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jsoftmax._numerics import sharded_like
from jsoftmax._recomputed import recomputed
from jsoftmax._typing import Array


def custom_vjp(
    fun: Callable[..., Any],
    nondiff_argnums: Iterable[int] = (),
    nondiff_argnames: Iterable[str] = (),
) -> "CustomVJP":
    """Gives a function a hand-written backward rule that works in every AD mode.

    A drop-in for `jax.custom_vjp` where that refuses `jvp`, `jacfwd`, `linearize` or `hessian`::

        tangent_out = transpose(ct -> bwd(residuals, ct))(tangents)

    Args:
        fun: The function. Its arguments and outputs are pytrees of arrays; integer, boolean and key
            arrays take part and have no derivative.
        nondiff_argnums: Positions of hashable arguments that are not arrays (flags, callables).
        nondiff_argnames: The same by name.

    Returns:
        The function, callable as before, with a method `defvjp(fwd, bwd)` to set its rule:
        `fwd(*args) -> (out, residuals)` takes what `fun` takes; `bwd(*static, residuals, ct)`
        returns a tuple with one cotangent per array argument, `None` for one without a derivative. A
        cotangent has the shape of its argument; its dtype is cast.

    AD modes: all, of any order, under `vmap`, `scan`, `checkpoint`, `shard_map` (the cotangent of an
    operand replicated over a mesh axis is summed over it) and `jax.export`; between forward and
    backward pass only `residuals` are kept. Two duties stay with the author, the second being
    `jax.custom_vjp`'s too: `bwd` is linear in `ct` and written in transposable operations; and
    derivatives of second order differentiate `fwd` and `bwd`, so both must be right under plain
    autodiff. A `fwd` that calls the wrapped function itself keeps the rule at every order.

    `jax.experimental.jet` refuses it, as it refuses every `custom_jvp`, those of `jax.nn` too.

    A method may be decorated: `self` is its first argument, a pytree of arrays, or hashable and among
    `nondiff_argnums`. The function is pickled by its name, as a plain one.

    Raises:
        TypeError: When called before `defvjp`, with keyword-only arguments, or if `bwd` returns
            cotangents that do not match.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import custom_vjp
        >>> @custom_vjp
        ... def log1pexp(x):
        ...     return jnp.logaddexp(x, 0.0)
        >>> log1pexp.defvjp(lambda x: (log1pexp(x), x), lambda x, ct: (ct * jax.nn.sigmoid(x),))
        >>> out, tangent = jax.jvp(log1pexp, (0.0,), (1.0,))
        >>> print(f"{tangent:.2f} {jax.hessian(log1pexp)(0.0):.2f}")
        0.50 0.25

    References:
        jax-ml/jax issue 3996 asks for forward mode through `jax.custom_vjp`.
    """
    return CustomVJP(fun, nondiff_argnums, nondiff_argnames)


class CustomVJP:
    """What `custom_vjp` returns: a function and its rule."""

    def __init__(
        self,
        fun: Callable[..., Any],
        nondiff_argnums: Iterable[int],
        nondiff_argnames: Iterable[str],
    ):
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.signature = inspect.signature(fun)
        names = list(self.signature.parameters)
        self.static = frozenset(nondiff_argnums) | {names.index(n) for n in nondiff_argnames}
        self.name = getattr(fun, "__name__", repr(fun))
        self.fwd = self.bwd = self._missing_rule

    def _missing_rule(self, *args: Any) -> Any:
        raise TypeError(f"custom_vjp: {self.name} has no rule yet, call its defvjp first.")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: `self` is the first argument, for the rules too."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str:
        """By its name, as a function: pickles find it there, and copies are the function itself."""
        return getattr(self.fun, "__qualname__", self.name)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Sets the forward rule `fwd` and the backward rule `bwd`."""
        self.fwd, self.bwd = fwd, bwd

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; keyword arguments and defaults are resolved as in a plain call."""
        if self.bwd == self._missing_rule:
            self._missing_rule()
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(
                f"custom_vjp: {self.name} takes keyword-only arguments {sorted(bound.kwargs)}; "
                "make them positional, the caller may still name them."
            )
        dynamic = [arg for i, arg in enumerate(bound.args) if i not in self.static]
        static = tuple(arg for i, arg in enumerate(bound.args) if i in self.static)
        leaves, treedef = jax.tree.flatten(dynamic)
        return _apply(_Call(self, static, treedef), *leaves)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call with its static arguments filled in: hashable, so that JAX may cache by it."""

    rule: CustomVJP
    static: tuple[Hashable, ...]
    treedef: Any

    def arguments(self, leaves: Iterable[Any]) -> list[Any]:
        dynamic, static = iter(jax.tree.unflatten(self.treedef, leaves)), iter(self.static)
        arity = len(self.static) + len(self.treedef.children())
        return [next(static if i in self.rule.static else dynamic) for i in range(arity)]

    def pull(self, leaves: Sequence[Any], active: list[int], residuals: Any, ct: Any) -> list[Any]:
        """The cotangents of the active leaves, in their dtypes, summed where they are replicated."""
        cotangents = self.rule.bwd(*self.static, residuals, ct)
        children = self.treedef.children()
        if not isinstance(cotangents, tuple | list) or len(cotangents) != len(children):
            raise TypeError(
                f"custom_vjp: the backward rule of {self.rule.name} must return a tuple of "
                f"{len(children)} cotangents, one per array argument (None for no derivative), "
                f"got {cotangents!r}."
            )
        flat: list[Any] = []
        for cotangent, child in zip(cotangents, children, strict=True):
            if cotangent is None:
                flat += [None] * child.num_leaves
            else:
                flat += child.flatten_up_to(cotangent)
        return [_cotangent_for(leaves[i], flat[i], self.rule.name) for i in active]


def _varying(x: Any) -> frozenset[str]:
    """The mesh axes over which `x` differs from device to device inside `shard_map`."""
    aval = jax.typeof(x)
    manual = getattr(aval, "mat", None)
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)


def _cotangent_for(leaf: Any, ct: Any, name: str) -> Any:
    if ct is None:
        return jnp.zeros_like(leaf)
    if np.shape(ct) != np.shape(leaf):
        raise TypeError(
            f"custom_vjp: the backward rule of {name} must return a cotangent of the argument's "
            f"shape {np.shape(leaf)}, got {np.shape(ct)}."
        )
    # Inside shard_map a replicated operand meets sharded data: each device holds a part of its
    # cotangent, and only the sum is the same everywhere.
    partial = tuple(sorted(_varying(ct) - _varying(leaf)))
    ct = jax.lax.psum(ct, partial) if partial else ct
    return sharded_like(jnp.asarray(ct, jnp.result_type(leaf)), leaf)


def _has_derivative(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(call: _Call, *leaves: Any) -> Any:
    return call.rule.fun(*call.arguments(leaves))


@functools.partial(_apply.defjvp, symbolic_zeros=True)
def _apply_jvp(call: _Call, leaves: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    out, residuals = call.rule.fwd(*call.arguments(leaves))
    active = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]
    active = [i for i in active if _has_derivative(leaves[i])]
    out_leaves, out_tree = jax.tree.flatten(out)
    moving = [_has_derivative(leaf) for leaf in out_leaves]
    likes = [jnp.zeros_like(leaf) for leaf, moves in zip(out_leaves, moving, strict=True) if moves]

    # Without the checkpoint the transposed rule would keep every intermediate of `bwd` for the
    # backward pass; with it, only its arguments, and transposing it twice gives `bwd` again.
    @recomputed
    def push(residuals: Any, tangents: list[Any]) -> list[Any]:
        def pull(cts: list[Any]) -> list[Any]:
            filled = iter(cts)
            full = [next(filled) if moves else _no_tangent(leaf)
                    for leaf, moves in zip(out_leaves, moving, strict=True)]  # fmt: skip
            return call.pull(leaves, active, residuals, jax.tree.unflatten(out_tree, full))

        return jax.linear_transpose(pull, likes)(tangents)[0]

    pushed = iter(push(residuals, [tangents[i] for i in active]) if active else likes)
    out_tangents = [next(pushed) if moves else _no_tangent(leaf)
                    for leaf, moves in zip(out_leaves, moving, strict=True)]  # fmt: skip
    return out, jax.tree.unflatten(out_tree, out_tangents)


def _no_tangent(leaf: Any) -> np.ndarray:
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def with_derivatives_of(function: Callable[[], Array], value: Array) -> Array:
    """`value`, with the derivatives of `function()`, of which it is the value already.

    The function is evaluated only where a derivative is taken: what a loop has found need not be
    computed again to be differentiable. `x = 1 + f − const(f)` is 1 and has all derivatives of `f`; it
    is the solution of `x / (1 + f − const(f)) = 1`, of which the solver is told that it is 1.

    A `jax.custom_jvp` would say so more plainly, but under second derivatives inside `scan` JAX puts
    its function in its place, and forgets its rule.
    """

    def product(x: Array) -> Array:
        f = function()
        return x / (1 + (f - jax.lax.stop_gradient(f)))

    one = jnp.ones_like(value)
    solved = jax.lax.custom_linear_solve(product, one, lambda _, b: b, symmetric=True)
    return value + (solved - one)


def scan_forgetting(
    step: Callable[..., Any], init: Any, steps: int, linear: Any = None
) -> tuple[Any, Any]:
    """`jax.lax.scan` over the numbers of steps that keeps nothing of a step for a derivative.

    `step(so_far, i, linear)`: in `linear` the scan may be transposed. It is carried along, since jax
    before 0.10 transposes a scan in nothing else.
    """

    def carrying(carry: tuple[Any, Any], i: Array) -> tuple[Any, Any]:
        linear, so_far = carry
        so_far, out = step(so_far, i, linear)
        return (linear, so_far), out

    numbers = jnp.arange(steps, dtype=jnp.int32)
    forgetting = recomputed(carrying)
    (_, done), out = jax.lax.scan(forgetting, (linear, init), numbers)
    return done, out
