"""Trains a word-level language model on Python's own standard library, with jsoftmax's losses.

    python examples/language_model.py             # the whole run
    python examples/language_model.py --resume    # go on after an interruption, on the same curve

Where to look: `_heads.py` for the losses, `_training.py` for the compiled step and the validation
scores, `_sampling.py` for text at a temperature, and the loop in `train` below. At the end the same
training runs with optax's loss, and a table puts the two side by side. The output folder then holds
`metrics.json`, a picture in `curves.png`, the checkpoints and the tokenised corpus.
"""

import argparse
import json
import math
import sys
import sysconfig
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _checkpoints
import _comparison
import _corpus
import _picture
import _sampling
import jax
import numpy as np
from _heads import HEADS, OPTAX_HEAD, Head
from _network import CONTEXT
from _training import (
    BATCH,
    Run,
    State,
    compile_train_step,
    evaluate,
    init_state,
    training_batch,
    validation_batches,
)
from tqdm import tqdm

CURVE_BATCHES = 8  # of the validation split, scored at each checkpoint
TEMPERATURES = (0.5, 0.9)


def train(
    head: Head,
    train_step: jax.stages.Compiled,
    run: Run,
    corpus: _corpus.Corpus,
    folder: Path,
    every: int,
) -> tuple[State, _checkpoints.History]:
    """Trains to the end, from the last checkpoint in `folder` where there is one."""
    state = init_state(head, run, corpus.counts)
    history: _checkpoints.History = {"loss": [], "validation": []}
    with _checkpoints.open_folder(folder) as checkpoints:
        curve_batches = validation_batches(corpus, CURVE_BATCHES)
        saved = _checkpoints.restore(checkpoints, run, state)
        if saved:
            state, history = saved
            print(f"{folder.name}: resumed after step {len(history['loss'])} of {run.steps}")
        else:
            history["validation"].append([0, *evaluate(head, state["params"], curve_batches)])
        with _progress(folder.name, len(history["loss"]), run.steps) as progress:
            for step in range(len(history["loss"]), run.steps):
                state, loss = train_step(state, training_batch(corpus, run, step))
                history["loss"].append(float(loss))
                progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
                progress.update(BATCH * CONTEXT)
                if (step + 1) % every == 0 or step + 1 == run.steps:
                    scores = evaluate(head, state["params"], curve_batches)
                    history["validation"].append([step + 1, *scores])
                    _checkpoints.save(checkpoints, run, state, history)
    return state, history


def _progress(name: str, done: int, steps: int) -> tqdm:
    tokens = BATCH * CONTEXT
    return tqdm(
        desc=name,
        initial=done * tokens,
        total=steps * tokens,
        unit=" tokens",
        unit_scale=True,
        mininterval=0.5,
    )


def demo(arguments: argparse.Namespace) -> None:
    """Trains, samples, compares, and writes down what came of it."""
    started = time.perf_counter()
    out = arguments.out.resolve()
    corpus = _corpus.load(arguments.corpus, arguments.vocab, out / "corpus.npz")
    print(
        f"{corpus.files:,} files of Python: {len(corpus.train):,} tokens for training, "
        f"{len(corpus.validation):,} for validation, a vocabulary of {len(corpus.words):,} words"
    )
    run = Run(
        head=arguments.head,
        steps=arguments.steps,
        vocab=arguments.vocab,
        seed=arguments.seed,
        corpus=corpus.fingerprint,
    )
    heads = {"jsoftmax": HEADS[run.head](corpus.counts)}
    # optax has the loss of the dense head only.
    arguments.compare = arguments.compare and run.head == "dense"
    if arguments.compare:
        heads["optax"] = OPTAX_HEAD

    folders = {name: out / "checkpoints" / name for name in heads}
    if not arguments.resume:
        for folder in folders.values():
            _checkpoints.clear(folder)
    steps, states, curves = {}, {}, {}
    for name, head in heads.items():
        steps[name] = compile_train_step(head, run)
        states[name], curves[name] = train(
            head, steps[name], run, corpus, folders[name], arguments.every
        )
        (_, before, _), *_, (_, after, _) = curves[name]["validation"]
        print(f"{name}: validation perplexity {math.exp(before):.1f} -> {math.exp(after):.1f}")

    params = states["jsoftmax"]["params"]
    samples = {}
    for temperature in TEMPERATURES:
        samples[f"{temperature}"] = text = _sampling.continue_prompt(
            heads["jsoftmax"], params, corpus, temperature=temperature, seed=run.seed
        )
        print(f"\n--- a sample at temperature {temperature} ---\n{text}")

    metrics = {
        "run": asdict(run),
        "versions": {name: version(name) for name in ("jax", "optax")},
        "curves": curves,
        "samples": samples,
    }
    if arguments.compare:
        metrics["comparison"] = report(heads, steps, states, curves, corpus, run)
    _picture.draw(out / "curves.png", metrics)
    metrics["seconds"] = time.perf_counter() - started
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"\n{metrics['seconds']:.0f} s in all; metrics.json and curves.png are in {arguments.out}")


