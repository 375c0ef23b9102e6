"""Time and memory of linear cross-entropy beside optax on all logits, torch and the bare products.

`python -m benchmarks.linear [--quick] [--only REGEX] [--json FOLDER]`. Value and gradient in hidden
vectors and kernel; scalar: the mean; small: the mean in chunks of 16 rows; rows: one value per row,
weighed unequally.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import report, timing
from benchmarks.operations import torch
from jsoftmax.linear import linear_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((1024, 256, 32_000), (2048, 512, 50_257), (512, 256, 128_000))
DTYPES = ("float32", "bfloat16")
TIMED = ("optax", "torch", "products", "scalar", "small", "rows")
OURS = ("scalar", "small", "rows")
MOST_BY_PRODUCTS = 1.05
HEADER = [
    "shape",
    "dtype",
    *(f"{name} ms" for name in TIMED),
    "scalar / products",
    "optax temp",
    *(f"1 / {name}" for name in OURS),
    "optax resident",
    *(f"{name} resident" for name in OURS),
    "missed",
]


def optax_mean(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    del by
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels))


def scalar(hidden: Any, kernel: Any, labels: Any, by: Any, chunk_size: int | None = None) -> Any:
    del by
    return linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk_size)


def rows(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    return jnp.sum(by * linear_cross_entropy(hidden, kernel, labels, reduction="none"))


def products(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    """The matrix products that a value and its gradient cannot do without.

    Behind a barrier, so that hᵀ(h k) may not be made as (hᵀh) k: a softmax stands between the two.
    """
    del labels, by
    logits = jax.lax.optimization_barrier(hidden @ kernel)
    return logits @ kernel.T, hidden.T @ logits


WAYS: dict[str, Callable[..., Any]] = {
    "optax": jax.value_and_grad(optax_mean, (0, 1)),
    "products": products,
    "scalar": jax.value_and_grad(scalar, (0, 1)),
    "small": jax.value_and_grad(functools.partial(scalar, chunk_size=16), (0, 1)),
    "rows": jax.value_and_grad(rows, (0, 1)),
}


def draw(shape: tuple[int, int, int], dtype: str) -> tuple[jax.Array, ...]:
    n, features, classes = shape
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.standard_normal((n, features)), dtype),
        jnp.asarray(0.05 * rng.standard_normal((features, classes)), dtype),
        jnp.asarray(rng.integers(0, classes, n)),
        jnp.asarray(rng.standard_normal(n), jnp.float32),
    )


def thunk_of_torch(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Callable[[], object]:
    """The same mean by torch, in the fastest of its ways: all logits, or chunks of rows."""
    kind = torch.bfloat16 if hidden.dtype == jnp.bfloat16 else torch.float32

    def parameter(x: jax.Array) -> torch.Tensor:
        return torch.from_numpy(np.array(x, np.float32)).to(kind).requires_grad_()

    x, weight = parameter(hidden), parameter(kernel.T)
    y = torch.from_numpy(np.array(labels, np.int64))
    sizes = (128, 256, 512)
    options = [torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size) for size in sizes]

    def step(way: Any) -> None:
        loss = torch.nn.functional.linear_cross_entropy(x, weight, y, options=way)
        torch.autograd.grad(loss, (x, weight))

    def seconds(way: Any) -> float:
        step(way)
        start = time.perf_counter()
        step(way)
        return time.perf_counter() - start

    every = [None, torch.nn.LinearCrossEntropyOptions(), *options]
    return functools.partial(step, min(every, key=seconds))


def resident(way: str, shape: tuple[int, int, int], dtype: str) -> float | None:
    """Bytes by which a process grows while it runs, results among them; None but on Linux."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def kilobytes(field: str) -> int:
        (found,) = re.findall(rf"{field}:\s+(\d+) kB", status.read_text())
        return int(found)

    inputs = draw(shape, dtype)
    compiled = jax.jit(WAYS[way]).lower(*inputs).compile()
    # The peak of compiling is forgotten.
    forget.write_text("5")
    before = kilobytes("VmRSS")
    jax.block_until_ready(compiled(*inputs))
    return 1024 * (kilobytes("VmHWM") - before)


