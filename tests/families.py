"""Input families on which softmax implementations lose digits, in any dtype.

`make(name, dtype, seed)` gives logits [rows, classes] and integer labels [rows].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class Family(NamedTuple):
    logits: np.ndarray  # [rows, classes]
    labels: np.ndarray  # [rows]


Info = Any  # numpy.finfo or its twin in ml_dtypes
Draw = Callable[[np.random.Generator, Info], tuple[np.ndarray, np.ndarray | None]]

FAMILIES: dict[str, Draw] = {}
# Hundreds of thousands of classes: seconds each in extended precision.
LARGE = ("all_equal_100k", "normal_1m", "normal4_131072")


def _family(name: str) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        FAMILIES[name] = draw
        return draw

    return register


def _normal(scale: float, rows: int, classes: int, offset: float = 0.0) -> Draw:
    def draw(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
        del info
        return offset + scale * rng.standard_normal((rows, classes)), None

    return draw


FAMILIES["normal"] = _normal(1, 512, 10)
FAMILIES["normal3"] = _normal(3, 64, 1000)
FAMILIES["normal30"] = _normal(30, 64, 1000)
FAMILIES["offset_plus_1e4"] = _normal(3, 256, 10, offset=1e4)
FAMILIES["offset_minus_1e4"] = _normal(3, 256, 10, offset=-1e4)
FAMILIES["normal_1m"] = _normal(1, 2, 1_000_000)
FAMILIES["normal4_131072"] = _normal(4, 4, 131_072)


@_family("offset_1e30")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    """So far out that neighbouring numbers are further apart than exp can tell."""
    offset = min(1e30, float(info.max) / 2)
    return offset * (1 + rng.integers(0, 2, (64, 10)) * float(info.eps)), None


@_family("near_ties")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    """A few units in the last place below a common maximum."""
    top = rng.uniform(1, 8, (256, 1))
    steps = rng.integers(0, 4, (256, 10))
    return top * (1 - steps * float(info.eps)), None


def _dominant(rows: int, classes: int) -> Draw:
    def draw(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, np.ndarray]:
        del info
        z = rng.standard_normal((rows, classes))
        winner = rng.integers(0, classes, rows)
        gap = np.linspace(1, 100, rows)
        z[np.arange(rows), winner] = z.max(-1) + gap
        # Every other row is labelled with the winner, the rest with some other class.
        other = (winner + rng.integers(1, classes, rows)) % classes
        return z, np.where(np.arange(rows) % 2 == 0, winner, other)

    return draw


FAMILIES["dominant"] = _dominant(400, 10)
FAMILIES["dominant_1000"] = _dominant(100, 1000)
FAMILIES["binary8"] = _normal(8, 1024, 2)


@_family("wide_uniform")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    del info
    return rng.uniform(-80, 80, (256, 100)), None


@_family("all_equal_100k")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    del info
    return np.full((2, 100_000), rng.uniform(-5, 5)), None


@_family("subnormal")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    tiny = float(info.smallest_normal)
    return rng.uniform(-tiny, tiny, (64, 10)), None


@_family("largest")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    return float(info.max) * rng.choice([-1.0, 0.0, 1.0], (64, 10)), None


@_family("log_probabilities")
def _(rng: np.random.Generator, info: Info) -> tuple[np.ndarray, None]:
    """Already normalised: the logsumexp is 0 up to the rounding of the logits."""
    del info
    z = 3 * rng.standard_normal((128, 100))
    return z - np.log(np.exp(z).sum(-1, keepdims=True)), None


DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def make(name: str, dtype: str, seed: int = 2026) -> Family:
    info = ml_dtypes.finfo(DTYPES[dtype])
    index = sorted(FAMILIES).index(name)
    rng = np.random.default_rng([seed, index])
    z, labels = FAMILIES[name](rng, info)
    if labels is None:
        labels = rng.integers(0, z.shape[-1], z.shape[0])
    return Family(z.astype(DTYPES[dtype]), labels.astype(np.int32))
