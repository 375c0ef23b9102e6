"""Word vectors of Python's own standard library: skip-gram with a Huffman softmax, updated in place.

    python examples/word2vec.py              # train, print neighbours, draw a map of the words
    python examples/word2vec.py --compare    # and put them beside gensim's, where it is installed

The vector of a word predicts the words around it. A full softmax would touch a table of all words at
each step; in a Huffman tree a pair needs the rows on the way to one leaf, and only those are updated:
see `row_gradients` and `apply_row_updates` in `compile_training`. The output folder then holds
`metrics.json`, the vectors in `vectors.npz`, a picture in `words.png` and the tokenised corpus.
"""

import argparse
import importlib.util
import json
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _corpus
import _word2vec_pairs
import _word2vec_picture
import jax
import jax.numpy as jnp
import numpy as np
from _word2vec_pairs import Pairs
from _word2vec_scores import Trained, mean_loss, neighbours
from tqdm import tqdm

from jsoftmax import hierarchical

BATCH = 512  # pairs of a step; what they say of a row is added up
STEPS_A_CALL = 64
RATE = 0.025  # gensim's too; falls in a straight line
SCORES = 10  # how often a run is scored on held-out pairs
HELD_OUT = 50_000
QUERIES = ("self", "dict", "raise", "def", "import", "True", "len", "int", "open", "path", "error")

State = dict[str, jax.Array]  # "vectors" [words, dim], "kernel" [rows, dim] and "step"


@dataclass(frozen=True)
class Run:
    """What determines a run, on one machine."""

    epochs: int
    steps: int
    vocab: int
    dim: int
    window: int
    seed: int
    corpus: str


def init_state(run: Run, tree: hierarchical.Tree) -> State:
    key = jax.random.key(run.seed)
    vectors = jax.random.uniform(key, (tree.num_classes, run.dim), minval=-0.5, maxval=0.5)
    kernel = jnp.zeros((tree.num_rows, run.dim))
    return {"vectors": vectors / run.dim, "kernel": kernel, "step": jnp.zeros((), jnp.int32)}


