"""A softmax over a tree node by node, in float64, and what there is to be found in it.

A tree is given by its parents alone, −1 for the root; nothing is known of any search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Oracle:
    """All that is true of a tree, for scores `[*batch, rows]`.

    Rows as `node_kernel` has them: in breadth-first order one per inner node where every inner node has
    two children, else one per child.
    """

    def __init__(self, parents: Sequence[int]):
        nodes = range(len(parents))
        self.parents = parents
        self.children = {v: [c for c in nodes if parents[c] == v] for v in nodes if v in set(parents)}
        self.leaves = [v for v in nodes if v not in self.children]
        self.order = [v for v in nodes if parents[v] < 0]
        for v in self.order:
            self.order += self.children.get(v, [])
        self.binary = all(len(below) == 2 for below in self.children.values())
        inner = [v for v in self.order if v in self.children]
        self.row = {v: i for i, v in enumerate(inner if self.binary else self.order[1:])}
        self.num_rows = len(self.row)

    def edges(self, scores: np.ndarray, v: int) -> np.ndarray:
        """The log-probabilities of the steps from a node to its children, `[*batch, children]`."""
        if self.binary:
            s = scores[..., self.row[v]].astype(np.float64)
            return np.stack([-np.logaddexp(0, -s), -np.logaddexp(0, s)], axis=-1)
        z = np.stack([scores[..., self.row[c]] for c in self.children[v]], axis=-1).astype(np.float64)
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    def log_probs(self, scores: np.ndarray) -> np.ndarray:
        """Of all classes, `[*batch, classes]`."""
        found = {self.order[0]: np.zeros(scores.shape[:-1])}
        for v in self.order:
            if v in self.children:
                edges = self.edges(scores, v)
                for i, c in enumerate(self.children[v]):
                    found[c] = found[v] + edges[..., i]
        return np.stack([found[v] for v in self.leaves], axis=-1)

    def score_gradient(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The gradient of `Σ weights · log_probs` in the scores, `[*batch, rows]`."""
        below = {v: weights[..., k].astype(np.float64) for k, v in enumerate(self.leaves)}
        gradient = np.zeros(scores.shape)
        for v in reversed(self.order):
            if v in self.children:
                below[v] = sum((below[c] for c in self.children[v]), np.zeros(scores.shape[:-1]))
                p = np.exp(self.edges(scores, v))
                if self.binary:
                    gradient[..., self.row[v]] = below[self.children[v][0]] - p[..., 0] * below[v]
                else:
                    for i, c in enumerate(self.children[v]):
                        gradient[..., self.row[c]] = below[c] - p[..., i] * below[v]
        return gradient

    def greedy(self, scores: np.ndarray) -> int:
        """The class at the end of the most probable steps, for scores `[rows]`."""
        v = self.order[0]
        while v in self.children:
            v = self.children[v][int(np.argmax(self.edges(scores, v)))]
        return self.leaves.index(v)


def random_parents(rng: np.random.Generator, classes: int, widest: int, next_leaf: str) -> list[int]:
    """A tree of so many leaves: a leaf is given 2 to `widest` children until there are enough.

    The oldest leaf, which makes a bushy tree, the newest, which makes a thin one, or any. One child now
    and then where `widest` is more than 2. The nodes are numbered at random.
    """
    parents, leaves = [-1], [0]
    while len(leaves) < classes:
        i = {"oldest": 0, "newest": -1, "any": int(rng.integers(len(leaves)))}[next_leaf]
        v = leaves.pop(i)
        most = min(widest, classes - len(leaves))
        least = 1 if widest > 2 and rng.random() < 0.1 else 2
        for _ in range(int(rng.integers(least, most + 1))):
            leaves.append(len(parents))
            parents.append(v)
    number = rng.permutation(len(parents))
    mixed = [0] * len(parents)
    for v, parent in enumerate(parents):
        mixed[number[v]] = -1 if parent < 0 else int(number[parent])
    return mixed
