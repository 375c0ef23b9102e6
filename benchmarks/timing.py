"""Time functions side by side: interleaved rounds, so that all see the same machine."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _seconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def rounds(
    functions: Mapping[str, Callable[[], object]], count: int, round_seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per call of each function in each round; it must wait for its own result.

    A round repeats a function until `round_seconds` have passed, after one call that is not timed:
    the one before it may have left threads spinning or the caches cold. The order rotates.
    """
    names = list(functions)
    calls = {}
    for name in names:
        functions[name]()
        calls[name] = max(1, math.ceil(round_seconds / _seconds(functions[name], 1)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(count):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            functions[name]()
            samples[name].append(1e3 * _seconds(functions[name], calls[name]))
    return samples


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the quotient, round by round: what slows a whole round cancels."""
    quotients = [a / b for a, b in zip(slower, faster, strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return middle, low, high
