"""The picture of a run: training curves, validation perplexity, and what a step costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

INK, PALE, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = {
    "jsoftmax": "#0b7a75",
    "optax": "#f08a24",
    "dense": INK,
    "chunked": "#2563eb",
    "hierarchical": "#0b7a75",
    "adaptive": "#f08a24",
    "sampled": "#b5179e",
}
DASHES = ("-", (0, (4, 3)), (0, (1, 2)))  # of the first curve, and of those that lie on it
SMOOTHING = 0.95  # share of the running mean that a step keeps

STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def draw(path: Path, metrics: Mapping[str, Any]) -> None:
    """Draws what `metrics.json` holds into a PNG."""
    curves, comparison = metrics["curves"], metrics.get("comparison")
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 6.6 if comparison else 4.4), layout="constrained")
        heights = [1.9, 1] if comparison else [1]
        top, *bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
        *some, last = curves
        losses = f"{', '.join(some)} and {last}" if some else last
        title = f"A word-level language model of Python code, by loss: {losses}"
        top.suptitle(title, x=0.01, ha="left", size=14, weight="bold")
        loss_axes, perplexity_axes = top.subplots(1, 2, width_ratios=[1.55, 1])
        _losses(loss_axes, curves)
        _perplexities(perplexity_axes, curves)
        if comparison:
            gap_axes, *bar_axes = bottom[0].subplots(1, 4, width_ratios=[1.55, 0.8, 0.8, 0.8])
            _gap(gap_axes, curves)
            rows = comparison["rows"]
            _bars(bar_axes[0], rows, "step_seconds", "Time of a step", 1e3, "ms")
            _bars(bar_axes[1], rows, "temporary_bytes", "Temporary memory", 1e-6, "MB")
            _bars(bar_axes[2], rows, "peak_bytes", "Process peak", 1e-6, "MB")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _losses(axes: Axes, curves: Mapping[str, Any]) -> None:
    axes.set_title("Training loss")
    for (name, history), dashes in zip(curves.items(), DASHES, strict=False):
        loss = np.array(history["loss"])
        steps = np.arange(1, len(loss) + 1)
        first = name == next(iter(curves))
        if first:
            axes.plot(steps, loss, color=COLOURS[name], alpha=0.22, linewidth=0.8)
        # The other curves lie on the first: dashes let all be seen.
        axes.plot(
            steps,
            _smooth(loss),
            color=COLOURS[name],
            linewidth=3.2 if first else 1.6,
            linestyle=dashes,
            label=name,
        )
    axes.set(xlabel="step", ylabel="nats per token", xlim=(0, None))
    axes.legend(title="loss from", alignment="left")


def _smooth(values: np.ndarray) -> np.ndarray:
    mean, means = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        means.append(mean / (1 - SMOOTHING**count))
    return np.array(means)


def _perplexities(axes: Axes, curves: Mapping[str, Any]) -> None:
    axes.set_title("Validation perplexity")
    for (name, history), dashes in zip(curves.items(), DASHES, strict=False):
        steps, nats, _ = np.array(history["validation"]).T
        first = name == next(iter(curves))
        axes.plot(
            steps,
            np.exp(nats),
            color=COLOURS[name],
            linewidth=2.4 if first else 1.4,
            linestyle=dashes,
            marker="o",
            markersize=7.5 if first else 3.5,
        )
        if first:
            axes.annotate(
                f"{np.exp(nats[-1]):.1f}",
                (steps[-1], np.exp(nats[-1])),
                xytext=(0, 11),
                textcoords="offset points",
                ha="center",
                weight="bold",
            )
    axes.margins(0.08)
    axes.set(xlabel="step", ylabel="perplexity per token", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _gap(axes: Axes, curves: Mapping[str, Any]) -> None:
    axes.set_title("How far the curves are apart")
    (_, first), *others = ((name, np.array(history["loss"])) for name, history in curves.items())
    for name, other in others:
        gap = np.maximum(np.abs(first - other) / other, np.finfo(np.float32).eps / 2)
        axes.semilogy(np.arange(1, len(gap) + 1), gap, color=COLOURS[name], linewidth=0.9)
    axes.set(xlabel="step", ylabel="relative difference", xlim=(0, None), ylim=(3e-8, 1e-2))


def _bars(axes: Axes, rows: Mapping[str, Any], field: str, title: str, scale: float, unit: str) -> None:
    known = {name: row[field] * scale for name, row in rows.items() if row[field] is not None}
    axes.set_title(title)
    bars = axes.barh(
        list(known), list(known.values()), color=[COLOURS[name] for name in known], height=0.62
    )
    labels = [f"{value:,.0f} {unit}" for value in known.values()]
    axes.bar_label(bars, labels, label_type="center", color="white", weight="bold")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
