"""Pairs of a word and one near it, as word2vec draws them, made in NumPy a whole epoch at a time.

Frequent words are thinned out, and each word that stays looks at up to `window` others on either
side, the nearer the likelier (Mikolov et al., 2013).
"""

from collections.abc import Iterator

import numpy as np

SAMPLE = 1e-3  # words with a larger share of the text are thinned out

Pairs = tuple[np.ndarray, np.ndarray]  # contexts, and the words to predict from them, int32


def keep_probabilities(counts: np.ndarray) -> np.ndarray:
    """The probability that an occurrence of a word stays, [words]."""
    share = np.maximum(counts, 1) / counts.sum()
    return np.minimum(np.sqrt(SAMPLE / share) + SAMPLE / share, 1)


def pairs_per_epoch(counts: np.ndarray, window: int) -> int:
    """How many pairs `pairs_of` makes of a text with these counts, give or take a few in 1000."""
    return int(np.sum(counts * keep_probabilities(counts)) * (window + 1))


def pairs_of(stream: np.ndarray, keep: np.ndarray, window: int, random: np.random.Generator) -> Pairs:
    """All pairs of one pass over `stream`, in random order, [pairs] each."""
    kept = stream[random.random(len(stream)) < keep[stream]]
    reach = random.integers(1, window + 1, len(kept))
    contexts, words = [], []
    for distance in range(1, window + 1):
        left, right = slice(None, -distance), slice(distance, None)
        for word, context in ((left, right), (right, left)):
            seen = reach[word] >= distance
            words.append(kept[word][seen])
            contexts.append(kept[context][seen])
    order = random.permutation(sum(map(len, words)))
    return np.concatenate(contexts)[order], np.concatenate(words)[order]


def batches(
    stream: np.ndarray, counts: np.ndarray, window: int, shape: tuple[int, int], seed: int
) -> Iterator[Pairs]:
    """Batches of pairs in `shape`, pass after pass over `stream`, without an end."""
    keep, epoch, size = keep_probabilities(counts), 0, shape[0] * shape[1]
    parts = [np.empty(0, np.int32)] * 2
    while True:
        while len(parts[0]) < size:
            more = pairs_of(stream, keep, window, np.random.default_rng((seed, epoch)))
            parts = [np.concatenate(both) for both in zip(parts, more, strict=True)]
            epoch += 1
        contexts, words = (part[:size].reshape(shape) for part in parts)
        yield contexts, words
        parts = [part[size:] for part in parts]
