"""Losses of a distribution over exclusive classes, in optax's signatures and beyond.

All are formulas over the statistics of a row; only the losses that weigh every class on its own
(poly, focal and generalized cross-entropy of soft labels) go through `log_softmax`.

Imports `statistics`, `maps`, `_labels`, `_rows`, `_pytrees`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices, at_label, settle
from jsoftmax._numerics import accumulator, aligned, nan_unless, scaled, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import all_masked, batch_of, classes_last
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax.losses._arrange import class_mask, pair, row_mask
from jsoftmax.maps import log_softmax
from jsoftmax.statistics import Reduction, reduce

_SOFT = Reduction(frozenset({"nll"}), drop_masked_mass=True)
_HARD = Reduction(frozenset({"nll"}))


@takes_arrays
def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axis | None = -1, where: ArrayLike | None = None
) -> Array:
    r"""Cross-entropy of softmax against distributions.

    .. math:: \ell = -\sum_k y_k \log p_k

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Distributions (or one-hot rows of any real dtype) in the shape of `logits`.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable to `logits`, or `[*batch]` for whole rows:
            as in optax, a mask of fewer axes than `logits` has none of classes. Label mass on the
            others is dropped.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. A label 0 costs nothing on a −inf logit; mass
        there gives +inf. Rows with every class masked give 0.

    Gradient: `p Σy − y` in `logits`, `−log p` in `labels`; exactly 0 where masked or impossible.
    Every AD mode and order.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> [round(x, 4) for x in losses.softmax_cross_entropy(logits, labels).tolist()]
        [0.2761, 2.9518]

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.
    """
    return _soft("softmax_cross_entropy", logits, labels, axis, where)


@takes_arrays
def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""`softmax_cross_entropy` over the last axis, under the name that optax gives its safe variant.

    .. math:: \ell = -\sum_k y_k \log p_k, \quad 0 \log 0 = 0

    Args:
        logits: `[*batch, classes]`, floating; −inf makes a class impossible.
        labels: Distributions in the shape of `logits`.

    Returns:
        The losses `[*batch]` in nats, float32 or wider; +inf for mass on an impossible class.

    Gradient: `p Σy − y` in `logits`, `−log p` in `labels`; exactly 0 where impossible. Every AD mode.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.safe_softmax_cross_entropy(jnp.array([0.0, -jnp.inf]), jnp.array([1.0, 0.0])))
        0.0

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.
    """
    return _soft("safe_softmax_cross_entropy", logits, labels, -1, None)


@takes_arrays
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> Array:
    r"""Cross-entropy of softmax against class indices.

    .. math:: \ell = -\log p_y

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Class indices `[*batch]` of an integer dtype.
        axis: The class axis; of a tuple, the index counts the joined axes in row-major order.
        where: Which classes take part: bool, broadcastable to `logits`, or `[*batch]` for whole rows:
            as in optax, a mask of fewer axes than `logits` has none of classes.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. An index outside [0, classes) gives NaN, value
        and gradient; a masked or −inf label +inf; rows with every class masked 0.

    Gradient: `p − y` in `logits`, accurate where the label dominates; exactly 0 where masked. Every
    AD mode and order.

    Raises:
        TypeError: If `logits` is not floating or `labels` not of an integer dtype.
        ValueError: If `labels` is not `[*batch]`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
        >>> rows = losses.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1]))
        >>> [round(x, 4) for x in rows.tolist()]
        [0.2761, 2.9518]

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.
    """
    name = "softmax_cross_entropy_with_integer_labels"
    z, y = _checks.array(name, "logits", logits), _checks.array(name, "labels", labels)
    _checks.floating(name, "logits", z)
    axes = _checks.axes(name, axis, z.ndim, none=True)
    if not _checks.labels(name, z.shape, batch_of(z.shape, axes), y):
        raise TypeError(
            f"{name}: labels must be class indices [*batch] of an integer dtype, got {y.dtype}; "
            "distributions go to softmax_cross_entropy."
        )
    mask = row_mask(name, where, z.shape, axis)
    return _nll(classes_last(z, axes), y, mask, _HARD)


