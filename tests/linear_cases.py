"""The cases of `jsoftmax.linear` in the conformance table: four rows in chunks of three and one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jsoftmax import linear
from jsoftmax.statistics import RowStats
from tests import linear_formulas as formulas
from tests.cases import (
    CLASSES,
    IGNORED,
    ROWS,
    Case,
    Draw,
    certain,
    indices,
    masks,
    number,
    per_class,
    per_row,
)

FEATURES = 3
STATISTICS = tuple(name for name in RowStats.names() if name != "correct")


def hidden(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((ROWS, FEATURES)).astype(np.float32)


def kernel(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)


PRODUCT: dict[str, Draw] = {"hidden": hidden, "kernel": kernel, "bias": per_class(-1.0, 1.0)}
EVERYTHING: dict[str, Draw] = {
    "where": masks,
    "temperature": per_row(0.6, 1.8),
    "softcap": number(2.0, 4.0),
    "label_smoothing": number(0.1, 0.3),
    "z_loss": number(0.05, 0.2),
    "class_weights": per_class(0.5, 2.0),
    "weights": per_row(0.5, 2.0),
}


def statistics(**given: Any) -> dict[str, jax.Array]:
    stats = linear.linear_row_stats(chunk_size=3, **given)
    return {name: getattr(stats, name) for name in STATISTICS}


def summed(**given: Any) -> jax.Array:
    """A part of the sum over all rows, where those are sharded."""
    return jax.lax.psum(linear.linear_cross_entropy(chunk_size=1, **given), "rows")


def over_classes(call: Any, output: str) -> Any:
    """On a shard of the classes; what differs from one shard of the rows to another is summed."""

    def total(**given: Any) -> jax.Array:
        out = call(axis_name="classes", **given)
        if output == "rows":
            return out
        kind = jax.typeof(out)
        manual = getattr(kind, "mat", None)
        axes = kind.vma if manual is None else manual.varying
        return jax.lax.psum(out, tuple(axes)) if axes else out

    return total


def distance(hidden: Any, kernel: Any, targets: Any, bias: Any, scale: Any) -> jax.Array:
    loss = linear.chunked(formulas.squared_distance, chunk_size=3)
    return loss(hidden, kernel, targets, bias=bias, scale=scale)


def taught(*, teacher_hidden: Any, teacher_kernel: Any, **given: Any) -> jax.Array:
    labels = (teacher_hidden, teacher_kernel)
    return linear.linear_cross_entropy(labels=labels, chunk_size=3, reduction="none", **given)


def case(name: str, *, output: str, draws: dict[str, Draw], **options: Any) -> Case:
    call = functools.partial(linear.linear_cross_entropy, **options)
    over_rows = functools.partial(summed, **options)
    return Case(
        name,
        functools.partial(call, chunk_size=3),
        functools.partial(formulas.linear_cross_entropy, **options),
        {**PRODUCT, **draws},
        over_rows=over_rows if output == "scalar" else None,
        over_classes=over_classes(functools.partial(call, chunk_size=3), output),
        output=output,
    )


LINEAR = (
    case(
        "linear_cross_entropy",
        output="scalar",
        draws={"labels": indices, **EVERYTHING, "denominator": number(3.0, 5.0)},
        ignore_index=IGNORED,
    ),
    case(
        "linear_cross_entropy_soft",
        output="scalar",
        draws={"labels": certain, **EVERYTHING},
        reduction="sum",
    ),
    case(
        "linear_cross_entropy_rows",
        output="rows",
        draws={"labels": indices, **EVERYTHING},
        reduction="none",
        ignore_index=IGNORED,
    ),
    Case(
        "linear_cross_entropy_taught",
        taught,
        formulas.taught_cross_entropy,
        {
            **PRODUCT,
            "teacher_hidden": hidden,
            "teacher_kernel": kernel,
            "where": masks,
            "temperature": per_row(0.6, 1.8),
            "class_weights": per_class(0.5, 2.0),
        },
        over_classes=functools.partial(taught, axis_name="classes"),
    ),
    Case(
        "linear_row_stats",
        statistics,
        formulas.linear_row_stats,
        {**PRODUCT, "labels": indices, "where": masks, "temperature": per_row(0.6, 1.8)},
        over_classes=functools.partial(statistics, axis_name="classes"),
    ),
    Case(
        "chunked",
        distance,
        formulas.linear_squared_distance,
        {**PRODUCT, "targets": certain, "scale": number(0.5, 1.0)},
    ),
)
