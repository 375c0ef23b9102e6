"""Trees by definition: code lengths by brute force, ways to the root node by node.

A tree is given by its parents alone, −1 for the root.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def huffman_cost(counts: Sequence[float]) -> Fraction:
    """The least `Σ counts · depth` of any binary tree, exactly."""
    heap = [Fraction(c) for c in counts]
    heapq.heapify(heap)
    cost = Fraction(0)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    return cost


def limited_cost(counts: Sequence[float], longest: int) -> Fraction:
    """The least `Σ counts · depth` of binary trees of bounded depth, by trying every number of leaves
    at every level."""
    falling = sorted(map(Fraction, counts), reverse=True)

    @functools.cache
    def cheapest(placed: int, free: int, level: int) -> Fraction | None:
        """The cost from `level` down, with `free` nodes there and the most frequent classes placed."""
        if placed == len(falling):
            return Fraction(0)
        if level > longest or not free:
            return None
        found = []
        for leaves in range(min(free, len(falling) - placed) + 1):
            here = placed + leaves
            below = cheapest(here, min(2 * (free - leaves), len(falling)), level + 1)
            if below is not None:
                found.append(below + sum(falling[here:], Fraction(0)))
        return min(found, default=None)

    cost = cheapest(0, 1, 0)
    assert cost is not None
    return cost


def way(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from the root to `node`, both among them."""
    nodes = [node]
    while parents[nodes[-1]] >= 0:
        nodes.append(parents[nodes[-1]])
    return nodes[::-1]


def children(parents: Sequence[int]) -> list[list[int]]:
    """The nodes right below each node."""
    below: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            below[parent].append(node)
    return below


def distance(parents: Sequence[int], a: int, b: int) -> int:
    """The number of edges between two nodes: those on one way to the root and not on the other."""
    return len(set(way(parents, a)) ^ set(way(parents, b)))


def smoothed(
    parents: Sequence[int], leaves: Sequence[int], label: int, smoothing: float, decay: float
) -> np.ndarray:
    """The label's distribution over the classes, as `smooth_over_tree` defines it."""
    far = np.array([distance(parents, leaves[label], leaf) for leaf in leaves], np.float64)
    # Relative to the nearest: the sum is at least 1.
    others = np.arange(len(leaves)) != label
    weights = np.where(others, np.exp(-decay * np.maximum(far - far[others].min(), 0)), 0)
    q = smoothing * weights / weights.sum()
    q[label] = 1 - smoothing
    return q
