"""Adaptive softmax: the frequent classes in a head, the rare ones in clusters of decreasing width.

The head is an ordinary softmax over the most frequent classes and one more entry per cluster; a
class of a cluster has the product of the cluster's probability and its own within the cluster, whose
features are projected to fewer the rarer its classes are. The parameters are those of torch's
`AdaptiveLogSoftmaxWithLoss`; labels may come in any order of the classes.

Imports `adaptive_params`, `_sums`, `_blocks`, `dense`, `reductions`, `maps`, `_labels`, `_pytrees`,
`_numerics`, `_checks`.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import at_label, comparable, settle
from jsoftmax._numerics import (
    aligned,
    by_rows,
    row,
    scaled,
    weighed,
    wide,
    widened,
    without_tiny_dtypes,
)
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.dense import cross_entropy
from jsoftmax.hierarchical._blocks import row_losses
from jsoftmax.hierarchical._sums import weighted_sum
from jsoftmax.hierarchical.adaptive_params import AdaptiveParams
from jsoftmax.maps import log_softmax
from jsoftmax.reductions import check_reduction, row_shares


@takes_arrays
def adaptive_cross_entropy(
    hidden: ArrayLike,
    params: AdaptiveParams,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "none",
    denominator: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of an adaptive softmax.

    .. math:: \ell = -w_y \left( \log p(\text{cluster of } y)
        + \log p(y \mid \text{cluster of } y) \right)

    For a class of the head the second term is 0. Each row costs the head and its own cluster, not all
    classes, and beside the head's logits no array of the size of logits is stored, neither forward
    nor backward. Ask for the mean or the sum where it is what you want: its gradient is made together
    with the value, in less time than that of one value per row. Under `vmap` over `labels` or
    `hidden` every row costs every cluster: pass the whole batch instead.

    Args:
        hidden: `[*batch, features]`, floating; float32 or wider inside.
        params: What `adaptive_init` makes.
        labels: `[*batch]`, integer, in any order; the user's class ids.
        class_weights: `w [classes]`, by the user's class ids.
        ignore_index: The label of rows that do not count: their loss and gradient are 0, whatever
            `hidden` holds there.
        weights: `v [*batch]`, of any real or bool dtype; 1 each by default. A row of weight 0 is left
            out, whatever `hidden` holds there and whatever its label is.
        reduction: "none" (`v ℓ`, `[*batch]`), "sum" (`Σ v ℓ`) or "mean" (`Σ v ℓ / Σ v`).
        denominator: What a mean is divided by, a scalar, in place of the sum of the weights of the
            rows that count.

    Returns:
        The losses `[*batch]`, or a scalar, in nats, float32 or wider: minus `adaptive_log_softmax` at
        the label. An index outside [0, classes) gives NaN, and NaN gradients. A mean of nothing is 0.

    Gradient: in `hidden`, every array of `params`, `class_weights`, `weights` and `denominator`. Every
    AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that would broadcast, an unknown reduction, a denominator of no mean.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax.hierarchical import adaptive_cross_entropy, adaptive_init
        >>> params = adaptive_init(jax.random.key(0), 16, 100, (10, 30))
        >>> hidden = jnp.zeros((3, 16))
        >>> print(adaptive_cross_entropy(hidden, params, jnp.array([5, 50, -1]), ignore_index=-1))
        [2.4849067 6.733402  0.       ]
        >>> mean = adaptive_cross_entropy(hidden, params, jnp.array([5, 50, 7]), reduction="mean")
        >>> print(mean.round(4))
        3.9011

    References:
        Grave et al., Efficient softmax approximation for GPUs, 2017.
    """
    name = "adaptive_cross_entropy"
    hidden, batch = checked(name, hidden, params)
    labels, ignore_index = comparable(name, labels, ignore_index)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name}: labels must be class indices of an integer dtype, got {labels.dtype}; "
            "convert with labels.astype(jnp.int32)."
        )
    if labels.shape != batch:
        raise ValueError(
            f"{name}: labels must have shape [*batch] = {list(batch)} to match hidden "
            f"{list(hidden.shape)}, got {list(labels.shape)}; pass one class index per row."
        )
    if class_weights is not None:
        shape = (*batch, params.num_classes)
        _checks.class_vector(name, "class_weights", class_weights, shape)
    check_reduction(name, reduction, weights, denominator, hidden)
    options = class_weights, ignore_index, weights, denominator
    return _cross_entropy(hidden, params, labels, *options, reduction=reduction)


