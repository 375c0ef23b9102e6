"""The language model with each output layer, on many words: what the cheap ones save and cost.

    python examples/compare_heads.py                                   # about a minute for each head
    python examples/compare_heads.py --steps 200 --seconds 100000      # 200 steps for each

The same network, data, optimizer and batches with each head of `_heads.py`, for about the same time
of training each, on a vocabulary of 50,000 words. All are scored alike, with the log-probabilities of
all words. The output folder then holds `heads.json` and a picture in `heads.png`.
"""

import argparse
import json
import math
import statistics
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import _corpus
import _picture
import jax
import matplotlib.pyplot as plt
import numpy as np
from _heads import HEADS, Head
from _network import CONTEXT
from _training import BATCH, Run, compile_train_step, evaluate, init_state, training_batch
from _training import validation_batches as batches_of
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from tqdm import tqdm

POINTS = 8  # of a curve
WARM_UP, TIMED = 2, 8  # steps, to find out how many fit into the time given
CURVE_BATCHES, FINAL_BATCHES = 4, 24


@dataclass
class Trained:
    """A curve [seconds of training, perplexity], and the scores at its end."""

    curve: list[tuple[float, float]] = field(default_factory=list)
    steps: int = 0
    step_seconds: float = math.nan
    perplexity: float = math.nan
    accuracy: float = math.nan


def step_seconds(head: Head, run: Run, corpus: _corpus.Corpus) -> float:
    """The median time of a step, from a few that come to nothing."""
    train_step, state = compile_train_step(head, run), init_state(head, run, corpus.counts)
    times = []
    for step in range(WARM_UP + TIMED):
        batch = training_batch(corpus, run, step)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(train_step(state, batch))
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def train(name: str, head: Head, run: Run, corpus: _corpus.Corpus) -> Trained:
    """Trains to the end of the run; scoring and compiling do not count as time."""
    train_step = compile_train_step(head, run)
    state, found = init_state(head, run, corpus.counts), Trained()
    curve_batches = batches_of(corpus, CURVE_BATCHES)
    spent, times = 0.0, []

    def score() -> None:
        nats, _ = evaluate(head, state["params"], curve_batches)
        found.curve.append((spent, math.exp(nats)))

    score()
    with tqdm(desc=name, total=run.steps, unit=" steps", mininterval=0.5) as progress:
        for step in range(run.steps):
            batch = training_batch(corpus, run, step)
            began = time.perf_counter()
            state, loss = jax.block_until_ready(train_step(state, batch))
            times.append(time.perf_counter() - began)
            spent += times[-1]
            progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            progress.update()
            if (step + 1) * POINTS >= len(found.curve) * run.steps:
                score()
    nats, found.accuracy = evaluate(head, state["params"], batches_of(corpus, FINAL_BATCHES))
    found.perplexity, found.steps = math.exp(nats), run.steps
    found.step_seconds = statistics.median(times)
    return found


def table(rows: dict[str, Trained]) -> str:
    lines = [f"{'head':14}{'steps':>8}{'a step':>12}{'perplexity':>13}{'accuracy':>11}"]
    for name, row in rows.items():
        lines.append(
            f"{name:14}{row.steps:8,}{row.step_seconds * 1e3:9.1f} ms{row.perplexity:13.2f}"
            f"{row.accuracy:11.2%}"
        )
    return "\n".join(lines)


def verdicts(rows: dict[str, Trained]) -> list[str]:
    """What each head loses or gains against the first one, in words."""
    (first, base), *others = rows.items()
    found = []
    for name, row in others:
        speed = base.step_seconds / row.step_seconds
        change = row.perplexity / base.perplexity - 1
        worse = f"{change:.1%} higher, so worse, than"
        better = f"{-change:.1%} lower, so better, than"
        apart = "the same as" if abs(change) < 5e-4 else worse if change > 0 else better
        found.append(
            f"{name}: a step takes {1 / speed:.2f} of the time of {first}; after "
            f"{row.curve[-1][0]:.0f} s and {row.steps:,} steps its perplexity is {apart} that of "
            f"{first} after {base.curve[-1][0]:.0f} s and {base.steps:,} steps."
        )
    return found


