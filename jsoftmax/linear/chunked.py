"""Any loss of logits as a loss of hidden vectors and a kernel, in chunks of rows.

Imports `_walk`, `_checks`, `_pytrees`, `_numerics`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import has_whole_rows, without_tiny_dtypes
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike, Shape
from jsoftmax.linear._walk import Walk, common, number_of_chunks, row_values, sum_of_rows

REDUCTIONS = ("none", "sum")


def chunked(
    loss: Callable[..., Any],
    *,
    reduction: str = "none",
    chunk_size: int | None = None,
    accum_dtype: Any = None,
) -> "Chunked":
    r"""Makes a loss of logits one of hidden vectors and a kernel that never holds all logits.

    .. math:: \text{loss}(\text{hidden} \cdot \text{kernel} + \text{bias}, \ldots)

    For losses of your own; `linear_cross_entropy` is made of it. Memory is that of a chunk of rows'
    logits, at any order of derivative.

    Args:
        loss: `loss(logits, *rowwise, **shared)`, with `logits [rows, classes]` of float32 or wider;
            returns one value per row `[rows]`, or a pytree of such. Rows do not know each other, and
            what the loss reads it gets as an argument. Equal functions share compiled code, so
            define it once, outside the training step.
        reduction: "none" gives what the loss gives, `[*batch]`; its gradient makes the logits again.
            "sum" adds all rows up, the loss being one array; its gradient is made together with the
            value, in three matrix products in place of four.
        chunk_size: The rows of a chunk at most. By default a quarter of them (of 16 bits a fifth) up to
            512, an eighth of more than 4096, but no fewer than 128, or than make 2²² logits: a smaller
            chunk needs less memory, and the more time for reading the kernel and adding up its
            gradient. A symbolic number of rows is one chunk.
        accum_dtype: The dtype in which the gradients of the kernel and of other shared arguments are
            summed over the chunks; float32 or wider by default.

    Returns:
        A function `(hidden, kernel, *rowwise, bias=None, **shared)` of `hidden [*batch, features]`,
        `kernel [features, classes]`, pytrees `rowwise` of arrays `[*batch, …]`, of which a chunk gets
        its rows, `bias [classes]` and pytrees `shared` that every chunk gets as they are. The product
        is summed in float32 or wider.

    Gradient: of the loss, in every floating argument. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit, an unknown reduction, a chunk of less than one row.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import chunked
        >>> def hinge(logits, labels):
        ...     at_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        ...     return jnp.sum(jax.nn.relu(1 + logits - at_label), axis=-1) - 1
        >>> hidden, kernel = jnp.ones((3, 2)), jnp.eye(2, 4)
        >>> print(chunked(hinge, chunk_size=2)(hidden, kernel, jnp.array([0, 1, 2])))
        [1. 1. 5.]
    """
    _checks.callback("chunked", "loss", loss, "logits [rows, classes]")
    _checks.one_of("chunked", "reduction", reduction, REDUCTIONS)
    check_chunks("chunked", chunk_size, accum_dtype)
    dtype = None if accum_dtype is None else jnp.dtype(accum_dtype)
    return Chunked(loss, reduction, chunk_size, dtype)


@dataclasses.dataclass(frozen=True)
class Chunked:
    """What `chunked` returns."""

    loss: Callable[..., Any]
    reduction: str
    chunk_size: int | None
    accum_dtype: Any

    @takes_arrays
    def __call__(
        self,
        hidden: ArrayLike,
        kernel: ArrayLike,
        *rowwise: Any,
        bias: ArrayLike | None = None,
        **shared: Any,
    ) -> Any:
        """The loss of `hidden @ kernel + bias`."""
        h, w = check_product("chunked", hidden, kernel, bias)
        for leaf in jax.tree.leaves(rowwise):
            if np.shape(leaf)[: h.ndim - 1] != h.shape[:-1]:
                raise ValueError(
                    f"chunked: rowwise arguments must have shape [*batch, …] with [*batch] = "
                    f"{list(h.shape[:-1])} to match hidden {list(h.shape)}, got "
                    f"{list(np.shape(leaf))}; pass what all rows share by keyword."
                )
        return _run(self, h, w, bias, rowwise, shared)

    def of_chunk(self, logits: Array, rowwise: Any, shared: Any) -> Any:
        """The loss of some rows."""
        made = self.loss(logits, *rowwise, **shared)
        rows, summed = logits.shape[:1], self.reduction == "sum"
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(made)]
        if any((shape if summed else shape[:1]) != rows for shape in shapes):
            raise ValueError(
                f"chunked: loss must return one value per row, [rows] = {list(rows)}, got "
                f"{', '.join(str(list(shape)) for shape in shapes)}; let the reduction add them up."
            )
        return made


@compiled("chunked")
def _run(chunked: Chunked, hidden: Array, kernel: Array, bias: Any, rowwise: Any, shared: Any) -> Any:
    return walked(
        chunked.of_chunk,
        hidden,
        kernel,
        bias,
        rowwise,
        shared,
        scalar=chunked.reduction == "sum",
        chunk_size=chunked.chunk_size,
        accum_dtype=chunked.accum_dtype,
    )


def walked(
    loss: Callable[..., Any],
    hidden: Array,
    kernel: Array,
    bias: Any,
    rowwise: Any,
    shared: Any,
    *,
    scalar: bool,
    chunk_size: int | None,
    accum_dtype: Any,
) -> Any:
    """`loss(logits, rowwise, shared)` of `[*batch]` rows, or the sum of it, in chunks."""
    batch = hidden.shape[:-1]
    dtype = common(hidden.dtype, kernel.dtype)
    flat = (math.prod(batch),)
    h = hidden.astype(dtype).reshape(*flat, hidden.shape[-1])
    rowwise = jax.tree.map(lambda x: jnp.reshape(x, flat + np.shape(x)[len(batch) :]), rowwise)
    bias = None if bias is None else jnp.asarray(bias)
    # A Python number's dtype is the default one; the rules ask every leaf for its own.
    shared = jax.tree.map(jnp.asarray, shared)
    walk = Walk(loss, number_of_chunks(h, kernel.shape[-1], chunk_size), accum_dtype)
    operands = (h, kernel.astype(dtype), bias, rowwise, shared)
    if scalar:
        return sum_of_rows(walk, *operands)
    out = row_values(walk, *operands)
    return jax.tree.map(lambda x: x.reshape(batch + x.shape[1:]), out)


def check_chunks(function: str, chunk_size: Any, accum_dtype: Any) -> None:
    """Refuses a chunk of no row and a sum in integers."""
    if chunk_size is not None:
        _checks.integer(function, "chunk_size", chunk_size)
        _checks.number(function, "chunk_size", chunk_size, lambda n: n >= 1, "at least 1")
    if accum_dtype is not None:
        _checks.floating_dtype(function, "accum_dtype", accum_dtype, "leave it out for float32.")


def check_product(
    function: str, hidden: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None
) -> tuple[Array, Array]:
    """Hidden vectors and a kernel that fit each other; refuses others."""
    h, w = _checks.array(function, "hidden", hidden), _checks.array(function, "kernel", kernel)
    _checks.floating(function, "hidden", h)
    _checks.floating(function, "kernel", w)
    if h.ndim == 0:
        raise ValueError(
            f"{function}: hidden must have shape [*batch, features], got []; the last axis holds the "
            "features."
        )
    features: Shape = h.shape[-1:]
    if w.ndim != 2 or w.shape[:1] != features:
        hint = "transpose it." if w.ndim == 2 and w.shape[1:] == features else "one column per class."
        raise ValueError(
            f"{function}: kernel must have shape [features, classes] = [{features[0]}, classes] to "
            f"match hidden {list(h.shape)}, got {list(w.shape)}; {hint}"
        )
    if not has_whole_rows(h):
        raise ValueError(
            f"{function}: hidden must have all its features on each device, got "
            f"{jax.typeof(h).sharding.spec}; gather them with jax.sharding.reshard."
        )
    if bias is not None:
        _checks.vector(function, "bias", bias, "classes", w.shape[1])
    return without_tiny_dtypes(h), without_tiny_dtypes(w)