def compile_training(run: Run, tree: hierarchical.Tree, steps_a_call: int) -> jax.stages.Compiled:
    """Compiles (state, tree, contexts, words [steps, batch]) -> (state, loss of each step)."""
    optimizer = hierarchical.row_sgd(lambda step: RATE * jnp.maximum(1 - step / run.steps, 1e-3))

    def train_steps(state: State, tree: hierarchical.Tree, *batches: jax.Array) -> Any:
        def train_step(state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            contexts, words = batch
            vectors, kernel, step = state["vectors"], state["kernel"], state["step"]
            loss, d_vectors, rows, values = hierarchical.row_gradients(
                vectors[contexts], kernel, words, tree
            )
            updates, _ = optimizer.update(values, step, rows)
            kernel = hierarchical.apply_row_updates(kernel, rows, updates)
            # The contexts' vectors are rows of a table too.
            updates, step = optimizer.update(d_vectors, step, contexts)
            vectors = hierarchical.apply_row_updates(vectors, contexts, updates)
            return {"vectors": vectors, "kernel": kernel, "step": step}, jnp.mean(loss)

        return jax.lax.scan(train_step, state, batches)

    state = jax.eval_shape(lambda: init_state(run, tree))
    batches = jax.ShapeDtypeStruct((steps_a_call, BATCH), np.int32)
    # Donated, so that the rows are updated where they are: a copy of them would cost more than a step.
    return jax.jit(train_steps, donate_argnames="state").lower(state, tree, batches, batches).compile()


def train(
    run: Run, corpus: _corpus.Corpus, tree: hierarchical.Tree, held_out: Pairs
) -> tuple[Trained, dict[str, Any]]:
    """Trains to the end; returns the curves too."""
    a_call = max(min(STEPS_A_CALL, run.steps // SCORES), 1)
    calls = -(-run.steps // a_call)
    train_steps = compile_training(run, tree, a_call)
    state = init_state(run, tree)
    shape = (a_call, BATCH)
    batches = _word2vec_pairs.batches(corpus.train, corpus.counts, run.window, shape, run.seed)
    losses: list[float] = []
    scores = [(0, mean_loss(state["vectors"], state["kernel"], tree, held_out))]
    spent = np.zeros(2)  # making pairs and training; not scoring
    total = calls * a_call * BATCH
    with tqdm(total=total, unit=" pairs", unit_scale=True, mininterval=0.5) as progress:
        for call in range(1, calls + 1):
            began = _clocks()
            state, loss = train_steps(state, tree, *next(batches))
            losses.append(float(jnp.mean(loss)))
            spent += _clocks() - began
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            progress.update(a_call * BATCH)
            if call * SCORES // calls > (call - 1) * SCORES // calls:
                score = mean_loss(state["vectors"], state["kernel"], tree, held_out)
                scores.append((call * a_call * BATCH, score))
    epochs = total / _word2vec_pairs.pairs_per_epoch(corpus.counts, run.window)
    speed = epochs * len(corpus.train) / spent[0]
    trained = Trained(state["vectors"], state["kernel"], tree, speed, spent[1])
    return trained, {"loss": losses, "pairs_a_point": a_call * BATCH, "held_out": scores}


def _clocks() -> np.ndarray:
    """Seconds since some moment, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def demo(arguments: argparse.Namespace) -> None:
    """Trains, prints and draws what was learned, and writes it down."""
    started = time.perf_counter()
    out = arguments.out.resolve()
    corpus = _corpus.load(arguments.corpus, arguments.vocab, out / "corpus.npz")
    steps = arguments.epochs * _word2vec_pairs.pairs_per_epoch(corpus.counts, arguments.window) // BATCH
    run = Run(
        epochs=arguments.epochs,
        steps=max(min(steps, arguments.steps or steps), 1),
        vocab=arguments.vocab,
        dim=arguments.dim,
        window=arguments.window,
        seed=arguments.seed,
        corpus=corpus.fingerprint,
    )
    # A stand-in for rare words may stand in for none; in a tree every class needs a count.
    tree = hierarchical.huffman_tree(np.maximum(corpus.counts, 1))
    print(f"{corpus.files:,} files of Python, {len(corpus.train):,} tokens for training; {tree}")
    keep = _word2vec_pairs.keep_probabilities(corpus.counts)
    random = np.random.default_rng(0)
    contexts, words = _word2vec_pairs.pairs_of(corpus.validation, keep, run.window, random)
    held_out = contexts[:HELD_OUT], words[:HELD_OUT]
    trained, curves = train(run, corpus, tree, held_out)
    metrics: dict[str, Any] = {
        "run": asdict(run),
        "versions": {"jax": version("jax")},
        "curves": curves,
        "held_out": curves["held_out"][-1][1],
        "words_per_second": trained.words_per_second,
        "cpu_seconds": trained.cpu_seconds,
    }
    (_, before), *_, (_, after) = curves["held_out"]
    print(
        f"held-out loss {before:.3f} -> {after:.3f} nats per pair, "
        f"{trained.words_per_second:,.0f} words per second"
    )
    queries = [corpus.words.index(word) for word in QUERIES if word in corpus.words]
    metrics["neighbours"] = found = {}
    for query, near in zip(queries, neighbours(trained.vectors, corpus.counts, queries), strict=True):
        found[corpus.words[query]] = [corpus.words[word] for word in near]
        print(f"  {corpus.words[query]:>8}  {'  '.join(found[corpus.words[query]])}")
    if arguments.compare:
        import _word2vec_gensim

        settings = {"epochs": run.epochs, "dim": run.dim, "window": run.window}
        metrics["comparison"] = _word2vec_gensim.compare(trained, corpus, held_out, **settings)
    np.savez(out / "vectors.npz", words=np.array(corpus.words), vectors=np.asarray(trained.vectors))
    _word2vec_picture.draw(out / "words.png", metrics, corpus, np.asarray(trained.vectors))
    metrics["seconds"] = time.perf_counter() - started
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"\n{metrics['seconds']:.0f} s in all; metrics.json and words.png are in {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains word vectors on Python's own standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    least = {}

    def number(name: str, default: int | None, smallest: int, what: str) -> None:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=what)
        least[name] = smallest

    number("epochs", 3, 1, "passes over the corpus")
    number("steps", None, 1, f"stop after so many steps, of {BATCH} pairs each")
    number("vocab", 20_000, 100, "vocabulary size, in words")
    number("dim", 100, 1, "length of a vector")
    number("window", 5, 1, "how far apart the two words of a pair may be")
    number("seed", 0, 0, "decides the first vectors and the pairs")
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument(
        "--corpus", type=Path, default=standard_library, metavar="DIR", help="folder of Python sources"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/word2vec"), metavar="DIR", help="folder for results"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train the same with gensim, and put the two side by side",
    )
    arguments = parser.parse_args()
    for name, smallest in least.items():
        given = getattr(arguments, name)
        if given is not None and given < smallest:
            parser.exit(2, f"{parser.prog}: error: --{name} must be at least {smallest}, got {given}\n")
    if arguments.compare and importlib.util.find_spec("gensim") is None:
        parser.exit(2, f"{parser.prog}: error: --compare needs gensim: pip install gensim\n")
    return arguments


def main() -> None:
    try:
        demo(parse_arguments())
    except _corpus.CorpusError as error:
        sys.exit(f"word2vec.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")


if __name__ == "__main__":
    main()
