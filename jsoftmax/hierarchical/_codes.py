"""The lengths of optimal code words: Huffman's, and the best of a bounded length.

NumPy, on the host. Weights come in ascending order and lengths go out in theirs: the longest first.

Imports nothing of this package.
"""

import bisect

import numpy as np


def optimal_lengths(weights: np.ndarray) -> np.ndarray:
    """The lengths of Huffman's code words, by the two-queue method.

    Of two equal weights a leaf goes first, which gives the shallowest of the best trees.
    """
    classes = len(weights)
    leaves, inner = [*weights.tolist(), np.inf], [np.inf] * classes
    # Parents by the order of their making, ascending: either queue is emptied from its front.
    above_leaves: list[int] = []
    above_inner: list[int] = []
    leaf = node = 0
    for made in range(classes - 1):
        weight = 0.0
        for _ in range(2):
            if leaves[leaf] <= inner[node]:
                weight += leaves[leaf]
                leaf += 1
                above_leaves.append(made)
            else:
                weight += inner[node]
                node += 1
                above_inner.append(made)
        inner[made] = weight
    lengths = np.empty(classes, np.int64)
    depth, first, end = 1, classes - 2, classes
    while end:
        start = bisect.bisect_left(above_leaves, first)
        lengths[start:end] = depth
        depth, first, end = depth + 1, bisect.bisect_left(above_inner, first), start
    return lengths


def limited_lengths(weights: np.ndarray, longest: int) -> np.ndarray:
    """The best lengths of at most `longest`, by package-merge.

    A coin of every weight for every length; the cheapest `2 (classes - 1)` of the last list of coins
    and packages, unpacked, hold as many coins of a class as its word is long.
    """
    classes = len(weights)
    items, are_coins = weights, [np.ones(classes, bool)]
    for _ in range(longest - 1):
        pairs = len(items) // 2 * 2
        both = np.concatenate([weights, items[0:pairs:2] + items[1:pairs:2]])
        ascending = np.argsort(both, kind="stable")
        items = both[ascending]
        are_coins.append(ascending < classes)
    lengths, taken = np.zeros(classes, np.int64), 2 * (classes - 1)
    for is_coin in reversed(are_coins):
        coins = int(np.sum(is_coin[:taken]))
        lengths[:coins] += 1
        taken = 2 * (taken - coins)
    return lengths
