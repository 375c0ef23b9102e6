"""Time and digits: sparsemax and entmax beside optax, torch's entmax package and a softmax.

`python -m benchmarks.entmax [--quick] [--only REGEX] [--json FOLDER]`; the names that `--only` matches
are those of the rows of both tables. Torch and entmax, where they are installed, fill their columns.
"""

from __future__ import annotations

import functools
import gc
import statistics
import time
import zlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from benchmarks import report, timing
from tests.oracles import entmax as oracle

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import entmax as peer
    import torch
except ImportError:
    peer = torch = None

SHAPES = ((4096, 1000), (256, 32_000), (1024, 32_000), (64, 131_072))
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
INPUTS = ("normal", "uniform", "constant", "heavy-tailed")
TOP = (None, 32, 128, 512)
MAPS = {"sparsemax": 2.0, "entmax 1.5": 1.5}
# A support is small below this share of the classes.
SMALL = 0.02
LEAST_BY_OPTAX, LEAST_BY_TORCH, MOST_BY_SOFTMAX, LARGEST_ERROR = 20, 1.3, 4, 2.5e-7
COLUMNS = ("jsoftmax", "optax", "torch", "softmax")
HEADER = ["", "jsoftmax ms", "optax ms", "torch ms", "best k", "softmax ms", "by optax", "by torch",
          "by softmax", "support", "temp MB", "optax's", "missed"]  # fmt: skip
ACCURACY_HEADER = ["", "jsoftmax", "optax", "torch", "sum", "support", "missed"]


def scores(kind: str, shape: tuple[int, int], dtype: str) -> jax.Array:
    rng = np.random.default_rng(zlib.crc32(f"{kind} {shape}".encode()))
    values = {
        "normal": lambda: rng.standard_normal(shape, np.float32),
        "uniform": lambda: rng.random(shape, np.float32),
        "constant": lambda: np.full(shape, 0.7, np.float32),
        "heavy-tailed": lambda: rng.standard_t(2, shape).astype(np.float32),
    }[kind]()
    return jnp.asarray(values, DTYPES[dtype])


def ours(name: str) -> Callable[[Any], Any]:
    return jsoftmax.sparsemax if MAPS[name] == 2 else functools.partial(jsoftmax.entmax, alpha=1.5)


def projection(x: jax.Array) -> jax.Array:
    """What optax has for a sparsemax: a projection of one vector, by a sort."""
    return jax.vmap(optax.projections.projection_simplex)(x)


def compiled(
    function: Callable[..., Any], gradient: bool, *inputs: jax.Array
) -> tuple[Any, int | None]:
    """A function that waits for its result, and the bytes it takes besides its inputs and outputs."""

    def pulled(x: Any, ct: Any) -> Any:
        p, pull = jax.vjp(function, x)
        return p, pull(ct)[0]

    arguments = inputs if gradient else inputs[:1]
    program = jax.jit(pulled if gradient else function).lower(*arguments).compile()
    memory = program.memory_analysis()
    return (
        lambda: jax.block_until_ready(program(*arguments)),
        None if memory is None else memory.temp_size_in_bytes,
    )


def tensor(x: jax.Array) -> Any:
    wide = torch.from_numpy(np.array(x.astype(jnp.float32)))
    return wide.to(torch.bfloat16) if x.dtype == jnp.bfloat16 else wide


def torch_thunk(name: str, gradient: bool, x: Any, ct: Any, k: int | None) -> Callable[[], object]:
    function = peer.sparsemax if MAPS[name] == 2 else peer.entmax15

    def forward() -> object:
        with torch.no_grad():
            return function(x, dim=-1, k=k)

    def backward() -> object:
        held = x.detach().requires_grad_()
        p = function(held, dim=-1, k=k)
        return p, torch.autograd.grad(p, held, ct)[0]

    return backward if gradient else forward


@functools.cache
def best_k(name: str, kind: str, shape: tuple[int, int], dtype: str) -> int | None:
    """The quickest of two calls each, forward: the sort is nearly all there is in either pass."""
    x = tensor(scores(kind, shape, dtype))
    seconds = {}
    for k in TOP:
        call, spent = torch_thunk(name, False, x, None, k), []
        for _ in range(2):
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
        seconds[k] = min(spent)
    return min(seconds, key=seconds.__getitem__)


