"""Time: a training step through a tree beside one through all classes, from a thousand to a million.

`python -m benchmarks.hierarchical [--quick] [--only REGEX] [--json FOLDER]`. A step is the loss, the
gradient of the hidden vectors, and the update of the output layer by gradient descent, in place.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from benchmarks import report, timing
from jsoftmax import hierarchical

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, FEATURES = 1024, 128
SIZES = (1_000, 10_000, 100_000, 1_000_000)
# The full softmax of a million classes would take as long as all the rest.
LARGEST_FULL = 100_000
HEADER = ["classes", "huffman ms", "adagrad ms", "dense gradient ms", "full softmax ms", "times faster",
          "updates/s", "tree s", "peak GB", "missed"]  # fmt: skip


def inputs(classes: int) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Counts as Zipf's law has them, labels drawn by them, hidden vectors."""
    rng = np.random.default_rng(0)
    counts = 1e7 / np.arange(1, classes + 1)
    labels = rng.choice(classes, ROWS, p=counts / counts.sum())
    return counts, jnp.asarray(rng.standard_normal((ROWS, FEATURES)), jnp.float32), jnp.asarray(labels)


class Stepping:
    """A compiled step that is given back what it returned, so that the kernel stays in place."""

    def __init__(self, step: Callable[..., Any], state: tuple[Any, ...], *inputs: Any):
        self.step = jax.jit(step, donate_argnums=0)
        self.state, self.inputs = state, inputs

    def __call__(self) -> None:
        self.state, out = self.step(self.state, *self.inputs)
        jax.block_until_ready((self.state, out))


def by_rows(tree: hierarchical.Tree, hidden: Any, labels: Any, optimizer: Any) -> Stepping:
    init, update = optimizer
    kernel = jnp.zeros((tree.num_rows, FEATURES))

    def step(state: Any, hidden: Any, labels: Any, tree: Any) -> Any:
        kernel, moments = state
        got = hierarchical.row_gradients(hidden, kernel, labels, tree, weights=1 / ROWS)
        updates, moments = update(got.values, moments, got.rows)
        kernel = hierarchical.apply_row_updates(kernel, got.rows, updates)
        return (kernel, moments), (got.loss, got.d_hidden)

    return Stepping(step, (kernel, init(kernel)), hidden, labels, tree)


def by_gradient(loss: Callable[..., Any], rows: int, *inputs: Any) -> Stepping:
    def step(state: Any, hidden: Any, *inputs: Any) -> Any:
        (kernel,) = state
        value, (d_hidden, d_kernel) = jax.value_and_grad(loss, argnums=(0, 1))(hidden, kernel, *inputs)
        return (optax.apply_updates(kernel, -0.1 * d_kernel),), (value, d_hidden)

    return Stepping(step, (jnp.zeros((rows, FEATURES)),), *inputs)


def measure(classes: int, quick: bool) -> dict[str, Any]:
    counts, hidden, labels = inputs(classes)
    start = time.perf_counter()
    tree = jax.block_until_ready(hierarchical.huffman_tree(counts))
    seconds = time.perf_counter() - start

    def tree_loss(hidden: Any, kernel: Any, labels: Any, tree: Any) -> Any:
        return jnp.mean(hierarchical.hierarchical_cross_entropy(hidden, kernel, labels, tree))

    def full_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return jnp.mean(jsoftmax.cross_entropy(hidden @ kernel.T, labels))

    thunks: dict[str, Any] = {
        "huffman": by_rows(tree, hidden, labels, hierarchical.row_sgd(0.1)),
        "adagrad": by_rows(tree, hidden, labels, hierarchical.row_adagrad(0.1)),
        "dense gradient": by_gradient(tree_loss, tree.num_rows, hidden, labels, tree),
    }
    if classes <= LARGEST_FULL:
        thunks["full softmax"] = by_gradient(full_loss, classes, hidden, labels)
    samples = timing.rounds(thunks, *((3, 0.05) if quick else (9, 0.2)))
    depths = np.searchsorted(
        tree.level_ends, np.asarray(tree.position)[np.asarray(tree.leaves)], "right"
    )
    ms = {name: statistics.median(values) for name, values in samples.items()}
    result: dict[str, Any] = {
        "ms": ms,
        "tree_seconds": seconds,
        "mean_path": float(np.average(depths, weights=counts)),
        "entropy": float(-np.sum(counts / counts.sum() * np.log2(counts / counts.sum()))),
        "updates_per_second": 1e3 * float(np.sum(depths[np.asarray(labels)])) / ms["huffman"],
        "peak_bytes": peak_bytes(classes),
        "missed": [],
    }
    if "full softmax" in ms:
        result["times_faster"] = timing.ratio(samples["full softmax"], samples["huffman"])[0]
        if classes == LARGEST_FULL and result["times_faster"] < 150:
            result["missed"].append("times faster ≥ 150")
    if classes == 1_000_000 and result["peak_bytes"] and result["peak_bytes"] > 2e9:
        result["missed"].append("peak ≤ 2 GB")
    return result


