"""Ratios that differ from run to run: their middle over several processes.

`python -m benchmarks.middle [--quick] [--only REGEX] [--json FOLDER]`; the names that `--only` matches
are those of the table's rows. Where cores are shared, the same program takes 12 ms in one minute and
30 in the next, and one run says little about a target that is near. Each run here is a process of its
own that makes one row of another benchmark; the runs of all rows take turns.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report

RUNS = 9
HEADER = ["", "middle", "least", "greatest", "runs that meet it", "target", "missed"]


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a benchmark, the ratio in it that has a target, and the target."""

    benchmark: str
    row: str
    ratio: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def name(self) -> str:
        return f"{self.benchmark}: {self.row}, {self.ratio.replace('_', ' ')}"

    @property
    def target(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def met(self, ratio: float) -> bool:
        enough = self.at_least is None or ratio >= self.at_least
        return enough and (self.at_most is None or ratio <= self.at_most)


LINES = (
    Line("adaptive", "V = 100000", "by_torch", at_least=3),
    Line("adaptive", "V = 1000000", "by_torch", at_least=2),
    Line("entmax", "sparsemax gradient (4096, 1000) float32 constant", "by_optax", at_least=20),
    Line("entmax", "sparsemax forward (4096, 1000) float32 constant", "by_optax", at_least=20),
    Line("entmax", "sparsemax forward (64, 131072) bfloat16 uniform", "by_torch", at_least=1.3),
    Line("entmax", "sparsemax gradient (64, 131072) bfloat16 uniform", "by_torch", at_least=1.3),
    Line("linear", "1024x256x32000 float32", "against_products", at_most=1.05),
    Line("linear", "2048x512x50257 float32", "against_products", at_most=1.05),
    Line("linear", "512x256x128000 float32", "against_products", at_most=1.05),
)


def run(line: Line) -> float:
    """The ratio, as a process of its own finds it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.{line.benchmark}"]
        command += ["--only", f"^{re.escape(line.row)}$", "--json", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*.json")
        return json.loads(path.read_text())["rows"][line.row][line.ratio]


def row(line: Line, ratios: list[float]) -> list[str]:
    middle = statistics.median(ratios)
    return [
        line.name,
        f"{middle:.2f}",
        f"{min(ratios):.2f}",
        f"{max(ratios):.2f}",
        f"{sum(map(line.met, ratios))} of {len(ratios)}",
        line.target,
        "" if line.met(middle) else line.target,
    ]


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    lines = [line for line in LINES if report.chosen(line.name, arguments)]
    ratios: dict[Line, list[float]] = {line: [] for line in lines}
    for _ in range(3 if arguments.quick else RUNS):
        for line in lines:
            ratios[line].append(run(line))
            print(f"{line.name}: {ratios[line][-1]:.2f}", flush=True)
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Ratios that differ from run to run",
            report.headline(environment),
            "Each run is a process that makes one row of another benchmark, whose table says what is "
            "compared; the rows take turns. missed: targets, by the middle of the runs.",
            report.markdown(HEADER, [row(line, found) for line, found in ratios.items()]),
        ]
    )
    print("\n" + text)
    found: dict[str, Any] = {
        line.name: {"target": line.target, "ratios": ratios[line]} for line in lines
    }
    report.save("middle", {"environment": environment, "rows": found}, text, arguments)


if __name__ == "__main__":
    main()