def measure(
    name: str, gradient: bool, shape: tuple[int, int], dtype: str, kind: str, quick: bool
) -> dict[str, Any]:
    x = scores(kind, shape, dtype)
    ct = jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32), x.dtype)
    functions = {"jsoftmax": ours(name), "softmax": jax.nn.softmax}
    large = x.size > 5e6
    # A sort takes seconds there: of what takes it longest, and of what it has the least to do with.
    by_optax = name == "sparsemax" and (kind in ("normal", "constant") or not large)
    # optax's projection raises a TypeError where bfloat16 is differentiated.
    by_optax &= not (gradient and dtype == "bfloat16")
    if by_optax:
        functions["optax"] = projection
    thunks: dict[str, Callable[[], object]] = {}
    temps: dict[str, int | None] = {}
    for library, function in functions.items():
        thunks[library], temps[library] = compiled(function, gradient, x, ct)
    result: dict[str, Any] = {"temp_bytes": temps}
    if peer is not None:
        result["best_k"] = best_k(name, kind, shape, dtype)
        thunks["torch"] = torch_thunk(name, gradient, tensor(x), tensor(ct), result["best_k"])
    quickly = {library: thunk for library, thunk in thunks.items() if library != "optax"}
    samples = timing.rounds(quickly, *((3, 0.01) if quick else (5, 0.02) if large else (7, 0.05)))
    result["ms"] = {library: statistics.median(values) for library, values in samples.items()}
    result["by_softmax"] = timing.ratio(samples["jsoftmax"], samples["softmax"])[0]
    if "torch" in samples:
        result["by_torch"] = timing.ratio(samples["torch"], samples["jsoftmax"])[0]
    if by_optax:
        pair = {library: thunks[library] for library in ("jsoftmax", "optax")}
        samples = timing.rounds(pair, 2 if large or quick else 9, 0.0)
        result["ms"]["optax"] = statistics.median(samples["optax"])
        result["by_optax"] = timing.ratio(samples["optax"], samples["jsoftmax"])[0]
    some = ours(name)(x[:32].astype(jnp.float32))
    result["support"] = float(jnp.mean(jnp.sum(some > 0, axis=-1)))
    result["missed"] = missed(result, gradient, shape[1])
    return result


def missed(result: dict[str, Any], gradient: bool, classes: int) -> list[str]:
    found = []
    if result.get("by_optax", LEAST_BY_OPTAX) < LEAST_BY_OPTAX:
        found.append(f"by optax ≥ {LEAST_BY_OPTAX}")
    if result.get("by_torch", LEAST_BY_TORCH) < LEAST_BY_TORCH:
        found.append(f"by torch ≥ {LEAST_BY_TORCH}")
    small = not gradient and result["support"] <= SMALL * classes
    if small and result["by_softmax"] > MOST_BY_SOFTMAX:
        found.append(f"by softmax ≤ {MOST_BY_SOFTMAX}")
    return found


def row(name: str, result: dict[str, Any]) -> list[str]:
    ms, temps = result["ms"], result["temp_bytes"]

    def figure(key: str) -> str:
        return f"{result[key]:.2f}" if key in result else ""

    def milliseconds(library: str) -> str:
        return f"{ms[library]:.3g}" if library in ms else ""

    def megabytes(library: str) -> str:
        return "" if temps.get(library) is None else f"{temps[library] / 2**20:.1f}"

    return [
        name,
        *(milliseconds(library) for library in COLUMNS[:3]),
        str(result["best_k"] or "all") if "best_k" in result else "",
        milliseconds("softmax"),
        *(figure(key) for key in ("by_optax", "by_torch", "by_softmax")),
        f"{result['support']:.0f}",
        megabytes("jsoftmax"),
        megabytes("optax"),
        ", ".join(result["missed"]),
    ]


def cells(quick: bool) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """The name of every row of the times, and how to measure it."""
    found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for shape in SHAPES[:1] if quick else SHAPES:
        for name in MAPS:
            for gradient in (False, True):
                for dtype in DTYPES:
                    for kind in INPUTS:
                        label = f"{name} {'gradient' if gradient else 'forward'} {shape} {dtype} {kind}"
                        cell = functools.partial(measure, name, gradient, shape, dtype, kind, quick)
                        found.append((label, cell))
    return found


def accuracy_cells(quick: bool) -> list[tuple[str, float, np.ndarray]]:
    """Name, α and float32 scores: rounded first, so that every library has the same ones."""
    rng = np.random.default_rng(0)
    spread = 2 * rng.standard_normal((8, 1000))
    kinds = {f"offset {offset:g}": spread + offset for offset in (0, 1e4, 1e6)}
    kinds["constant 32,000"] = np.full((1, 32_000), 1.3)
    if not quick:
        kinds["offset 1e+06, 32,000"] = 2 * rng.standard_normal((2, 32_000)) + 1e6
    return [
        (f"accuracy α = {alpha:g}, {kind}", alpha, x.astype(np.float32))
        for alpha in (1.25, 1.5, 2.0)
        for kind, x in kinds.items()
    ]