def peak_bytes(classes: int) -> int | None:
    """The largest resident memory of a process that builds the tree and trains for three steps."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_train_briefly, classes).result()


def _train_briefly(classes: int) -> int | None:
    counts, hidden, labels = inputs(classes)
    step = by_rows(hierarchical.huffman_tree(counts), hidden, labels, hierarchical.row_sgd(0.1))
    for _ in range(3):
        step()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def row(classes: int, result: dict[str, Any]) -> list[str]:
    ms, peak = result["ms"], result["peak_bytes"]
    names = ("huffman", "adagrad", "dense gradient", "full softmax")
    return [
        f"{classes:,}",
        *(f"{ms[name]:.3g}" if name in ms else "" for name in names),
        f"{result['times_faster']:.0f}" if "times_faster" in result else "",
        f"{result['updates_per_second']:.2g}",
        f"{result['tree_seconds']:.2f}",
        f"{peak / 1e9:.2f}" if peak else "",
        ", ".join(result["missed"]),
    ]


def growth(results: dict[str, dict[str, Any]]) -> float | None:
    """The exponent of the step's time in the number of classes, from the smallest to the largest."""
    sizes = sorted(int(name) for name in results)
    if len(sizes) < 2:
        return None
    first, last = (results[str(size)]["ms"]["huffman"] for size in (sizes[0], sizes[-1]))
    return math.log(last / first) / math.log(sizes[-1] / sizes[0])


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    styles = {
        "full softmax": ("#b0413e", "all classes"),
        "dense gradient": ("#d99a2b", "Huffman tree, dense gradient"),
        "huffman": ("#2b6ca3", "Huffman tree, rows in place"),
    }
    for name, (color, label) in styles.items():
        known = [(int(size), r["ms"][name]) for size, r in results.items() if name in r["ms"]]
        axes.loglog(*zip(*known, strict=True), "o-", color=color, label=label, linewidth=2)
        axes.annotate(
            f"{known[-1][1]:,.0f} ms" if known[-1][1] > 10 else f"{known[-1][1]:.1f} ms",
            known[-1],
            (6, 6),
            textcoords="offset points",
            color=color,
        )
    axes.set_xlabel("classes")
    axes.set_ylabel("milliseconds a step")
    axes.set_title(f"Loss, gradients and update: {ROWS:,} rows of {FEATURES} features", fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(700, 3e6)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    results: dict[str, dict[str, Any]] = {}
    for classes in SIZES:
        if report.chosen(f"{classes}", arguments) and not (arguments.quick and classes > 10_000):
            results[f"{classes}"] = measure(classes, arguments.quick)
            print(" | ".join(row(classes, results[f"{classes}"])), flush=True)
    environment, exponent = report.environment(), growth(results)
    text = "\n\n".join(
        [
            "# A training step through a Huffman tree",
            report.headline(environment),
            f"Loss, gradient of the hidden vectors, and update in place, of {ROWS} rows of {FEATURES} "
            "float32 features; Zipf's counts; medians of interleaved rounds. huffman: `row_gradients`, "
            "`row_sgd`, `apply_row_updates`; adagrad: `row_adagrad`; dense gradient: the same loss by "
            "`jax.grad`; full softmax: `cross_entropy(hidden @ kernel.T)`; times faster: that by "
            "huffman. updates/s: nodes on the ways to the labels. tree s: seconds to build the tree. "
            "peak GB: of a process that builds the tree and trains.",
            report.markdown(HEADER, [row(int(name), result) for name, result in results.items()]),
            ""
            if exponent is None
            else f"The step's time grows as classes^{exponent:.2f} (target ≤ 0.4).",
        ]
    )
    print("\n" + text)
    report.save("hierarchical", {"environment": environment, "rows": results, "growth": exponent}, text,
                arguments)  # fmt: skip
    pictures = Path(__file__).parents[1] / "docs"
    folder = arguments.json or (None if arguments.quick or arguments.only else pictures)
    if folder is not None:
        draw(folder / "hierarchical.png", results)


if __name__ == "__main__":
    main()