@takes_arrays
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""PolyLoss: cross-entropy with another coefficient of its first polynomial term.

    .. math:: \ell = -\sum_k y_k \log p_k + \epsilon \sum_k y_k (1 - p_k)

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Distributions in the shape of `logits`.
        epsilon: The coefficient, a scalar: 2 for images, −1 for segmentation in the paper.
        axis: The class axis, a tuple of them, or `None` for all.
        where: Which classes take part: bool, broadcastable to `logits`. Give it all axes: as in optax,
            one of fewer means rows in the cross-entropy and classes in the other term.

    Returns:
        The losses `[*batch]`, float32 or wider; +inf for mass on a −inf logit, 0 where every class is
        masked. `1 − p` keeps its digits near 0.

    Gradient: in `logits`, `labels` and `epsilon`; exactly 0 where masked. Every AD mode.

    Raises:
        TypeError: If `logits` is not floating.
        ValueError: If the shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.poly_loss_cross_entropy(jnp.zeros(2), jnp.array([1.0, 0.0])))
        1.6931

    References:
        Leng et al., PolyLoss, 2022.
    """
    name = "poly_loss_cross_entropy"
    _checks.scalar(name, "epsilon", epsilon)
    z, y, mask = pair(name, ("logits", "labels"), (logits, labels), axis, where)
    # As in optax, whose cross-entropy reads a mask of fewer axes otherwise than the rest of it.
    return _poly(z, y, mask, row_mask(name, where, jnp.shape(logits), axis), epsilon)


@takes_arrays
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    alpha: ArrayLike | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Focal loss over exclusive classes: cross-entropy that fades for rows already right.

    .. math:: \ell = -\sum_k \alpha_k y_k (1 - p_k)^\gamma \log p_k

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Class indices `[*batch]` or distributions in the shape of `logits`.
        gamma: The exponent `γ ≥ 0`, a scalar; 0 gives cross-entropy. NaN comes back for a negative
            traced one.
        alpha: The weight of each class `[classes]`, or a scalar; 1 by default.
        axis: The class axis, or a tuple of axes.
        where: Which classes take part: bool, broadcastable to `logits`.

    Returns:
        The losses `[*batch]`, float32 or wider; the label policy is that of the cross-entropies.

    Gradient: in `logits`, distributions, `gamma` and `alpha`; exactly 0 where masked. Every AD mode.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit or `gamma` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.softmax_focal_loss(jnp.zeros((1, 2)), jnp.array([0])))
        [0.1733]

    References:
        Lin et al., Focal loss for dense object detection, 2017.
    """
    name = "softmax_focal_loss"
    _checks.scalar(name, "gamma", gamma)
    _checks.number(name, "gamma", gamma, lambda g: g >= 0, "at least 0")
    z, y, mask = _either(name, logits, labels, axis, where)
    if alpha is not None:
        _checks.class_vector(name, "alpha", alpha, z.shape, scalar=True)
    return _focal(z, y, mask, gamma, alpha)


