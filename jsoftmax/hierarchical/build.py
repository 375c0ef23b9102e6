"""Trees made of the classes' counts, or of their number alone.

All of it runs once, on the host, in NumPy: a million classes take about a second. Class `k` is node
`k`, and the inner nodes follow from the root down.

Imports `tree`, `_codes`, `_pytrees`, `_checks`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import ArrayLike
from jsoftmax.hierarchical._codes import limited_lengths, optimal_lengths
from jsoftmax.hierarchical.tree import Tree, in_breadth_first_order


@takes_arrays
def huffman_tree(counts: ArrayLike | Sequence[float], max_depth: int | None = None) -> Tree:
    r"""The binary tree whose expected depth is least, for classes that occur so often.

    .. math:: H \le \sum_k p_k \, \mathrm{depth}(k) < H + 1, \qquad
        p_k = \frac{\mathrm{counts}_k}{\sum_j \mathrm{counts}_j}, \quad H = -\sum_k p_k \log_2 p_k

    The cheapest tree to train on, as a step costs a class its depth. It knows nothing of what the
    classes mean. Frequent classes come first at every depth, and equal counts in the order of
    their classes, so a tree follows from its counts alone.

    Args:
        counts: `[classes]`, positive and finite, integer or floating: an array or a list, known
            before tracing. Their scale does not matter.
        max_depth: No leaf is deeper; the expected depth is the least that allows. At least
            `log2(classes)`.

    Returns:
        A binary `Tree`; class `k` is node `k`.

    Gradient: none, a tree is made of integers.

    Raises:
        TypeError: If counts are not real numbers, or traced.
        ValueError: If counts are not positive and finite, not `[classes]`, or fewer than two; if
            `max_depth` is too small.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> hierarchical.huffman_tree([8, 4, 2, 1, 1])
        Tree(5 classes, binary, 4 rows, depth 4, mean depth 2.8)
        >>> hierarchical.huffman_tree([8, 4, 2, 1, 1], max_depth=3)
        Tree(5 classes, binary, 4 rows, depth 3, mean depth 2.6)

    References:
        Huffman, A method for the construction of minimum-redundancy codes, 1952; Larmore and
        Hirschberg, A fast algorithm for optimal length-limited Huffman codes, 1990.
    """
    name = "huffman_tree"
    array = _positive(name, counts)
    classes = len(array)
    ranked = np.argsort(-array, kind="stable")
    # Scaled by a power of two, which costs no digit, so that no sum overflows.
    weights = np.ldexp(array, -np.frexp(array.max())[1])[ranked[::-1]]
    lengths = optimal_lengths(weights)
    if max_depth is not None:
        _checks.integer(name, "max_depth", max_depth)
        longest, least = int(max_depth), (classes - 1).bit_length()
        if longest < least:
            raise ValueError(
                f"{name}: max_depth must be at least log2(classes) = {least} for {classes} classes, "
                f"got {longest}; a binary tree has up to 2 ** max_depth leaves."
            )
        if lengths[0] > longest:
            lengths = limited_lengths(weights, longest)
    return _canonical(lengths[::-1], ranked)


def balanced_tree(num_classes: int, branching: int = 2) -> Tree:
    r"""The tree that halves the classes, or divides them into equal parts, down to single ones.

    .. math:: \mathrm{depth} = \lceil \log_b \mathrm{classes} \rceil

    For classes that are about equally frequent, or whose order means something: every node stands
    for a range of classes.

    Args:
        num_classes: Two or more.
        branching: `b`: an inner node has 2 to `b` children.

    Returns:
        A `Tree`, binary for a branching of 2; class `k` is node `k`.

    Gradient: none, a tree is made of integers.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is less than 2.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> hierarchical.balanced_tree(1000)
        Tree(1000 classes, binary, 999 rows, depth 10, mean depth 10.0)
        >>> hierarchical.balanced_tree(1000, branching=10)
        Tree(1000 classes, up to 10 children, 1110 rows, depth 3, mean depth 3.0)

    References:
        Morin and Bengio, Hierarchical probabilistic neural network language model, 2005.
    """
    name = "balanced_tree"
    classes, most = (
        _two_or_more(name, "num_classes", num_classes),
        _two_or_more(name, "branching", branching),
    )
    return _divided(classes, lambda _, sizes: np.minimum(sizes, most) * (sizes > 1))


def two_level_tree(num_classes: int, num_groups: int | None = None) -> Tree:
    r"""The tree of groups of classes: a softmax over the groups, then one inside the group.

    .. math:: \log p_k = \log p_{\mathrm{group}(k)} + \log p_{k \mid \mathrm{group}(k)}

    Two dense softmaxes over about √classes each, which is quick where matmuls are and the depth of a
    binary tree is not.

    Args:
        num_classes: Two or more.
        num_groups: About √classes by default. Each group is a range of classes; their sizes differ
            by one at most.

    Returns:
        A `Tree` of depth 2, with a node for every group, of one class too; class `k` is node `k`,
        and group `g` is node `num_classes + 1 + g`.

    Gradient: none, a tree is made of integers.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is less than 2, or there are more groups than classes.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> hierarchical.two_level_tree(10_000)
        Tree(10000 classes, up to 100 children, 10100 rows, depth 2, mean depth 2.0)

    References:
        Goodman, Classes for fast maximum entropy training, 2001.
    """
    name = "two_level_tree"
    classes = _two_or_more(name, "num_classes", num_classes)
    root = int(np.ceil(np.sqrt(classes)))
    groups = root if num_groups is None else _two_or_more(name, "num_groups", num_groups)
    if groups > classes:
        raise ValueError(
            f"{name}: num_groups must be at most num_classes = {classes}, got {groups}; no group may "
            "be empty."
        )
    return _divided(classes, lambda level, sizes: (np.array([groups]), sizes, 0 * sizes)[level])


def _canonical(lengths: np.ndarray, ranked: np.ndarray) -> Tree:
    """The binary tree with classes `ranked` at depths `lengths`, ascending; leaves first at each."""
    levels, width = [], 1
    for leaves in np.bincount(lengths):
        levels.append(np.arange(width) < leaves)
        width = 2 * (width - leaves)
    is_leaf = np.concatenate(levels)
    class_at = np.full(len(is_leaf), -1)
    class_at[is_leaf] = ranked
    above = np.flatnonzero(~is_leaf)[(np.arange(1, len(is_leaf)) - 1) // 2]
    return _classes_first(np.concatenate([[0], above]), class_at)


def _divided(classes: int, ways: Callable[[int, np.ndarray], np.ndarray]) -> Tree:
    """The tree that divides the classes level by level, each node's range into equal parts.

    `ways(level, sizes)` says into how many, given how many classes each node of a level has; a node
    that is not divided has one.
    """
    starts, sizes = np.array([0]), np.array([classes])
    above, class_at, level, nodes = [np.array([0])], [np.array([-1])], 0, 1
    while (many := ways(level, sizes)).any():
        parent = np.repeat(np.arange(len(sizes)), many)
        above.append(nodes - len(sizes) + parent)
        i = np.arange(len(parent)) - np.repeat(np.cumsum(many) - many, many)
        start, end = i * sizes[parent] // many[parent], (i + 1) * sizes[parent] // many[parent]
        starts, sizes = starts[parent] + start, end - start
        level, nodes = level + 1, nodes + len(parent)
        class_at.append(np.where(ways(level, sizes) > 0, -1, starts))
    return _classes_first(np.concatenate(above), np.concatenate(class_at))


def _classes_first(above: np.ndarray, class_at: np.ndarray) -> Tree:
    """Numbers the nodes: the classes keep their numbers, the inner nodes follow."""
    inner = class_at < 0
    order = np.where(inner, np.sum(~inner) + np.cumsum(inner) - 1, class_at)
    return in_breadth_first_order(above, class_at, order)


def _positive(function: str, counts: Any) -> np.ndarray:
    array = _checks.known_vector(function, "counts", counts, "class", "classes")
    if len(array) < 2:
        raise ValueError(
            f"{function}: counts must have shape [classes] of two or more, got {list(array.shape)}; a "
            "tree needs two leaves."
        )
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(
            f"{function}: counts must have an integer or floating dtype, got {array.dtype}; count how "
            "often each class occurs."
        )
    wide = array.astype(np.float64)
    if not np.all((wide > 0) & (wide < np.inf)):
        k = int(np.argmin((wide > 0) & (wide < np.inf)))
        raise ValueError(
            f"{function}: counts must be positive and finite, got {array[k]} for class {k}; add 1 to "
            "all of them, or leave such classes out."
        )
    return wide


def _two_or_more(function: str, name: str, x: Any) -> int:
    _checks.integer(function, name, x)
    if x < 2:
        raise ValueError(f"{function}: {name} must be at least 2, got {x}; no tree is smaller.")
    return int(x)
