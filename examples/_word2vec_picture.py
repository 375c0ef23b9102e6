"""The picture of a run: a map of the frequent words, the loss, and gensim's where it was trained."""

import builtins
import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _picture
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _corpus import RARE, STRUCTURE, Corpus
from _picture import COLOURS, INK, PALE
from matplotlib.axes import Axes

import jsoftmax

WORDS = 220
LETTER, LINE = 0.0085, 0.022  # the size of a letter, as shares of the map
KINDS = {
    "keyword": "#b5179e",
    "built-in": "#0b7a75",
    "name or prose": INK,
    "number or string": "#f08a24",
    "operator": "#3a6ea5",
    "layout": PALE,
}


def kind_of(word: str) -> str:
    if word in (*STRUCTURE, *RARE, '"""', "#"):
        return "layout"
    if keyword.iskeyword(word):
        return "keyword"
    if word in dir(builtins):
        return "built-in"
    if word[0].isdigit() or word[-1] in "\"'":
        return "number or string"
    return "name or prose" if word[0].isalpha() or word[0] == "_" else "operator"


def lay_out(vectors: np.ndarray, steps: int = 1500) -> np.ndarray:
    """Points [words, 2] that are near each other where vectors have the same direction: t-SNE.

    Both its distributions are softmaxes, over the neighbours of a word and over all pairs, and what
    it minimises is a cross-entropy.
    """
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = ~np.eye(len(vectors), dtype=bool)
    near = jsoftmax.softmax(jnp.asarray(directions @ directions.T), where=others, temperature=0.08)
    target = (near + near.T) / (2 * len(vectors))
    pairs = jnp.asarray(others.reshape(-1))

    def loss(points: jax.Array) -> jax.Array:
        distances = jnp.sum((points[:, None] - points) ** 2, axis=-1)
        logits = -jnp.log1p(distances).reshape(-1)
        return jsoftmax.cross_entropy(logits, target.reshape(-1), where=pairs)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.5, steps))

    @jax.jit
    def settle(points: jax.Array) -> jax.Array:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            points, state = carry
            updates, state = optimizer.update(jax.grad(loss)(points), state)
            return (optax.apply_updates(points, updates), state), None

        return jax.lax.scan(step, (points, optimizer.init(points)), None, steps)[0][0]

    return np.asarray(settle(jax.random.normal(jax.random.key(0), (len(vectors), 2)) * 3))


def apart(points: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """The points in the unit square, moved so that the words on them can be read."""
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - low) / (high - low)
    widths = (letters[:, None] + letters + 1) / 2 * LETTER
    for _ in range(300):
        aside, up = (points[:, None] - points).transpose(2, 0, 1)
        short = LINE - np.abs(up)
        hidden = (np.abs(aside) < widths) & (short > 0) & ~np.eye(len(points), dtype=bool)
        if not hidden.any():
            break
        # Equal heights part by their order.
        way = np.where(up == 0, np.sign(np.subtract.outer(*[np.arange(len(points))] * 2)), np.sign(up))
        points[:, 1] += 0.3 * np.sum(np.where(hidden, way * short, 0), axis=1)
    return points


def draw(path: Path, metrics: Mapping[str, Any], corpus: Corpus, vectors: np.ndarray) -> None:
    """Draws a run into a PNG."""
    comparison = metrics.get("comparison")
    with plt.rc_context(_picture.STYLE):
        figure = plt.figure(figsize=(14, 8.4), layout="constrained")
        figure.suptitle(
            "Words of Python's standard library, by skip-gram with a Huffman softmax",
            x=0.01, ha="left", size=14, weight="bold",
        )  # fmt: skip
        left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
        frequent = np.argsort(-corpus.counts, kind="stable")[:WORDS]
        _map(left.subplots(), [corpus.words[i] for i in frequent], vectors[frequent])
        panels = right.subplots(3 if comparison else 1, 1, squeeze=False)[:, 0]
        _loss(panels[0], metrics["curves"], comparison)
        if comparison:
            _bars(panels[1], comparison, "words_per_second", "Words per second", "{:,.0f}")
            _bars(panels[2], comparison, "overlap", "Neighbours in common with gensim", "{:.0%}")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _map(axes: Axes, words: list[str], vectors: np.ndarray) -> None:
    points = apart(lay_out(vectors), np.array([max(len(word), 2) for word in words]))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for word, (x, y) in zip(words, points, strict=True):
        axes.text(
            x, y, word, size=8.5, ha="center", va="center", color=KINDS[kind_of(word)],
            parse_math=False,
        )  # fmt: skip
    axes.set_title(f"The {len(words)} most frequent words")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=colour, label=kind)
        for kind, colour in KINDS.items()
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(KINDS))


def _loss(axes: Axes, curves: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> None:
    axes.set_title("Loss, nats per pair")
    loss = np.array(curves["loss"])
    pairs = curves["pairs_a_point"] * np.arange(1, len(loss) + 1)
    colour = COLOURS["jsoftmax"]
    axes.plot(pairs / 1e6, loss, color=colour, alpha=0.3, linewidth=0.8, label="training")
    at, held_out = np.array(curves["held_out"][1:]).T
    axes.plot(at / 1e6, held_out, color=colour, marker="o", linewidth=2, markersize=5, label="held out")
    top = held_out[0] + 0.15 * np.ptp(held_out) if len(held_out) > 1 else None
    low = held_out.min()
    if comparison:
        theirs = comparison["gensim"]["held_out"]
        axes.axhline(
            theirs,
            color=COLOURS["optax"],
            linewidth=2,
            linestyle=(0, (4, 3)),
            label="gensim at its end",
        )
        top, low = max(top or theirs, theirs + 0.05), min(low, theirs)
    axes.set(xlabel="million pairs", xlim=(0, None))
    if top is not None and top > low:
        axes.set_ylim(low - 0.15 * (top - low), top)
    axes.legend()


def _bars(axes: Axes, rows: Mapping[str, Any], field: str, title: str, form: str) -> None:
    axes.set_title(title)
    colours = {"jsoftmax": COLOURS["jsoftmax"], "gensim": COLOURS["optax"]}
    names = {name: name for name in rows}
    if field == "overlap":
        names["gensim"] = "gensim,\nother seed"
    values = [row[field] for row in rows.values()]
    bars = axes.barh(list(names.values()), values, color=[colours[name] for name in rows], height=0.62)
    axes.bar_label(
        bars, [form.format(v) for v in values], label_type="center", color="white", weight="bold"
    )
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
