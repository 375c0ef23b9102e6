"""The picture of a small tree: the root at the left, the leaves below one another at the right.

Imports nothing of this package, and matplotlib only when something is drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BRANCH, _INNER, _LEAF, _TEXT = "#b8c0cc", "#5b6b82", "#1f77b4", "#20242b"


def draw(above: np.ndarray, texts: Sequence[str], ax: "Axes | None") -> "Axes":
    """Draws the tree with parents `above`, breadth-first, and a text at every position."""
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    nodes = len(above)
    depth, height = layout(above)
    leaf = np.bincount(above[1:], minlength=nodes) == 0
    if ax is None:
        size = 2.4 + 1.3 * depth.max(), 0.8 + 0.26 * np.sum(leaf)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    t = np.linspace(0, 1, 24)
    ease = t * t * (3 - 2 * t)
    branches = [
        np.stack([depth[a] + t * (depth[c] - depth[a]), height[a] + ease * (height[c] - height[a])], -1)
        for c, a in enumerate(above)
        if c
    ]
    ax.add_collection(LineCollection(branches, colors=_BRANCH, linewidths=1.3, zorder=1))
    for which, colour, area in ((~leaf, _INNER, 22), (leaf, _LEAF, 30)):
        ax.scatter(depth[which], height[which], s=area, color=colour, zorder=2)
    for text, x, y, is_leaf in zip(texts, depth, height, leaf, strict=True):
        at, sides = ((7, 0), ("left", "center")) if is_leaf else ((0, 5), ("center", "bottom"))
        halo = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        ax.annotate(
            text,
            (x, y),
            at,
            textcoords="offset points",
            ha=sides[0],
            va=sides[1],
            fontsize=9 if is_leaf else 8,
            color=_TEXT if is_leaf else _INNER,
            bbox=None if is_leaf or not text else halo,
            annotation_clip=False,
        )
    ax.set(xlim=(-0.2, depth.max() + 0.2), ylim=(np.sum(leaf) - 0.4, -0.9))
    ax.set_axis_off()
    return ax


def layout(above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each node's depth, and its height: leaves are a unit apart, a node is amid its children."""
    nodes = len(above)
    many = np.bincount(above[1:], minlength=nodes)
    depth, below = np.zeros(nodes, np.int64), (many == 0).astype(np.int64)
    for c in range(nodes - 1, 0, -1):
        below[above[c]] += below[c]
    free = np.zeros(nodes, np.int64)
    for c in range(1, nodes):
        depth[c] = depth[above[c]] + 1
        free[c] = free[above[c]]
        free[above[c]] += below[c]
    height = np.where(many == 0, free, 0.0)
    for c in range(nodes - 1, 0, -1):
        height[above[c]] += height[c] / many[above[c]]
    return depth, height