def accuracy(alpha: float, x: np.ndarray) -> dict[str, Any]:
    exact = oracle.rows(x, alpha)
    got = {"jsoftmax": np.asarray(jsoftmax.entmax(x, alpha))}
    if alpha == 2:
        got["optax"] = np.asarray(projection(jnp.asarray(x)))
    if peer is not None:
        named = {1.5: peer.entmax15, 2.0: peer.sparsemax}
        function = named.get(alpha, functools.partial(peer.entmax_bisect, alpha=alpha))
        got["torch"] = function(torch.from_numpy(x), dim=-1).numpy()
    found: dict[str, Any] = {
        "error": {library: float(np.max(np.abs(p - exact))) for library, p in got.items()},
        "sum": float(np.max(np.abs(got["jsoftmax"].astype(np.float64).sum(-1) - 1))),
        # A probability below the smallest normal number may be flushed to 0.
        "support": bool(np.all((got["jsoftmax"] > 0) == (exact > np.finfo(np.float32).tiny))),
        "missed": [],
    }
    if not found["error"]["jsoftmax"] <= LARGEST_ERROR:
        found["missed"].append(f"error ≤ {LARGEST_ERROR:g}")
    if not found["sum"] <= 1e-6:
        found["missed"].append("sum within 1e-6")
    if not found["support"]:
        found["missed"].append("support exact")
    return found


def accuracy_row(name: str, result: dict[str, Any]) -> list[str]:
    error = result["error"]
    return [
        name.removeprefix("accuracy "),
        *(f"{error[library]:.2g}" if library in error else "" for library in COLUMNS[:3]),
        f"{result['sum']:.1e}",
        "exact" if result["support"] else "differs",
        ", ".join(result["missed"]),
    ]


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    times: dict[str, dict[str, Any]] = {}
    digits: dict[str, dict[str, Any]] = {}
    for name, alpha, x in accuracy_cells(arguments.quick):
        if report.chosen(name, arguments):
            digits[name] = accuracy(alpha, x)
            print(" | ".join(accuracy_row(name, digits[name])), flush=True)
    for name, cell in cells(arguments.quick):
        if report.chosen(name, arguments):
            times[name] = cell()
            print(" | ".join(row(name, times[name])), flush=True)
            gc.collect()
    environment = report.environment()
    text = summary(environment, times, digits)
    print("\n" + text)
    report.save(
        "entmax", {"environment": environment, "rows": times, "accuracy": digits}, text, arguments
    )


def summary(
    environment: dict[str, object],
    times: dict[str, dict[str, Any]],
    digits: dict[str, dict[str, Any]],
) -> str:
    missing = [bool(result["missed"]) for result in (*times.values(), *digits.values())]
    return "\n\n".join(
        [
            "# sparsemax and entmax beside their peers",
            report.headline(environment),
            "Milliseconds, medians of interleaved rounds; gradient: the map and its vjp of one "
            "cotangent. optax: `projection_simplex` under `vmap`; where its sort takes seconds, of "
            "normal and constant scores only, and not the gradient of bfloat16, which it refuses. "
            "torch: the entmax package with the quickest k of "
            f"{', '.join(str(k or 'all') for k in TOP)}. softmax: "
            "`jax.nn.softmax`. by optax, by torch: their time by ours, so more is better; by softmax: "
            "our time by that of the softmax. support: mean number of classes above 0. temp: besides "
            "inputs and outputs, as the compiler plans it, ours and optax's. missed: targets (by "
            f"softmax: forward, for a support of at most {SMALL:.0%} of the classes).",
            report.markdown(HEADER, [row(name, result) for name, result in times.items()]),
            "## Largest error of a probability",
            "Against extended precision, of float32 scores; torch: sparsemax, entmax15, and bisection "
            "for α = 1.25. sum: how far ours is from 1. support: which classes of ours are above 0.",
            report.markdown(
                ACCURACY_HEADER, [accuracy_row(name, result) for name, result in digits.items()]
            ),
            f"{len(missing) - sum(missing)} of {len(missing)} rows meet their targets.",
        ]
    )


if __name__ == "__main__":
    main()