@compiled("reduction")
def _cross_entropy(hidden: Array, *operands: Any, reduction: str) -> Array:
    loss = functools.partial(_reduced, reduction=reduction)
    if reduction == "none":
        return by_rows(loss)(hidden, *operands)
    return by_rows(loss, lambda _: jax.sharding.PartitionSpec())(hidden, *operands)


def _reduced(
    hidden: Array,
    params: AdaptiveParams,
    labels: Array,
    class_weights: ArrayLike | None,
    ignore_index: ArrayLike | None,
    weights: ArrayLike | None,
    denominator: ArrayLike | None,
    *,
    reduction: str,
) -> Array:
    batch, labels = labels.shape, widened(labels).reshape(-1)
    x = in_one_dtype(hidden, params).reshape(-1, hidden.shape[-1])
    ignored = None if ignore_index is None else labels == ignore_index
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient.
        x = jnp.where(row(ignored), 0, x)
    weights = None if weights is None else jnp.reshape(weights, labels.shape)
    x, labels, share = row_shares(
        x, labels, params.num_classes, weights, ignored, reduction, denominator, x.dtype
    )
    wanted = (labels >= 0) & (labels < params.num_classes)
    wanted = wanted if ignored is None else wanted & ~ignored
    places = jnp.where(wanted, params.places(labels), 0)
    # 0 for the head, i for the i-th cluster; rows of no class are the head's, which makes their NaN.
    cluster = sum((places >= end).astype(jnp.int32) for end in params.bounds[:-1])
    cluster = jnp.broadcast_to(jnp.asarray(cluster, jnp.int32), places.shape)
    entry = jnp.where(cluster > 0, params.bounds[0] + cluster - 1, places)
    logits = head_logits(x, params)
    # A NaN of the head, times the gradient of 0 of a row that does not count, would reach it too.
    logits = logits if ignored is None else jnp.where(row(ignored), 0, logits)
    loss = cross_entropy(logits, entry)
    of_class = None
    if class_weights is not None:
        of_class = at_label(jnp.asarray(class_weights, loss.dtype), labels)

    def counted(loss: Array) -> Array:
        loss = loss if of_class is None else scaled(of_class, loss)
        loss = settle(loss, labels, params.num_classes, ignored)
        return loss if share is None else weighed(share, loss)

    order = jnp.argsort(cluster)
    # The rows of a cluster first, so that the others' tiles are skipped.
    fronts = [jnp.roll(order, -jnp.sum(cluster <= i)) for i in range(len(params.tail_kernels))]

    def in_cluster(i: int) -> tuple[Array, Array, Array]:
        local = jnp.where(cluster == i + 1, places - params.bounds[i], -1)
        return projected(x, params, i)[fronts[i]], params.tail_kernels[i], local[fronts[i]]

    if reduction == "none":
        for i, front in enumerate(fronts):
            loss = loss.at[front].add(row_losses(*in_cluster(i)), unique_indices=True)
        return counted(loss).reshape(batch)
    total = jnp.sum(counted(loss))
    each = counted(jnp.ones_like(loss))
    for i, front in enumerate(fronts):
        total += weighted_sum(*in_cluster(i), each[front])
    return total


