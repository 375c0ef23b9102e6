"""Trained heads side by side: scores, and time and memory that favour neither."""

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _corpus import Corpus
from _heads import Head
from _network import CONTEXT
from _training import (
    BATCH,
    Run,
    State,
    compile_train_step,
    evaluate,
    init_state,
    mean_loss,
    training_batch,
    validation_batches,
)

VALIDATION_BATCHES = 64
ROUNDS = 15
WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """What the table says of one head.

    Attributes:
        perplexity: of the validation split, exp of nats per word.
        accuracy: how often the most probable word was the right one, 0 to 1.
        step_seconds: the median time of a training step.
        temporary_bytes: what the compiled step allocates beside its arguments and results.
        peak_bytes: the resident memory of a process that trains; None where nothing reports it.
    """

    perplexity: float
    accuracy: float
    step_seconds: float
    temporary_bytes: int
    peak_bytes: int | None


def compare(
    heads: Mapping[str, Head],
    steps: Mapping[str, jax.stages.Compiled],
    states: Mapping[str, State],
    corpus: Corpus,
    run: Run,
) -> dict[str, Row]:
    """Measures each head with its compiled step and its trained state. Uses the states up."""
    batches = validation_batches(corpus, VALIDATION_BATCHES)
    scores = {name: evaluate(head, states[name]["params"], batches) for name, head in heads.items()}
    batch = training_batch(corpus, run, run.steps)
    seconds = step_seconds({name: _stepping(step, states[name], batch) for name, step in steps.items()})
    peaks = peak_bytes(heads, run)
    return {
        name: Row(
            perplexity=math.exp(scores[name][0]),
            accuracy=scores[name][1],
            step_seconds=seconds[name],
            temporary_bytes=steps[name].memory_analysis().temp_size_in_bytes,
            peak_bytes=peaks[name],
        )
        for name in heads
    }


def same_parameters_gap(heads: Mapping[str, Head], params: Any, corpus: Corpus, run: Run) -> float:
    """The largest relative difference of the heads' losses where all have the same parameters."""
    loss = jax.jit(mean_loss, static_argnames="head")
    batches = [training_batch(corpus, run, run.steps + i) for i in range(8)]
    losses = np.array([[loss(params, head, batch) for head in heads.values()] for batch in batches])
    return float(np.max(np.ptp(losses, axis=1) / losses.max(axis=1)))


def _stepping(step: Callable[..., Any], state: State, batch: np.ndarray) -> Callable[[], Any]:
    def go_on() -> Any:
        nonlocal state
        state, loss = step(state, batch)
        return state, loss

    return go_on


def step_seconds(steps: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each step over interleaved rounds.

    The steps take turns, and so does the first place in a round: a machine that slows down slows
    all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for _ in range(WARM_UP + ROUNDS):
        for name in names:
            start = time.perf_counter()
            jax.block_until_ready(steps[name]())
            times[name].append(time.perf_counter() - start)
        names.reverse()
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def peak_bytes(heads: Mapping[str, Head], run: Run) -> dict[str, int | None]:
    """The largest resident memory of a fresh process that trains each head for a few steps."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(heads), mp_context=spawn, max_tasks_per_child=1) as processes:
        peaks = {name: processes.submit(_train_briefly, head, run) for name, head in heads.items()}
        return {name: peak.result() for name, peak in peaks.items()}


def _train_briefly(head: Head, run: Run) -> int | None:
    step = compile_train_step(head, run)
    state = init_state(head, run, np.ones(run.vocab))
    for _ in range(3):
        state, _ = jax.block_until_ready(step(state, np.zeros((BATCH, CONTEXT + 1), np.int32)))
    return _resident_peak()


def _resident_peak() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux the maximum of `getrusage` would be the parent's: a new process inherits it.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def table(rows: Mapping[str, Row]) -> str:
    """The rows as text, one column for each head and the first one's share of the last."""

    def line(label: str, cells: Sequence[str], ratio: str = "") -> str:
        return f"{label:32}" + "".join(f"{cell:>14}" for cell in cells) + f"{ratio:>10}"

    def measured(label: str, values: Sequence[float | None], form: Callable[[float], str]) -> str:
        first, *_, last = values
        ratio = "" if first is None or last is None else f"{first / last:.2f}"
        return line(label, ["–" if v is None else form(v) for v in values], ratio)

    def megabytes(value: float) -> str:
        return f"{value / 1e6:.0f} MB"

    columns = list(rows.values())
    return "\n".join(
        [
            line("", list(rows), "ratio"),
            line("validation perplexity", [f"{row.perplexity:.3f}" for row in columns]),
            line("validation accuracy", [f"{row.accuracy:.2%}" for row in columns]),
            measured(
                "time of a training step",
                [row.step_seconds for row in columns],
                lambda seconds: f"{seconds * 1e3:.1f} ms",
            ),
            measured("temporary memory of a step", [row.temporary_bytes for row in columns], megabytes),
            measured("peak memory of the process", [row.peak_bytes for row in columns], megabytes),
        ]
    )
