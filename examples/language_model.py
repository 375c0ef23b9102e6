"""Trains a word-level language model on Python's own standard library, with jsoftmax's losses.

    python examples/language_model.py                   # the whole run
    python examples/language_model.py --resume          # go on after an interruption, on the same curve
    python examples/language_model.py --head chunked    # the same loss without all logits in memory

Where to look: `_heads.py` for the losses, `_training.py` for the compiled step and the validation
scores, `_loop.py` for the loop, `_sampling.py` for text at a temperature. At the end the same training
runs with optax's loss, and a table puts them side by side. The output folder then holds `metrics.json`,
a picture in `curves.png`, the checkpoints and the tokenised corpus.
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
from _heads import HEADS, SAME_LAYER, Head
from _loop import train
from _network import CONTEXT
from _training import BATCH, Run, State, compile_train_step, init_state

TEMPERATURES = (0.5, 0.9)


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
    ours = "jsoftmax" if run.head == "dense" else run.head
    heads = {ours: HEADS[run.head](corpus.counts)}
    if arguments.compare:
        heads |= SAME_LAYER.get(run.head, {})

    folders = {name: out / "checkpoints" / name for name in heads}
    if not arguments.resume:
        for folder in folders.values():
            _checkpoints.clear(folder)
    steps, states, curves = {}, {}, {}
    for name, head in heads.items():
        steps[name] = compile_train_step(head, run)
        state = init_state(head, run, corpus.counts)
        states[name], curves[name] = train(
            head, steps[name], state, run, corpus, folders[name], arguments.every
        )
        (_, before, _), *_, (_, after, _) = curves[name]["validation"]
        print(f"{name}: validation perplexity {math.exp(before):.1f} -> {math.exp(after):.1f}")

    params = states[ours]["params"]
    samples = {}
    for temperature in TEMPERATURES:
        samples[f"{temperature}"] = text = _sampling.continue_prompt(
            heads[ours], params, corpus, temperature=temperature, seed=run.seed
        )
        print(f"\n--- a sample at temperature {temperature} ---\n{text}")

    metrics = {
        "run": asdict(run),
        "versions": {name: version(name) for name in ("jax", "optax")},
        "curves": curves,
        "samples": samples,
    }
    if len(heads) > 1:
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
    """Prints and returns the comparison of the first head with the others."""
    first, *others = (np.array(history["loss"]) for history in curves.values())
    params = next(iter(states.values()))["params"]
    gaps = {
        "same_parameters": _comparison.same_parameters_gap(heads, params, corpus, run),
        "first_step": max(float(abs(first[0] / other[0] - 1)) for other in others),
        "whole_curve": max(float(np.max(np.abs(first / other - 1))) for other in others),
    }
    rows = _comparison.compare(heads, steps, states, corpus, run)
    print(f"\n--- the same training with each loss ---\n{_comparison.table(rows)}")
    print(
        f"The losses differ by at most {gaps['same_parameters']:.1e} of their size on the same "
        f"parameters, and by {gaps['whole_curve']:.1e} along the runs of {run.steps} steps."
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
        help="train again with the other losses of the same layer, optax's for one (the dense and the "
        "chunked head have such), and put them side by side",
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
