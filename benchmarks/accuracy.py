"""Digits: the error of jsoftmax, jax.nn, optax and torch in units in the last place.

The same sweep as `tests/test_accuracy.py`, for every library. `make bench`, or
`python -m benchmarks.accuracy [--quick] [--only REGEX] [--json FOLDER]`; the names that `--only`
matches are `measure/dtype/family`.
"""

from __future__ import annotations

import numpy as np

from benchmarks import report
from benchmarks.accuracy_peers import libraries
from tests import families, sweep

TARGETS = {
    ("softmax", "float32"): 10,
    ("cross_entropy_value", "float32"): 16,
    ("cross_entropy_value", "bfloat16"): 16,
    ("cross_entropy_value", "float16"): 16,
    ("label_gradient", "float32"): 16,
} | {
    (measure, dtype): 0.55
    for measure in sweep.MEASURES
    for dtype in ("bfloat16", "float16")
    if measure != "cross_entropy_value"
}
SEED = 2026

Errors = dict[str, dict[str, list[float]]]  # row -> library -> [max, mean]


def measured(arguments: object, names: list[str]) -> Errors:
    peers = libraries()
    found: Errors = {}
    for dtype in families.DTYPES:
        for family in names:
            for measure in sweep.MEASURES:
                row = f"{measure}/{dtype}/{family}"
                if not report.chosen(row, arguments):
                    continue
                item = sweep.case(family, dtype, SEED)
                found[row] = {}
                for library, functions in peers.items():
                    error = sweep.errors(functions, measure, item)
                    if error is not None:
                        found[row][library] = [float(error.max(initial=0)), float(error.mean())]
            print(f"{dtype} {family}", flush=True)
    return found


def cell(error: list[float] | None) -> str:
    return "" if error is None else f"{error[0]:.3g} ({error[1]:.2g})"


def worst(found: Errors, prefix: str) -> dict[str, list[float]]:
    """The largest maximum and the largest mean over the families."""
    columns: dict[str, list[list[float]]] = {}
    for row, errors in found.items():
        if row.startswith(prefix):
            for library, error in errors.items():
                columns.setdefault(library, []).append(error)
    return {
        library: [float(np.max([e[0] for e in errors])), float(np.max([e[1] for e in errors]))]
        for library, errors in columns.items()
    }


def tables(found: Errors, headline: str) -> str:
    names = ["jsoftmax", "jax.nn", "optax", "torch"]
    groups = [(m, d) for d in families.DTYPES for m in sweep.MEASURES]
    summary, details = [], []
    for measure, dtype in groups:
        top = worst(found, f"{measure}/{dtype}/")
        if not top:
            continue
        target = TARGETS.get((measure, dtype))
        verdict = ""
        if target is not None and "jsoftmax" in top:
            verdict = f"≤ {target} {'yes' if top['jsoftmax'][0] <= target else 'NO'}"
        summary.append([f"{dtype} {measure}", *(cell(top.get(n)) for n in names), verdict])
        rows = [
            [row.rsplit("/", 1)[1], *(cell(errors.get(n)) for n in names)]
            for row, errors in found.items()
            if row.startswith(f"{measure}/{dtype}/")
        ]
        details.append(f"## {measure}, {dtype}\n\n{report.markdown(['family', *names], rows)}")
    return "\n\n".join(
        [
            "# Errors in units in the last place: largest (mean)",
            headline,
            "Over all families: the largest error, and the largest mean of a family. The losses of "
            "jsoftmax are float32 for every dtype of the logits and are judged as such; peers "
            "return the logits' dtype. The maps' gradients are taken with a random cotangent.",
            report.markdown(["", *names, "target"], summary),
            *details,
        ]
    )


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    names = [f for f in families.FAMILIES if not (arguments.quick and f in families.LARGE)]
    found = measured(arguments, names)
    environment = report.environment()
    text = tables(found, report.headline(environment))
    print("\n" + text)
    results = {"environment": environment, "seed": SEED, "ulp_max_and_mean": found}
    report.save("accuracy", results, text, arguments)


if __name__ == "__main__":
    main()
