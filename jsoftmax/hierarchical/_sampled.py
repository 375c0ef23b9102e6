"""What the sampled losses compute, given the rows of the kernel that they read.

Imports `negatives`, `losses.logistic`, `dense`, `autodiff`, `_labels`, `_numerics`.
"""

from typing import Any

import jax.numpy as jnp

from jsoftmax._labels import at_label, settle
from jsoftmax._numerics import accumulator, aligned, nan_unless, row, scaled, widened
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.autodiff import custom_vjp
from jsoftmax.dense import cross_entropy
from jsoftmax.hierarchical.negatives import Negatives
from jsoftmax.losses.logistic import multilabel_cross_entropy


def rows_read(
    labels: Array, negatives: Negatives, ignore_index: ArrayLike | None
) -> tuple[tuple[Array, Array], Array | None]:
    """The rows to read, those of the labels and those drawn, and which labels are ignored."""
    y, last = widened(labels), negatives.proposal.num_classes - 1
    ignored = None if ignore_index is None else y == ignore_index
    y = y if ignored is None else jnp.where(ignored, 0, y)
    # Inside shard_map both have to vary over the same mesh axes: of two cotangents of the kernel, one
    # summed over the devices already, the sum would count that one once for each device.
    nothing = jnp.where(False, jnp.sum(y) + jnp.sum(negatives.ids), 0).astype(y.dtype)
    return (jnp.clip(y, 0, last) + nothing, jnp.clip(negatives.ids, 0, last) + nothing), ignored


@custom_vjp
def gathered(table: Array, rows: tuple[Array, ...]) -> tuple[Array, ...]:
    """Rows of a table in float32 or wider; its gradient is summed in that too, in one array."""
    return tuple(
        jnp.take(table, at, axis=0, mode="clip").astype(accumulator(table.dtype)) for at in rows
    )


def _gathered_bwd(residuals: Any, cts: tuple[Array, ...]) -> tuple[Any, ...]:
    table, rows = residuals
    total = jnp.zeros(table.shape, accumulator(table.dtype))
    for at, ct in zip(rows, cts, strict=True):
        total = total.at[at].add(ct)
    return total, None


gathered.defvjp(lambda table, rows: (gathered(table, rows), (table, rows)), _gathered_bwd)


def loss_of_rows(
    hidden: Array,
    vectors: tuple[Array, Array],
    offsets: tuple[Array, Array] | None,
    labels: Array,
    class_weights: Array | None,
    negatives: Negatives,
    ignored: Array | None,
    *,
    objective: str,
    hits: bool,
    corrected: bool,
) -> Array:
    """The loss, given the rows of the labels `[*batch, features]` and those drawn."""
    y = widened(labels)
    (own, drawn), (b_own, b_drawn) = vectors, (None, None) if offsets is None else offsets
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient.
        hidden = jnp.where(row(ignored), 0, hidden)
    x = as_floats(hidden, own)
    first = jnp.einsum("...f,...f->...", x, own.astype(x.dtype))
    first = first if b_own is None else first + b_own.astype(x.dtype)
    others, possible = scores_of_drawn(x, drawn, b_drawn, negatives, corrected)
    if corrected and objective == "noise_contrastive":
        (known, _), _ = rows_read(labels, negatives, None)
        first = first - negatives.log_expected_counts(known).astype(x.dtype)
    possible = jnp.broadcast_to(possible, others.shape)
    if not hits:
        possible &= row(y) != aligned(negatives.ids, row(y))
    logits = jnp.concatenate([row(first), others], axis=-1)
    where = jnp.concatenate([jnp.ones_like(possible[..., :1]), possible], axis=-1)
    if ignored is not None:
        logits = jnp.where(row(ignored), 0, logits)
    if objective == "cross_entropy":
        loss = cross_entropy(logits, jnp.zeros_like(y), where=where)
    else:
        is_label = jnp.arange(logits.shape[-1]) == 0
        loss = multilabel_cross_entropy(logits, jnp.broadcast_to(is_label, logits.shape), where=where)
    if class_weights is not None:
        loss = scaled(at_label(class_weights.astype(loss.dtype), y), loss)
    return settle(loss, y, negatives.proposal.num_classes, ignored)


def scores_of_drawn(
    x: Array, vectors: Array, offsets: Array | None, negatives: Negatives, corrected: bool
) -> tuple[Array, Array]:
    """The logits of the negatives, `[*batch, samples]`, and which can be drawn at all, `[samples]`."""
    classes, ids = negatives.proposal.num_classes, negatives.ids
    logits = jnp.matmul(x, vectors.astype(x.dtype).T)
    logits = logits if offsets is None else logits + aligned(offsets.astype(x.dtype), logits)
    known = nan_unless((ids >= 0) & (ids < classes), x.dtype)
    logits = logits * aligned(known, logits)
    if not corrected:
        return logits, jnp.ones(ids.shape, bool)
    counts = negatives.log_expected_counts(jnp.clip(ids, 0, classes - 1)).astype(x.dtype)
    possible = counts != -jnp.inf
    return logits - aligned(jnp.where(possible, counts, 0), logits), possible


def as_floats(hidden: Array, vectors: Array) -> Array:
    """The hidden vectors in what their scores are computed in."""
    return hidden.astype(jnp.promote_types(accumulator(hidden.dtype), vectors.dtype))