def against_products(shape: tuple[int, int, int], dtype: str) -> float:
    """The time of the mean by that of its products, beside nothing else."""
    inputs = draw(shape, dtype)
    thunks = {}
    for name in ("scalar", "products"):
        program = jax.jit(WAYS[name]).lower(*inputs).compile()
        thunks[name] = functools.partial(_wait, program, *inputs)
    samples = timing.rounds(thunks, 7, 0.2)
    return timing.ratio(samples["scalar"], samples["products"])[0]


def _wait(function: Callable[..., object], *arguments: object) -> None:
    jax.block_until_ready(function(*arguments))


def measure(shape: tuple[int, int, int], dtype: str, quick: bool) -> dict[str, Any]:
    inputs = draw(shape, dtype)
    compiled = {name: jax.jit(way).lower(*inputs).compile() for name, way in WAYS.items()}
    analyses = {name: made.memory_analysis() for name, made in compiled.items()}
    temp = {name: found.temp_size_in_bytes for name, found in analyses.items() if found is not None}

    thunks = {name: functools.partial(_wait, compiled[name], *inputs) for name in WAYS}
    if torch is not None and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        thunks["torch"] = thunk_of_torch(*inputs[:3])
    samples = timing.rounds(thunks, *((3, 0.01) if quick else (5, 0.2)))
    # A process for each: none has what another left allocated.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        grown = {name: pool.apply(resident, (name, shape, dtype)) for name in ("optax", *OURS)}
    result: dict[str, Any] = {
        "ms": {name: statistics.median(values) for name, values in samples.items()},
        "temp": temp,
        "resident": grown,
        "against_products": timing.ratio(samples["scalar"], samples["products"])[0],
    }
    missed = {
        f"scalar ≤ {MOST_BY_PRODUCTS} products": result["against_products"] > MOST_BY_PRODUCTS,
        "scalar ≤ 1/5": temp["scalar"] > temp["optax"] / 5,
        "small ≤ 1/30": temp["small"] > temp["optax"] / 30,
        "rows ≤ 1/30": temp["rows"] > temp["optax"] / 30,
    }
    return result | {"missed": [name for name, is_missed in missed.items() if is_missed]}


def row(name: str, result: dict[str, Any]) -> list[str]:
    ms, temp, grown = result["ms"], result["temp"], result["resident"]
    shape, dtype = name.split()
    return [
        shape,
        dtype,
        *(f"{ms[way]:.0f}" if way in ms else "" for way in TIMED),
        f"{result['against_products']:.2f}",
        f"{temp['optax'] / 1e6:.0f}",
        *(f"{temp['optax'] / temp[way]:.1f}" for way in OURS),
        *(f"{grown[way] / 1e6:.0f}" if grown[way] is not None else "" for way in ("optax", *OURS)),
        ", ".join(result["missed"]),
    ]


def main() -> None:
    arguments = report.options((__doc__ or "").splitlines()[0])
    results: dict[str, dict[str, Any]] = {}
    for shape in SHAPES[:1] if arguments.quick else SHAPES:
        for dtype in DTYPES:
            name = f"{'x'.join(map(str, shape))} {dtype}"
            if report.chosen(name, arguments):
                results[name] = measure(shape, dtype, arguments.quick)
                print(" | ".join(row(name, results[name])), flush=True)
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Linear cross-entropy",
            report.headline(environment),
            "Value and gradient; medians of interleaved rounds. products: `hidden @ kernel` and the "
            "two products of its gradient. small: chunks of 16 rows. torch: `linear_cross_entropy`, "
            "its fastest options. temp: MB of temporary memory as compiled; 1 / …: optax's is so many "
            "times ours. resident: MB that a process grew by, gradients among them. missed: targets.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
        ]
    )
    print("\n" + text)
    report.save("linear", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
