"""What every benchmark has in common: its options, the machine it ran on, its tables and files."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS = Path(__file__).parent / "results"


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the small sizes, few rounds")
    parser.add_argument("--only", metavar="REGEX", help="the rows whose name matches")
    parser.add_argument("--json", metavar="FOLDER", type=Path, help=f"results (or {RESULTS.name}/)")
    return parser.parse_args()


def chosen(name: str, arguments: argparse.Namespace) -> bool:
    return arguments.only is None or re.search(arguments.only, name) is not None


def environment() -> dict[str, object]:
    versions = {}
    for package in ("jax", "jaxlib", "optax", "torch", "entmax", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def headline(found: dict[str, object]) -> str:
    versions = found["versions"]
    assert isinstance(versions, dict)
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{found['device']}, {found['cores']} cores; {libraries}; {found['date']}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(header), rule, *map(line, table[1:])])


def save(name: str, results: dict[str, object], text: str, arguments: argparse.Namespace) -> None:
    """JSON and Markdown; a partial run leaves the published results alone."""
    folder = arguments.json
    if folder is None:
        if arguments.quick or arguments.only:
            return
        folder = RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    platform_name = jax.devices()[0].platform
    stem = name if platform_name == "cpu" else f"{name}-{platform_name}"
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(text + "\n")
    print(f"\nwritten to {folder / stem}.json and .md")
