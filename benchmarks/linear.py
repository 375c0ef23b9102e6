"""Time and memory of linear cross-entropy beside optax on all logits and the three bare products.

`python -m benchmarks.linear [--quick] [--only REGEX] [--json FOLDER]`. Value and gradient in hidden
vectors and kernel; scalar: the mean; rows: one value per row, weighed unequally.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import report, timing
from jsoftmax.linear import linear_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((1024, 256, 32_000), (2048, 512, 50_257), (512, 256, 128_000))
DTYPES = ("float32", "bfloat16")
HEADER = ["shape", "dtype", "optax ms", "products ms", "scalar ms", "rows ms", "scalar / products",
          "optax MB", "scalar MB", "rows MB", "1 / scalar", "1 / rows", "missed"]  # fmt: skip


def optax_mean(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    del by
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels))


def scalar(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    del by
    return linear_cross_entropy(hidden, kernel, labels)


def rows(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    return jnp.sum(by * linear_cross_entropy(hidden, kernel, labels, reduction="none"))


def products(hidden: Any, kernel: Any, labels: Any, by: Any) -> Any:
    """The matrix products that a value and its gradient cannot do without."""
    del labels, by
    logits = hidden @ kernel
    return logits @ kernel.T, hidden.T @ logits


def measure(shape: tuple[int, int, int], dtype: str, quick: bool) -> dict[str, Any]:
    n, features, classes = shape
    rng = np.random.default_rng(0)
    inputs = (
        jnp.asarray(rng.standard_normal((n, features)), dtype),
        jnp.asarray(0.05 * rng.standard_normal((features, classes)), dtype),
        jnp.asarray(rng.integers(0, classes, n)),
        jnp.asarray(rng.standard_normal(n), jnp.float32),
    )
    ways: dict[str, Callable[..., Any]] = {
        "optax": jax.value_and_grad(optax_mean, (0, 1)),
        "products": products,
        "scalar": jax.value_and_grad(scalar, (0, 1)),
        "rows": jax.value_and_grad(rows, (0, 1)),
    }
    compiled = {name: jax.jit(way).lower(*inputs).compile() for name, way in ways.items()}
    analyses = {name: made.memory_analysis() for name, made in compiled.items()}
    temp = {name: found.temp_size_in_bytes for name, found in analyses.items() if found is not None}

    def thunk(name: str) -> Callable[[], object]:
        return lambda: jax.block_until_ready(compiled[name](*inputs))

    samples = timing.rounds({name: thunk(name) for name in ways}, *((3, 0.01) if quick else (9, 0.2)))
    result: dict[str, Any] = {
        "ms": {name: statistics.median(values) for name, values in samples.items()},
        "temp": temp,
        "against_products": timing.ratio(samples["scalar"], samples["products"])[0],
        "missed": [],
    }
    missed = {
        "scalar ≤ 1.05 products": result["against_products"] > 1.05,
        "scalar ≤ 1/5": temp["scalar"] > temp["optax"] / 5,
        "rows ≤ 1/30": temp["rows"] > temp["optax"] / 30,
    }
    result["missed"] = [name for name, is_missed in missed.items() if is_missed]
    return result


def row(name: str, result: dict[str, Any]) -> list[str]:
    ms, temp = result["ms"], result["temp"]
    shape, dtype = name.split()
    return [
        shape,
        dtype,
        *(f"{ms[way]:.0f}" for way in ("optax", "products", "scalar", "rows")),
        f"{result['against_products']:.2f}",
        *(f"{temp[way] / 1e6:.0f}" for way in ("optax", "scalar", "rows")),
        *(f"{temp['optax'] / temp[way]:.1f}" for way in ("scalar", "rows")),
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
            "Value and gradient; medians of interleaved rounds; MB of temporary memory as compiled. "
            "products: `hidden @ kernel` and the two products of its gradient.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
        ]
    )
    print("\n" + text)
    report.save("linear", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
