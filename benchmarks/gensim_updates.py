"""Huffman softmax in place: node updates per second beside gensim's, in one process.

`python -m benchmarks.gensim_updates [--quick] [--only REGEX] [--json FOLDER]`, with gensim installed.

Both train skip-gram on the same words, drawn from Zipf's law, with the same pairs: every word of the
window, no subsampling. A node update is the change of one tree row by one pair: the length of the
code of the pair's predicted word in gensim's tree, which ours has in fewer levels. Both update the
input vectors too. Ours once with the pairs of a word as a group, as gensim takes them, and once with
pairs that know nothing of each other.
"""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from gensim.models import Word2Vec

from benchmarks import report, timing
from jsoftmax import hierarchical

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW, SENTENCE, BATCH = 5, 1000, 1024
RATE = 1e-3  # a batch adds up what 1024 pairs say of the top of the tree: a larger rate would diverge
THREADS = 2
HEADER = ["classes, features", "code", "gensim M/s", "one thread", "jsoftmax M/s", "ratio",
          "single pairs", "missed"]  # fmt: skip


def text(classes: int, words: int) -> np.ndarray:
    """Sentences `[sentences, SENTENCE]` of words drawn from Zipf's law; every word occurs."""
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, classes + 1)
    drawn = random.choice(classes, words, p=frequencies / frequencies.sum())
    return drawn.astype(np.int32).reshape(-1, SENTENCE)


