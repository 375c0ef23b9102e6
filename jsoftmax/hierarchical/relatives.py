"""Which classes a tree holds to be alike: the distance between two, and labels smoothed over relatives.

A softmax knows no likeness of its classes, a tree does. Both functions need only how many edges the
ways to two leaves share.

Imports `_edges`, `tree`, `maps`, `_labels`, `_pytrees`, `_numerics`, `_checks`.
"""

import functools
import itertools
import math

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import comparable
from jsoftmax._numerics import aligned, by_rows, nan_unless, row, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.hierarchical._edges import descend, path
from jsoftmax.hierarchical.tree import Tree, check_tree
from jsoftmax.maps import softmax


@takes_arrays
def tree_distance(a: ArrayLike, b: ArrayLike, tree: Tree, *, nodes: bool = False) -> Array:
    r"""The number of edges between two classes of a tree, by way of their lowest common ancestor.

    .. math:: d(a, b) = \mathrm{depth}(a) + \mathrm{depth}(b) - 2\, \mathrm{depth}(\mathrm{lca}(a, b))

    For evaluation: how bad a mistake is, where accuracy only counts it. O(depth) per pair.

    Args:
        a: Class indices `[*batch]`, integer.
        b: Class indices `[*batch]`, integer.
        tree: The tree.
        nodes: Whether `a` and `b` are nodes of the tree, as in `tree.parents`.

    Returns:
        `[*batch]`, float32: whole numbers, 0 where `a == b`; NaN where either is no class.

    Gradient: none, a distance is a whole number.

    Raises:
        TypeError: If `a` or `b` is not of an integer dtype, or `tree` no `Tree`.
        ValueError: If their shapes differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.balanced_tree(8)
        >>> print(hierarchical.tree_distance(jnp.array([0, 0, 0, 0]), jnp.array([0, 1, 2, 7]), tree))
        [0. 2. 4. 6.]

    References:
        Deng et al., What does classifying more than 10,000 image categories tell us?, 2010.
    """
    name = "tree_distance"
    check_tree(name, tree)
    _checks.flag(name, "nodes", nodes)
    x, y = _indices(name, "a", a), _indices(name, "b", b)
    if x.shape != y.shape:
        raise ValueError(
            f"{name}: b must have shape [*batch] = {list(x.shape)} like a, got {list(y.shape)}; "
            "broadcast them explicitly."
        )
    return _tree_distance(x, y, tree, nodes=nodes)


@takes_arrays
def smooth_over_tree(
    labels: ArrayLike,
    tree: Tree,
    smoothing: ArrayLike,
    *,
    decay: ArrayLike = 1.0,
    ignore_index: int | None = None,
) -> Array:
    r"""Distributions that give the label's relatives a share, the nearer the more.

    .. math:: q_k = (1 - \varepsilon) [k = y] +
        \varepsilon \, \frac{[k \ne y] \, e^{-\beta d(y, k)}}{\sum_{j \ne y} e^{-\beta d(y, j)}}

    with `d` of `tree_distance`. Pass them as labels to `cross_entropy`, `hierarchical_cross_entropy`
    or any loss that takes distributions: a mistake between relatives then costs less than one
    between strangers. O(nodes) per row.

    Args:
        labels: Class indices `[*batch]`, integer.
        tree: The tree, a taxonomy for instance; the tree of the loss may be another.
        smoothing: `ε` in [0, 1], the share of all other classes together; a scalar or one per row.
        decay: `β ≥ 0`, finite, per edge; a scalar or one per row. At 0 the others share evenly (label
            smoothing with `ε · classes / (classes − 1)`); a large one leaves the nearest relatives.
        ignore_index: Rows with this label are all 0, which costs nothing in a loss.

    Returns:
        `[*batch, classes]`, float32 (float64 in x64 mode), summing to 1 per row. NaN in the rows of a
        label that is no class, and where a traced `ε` or `β` is out of range.

    Gradient: in `smoothing` and `decay`. Every AD mode and order.

    Raises:
        TypeError: If labels are not of an integer dtype, or `tree` is no `Tree`.
        ValueError: If a Python number is out of range, or `smoothing` or `decay` is neither a scalar
            nor one per row.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.balanced_tree(4)
        >>> print(hierarchical.smooth_over_tree(0, tree, 0.1, decay=1.0))
        [0.9       0.0786986 0.0106507 0.0106507]

    References:
        Bertinetto et al., Making better mistakes, 2020: soft labels, there over the height of the
        common ancestor and with the label itself in the softmax.
    """
    name = "smooth_over_tree"
    check_tree(name, tree)
    labels, ignore_index = comparable(name, labels, ignore_index)
    y = _indices(name, "labels", labels)
    _checks.per_row(name, "smoothing", smoothing, y.shape)
    _checks.number(name, "smoothing", smoothing, lambda e: 0 <= e <= 1, "in [0, 1]")
    _checks.per_row(name, "decay", decay, y.shape)
    _checks.number(name, "decay", decay, lambda d: 0 <= d < math.inf, "in [0, inf)")
    return _smooth_over_tree(y, tree, smoothing, decay, ignore_index)