@takes_arrays
def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    q: ArrayLike = 0.7,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Generalized cross-entropy: bounded, and so robust against wrong labels.

    .. math:: \ell = \sum_k y_k \frac{1 - p_k^q}{q}

    Args:
        logits: `[*batch, classes]`, floating.
        labels: Class indices `[*batch]` or distributions in the shape of `logits`.
        q: The order in [0, 1], a scalar: 0 gives cross-entropy, 1 the mean absolute error. NaN comes
            back for a traced one outside.
        axis: The class axis, or a tuple of axes.
        where: Which classes take part: bool, broadcastable to `logits`.

    Returns:
        The losses `[*batch]`, float32 or wider; `1/q` for a label that is impossible, otherwise the
        label policy is that of the cross-entropies.

    Gradient: in `logits`, distributions and `q`; exactly 0 where masked. Every AD mode.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit or `q` is outside [0, 1].

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import losses
        >>> print(losses.generalized_cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), q=1.0))
        [0.5]

    References:
        Zhang and Sabuncu, Generalized cross entropy loss, 2018.
    """
    name = "generalized_cross_entropy"
    _checks.scalar(name, "q", q)
    _checks.number(name, "q", q, lambda q: 0 <= q <= 1, "in [0, 1]")
    z, y, mask = _either(name, logits, labels, axis, where)
    return _generalized(z, y, mask, q)


def _soft(
    name: str, logits: ArrayLike, labels: ArrayLike, axis: Axis | None, where: ArrayLike | None
) -> Array:
    z, y, _ = pair(name, ("logits", "labels"), (logits, labels), axis, None)
    return _nll(z, y, row_mask(name, where, jnp.shape(logits), axis), _SOFT)


@compiled("reduction")
def _nll(z: Array, y: Array, where: Array | None, reduction: Reduction) -> Array:
    """The negative log-likelihood of rows, under the label policy."""
    if are_indices(y):
        y = widened(y)
    raw = reduce(reduction, z, y, where, all_masked(where, z), None, None, None)
    return settle(raw["nll"], y, z.shape[-1], None)


def _either(
    name: str, logits: ArrayLike, labels: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    z, y = _checks.array(name, "logits", logits), _checks.array(name, "labels", labels)
    _checks.floating(name, "logits", z)
    axes = _checks.axes(name, axis, z.ndim)
    if not _checks.labels(name, z.shape, batch_of(z.shape, axes), y):
        return pair(name, ("logits", "labels"), (z, y), axis, where)
    return classes_last(z, axes), y, class_mask(name, where, z.shape, axes)


def _costs(z: Array, y: Array, where: Array | None) -> tuple[Array, Array]:
    """`−log p` of what a label can be, and the label's share of each: per row, or per class."""
    if are_indices(y):
        nll = _nll(z, y, where, _HARD)
        return nll, jnp.ones_like(nll)
    share = y if where is None else jnp.where(where, y, 0)
    return -log_softmax(z.astype(y.dtype), where=where), share


def _sum_of(costs: Array, share: Array, y: Array) -> Array:
    costs = scaled(share, costs)
    return costs if are_indices(y) else jnp.sum(costs, axis=-1)


@compiled()
def _poly(
    z: Array, y: Array, where: Array | None, of_entropy: Array | None, epsilon: ArrayLike
) -> Array:
    log_p, share = _costs(z, y, where)
    missed = jnp.sum(share * -jnp.expm1(-log_p), axis=-1)
    return _nll(z, y, of_entropy, _SOFT) + jnp.asarray(epsilon, missed.dtype) * missed


@compiled()
def _focal(z: Array, y: Array, where: Array | None, gamma: ArrayLike, alpha: ArrayLike | None) -> Array:
    dtype = accumulator(z.dtype)
    cost, share = _costs(z, y, where)
    gamma = jnp.asarray(gamma, dtype)
    gamma = gamma * nan_unless(gamma >= 0, dtype)
    # (1 − p)^γ log p by log-free pieces: beyond these bounds the factor is 1, or the cost 0.
    inner = (cost > 0) & (cost < 80)
    missed = -jnp.expm1(-jnp.where(inner, cost, 1))
    faded = jnp.where(inner, jnp.power(missed, gamma) * jnp.where(inner, cost, 1), cost)
    faded = jnp.where((cost == 0) & (gamma > 0), 0, faded)
    if alpha is not None:
        weight = jnp.asarray(alpha, dtype)
        if weight.ndim:
            weight = at_label(weight, y) if are_indices(y) else aligned(weight, share)
        share = share * weight
    return _sum_of(faded, share, y)


@compiled()
def _generalized(z: Array, y: Array, where: Array | None, q: ArrayLike) -> Array:
    dtype = accumulator(z.dtype)
    cost, share = _costs(z, y, where)
    q = jnp.asarray(q, dtype)
    q = q * nan_unless((q >= 0) & (q <= 1), dtype)
    safe = jnp.where(q == 0, 1, q)
    impossible = cost == jnp.inf
    bounded = jnp.where(impossible, 1, -jnp.expm1(-safe * jnp.where(impossible, 0, cost))) / safe
    return _sum_of(jnp.where(q == 0, cost, bounded), share, y)