def windows(sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words in the order of the text, the words around each, and which of those its sentence has."""
    at = np.arange(SENTENCE)[:, None] + [d for d in range(-WINDOW, WINDOW + 1) if d]
    inside = np.broadcast_to((at >= 0) & (at < SENTENCE), (len(sentences), *at.shape))
    contexts = sentences[:, np.clip(at, 0, SENTENCE - 1)]
    return sentences.reshape(-1), *(x.reshape(-1, 2 * WINDOW) for x in (contexts, inside))


def gensim_model(counts: np.ndarray, features: int, workers: int) -> Word2Vec:
    model = Word2Vec(
        hs=1, negative=0, sg=1, vector_size=features, window=WINDOW, workers=workers,
        sample=0, shrink_windows=False, min_count=1,
    )  # fmt: skip
    model.build_vocab_from_freq({str(word): int(count) for word, count in enumerate(counts)})
    return model


def code_lengths(model: Word2Vec, classes: int) -> np.ndarray:
    return np.array([len(model.wv.get_vecattr(str(word), "code")) for word in range(classes)])


def our_epoch(
    tree: hierarchical.Tree, features: int, words: np.ndarray, contexts: np.ndarray, inside: np.ndarray
) -> Callable[[], None]:
    """A function that trains once on all steps `[steps, words]`, and waits for it.

    `contexts` `[steps, words, group]`, or one context for each word, `[steps, words]`.
    """
    grouped = contexts.ndim == 3

    def step(params: Any, batch: Any) -> Any:
        vectors, kernel = params
        word, context, weights = batch
        got = hierarchical.row_gradients(
            vectors[context], kernel, word, tree, weights=weights, grouped=grouped
        )
        kernel = hierarchical.apply_row_updates(kernel, got.rows, got.values)
        updates = got.d_hidden.reshape(-1, features)
        return (hierarchical.apply_row_updates(vectors, context.reshape(-1), updates), kernel), None

    @functools.partial(jax.jit, donate_argnums=0)
    def train(params: Any, *batches: jax.Array) -> Any:
        return jax.lax.scan(step, params, batches)[0]

    # The updates of plain gradient descent are gradients of a loss that weighs minus its rate.
    batches = [jnp.asarray(x) for x in (words, contexts, -RATE * inside.astype(np.float32))]
    vectors = jax.random.uniform(jax.random.key(0), (tree.num_classes, features), minval=-0.5)
    params = vectors / features, jnp.zeros((tree.num_rows, features))

    def epoch() -> None:
        nonlocal params
        params = jax.block_until_ready(train(params, *batches))
        assert all(jnp.isfinite(x).all() for x in params)

    return epoch


def stepwise(size: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays cut into steps of so many rows, without the rows left over."""
    used = len(arrays[0]) - len(arrays[0]) % size
    return [x[:used].reshape(-1, size, *x.shape[1:]) for x in arrays]


def measure(classes: int, features: int, quick: bool) -> dict[str, Any]:
    sentences = text(classes, 20_000 if quick else 100_000)
    counts = 1e7 / np.arange(1, classes + 1)
    words, contexts, inside = windows(sentences)
    models = {f"gensim {n}": gensim_model(counts, features, n) for n in (1, THREADS)}
    lengths = code_lengths(models["gensim 1"], classes)
    as_text = [[str(word) for word in sentence] for sentence in sentences]

    def gensim_epoch(model: Word2Vec) -> None:
        model.train(as_text, total_examples=len(as_text), epochs=1)

    tree = hierarchical.huffman_tree(counts, max_depth=(classes - 1).bit_length() + 1)
    grouped = stepwise(BATCH // (2 * WINDOW), words, contexts, inside)
    every = np.broadcast_to(words[:, None], contexts.shape)[inside]
    single = stepwise(BATCH, every, contexts[inside], np.ones_like(every))
    epochs = {name: functools.partial(gensim_epoch, model) for name, model in models.items()}
    epochs["jsoftmax"] = our_epoch(tree, features, *grouped)
    epochs["single pairs"] = our_epoch(tree, features, *single)
    times = timing.rounds(epochs, *((3, 0) if quick else (9, 0)))
    updates = dict.fromkeys(models, lengths[every].sum()) | {
        "jsoftmax": (lengths[grouped[0]][..., None] * grouped[2]).sum(),
        "single pairs": lengths[single[0]].sum(),
    }
    rates = {
        name: updates[name] / (1e-3 * statistics.median(samples)) for name, samples in times.items()
    }

    def by_gensim(name: str) -> list[float]:
        """Our rate by that of gensim: the median over the rounds, and the quartiles."""
        share = updates[name] / updates[f"gensim {THREADS}"]
        return [share * x for x in timing.ratio(times[f"gensim {THREADS}"], times[name])]

    ratio, *quartiles = by_gensim("jsoftmax")
    return {
        "ms": {name: statistics.median(samples) for name, samples in times.items()},
        "updates_per_second": rates,
        "pairs_per_second": {name: rate / lengths[every].mean() for name, rate in rates.items()},
        "mean_code": lengths[every].mean(),
        "depth": tree.depth,
        "ratio": ratio,
        "ratio_quartiles": quartiles,
        "single_pairs_ratio": by_gensim("single pairs")[0],
        "missed": ["ratio ≥ 1"] if ratio < 1 else [],
    }


def row(name: str, result: dict[str, Any]) -> list[str]:
    rates = result["updates_per_second"]
    return [
        name,
        f"{result['mean_code']:.2f}",
        *(f"{rates[who] / 1e6:.1f}" for who in (f"gensim {THREADS}", "gensim 1", "jsoftmax")),
        f"{result['ratio']:.2f}",
        f"{result['single_pairs_ratio']:.2f}",
        ", ".join(result["missed"]),
    ]


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    results: dict[str, dict[str, Any]] = {}
    for classes in (20_000, 100_000):
        for features in (100, 128):
            name = f"({classes}, {features})"
            if report.chosen(name, arguments):
                results[name] = measure(classes, features, arguments.quick)
                print(" | ".join(row(name, results[name])), flush=True)
    environment = report.environment()
    missed = [name for name, result in results.items() if result["missed"]]
    summary = "\n\n".join(
        [
            "# Node updates per second, in millions",
            report.headline(environment),
            f"Skip-gram with hierarchical softmax on Zipf's words, window {WINDOW}; code: nodes that a "
            f"pair updates in gensim's tree, on average; gensim with {THREADS} threads and with one; "
            f"ours in steps of {BATCH} pairs, in place, the pairs of a word as a group, in a tree of "
            f"one level more than the classes need. ratio: time of gensim with {THREADS} threads by "
            "ours, median over the rounds, so more is better; single pairs: the same without groups.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
            f"{len(results) - len(missed)} of {len(results)} rows meet their targets.",
        ]
    )
    print("\n" + summary)
    report.save("gensim_updates", {"environment": environment, "rows": results}, summary, arguments)


if __name__ == "__main__":
    main()
