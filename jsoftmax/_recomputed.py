"""Functions of which a derivative keeps the arguments alone, and which can be transposed.

`jax.checkpoint` is just that, but not under the flag `jax_remat3` (from jax 0.11 on, off by default):
what it makes there cannot be transposed, and `autodiff` makes its rules by transposing. Under that flag
a primitive of `jax.experimental.hijax` takes its place. Nothing else here exists for that flag.

Imports nothing of this package.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose intermediate results are computed again where a derivative needs them."""
    if not getattr(jax.config, "jax_remat3", False):
        return jax.checkpoint(function, prevent_cse=False)

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        leaves, treedef = jax.tree.flatten(args)
        trees = []

        def flat(*leaves: Any) -> list[Any]:
            out, tree = jax.tree.flatten(function(*jax.tree.unflatten(treedef, leaves)))
            trees.append(tree)
            return out

        out = _one_operation(flat, *leaves)
        return jax.tree.unflatten(trees[0], out)

    return wrapped


def _one_operation(function: Callable[..., Sequence[Any]], *args: Any) -> tuple[Any, ...]:
    """`function(*args)` as one operation of a program; what it closes over becomes an argument."""
    closed = jax.make_jaxpr(function)(*args)
    count = len(closed.consts)

    def explicit(*args: Any) -> list[Any]:
        return jax.core.eval_jaxpr(closed.jaxpr, args[:count], *args[count:])

    args = (*closed.consts, *args)
    return _primitive()(jax.make_jaxpr(explicit)(*args))(*args)


def _replaced(args: Sequence[Any], places: Sequence[int], some: Sequence[Any]) -> list[Any]:
    """The arguments, those at some places replaced."""
    chosen = dict(zip(places, some, strict=True))
    return [chosen.get(i, x) for i, x in enumerate(args)]


@functools.cache
def _primitive() -> Any:
    """The class of the operation; made where it is needed, since older releases have no base for it."""
    from jax.extend.core import jaxpr_as_fun

    # By name: the releases without it are supported and type-checked too.
    hijax: Any = importlib.import_module("jax.experimental.hijax")

    class Recomputed(hijax.HiPrim):
        """A function as one operation; derivatives and transpose are operations of this kind."""

        def __init__(self, jaxpr: Any):
            self.in_avals, self.out_aval = tuple(jaxpr.in_avals), tuple(jaxpr.out_avals)
            self.params = {"jaxpr": jaxpr}
            super().__init__()

        def expand(self, *args: Any) -> tuple[Any, ...]:
            return tuple(jaxpr_as_fun(self.params["jaxpr"])(*args))

        def jvp(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
            active = [i for i, t in enumerate(tangents) if not isinstance(t, hijax.Zero)]
            moving = [i for i, a in enumerate(self.out_aval) if jnp.issubdtype(a.dtype, jnp.inexact)]

            def push(*args: Any) -> list[Any]:
                at, tangents = args[: len(primals)], args[len(primals) :]

                def of(*some: Any) -> list[Any]:
                    out = self.expand(*_replaced(at, active, some))
                    return [out[i] for i in moving]

                return jax.jvp(of, [at[i] for i in active], list(tangents))[1]

            out_tangents = [hijax.Zero(a.to_tangent_aval()) for a in self.out_aval]
            found = _one_operation(push, *primals, *(tangents[i] for i in active))
            return self(*primals), tuple(_replaced(out_tangents, moving, found))

        lin, linearized = hijax.linearize_from_jvp
        vjp_fwd, vjp_bwd_retval = hijax.vjp_from_jvp

        def transpose(self, out_ct: Any, *args: Any) -> None:
            """Adds the cotangents of the linear arguments, which come as what sums them up."""
            linear = [i for i, x in enumerate(args) if isinstance(x, hijax.GradAccum)]
            fixed = [i for i in range(len(args)) if i not in linear]
            given = [i for i, ct in enumerate(out_ct) if not isinstance(ct, hijax.Zero)]

            def pull(*flat: Any) -> Any:
                at = _replaced(args, fixed, flat[: len(fixed)])

                def of(*some: Any) -> list[Any]:
                    out = self.expand(*_replaced(at, linear, some))
                    return [out[i] for i in given]

                likes = [self.in_avals[i] for i in linear]
                return jax.linear_transpose(of, *likes)(list(flat[len(fixed) :]))

            cts = _one_operation(pull, *(args[i] for i in fixed), *(out_ct[i] for i in given))
            for i, ct in zip(linear, cts, strict=True):
                args[i].accum(ct)

        def batch(self, axis_data: Any, args: Any, dims: Any) -> tuple[Any, Any]:
            if all(dim is None for dim in dims):
                return self(*args), (None,) * len(self.out_aval)
            is_mapped: list[bool] = []

            def one(*xs: Any) -> tuple[Any, ...]:
                out = self.expand(*xs)
                # An output that depends on no mapped argument must not be declared as mapped.
                mapped = next(type(x) for x, dim in zip(xs, dims, strict=True) if dim is not None)
                is_mapped[:] = [type(x) is mapped for x in out]
                return out

            def all_of(*args: Any) -> list[Any]:
                spmd = axis_data.spmd_name or axis_data.explicit_mesh_axis
                mapped = jax.vmap(
                    one, dims, 0, axis_data.name, axis_size=axis_data.size, spmd_axis_name=spmd
                )
                return [x if here else x[0] for x, here in zip(mapped(*args), is_mapped, strict=True)]

            out = _one_operation(all_of, *args)
            return out, tuple(0 if here else None for here in is_mapped)

    return Recomputed
