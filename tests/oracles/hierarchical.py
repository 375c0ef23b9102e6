"""A softmax over a tree by definition, node by node in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def node_log_probs(
    hidden: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    parents: Sequence[int],
    order: Sequence[int],
) -> np.ndarray:
    """`[*batch, nodes]`; `order` lists the nodes breadth first, which numbers the rows."""
    scores = hidden.astype(np.float64) @ kernel.astype(np.float64).T
    scores = scores if bias is None else scores + bias
    children: dict[int, list[int]] = {}
    for node in order:
        children.setdefault(parents[node], []).append(node)
    found = {children.pop(-1)[0]: np.zeros(scores.shape[:-1])}
    binary = all(len(below) == 2 for below in children.values())
    place = {node: i for i, node in enumerate(order)}
    for i, node in enumerate(node for node in order if node in children):
        below = children[node]
        if binary:
            z = np.stack([scores[..., i], np.zeros(scores.shape[:-1])], axis=-1)
        else:
            z = scores[..., [place[child] - 1 for child in below]]
        for j, child in enumerate(below):
            # log p = −log(1 + Σ of the others), which keeps the digits of a p near 1.
            others = np.delete(z, j, axis=-1) - z[..., j : j + 1]
            top = np.maximum(np.max(others, axis=-1, initial=0), 0)
            rest = np.sum(np.exp(others - top[..., None]), axis=-1)
            edge = np.where(top == 0, np.log1p(rest), top + np.log(np.exp(-top) + rest))
            found[child] = found[node] - edge
    return np.stack([found[node] for node in range(len(parents))], axis=-1)
