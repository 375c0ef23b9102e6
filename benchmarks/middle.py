"""Ratios that differ from run to run: their middle over several processes.

`python -m benchmarks.middle [--quick] [--only REGEX] [--json FOLDER]`; the names that `--only` matches
are those of the table's rows. What it leaves out stays in the folder's table as it was. Where cores are
shared, the same program takes 12 ms in one minute and 30 in the next, and one run says little about a
target that is near. Each run here is a process of its own, which measures one row of another benchmark;
the runs of all rows take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import adaptive, entmax, gensim_updates, linear, report

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 7
HEADER = ["", "middle", "least", "greatest", "runs that meet it", "target", "missed", "measured"]


@dataclasses.dataclass(frozen=True)
class Line:
    """A ratio of a row of a benchmark, its target, and how to measure it."""

    name: str
    measure: Callable[[], float]
    at_least: float = 0
    at_most: float = float("inf")

    @property
    def target(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least else f"≤ {self.at_most:g}"

    def met(self, ratio: float) -> bool:
        return self.at_least <= ratio <= self.at_most


def of_adaptive(classes: int, ratio: str) -> float:
    adaptive.torch.set_num_threads(adaptive.THREADS)
    found: Any = adaptive.measure(classes, quick=False)
    return found[ratio]


def of_gensim(classes: int) -> float:
    return gensim_updates.measure(classes, adaptive.FEATURES, quick=False)["ratio"]


def of_entmax(name: str, ratio: str) -> float:
    (cell,) = (cell for label, cell in entmax.cells(quick=False) if label == name)
    return cell()[ratio]


def lines() -> list[Line]:
    """Those near enough to their targets for a run to say one thing and the next another."""
    found = []
    for form, ratio in (("mean", "by torch"), ("mean of rows", "rows by torch")):
        measure = functools.partial(of_adaptive, 100_000, ratio)
        least = adaptive.LEAST[100_000]
        found.append(Line(f"adaptive V = 100000 {form} by torch", measure, at_least=least))
    for classes in (20_000, 100_000):
        measure = functools.partial(of_gensim, classes)
        found.append(Line(f"node updates V = {classes} by gensim", measure, at_least=1))
    for gradient in ("forward", "gradient"):
        for row, peer, least in (
            ("(4096, 1000) float32 constant", "by_optax", entmax.LEAST_BY_OPTAX),
            ("(1024, 32000) float32 constant", "by_optax", entmax.LEAST_BY_OPTAX),
            ("(64, 131072) bfloat16 uniform", "by_torch", entmax.LEAST_BY_TORCH),
        ):
            name = f"sparsemax {gradient} {row}"
            measure = functools.partial(of_entmax, name, peer)
            found.append(Line(f"{name} {peer.replace('_', ' ')}", measure, at_least=least))
    for shape, dtype in (
        ((1024, 256, 32_000), "float32"),
        ((1024, 256, 32_000), "bfloat16"),
        ((512, 256, 128_000), "float32"),
    ):
        name = f"linear {'x'.join(map(str, shape))} {dtype} by its products"
        measure = functools.partial(linear.against_products, shape, dtype)
        found.append(Line(name, measure, at_most=linear.MOST_BY_PRODUCTS))
    return found


def row(line: Line, found: dict[str, Any]) -> list[str]:
    ratios = found["ratios"]
    middle = statistics.median(ratios)
    return [
        line.name,
        f"{middle:.2f}",
        f"{min(ratios):.2f}",
        f"{max(ratios):.2f}",
        f"{sum(map(line.met, ratios))} of {len(ratios)}",
        line.target,
        "" if line.met(middle) else line.target,
        found["date"],
    ]


def before(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows of the file that is written to, by name."""
    path = None if arguments.json is None else arguments.json / "middle.json"
    return json.loads(path.read_text())["rows"] if path and path.exists() else {}


def main() -> None:
    arguments = report.options((__doc__ or "").splitlines()[0])
    chosen = [line for line in lines() if report.chosen(line.name, arguments)]
    ratios: dict[str, list[float]] = {line.name: [] for line in chosen}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(3 if arguments.quick else RUNS):
            for line in chosen:
                ratios[line.name].append(pool.apply(line.measure))
                print(f"{line.name}: {ratios[line.name][-1]:.2f}", flush=True)
    environment = report.environment()
    measured = {
        name: {"ratios": values, "date": environment["date"]} for name, values in ratios.items()
    }
    found = before(arguments) | measured
    known = [line for line in lines() if line.name in found]
    text = "\n\n".join(
        [
            "# Ratios that differ from run to run",
            report.headline(environment),
            "Each run is a process that measures one row of another benchmark, whose table says what "
            "is compared; the rows take turns. missed: targets, by the middle of the runs. measured: "
            "the day; the machine above is that of the last.",
            report.markdown(HEADER, [row(line, found[line.name]) for line in known]),
        ]
    )
    print("\n" + text)
    rows = {line.name: {"target": line.target, **found[line.name]} for line in known}
    report.save("middle", {"environment": environment, "rows": rows}, text, arguments)


if __name__ == "__main__":
    main()