@compiled("nodes")
@functools.partial(by_rows, trailing=0)
def _tree_distance(a: Array, b: Array, tree: Tree, *, nodes: bool) -> Array:
    a, b = widened(a), widened(b)
    known = tree.num_nodes if nodes else tree.num_classes
    valid = (a >= 0) & (a < known) & (b >= 0) & (b < known)
    a, b = path(tree, _position(tree, a, nodes)), path(tree, _position(tree, b, nodes))
    edges = jnp.sum((a > 0) & (a != b), axis=-1) + jnp.sum((b > 0) & (a != b), axis=-1)
    return jnp.where(valid, edges.astype(jnp.float32), jnp.nan)


@compiled()
@functools.partial(by_rows, trailing=0)
def _smooth_over_tree(
    labels: Array,
    tree: Tree,
    smoothing: ArrayLike,
    decay: ArrayLike,
    ignore_index: ArrayLike | None,
) -> Array:
    dtype = jnp.result_type(float)
    eps, beta = (jnp.broadcast_to(x, labels.shape).astype(dtype) for x in (smoothing, decay))
    y = widened(labels)
    steps = path(tree, _position(tree, y, nodes=False))
    taken = []
    for i, (start, end) in enumerate(itertools.pairwise(tree.level_ends)):
        here = row(steps[..., i])
        taken.append(aligned(jnp.arange(start, end, dtype=jnp.int32), here) == here)
    leaf = tree.position[tree.leaves]
    shared = descend(jnp.concatenate(taken, axis=-1).astype(jnp.int32), tree)[..., leaf]
    depths = descend(jnp.ones(tree.num_nodes - 1, jnp.int32), tree)[leaf]
    down = row(jnp.sum(steps > 0, axis=-1, dtype=jnp.int32))
    distance = aligned(depths, down) + down - 2 * shared
    is_label = distance == 0
    others = softmax(-row(beta) * distance.astype(dtype), where=~is_label)
    q = jnp.where(is_label, row(1 - eps), row(eps) * others)
    ignored = jnp.zeros_like(y, bool) if ignore_index is None else y == ignore_index
    valid = (y >= 0) & (y < tree.num_classes) & (eps >= 0) & (eps <= 1) & (beta >= 0) & (beta < jnp.inf)
    return jnp.where(row(ignored), 0, q * row(nan_unless(ignored | valid, dtype)))


def _position(tree: Tree, ids: Array, nodes: bool) -> Array:
    """Where classes, or nodes, are in the tree; anywhere for what is neither."""
    ids = ids if nodes else tree.leaves.at[ids].get(mode="clip")
    return tree.position.at[ids].get(mode="clip")


def _indices(function: str, name: str, x: ArrayLike) -> Array:
    array = _checks.array(function, name, x)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{function}: {name} must have an integer dtype, got {array.dtype}; convert with "
            f"{name}.astype(jnp.int32)."
        )
    return array
