"""What vectors are worth, whoever trained them: the loss on pairs, and which words are near which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _word2vec_pairs import Pairs

from jsoftmax import hierarchical

NEAREST = 10
RARE = 20  # words that occur less often are nobody's neighbours


@dataclass(frozen=True)
class Trained:
    """Vectors [words, dim], a tree with its rows, and what it took to train them."""

    vectors: Any
    kernel: Any
    tree: hierarchical.Tree
    words_per_second: float
    cpu_seconds: float


@jax.jit
def _mean_loss(
    vectors: jax.Array, kernel: jax.Array, tree: hierarchical.Tree, *pairs: jax.Array
) -> jax.Array:
    contexts, words = pairs
    losses = hierarchical.hierarchical_cross_entropy(vectors[contexts], kernel, words, tree)
    return jnp.mean(losses)


def mean_loss(vectors: Any, kernel: Any, tree: hierarchical.Tree, pairs: Pairs) -> float:
    """The loss of pairs, in nats."""
    parts = len(pairs[0]) // 5000 + 1  # the rows that a part gathers should fit into memory
    used = len(pairs[0]) // parts * parts
    batches = zip(*(np.split(x[:used], parts) for x in pairs), strict=True)
    return float(np.mean([_mean_loss(vectors, kernel, tree, *batch) for batch in batches]))


def neighbours(vectors: Any, counts: np.ndarray, queries: Sequence[int] | np.ndarray) -> np.ndarray:
    """The words in the nearest directions, the nearest first, `[queries, NEAREST]`."""
    candidates = np.flatnonzero(counts >= RARE)
    directions = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = directions[queries] @ directions[candidates].T
    cosines[np.asarray(queries)[:, None] == candidates] = -np.inf
    return candidates[np.argsort(-cosines, axis=1)[:, :NEAREST]]


def overlap(first: Any, second: Any, counts: np.ndarray, queries: Sequence[int] | np.ndarray) -> float:
    """The share of the neighbours that two sets of vectors have in common, a mean over the queries."""
    both = [neighbours(vectors, counts, queries) for vectors in (first, second)]
    return float(np.mean([len(np.intersect1d(*pair)) / NEAREST for pair in zip(*both, strict=True)]))
