"""Time: jsoftmax beside jax.nn, optax and torch, in one process, in interleaved rounds.

`make bench`, or `python -m benchmarks.speed [--quick] [--only REGEX] [--json FOLDER]`; the names
that `--only` matches are those of the table's rows.
"""

from __future__ import annotations

import functools
import gc
import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import operations, report, timing
from jsoftmax import losses

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = ["jsoftmax", "jax.nn", "optax", "torch"]
HEADER = ["", *(f"{name} ms" for name in PEERS), "ratio", "by torch", "temp", "peer's", "missed"]
EAGER = "eager integer CE value+grad (128, 10) float32"


def least_ratio(operation: operations.Operation, shape: tuple[int, int]) -> float:
    """What is asked of the time of the faster of jax.nn and optax by ours."""
    cliff = shape[0] >= 256 and shape[1] >= 50_000
    if cliff and operation.name == "logsumexp":
        return 2.5
    if cliff and operation.name == "integer CE":
        return 1.3
    return 0.95


def measure(
    operation: operations.Operation, shape: tuple[int, int], dtype: str, quick: bool
) -> dict[str, object]:
    z, y = operations.inputs(shape, operation.labels, dtype)
    thunks: dict[str, Callable[[], object]] = {}
    temps: dict[str, int | None] = {}
    for library in operation.functions:
        function = operations.jax_function(operation, library)
        temps[library] = operations.temp_bytes(function, z, y)
        thunks[library] = functools.partial(_wait, function, z, y)
    by_torch = operations.torch_thunk(operation, z, y)
    if by_torch is not None:
        thunks["torch"] = by_torch
    result = compared(timing.rounds(thunks, *((5, 0.01) if quick else (15, 0.02))))
    missed = []
    if result["ratio"] < least_ratio(operation, shape):
        missed.append(f"ratio ≥ {least_ratio(operation, shape):g}")
    large = operation.name == "integer CE value+grad" and z.nbytes >= 64e6
    if large and result.get("by_torch", 1.4) < 1.4:
        missed.append("by torch ≥ 1.4")
    if operation.labels == "binary" and (temps["jsoftmax"] or 0) > 0.01 * z.nbytes + 2**16:
        missed.append("no temp")
    return {**result, "temp_bytes": temps, "logits_bytes": z.nbytes, "missed": missed}


def measure_eager(quick: bool) -> dict[str, object]:
    """As in a notebook: nothing jitted by the caller."""
    z, y = operations.inputs((128, 10), "integer", "float32")
    thunks = {}
    for name, loss in [
        ("jsoftmax", losses.softmax_cross_entropy_with_integer_labels),
        ("optax", optax.losses.softmax_cross_entropy_with_integer_labels),
    ]:
        function = jax.value_and_grad(lambda z, y, loss=loss: jnp.mean(loss(z, y)))
        thunks[name] = functools.partial(_wait, function, z, y)
    result = compared(timing.rounds(thunks, *((5, 0.05) if quick else (15, 0.1))))
    missed = ["ratio ≥ 2"] if result["ratio"] < 2 else []
    return {**result, "temp_bytes": {}, "logits_bytes": z.nbytes, "missed": missed}


def compared(samples: dict[str, list[float]]) -> dict[str, Any]:
    times = {name: statistics.median(values) for name, values in samples.items()}
    peer = min((name for name in ("jax.nn", "optax") if name in times), key=times.__getitem__)
    middle, *quartiles = timing.ratio(samples[peer], samples["jsoftmax"])
    found = {"ms": times, "ratio": middle, "ratio_quartiles": quartiles}
    if "torch" in samples:
        found["by_torch"] = timing.ratio(samples["torch"], samples["jsoftmax"])[0]
    return found


def _wait(function: Callable[..., object], *arguments: jax.Array) -> None:
    jax.block_until_ready(function(*arguments))


def row(name: str, result: dict[str, Any]) -> list[str]:
    times, temps = result["ms"], result["temp_bytes"]

    def megabytes(library: str) -> str:
        size = temps.get(library)
        return "" if size is None else f"{size / 2**20:.2f}"

    peer = next((library for library in temps if library != "jsoftmax"), "")
    return [
        name,
        *(f"{times[library]:.3g}" if library in times else "" for library in PEERS),
        f"{result['ratio']:.2f}",
        f"{result['by_torch']:.2f}" if "by_torch" in result else "",
        megabytes("jsoftmax"),
        megabytes(peer),
        ", ".join(result["missed"]),
    ]


def cells(quick: bool) -> list[tuple[str, Callable[[], dict[str, object]]]]:
    """The name of every row, and how to measure it."""
    found: list[tuple[str, Callable[[], dict[str, object]]]] = [
        (EAGER, functools.partial(measure_eager, quick))
    ]
    for operation in operations.operations():
        for shape in operations.SHAPES:
            if quick and shape[0] * shape[1] > 5e6:
                continue
            for dtype in operations.DTYPES:
                name = f"{operation.name} {shape} {dtype}"
                found.append((name, functools.partial(measure, operation, shape, dtype, quick)))
    return found


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    results: dict[str, dict[str, object]] = {}
    for name, cell in cells(arguments.quick):
        if report.chosen(name, arguments):
            results[name] = cell()
            print(" | ".join(row(name, results[name])), flush=True)
            gc.collect()
    environment = report.environment()
    missed = [name for name, result in results.items() if result["missed"]]
    text = "\n\n".join(
        [
            "# Milliseconds, medians of interleaved rounds",
            report.headline(environment),
            "ratio: the time of the faster of jax.nn and optax by that of jsoftmax, median over "
            "the rounds, so more is better; by torch: the same for torch. temp: MB besides inputs "
            "and outputs, as the compiler plans them, ours and the JAX peer's. With bfloat16 "
            "logits the losses of optax and torch are bfloat16, ours float32. missed: targets.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
            f"{len(results) - len(missed)} of {len(results)} rows meet their targets.",
        ]
    )
    print("\n" + text)
    report.save("speed", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
