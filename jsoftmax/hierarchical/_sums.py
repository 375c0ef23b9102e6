"""The weighted sum of the losses of the rows of one cluster, its gradient made on the way.

One number has one cotangent, so the gradient can be made beside the value, and be scaled when that is
known: the exponentials of a tile are made once and the kernel is multiplied with three times, where
`row_losses` makes the logits and their exponentials twice. A tile has all classes, since the gradient
in the kernel asks for a row's whole sum.

Derivatives of second order are those of `row_losses`.

Imports `_blocks`, `_tiles`, `autodiff`, `_labels`, `_numerics`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._labels import at_label, with_label
from jsoftmax._numerics import behind, row, scaled, upright
from jsoftmax._typing import Array
from jsoftmax.autodiff import custom_vjp
from jsoftmax.hierarchical._blocks import are_few, row_losses
from jsoftmax.hierarchical._tiles import (
    loss_of,
    nothing,
    others_of,
    product,
    tiles,
    untiled,
    wanted,
)

# A tile has so many logits at most, which a CPU's cache holds twice; and so many rows: of fewer than
# the first, a product costs what that many do, and of more than the second too many are empty.
_LOGITS = 1 << 20
_LEAST, _MOST = 16, 64


def weighted_sum(hidden: Array, kernel: Array, labels: Array, weights: Array) -> Array:
    """`Σ w · loss` of `hidden @ kernel`, over the rows that are wanted.

    Args:
        hidden: `[rows, features]`, float32 or wider; the rows with a label should stand together.
        kernel: `[features, classes]`.
        labels: `[rows]`, int32; −1 for a row that is not wanted: it has no gradient, whatever `hidden`
            and `weights` hold.
        weights: `w [rows]`.
    """
    weights = jnp.where(labels >= 0, weights, 0)
    if are_few(labels, kernel) or _height(kernel) < _LEAST:
        return _by_rows(hidden, kernel, weights, labels=labels)
    return _weighted_sum(hidden, kernel.astype(hidden.dtype), labels, weights)


def _height(kernel: Array) -> int:
    """The rows of a tile: a power of two, so that few shapes are compiled."""
    return min(_MOST, 1 << (_LOGITS // max(kernel.shape[-1], 1)).bit_length() >> 1)


def _by_rows(hidden: Array, kernel: Array, weights: Array, *, labels: Array) -> Array:
    return jnp.sum(scaled(weights, row_losses(hidden, kernel, labels)))


@custom_vjp
def _weighted_sum(hidden: Array, kernel: Array, labels: Array, weights: Array) -> Array:
    return _by_rows(hidden, kernel, weights, labels=labels)


@custom_vjp
def _with_gradient(hidden: Array, kernel: Array, labels: Array, weights: Array) -> tuple[Array, Any]:
    """The sum, and its gradient in `hidden`, `kernel` and `weights`."""
    height, none = _height(kernel), nothing(hidden, kernel, weights)

    def made(d_kernel: Array, x: Array, y: Array, w: Array) -> tuple[Array, Any]:
        x = wanted(x, y)
        v = product(x, kernel, 1, 0)
        m = jax.lax.stop_gradient(jnp.max(v, axis=-1))
        # Stored: made once for the sum and for the products.
        e = behind(jnp.exp(v - row(m)))
        own = at_label(e, y)
        others = others_of(lambda: e, jnp.sum(e, axis=-1), own, y)
        share = jnp.where(y >= 0, w / (own + others), 0)
        # The label's own part, without cancellation: what the others have.
        d = with_label(e, y, -others)
        d_x = row(share) * product(d, kernel, 1, 1)
        d_kernel = d_kernel + product(upright(x * row(share)), d, 1, 0)
        return d_kernel, (d_x, loss_of(at_label(v, y) - m, others))

    def skipped(d_kernel: Array, x: Array, *_: Array) -> tuple[Array, Any]:
        return d_kernel, (jnp.full(x.shape, none), jnp.full(x.shape[:1], none))

    def step(d_kernel: Array, operands: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        wanted_here = jnp.any(operands[1] >= 0)
        return jax.lax.cond(wanted_here, made, skipped, d_kernel, *operands)

    start = jnp.full(kernel.shape, none)
    cut = tiles(hidden, height), tiles(labels, height, -1), tiles(weights, height)
    d_kernel, of_rows = jax.lax.scan(step, start, cut)
    d_hidden, losses = (untiled(x, labels.shape[0]) for x in of_rows)
    losses = jnp.where(labels >= 0, losses, 0)
    return jnp.sum(scaled(weights, losses)), (d_hidden, d_kernel, losses)


def _with_gradient_fwd(*operands: Array) -> tuple[Any, Any]:
    return _with_gradient(*operands), operands


def _with_gradient_bwd(operands: tuple[Array, ...], cts: Any) -> tuple[Any, ...]:
    hidden, kernel, labels, weights = operands
    # Told apart from device to device, so that autodiff sums no gradient over them yet.
    none = nothing(hidden, kernel, weights)
    moving = hidden + none, kernel + none, weights + none
    loss = functools.partial(_by_rows, labels=labels)
    d_hidden, d_kernel, d_weights = jax.vjp(jax.value_and_grad(loss, (0, 1, 2)), *moving)[1](cts)
    return d_hidden, d_kernel, None, d_weights


_with_gradient.defvjp(_with_gradient_fwd, _with_gradient_bwd)


def _fwd(*operands: Array) -> tuple[Array, Any]:
    return _with_gradient(*operands)


def _bwd(gradient: tuple[Array, Array, Array], ct: Array) -> tuple[Any, ...]:
    d_hidden, d_kernel, d_weights = (ct.astype(x.dtype) * x for x in gradient)
    return d_hidden, d_kernel, None, d_weights


_weighted_sum.defvjp(_fwd, _bwd)