def report(
    heads: dict[str, Head],
    steps: dict[str, jax.stages.Compiled],
    states: dict[str, State],
    curves: dict[str, _checkpoints.History],
    corpus: _corpus.Corpus,
    run: Run,
) -> dict[str, Any]:
    """Prints and returns the comparison of the first head with the second."""
    first, second = (np.array(history["loss"]) for history in curves.values())
    params = next(iter(states.values()))["params"]
    gaps = {
        "same_parameters": _comparison.same_parameters_gap(heads, params, corpus, run),
        "first_step": float(abs(first[0] / second[0] - 1)),
        "whole_curve": float(np.max(np.abs(first / second - 1))),
    }
    rows = _comparison.compare(heads, steps, states, corpus, run)
    print(f"\n--- the same training with either loss ---\n{_comparison.table(rows)}")
    print(
        f"The losses differ by at most {gaps['same_parameters']:.1e} of their size on the same "
        f"parameters, and by {gaps['whole_curve']:.1e} along the two runs of {run.steps} steps."
    )
    return {"rows": {name: asdict(row) for name, row in rows.items()}, "gaps": gaps}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a word-level language model on Python's own standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--head", choices=HEADS, default="dense", help="output layer, with its loss")
    add(
        "--steps",
        type=int,
        default=320,
        metavar="N",
        help=f"training steps, of {BATCH * CONTEXT} tokens each",
    )
    add("--vocab", type=int, default=20_000, metavar="N", help="vocabulary size, in words")
    add("--seed", type=int, default=0, metavar="N", help="decides parameters, batches and samples")
    add(
        "--every",
        type=int,
        default=40,
        metavar="N",
        help="steps from one validation and checkpoint to the next",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out; where there is none, start afresh",
    )
    add(
        "--out",
        type=Path,
        default=Path("outputs/language_model"),
        metavar="DIR",
        help="folder for checkpoints, metrics.json, curves.png and the tokenised corpus",
    )
    add(
        "--corpus",
        type=Path,
        default=Path(sysconfig.get_paths()["stdlib"]),
        metavar="DIR",
        help="folder of Python sources to learn from",
    )
    add(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with the dense head, train once more with optax's loss and put the two side by side",
    )
    arguments = parser.parse_args()
    for name, least in {"steps": 1, "vocab": 100, "seed": 0, "every": 1}.items():
        given = getattr(arguments, name)
        if given < least:
            parser.exit(2, f"{parser.prog}: error: --{name} must be at least {least}, got {given}\n")
    return arguments


def main() -> None:
    try:
        demo(parse_arguments())
    except (_corpus.CorpusError, _checkpoints.OtherRunError) as error:
        sys.exit(f"language_model.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume goes on from the last checkpoint")


if __name__ == "__main__":
    main()