@takes_arrays
def adaptive_log_softmax(hidden: ArrayLike, params: AdaptiveParams) -> Array:
    r"""The log-probabilities of all classes under an adaptive softmax.

    .. math:: \log p_k = \log p(\text{cluster of } k) + \log p(k \mid \text{cluster of } k)

    For the few rows of which all classes are to be seen: it makes every logit. `adaptive_top_k` and
    `adaptive_sample` answer narrower questions for less.

    Args:
        hidden: `[*batch, features]`, floating; float32 or wider inside.
        params: What `adaptive_init` makes.

    Returns:
        `[*batch, classes]`, float32 or wider, by the user's class ids. A NaN in `hidden` gives a row
        of NaN.

    Gradient: in `hidden` and every array of `params`. Every AD mode and order.

    Raises:
        TypeError: If `hidden` is not floating.
        ValueError: If its features are not those of `params`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax.hierarchical import adaptive_init, adaptive_log_softmax
        >>> params = adaptive_init(jax.random.key(0), 16, 100, (10, 30))
        >>> print(jnp.exp(adaptive_log_softmax(jnp.ones(16), params)).sum().round(4))
        1.0

    References:
        Grave et al., Efficient softmax approximation for GPUs, 2017.
    """
    hidden, _ = checked("adaptive_log_softmax", hidden, params)
    return _log_softmax(hidden, params)


@compiled()
@by_rows
def _log_softmax(hidden: Array, params: AdaptiveParams) -> Array:
    x, shortlist = in_one_dtype(hidden, params), params.bounds[0]
    head = log_softmax(head_logits(x, params))
    parts = [head[..., :shortlist]]
    for i in range(len(params.tail_kernels)):
        parts.append(head[..., shortlist + i, None] + tail_log_softmax(x, params, i))
    out = jnp.concatenate(parts, axis=-1)
    return out if params.ranking is None else jnp.take(out, params.ranking.places, axis=-1)


def checked(name: str, hidden: ArrayLike, params: Any) -> tuple[Array, tuple[int, ...]]:
    """The hidden rows as an array and their batch, if they fit the parameters."""
    x = _checks.array(name, "hidden", hidden)
    _checks.floating(name, "hidden", x)
    if not isinstance(params, AdaptiveParams):
        raise TypeError(
            f"{name}: params must be AdaptiveParams, got {type(params).__name__}; "
            "make them with adaptive_init."
        )
    features = params.head_kernel.shape[0]
    if x.shape[-1:] != (features,):
        raise ValueError(
            f"{name}: hidden must have shape [*batch, features] with features = {features} to match "
            f"params, got {list(x.shape)}; make params for these features with adaptive_init."
        )
    _check_shapes(name, params)
    return without_tiny_dtypes(x), x.shape[:-1]


def _check_shapes(name: str, params: AdaptiveParams) -> None:
    """Refuses arrays of another form than the cutoffs say, which would be NaN or another model."""
    features, ends = params.head_kernel.shape[0], params.bounds
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    widths = [projection.shape[-1] for projection in params.projections]
    head = (features, ends[0] + len(sizes))
    expected = [head, *((features, w) for w in widths), *zip(widths, sizes, strict=False)]
    found = [x.shape for x in (params.head_kernel, *params.projections, *params.tail_kernels)]
    if found != expected or len(widths) != len(sizes):
        raise ValueError(
            f"{name}: params must have arrays of shapes {expected} to match cutoffs {params.cutoffs} "
            f"of {params.num_classes} classes, got {found}; make them anew with adaptive_init."
        )


def in_one_dtype(hidden: Array, params: AdaptiveParams) -> Array:
    """The hidden rows in the dtype that everything is computed in: the widest, float32 at least."""
    dtypes = [wide(leaf).dtype for leaf in (hidden, *jax.tree.leaves(params))]
    return hidden.astype(functools.reduce(jnp.promote_types, dtypes))


def head_logits(x: Array, params: AdaptiveParams) -> Array:
    """The logits of the frequent classes, then of the clusters."""
    logits = x @ params.head_kernel.astype(x.dtype)
    return (
        logits
        if params.head_bias is None
        else logits + aligned(params.head_bias.astype(x.dtype), logits)
    )


def projected(x: Array, params: AdaptiveParams, i: int) -> Array:
    """The features that the `i`-th cluster sees."""
    return x @ params.projections[i].astype(x.dtype)


def tail_log_softmax(x: Array, params: AdaptiveParams, i: int) -> Array:
    """The log-probabilities of the classes of the `i`-th cluster, given that it is the one."""
    return log_softmax(projected(x, params, i) @ params.tail_kernels[i].astype(x.dtype))
