"""Huffman softmax in place: node updates per second beside gensim's, in one process.

`python -m benchmarks.gensim_updates [--quick] [--only REGEX] [--json FOLDER]`, with gensim installed.

Both train skip-gram on the same words, drawn from Zipf's law, with the same pairs: every word of the
window, no subsampling. A node update is the change of one tree row by one pair: the length of the
code of the pair's predicted word. Both update the input vectors too.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gensim.models import Word2Vec

from benchmarks import report, timing
from jsoftmax import hierarchical

WINDOW, SENTENCE, BATCH = 5, 1000, 1024
RATE = 1e-3  # a batch adds up what 1024 pairs say of the top of the tree: a larger rate would diverge
THREADS = 2
HEADER = ["classes, features", "code", "gensim M/s", "one thread", "jsoftmax M/s", "ratio", "missed"]


def text(classes: int, words: int) -> np.ndarray:
    """Sentences `[sentences, SENTENCE]` of words drawn from Zipf's law; every word occurs."""
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, classes + 1)
    drawn = random.choice(classes, words, p=frequencies / frequencies.sum())
    return drawn.astype(np.int32).reshape(-1, SENTENCE)


def pairs(sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (context, word) of the windows, in the order of the text."""
    at = np.arange(SENTENCE)[:, None] + [d for d in range(-WINDOW, WINDOW + 1) if d]
    inside = (at >= 0) & (at < SENTENCE)
    words = np.broadcast_to(sentences[:, :, None], (*sentences.shape, at.shape[1]))
    contexts = sentences[:, np.clip(at, 0, SENTENCE - 1)]
    return contexts[:, inside].reshape(-1), words[:, inside].reshape(-1)


def gensim_model(counts: np.ndarray, features: int, workers: int) -> Word2Vec:
    model = Word2Vec(
        hs=1, negative=0, sg=1, vector_size=features, window=WINDOW, workers=workers,
        sample=0, shrink_windows=False, min_count=1,
    )  # fmt: skip
    model.build_vocab_from_freq({str(word): int(count) for word, count in enumerate(counts)})
    return model


def code_lengths(model: Word2Vec, classes: int) -> np.ndarray:
    return np.array([len(model.wv.get_vecattr(str(word), "code")) for word in range(classes)])


def our_epoch(tree: hierarchical.Tree, features: int, contexts: np.ndarray, words: np.ndarray) -> Any:
    """A function that trains once on all pairs, a batch at a time, and waits for it."""
    optimizer = hierarchical.row_sgd(RATE)

    def step(state: Any, batch: Any) -> Any:
        (vectors, kernel), steps = state
        context, word = batch
        got = hierarchical.row_gradients(vectors[context], kernel, word, tree)
        updates, _ = optimizer.update(got.values, steps, got.rows)
        kernel = hierarchical.apply_row_updates(kernel, got.rows, updates)
        updates, steps = optimizer.update(got.d_hidden, steps, context)
        vectors = hierarchical.apply_row_updates(vectors, context, updates)
        return ((vectors, kernel), steps), jnp.mean(got.loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, *batches: jax.Array) -> Any:
        return jax.lax.scan(step, state, batches)

    used = len(words) - len(words) % BATCH
    batches = [jnp.asarray(x[:used].reshape(-1, BATCH)) for x in (contexts, words)]
    vectors = jax.random.uniform(jax.random.key(0), (tree.num_classes, features), minval=-0.5)
    params = vectors / features, jnp.zeros((tree.num_rows, features))
    state = params, optimizer.init(params[1])

    def epoch() -> None:
        nonlocal state
        state, loss = jax.block_until_ready(train(state, *batches))
        assert jnp.all(jnp.isfinite(loss))

    return epoch


def measure(classes: int, features: int, quick: bool) -> dict[str, Any]:
    sentences = text(classes, 20_000 if quick else 100_000)
    counts = 1e7 / np.arange(1, classes + 1)
    contexts, words = pairs(sentences)
    models = {f"gensim {n}": gensim_model(counts, features, n) for n in (1, THREADS)}
    lengths = code_lengths(models["gensim 1"], classes)
    as_text = [[str(word) for word in sentence] for sentence in sentences]

    def gensim_epoch(model: Word2Vec) -> None:
        model.train(as_text, total_examples=len(as_text), epochs=1)

    epochs = {name: functools.partial(gensim_epoch, model) for name, model in models.items()}
    epochs["jsoftmax"] = our_epoch(hierarchical.huffman_tree(counts), features, contexts, words)
    times = timing.rounds(epochs, *((3, 0) if quick else (9, 0)))
    ours = len(words) - len(words) % BATCH
    updates = {
        "gensim": lengths[words].sum(),
        "jsoftmax": lengths[words[:ours]].sum(),
    }
    rates = {
        name: updates[name.split()[0]] / (1e-3 * statistics.median(samples))
        for name, samples in times.items()
    }
    share = updates["jsoftmax"] / updates["gensim"]
    ratio, *quartiles = timing.ratio(times[f"gensim {THREADS}"], times["jsoftmax"])
    return {
        "ms": {name: statistics.median(samples) for name, samples in times.items()},
        "updates_per_second": rates,
        "pairs_per_second": {name: rate / lengths[words].mean() for name, rate in rates.items()},
        "mean_code": lengths[words].mean(),
        "ratio": share * ratio,
        "ratio_quartiles": [share * q for q in quartiles],
        "missed": ["ratio ≥ 1"] if share * ratio < 1 else [],
    }


def row(name: str, result: dict[str, Any]) -> list[str]:
    rates = result["updates_per_second"]
    return [
        name,
        f"{result['mean_code']:.2f}",
        *(f"{rates[who] / 1e6:.1f}" for who in (f"gensim {THREADS}", "gensim 1", "jsoftmax")),
        f"{result['ratio']:.2f}",
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
            f"pair updates, on average; gensim with {THREADS} threads and with one; ours in batches of "
            f"{BATCH} pairs, in place. ratio: time of gensim with {THREADS} threads by ours, median "
            "over the rounds, so more is better.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
            f"{len(results) - len(missed)} of {len(results)} rows meet their targets.",
        ]
    )
    print("\n" + summary)
    report.save("gensim_updates", {"environment": environment, "rows": results}, summary, arguments)


if __name__ == "__main__":
    main()