def draw(path: Path, rows: dict[str, Trained], vocab: int) -> None:
    with plt.rc_context(_picture.STYLE):
        figure, axes = plt.subplots(figsize=(9.5, 5.6), layout="constrained")
        for name, row in rows.items():
            seconds, perplexities = np.array(row.curve[1:]).T
            colour = _picture.COLOURS[name]
            axes.plot(seconds, perplexities, color=colour, linewidth=2.2, marker="o", markersize=4.5)
        ends = sorted((math.log(row.curve[-1][1]), name) for name, row in rows.items())
        low, high = (math.log(limit) for limit in axes.get_ylim())
        gap, previous = 0.055 * (high - low), -math.inf
        for end, name in ends:
            previous = max(end, previous + gap)
            axes.annotate(
                f"{name}, {rows[name].step_seconds * 1e3:.0f} ms a step",
                (rows[name].curve[-1][0], math.exp(previous)),
                xytext=(10, 0), textcoords="offset points", va="center",
                color=_picture.COLOURS[name], weight="bold", annotation_clip=False,
            )  # fmt: skip
        axes.set_title(f"A language model of {vocab:,} words: perplexity against time, by output layer")
        axes.set(xlabel="seconds of training", ylabel="validation perplexity", yscale="log")
        axes.set_xlim(0, 1.36 * max(row.curve[-1][0] for row in rows.values()))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        figure.savefig(path, dpi=150)
        plt.close(figure)


def demo(arguments: argparse.Namespace) -> None:
    out = arguments.out.resolve()
    corpus = _corpus.load(arguments.corpus, arguments.vocab, out / "corpus.npz")
    print(f"{len(corpus.train):,} tokens for training, a vocabulary of {len(corpus.words):,} words")
    rows = {}
    for name in arguments.heads:
        run = Run(name, arguments.steps, arguments.vocab, arguments.seed, corpus.fingerprint)
        head = HEADS[name](corpus.counts)
        # So that each head's learning rate is at its end when its time is.
        fitting = max(int(arguments.seconds / step_seconds(head, run, corpus)), 1)
        run = replace(run, steps=min(run.steps, fitting))
        rows[name] = train(name, head, run, corpus)
    words = verdicts(rows)
    print("\n".join(["", table(rows), "", *words]))
    draw(out / "heads.png", rows, arguments.vocab)
    results: dict[str, Any] = {
        "settings": {"vocab": arguments.vocab, "batch": BATCH * CONTEXT, "seed": arguments.seed},
        "heads": {name: asdict(row) for name, row in rows.items()},
        "verdicts": words,
    }
    (out / "heads.json").write_text(json.dumps(results, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains the language model with each output layer, for the same time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="the first is compared with")
    add("--seconds", type=float, default=60, metavar="S", help="of training, for each head")
    add("--steps", type=int, default=5000, metavar="N", help="at most")
    add("--vocab", type=int, default=50_000, metavar="N", help="vocabulary size, in words")
    add("--seed", type=int, default=0, metavar="N", help="decides parameters and batches")
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    add("--corpus", type=Path, default=standard_library, metavar="DIR", help="folder of sources")
    add("--out", type=Path, default=Path("outputs/heads"), metavar="DIR", help="folder for results")
    arguments = parser.parse_args()
    for name, least in {"steps": 1, "vocab": 100, "seed": 0, "seconds": 0.001}.items():
        given = getattr(arguments, name)
        if given < least:
            parser.exit(2, f"{parser.prog}: error: --{name} must be at least {least}, got {given}\n")
    return arguments


def main() -> None:
    try:
        demo(parse_arguments())
    except _corpus.CorpusError as error:
        sys.exit(f"compare_heads.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")


if __name__ == "__main__":
    main()
