"""The same training with gensim, scored by the same functions."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from _corpus import Corpus
from _word2vec_pairs import SAMPLE, Pairs
from _word2vec_scores import NEAREST, Trained, mean_loss, overlap

from jsoftmax import hierarchical

SENTENCE = 1000  # gensim's windows end with a sentence, and it cuts those of more than 10,000 words
COMPARED = 500  # the most frequent words, whose neighbours are compared
SEEDS = (1, 2)  # two models of gensim: no other can agree with one more than its twin does


def compare(ours: Trained, corpus: Corpus, held_out: Pairs, **settings: int) -> dict[str, Any]:
    """Trains two models with gensim; prints and returns what became of them and of ours."""
    print(f"\ngensim trains twice, with {os.cpu_count()} threads ...")
    theirs, twin = (train(corpus, seed=seed, **settings) for seed in SEEDS)
    queries = np.argsort(-corpus.counts)[:COMPARED]

    def common(first: Trained, second: Trained) -> float:
        return overlap(first.vectors, second.vectors, corpus.counts, queries)

    found = {
        name: {
            "held_out": mean_loss(model.vectors, model.kernel, model.tree, held_out),
            "words_per_second": model.words_per_second,
            "cpu_seconds": model.cpu_seconds,
            "overlap": common(model, twin),
        }
        for name, model in (("jsoftmax", ours), ("gensim", theirs))
    }
    rows = {
        "held-out loss, nats per pair": ("held_out", "{:.3f}"),
        "words per second": ("words_per_second", "{:,.0f}"),
        "processor time": ("cpu_seconds", "{:.0f} s"),
        f"nearest {NEAREST} in common with gensim": ("overlap", "{:.0%}"),
    }
    print(f"{'':36}" + "".join(f"{name:>12}" for name in found))
    for label, (field, form) in rows.items():
        print(f"{label:36}" + "".join(f"{form.format(values[field]):>12}" for values in found.values()))
    print(f"(in common: means over the {COMPARED} most frequent words; gensim's own with another seed)")
    return found


def train(corpus: Corpus, *, epochs: int, dim: int, window: int, seed: int) -> Trained:
    """Trains with as many threads as there are processors."""
    from gensim.models import Word2Vec

    model = Word2Vec(
        sg=1, hs=1, negative=0, vector_size=dim, window=window, sample=SAMPLE, seed=seed,
        min_count=1, workers=os.cpu_count() or 1,
    )  # fmt: skip
    # Each word once at least, as in our tree.
    frequencies = {str(word): int(max(count, 1)) for word, count in enumerate(corpus.counts)}
    model.build_vocab_from_freq(frequencies)
    cut = np.split(corpus.train, range(SENTENCE, len(corpus.train), SENTENCE))
    sentences = [[str(word) for word in part] for part in cut]
    began, cpu_began = time.perf_counter(), time.process_time()
    model.train(sentences, total_examples=len(sentences), epochs=epochs)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    paths = [
        tuple(model.wv.get_vecattr(word, name) for name in ("point", "code")) for word in frequencies
    ]
    tree, kernel = as_tree(paths, model.syn1)
    words_per_second = epochs * len(corpus.train) / seconds
    return Trained(model.wv[list(frequencies)], kernel, tree, words_per_second, cpu_seconds)


def as_tree(paths: Sequence[Any], syn1: np.ndarray) -> tuple[hierarchical.Tree, np.ndarray]:
    """A Huffman tree in gensim's form, and its rows, as `Tree` and `node_kernel`.

    Args:
        paths: for each word the rows of `syn1` on its way from the root, and which way it goes at
            each: 0 where the sigmoid of the score is the probability to go there, 1 for the other.
        syn1: [words, dim]; gensim leaves the last row alone.
    """
    parents, ways = np.full((2, 2 * len(paths) - 1), -1)
    for node, parent, way in _edges(paths):
        parents[node], ways[node] = parent, way
    tree = hierarchical.tree_from_parents(parents)
    # Row r is that of the r-th inner node, and its score speaks for the child at position 2 r + 1.
    first = np.asarray(tree.order)[1::2]
    return tree, syn1[parents[first] - len(paths)] * np.where(ways[first] == 0, 1, -1)[:, None]


def _edges(paths: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    for word, (points, codes) in enumerate(paths):
        inner = [len(paths) + int(point) for point in points]
        yield from zip([*inner[1:], word], inner, map(int, codes), strict=True)
