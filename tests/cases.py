"""What a case of the conformance table is, and the arguments that cases draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

ROWS, CLASSES = 4, 6
# Labels and label mass stay on the classes that no mask of any draw takes away.
CERTAIN = 3
IGNORED = 1

Inputs = dict[str, Any]
Draw = Callable[[np.random.Generator], np.ndarray]


class Case(NamedTuple):
    """A public function on standard arguments."""

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any]
    draws: Mapping[str, Draw]
    # The same call where a mesh axis shards the rows or the classes and the function has to know.
    over_rows: Callable[..., Any] | None = None
    over_classes: Callable[..., Any] | None = None
    # The kind of output: "rows" [*batch], "classes" [*batch, classes], or "scalar".
    output: str = "rows"
    # Whether all of its tests run by default, not a part of them: for one case of each way through
    # the code.
    core: bool = False

    def inputs(self, seed: int = 0) -> Inputs:
        """One draw of all arguments, as NumPy arrays of at most 32 bits."""
        # With this seed every case of integer labels has rows whose label is the maximum, and others:
        # the rules treat the two apart.
        rng = np.random.default_rng([2030, seed])
        return {name: draw(rng) for name, draw in self.draws.items()}

    def floats(self, inputs: Inputs) -> Inputs:
        """The arguments with a derivative."""
        return {k: x for k, x in inputs.items() if np.issubdtype(x.dtype, np.floating)}

    def rowwise(self, name: str) -> bool:
        """Whether an argument has the axis of rows; the others are shared by all rows."""
        return np.shape(self.inputs()[name])[:1] == (ROWS,)

    def has_classes(self, name: str) -> bool:
        """Whether the last axis of an argument is that of the classes."""
        return np.shape(self.inputs()[name])[-1:] == (CLASSES,)


def logits(rng: np.random.Generator) -> np.ndarray:
    return (2 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)


def log_probabilities(rng: np.random.Generator) -> np.ndarray:
    return np.log(rng.dirichlet(np.ones(CLASSES), ROWS)).astype(np.float32)


def cosines(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-0.8, 0.8, (ROWS, CLASSES)).astype(np.float32)


def distributions(rng: np.random.Generator) -> np.ndarray:
    return rng.dirichlet(2 * np.ones(CLASSES), ROWS).astype(np.float32)


def certain(rng: np.random.Generator) -> np.ndarray:
    mass = rng.dirichlet(np.ones(CERTAIN), ROWS)
    return np.pad(mass, ((0, 0), (0, CLASSES - CERTAIN))).astype(np.float32)


def indices(rng: np.random.Generator) -> np.ndarray:
    """One row of each draw is ignored where `IGNORED` is; all classes of `CERTAIN` occur."""
    return rng.permutation(np.arange(ROWS) % CERTAIN).astype(np.int32)


def masks(rng: np.random.Generator) -> np.ndarray:
    free = rng.random((ROWS, CLASSES)) < 0.5
    return free | (np.arange(CLASSES) < CERTAIN)


def per_row(low: float, high: float) -> Draw:
    return lambda rng: rng.uniform(low, high, ROWS).astype(np.float32)


def per_class(low: float, high: float) -> Draw:
    return lambda rng: rng.uniform(low, high, CLASSES).astype(np.float32)


def number(low: float, high: float) -> Draw:
    return lambda rng: np.asarray(rng.uniform(low, high), np.float32)
