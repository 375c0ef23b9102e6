"""How many words fit into a given memory, by output layer: compiled for ever more words, never run.

    python examples/vocabulary_memory.py                        # a minute or two, for 1,000 MB
    python examples/vocabulary_memory.py --memory-limit 4000    # in MB

XLA knows what memory a program takes before it runs. It is asked for two programs of the language
model, with optax's loss, the dense head and the chunked one: the loss and gradient of the output layer
alone, and the whole training step with parameters and Adam's moments. The output folder then holds
`vocabulary.json` and a picture in `vocabulary.png`.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import _picture
import jax
import matplotlib.pyplot as plt
import numpy as np
from _heads import CHUNKED, DENSE, OPTAX_HEAD, Head
from _network import CONTEXT, FEATURES
from _training import BATCH, Run, compile_train_step
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

HEADS = {"optax": OPTAX_HEAD, "dense": DENSE, "chunked": CHUNKED}
FIRST, FACTOR = 5_000, 4  # the first vocabulary, and how much larger the next one is
REFINED, CLOSE = 4, 0.99  # tries near the limit, and the share of it that is close enough
LEAST = 100  # MB, so that the first vocabulary fits

Point = tuple[int, int]  # words, bytes


def layer_bytes(head: Head, words: int) -> int:
    """What the layer's loss and gradient allocate beside their arguments and results."""
    params = jax.eval_shape(lambda: head.init(jax.random.key(0), FEATURES, np.ones(words)))
    hidden = jax.ShapeDtypeStruct((BATCH, CONTEXT, FEATURES), np.float32)
    labels = jax.ShapeDtypeStruct((BATCH, CONTEXT), np.int32)
    gradient = jax.jit(jax.value_and_grad(head.mean_loss, (0, 1)))
    return gradient.lower(params, hidden, labels).compile().memory_analysis().temp_size_in_bytes


def step_bytes(head: Head, words: int) -> int:
    """All that a training step needs: its results take the place of its arguments."""
    run = Run(head="", steps=100, vocab=words, seed=0, corpus="")
    memory = compile_train_step(head, run).memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


PROGRAMS: dict[str, Callable[[Head, int], int]] = {
    "temporary memory of the output layer": layer_bytes,
    "all memory of a training step": step_bytes,
}


def measure(bytes_of: Callable[[int], int], limit: int) -> list[Point]:
    """The memory of ever more words up to some that do not fit, and of some close to the limit."""
    points = [(FIRST, bytes_of(FIRST))]
    while points[-1][1] <= limit:
        words = points[-1][0] * FACTOR
        points.append((words, bytes_of(words)))
    for _ in range(REFINED):
        (low, within), (high, beyond) = around(points, limit)
        words = rounded(low + (high - low) * (limit - within) // (beyond - within))
        if within >= CLOSE * limit or words <= low:
            break
        points = sorted([*points, (words, bytes_of(words))])
    return points


def around(points: list[Point], limit: int) -> tuple[Point, Point]:
    """The largest that fits, and the smallest that does not."""
    within = [point for point in points if point[1] <= limit]
    return max(within), min(point for point in points if point[1] > limit)


def rounded(words: int) -> int:
    """Three digits, downwards."""
    unit = 10 ** max(len(str(words)) - 3, 0)
    return words // unit * unit


def draw(path: Path, curves: Mapping[str, Mapping[str, list[Point]]], limit: int) -> None:
    with plt.rc_context(_picture.STYLE):
        figure, panels = plt.subplots(1, len(curves), figsize=(11, 4.8), layout="constrained")
        for axes, (program, heads) in zip(panels, curves.items(), strict=True):
            _panel(axes, heads, limit)
            axes.set_title(program[0].upper() + program[1:])
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _panel(axes: Axes, heads: Mapping[str, list[Point]], limit: int) -> None:
    axes.axhline(limit / 1e6, color=_picture.PALE, linewidth=1.4, linestyle=(0, (5, 3)))
    # The dense head lies on optax: dashes let both be seen.
    for (name, points), dashes in zip(heads.items(), ("-", (0, (4, 3)), "-"), strict=True):
        words, sizes = np.array(points).T
        largest, size = around(points, limit)[0]
        colour, label = _picture.COLOURS[name], f"{name}: {largest:,} words fit"
        axes.plot(words, sizes / 1e6, color=colour, linewidth=2.2, linestyle=dashes, label=label)
        axes.plot(largest, size / 1e6, color=colour, marker="o")
    axes.annotate(
        f"{limit / 1e6:,.0f} MB", (0.01, limit / 1e6), xycoords=("axes fraction", "data"),
        xytext=(0, 4), textcoords="offset points", ha="left", color=_picture.PALE,
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="words", ylabel="MB")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelrotation=30)
    axes.legend(loc="lower right")


def demo(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    limit = int(arguments.memory_limit * 1e6)
    curves: dict[str, dict[str, list[Point]]] = {}
    for program, bytes_of in PROGRAMS.items():
        print(f"{program}, for up to {limit / 1e6:,.0f} MB", flush=True)
        curves[program] = {}
        for name, head in HEADS.items():
            points = curves[program][name] = measure(functools.partial(bytes_of, head), limit)
            print(f"    {name:10}{around(points, limit)[0][0]:12,} words", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(arguments.out / "vocabulary.png", curves, limit)
    results = {
        "settings": {"rows": BATCH * CONTEXT, "features": FEATURES, "limit": limit},
        "bytes_by_words": curves,
        "largest": {
            program: {name: around(points, limit)[0][0] for name, points in heads.items()}
            for program, heads in curves.items()
        },
        "seconds": time.perf_counter() - started,
    }
    (arguments.out / "vocabulary.json").write_text(json.dumps(results, indent=1))
    print(f"{results['seconds']:.0f} s; vocabulary.json and vocabulary.png are in {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Finds the largest vocabulary that fits into a given memory, by output layer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--memory-limit", type=float, default=1000, metavar="MB", help="what may be used")
    add(
        "--out", type=Path, default=Path("outputs/vocabulary"), metavar="DIR", help="folder for results"
    )
    arguments = parser.parse_args()
    given = arguments.memory_limit
    if not given >= LEAST:
        text = f"--memory-limit must be at least {LEAST}, got {given:g}"
        parser.exit(2, f"{parser.prog}: error: {text}\n")
    return arguments


if __name__ == "__main__":
    demo(parse_arguments())
