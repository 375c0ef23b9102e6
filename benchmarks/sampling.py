"""Time of drawing classes, beside `jax.random.categorical`, `torch.multinomial` and a softmax.

`python -m benchmarks.sampling [--quick] [--only REGEX] [--json FOLDER]`. All from logits; torch's
multinomial takes probabilities, so its softmax is part of its time.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from benchmarks import report, timing
from jsoftmax import sampling

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((1024, 1_000), (256, 32_000), (1024, 32_000), (64, 131_072))
QUICK = ((64, 1_000),)
TARGET = ((1024, 32_000), "float32", 20)
PEERS = ("categorical", "jax.random.categorical", "torch.multinomial", "softmax")
CUTS = ("temperature 0.7", "top_k 50", "top_p 0.9", "min_p 0.05", "top_k, top_p", "sort, top_p")
HEADER = ["shape, dtype", *(f"{name} ms" for name in PEERS), "times jax", "times torch", "missed"]
CUT_HEADER = ["shape, dtype", *(f"{name} ms" for name in CUTS)]


def waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def torch_multinomial(x: np.ndarray, dtype: str) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    logits = torch.from_numpy(x).to(getattr(torch, dtype))

    def draw() -> Any:
        # bfloat16 probabilities are coarse; torch's users widen them too.
        return torch.multinomial(torch.softmax(logits, -1, dtype=torch.float32), 1)

    return draw


def by_sorting(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Top-p as decoders write it: sort, cumulate, mask, draw with Gumbel noise."""
    scores = logits.astype(jnp.float32)
    ranked = jnp.sort(scores, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ranked), axis=-1) - jax.nn.softmax(ranked)
    last = jnp.sum(before < 0.9, axis=-1, keepdims=True) - 1
    lowest = jnp.take_along_axis(ranked, last, axis=-1)
    return jax.random.categorical(key, jnp.where(scores < lowest, -jnp.inf, scores))


def measure(shape: tuple[int, int], dtype: str, quick: bool) -> dict[str, Any]:
    drawn = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 2
    key, x = jax.random.key(0), jnp.asarray(drawn, dtype)
    thunks: dict[str, Any] = {
        "categorical": waiting(sampling.categorical, key, x),
        "jax.random.categorical": waiting(jax.jit(jax.random.categorical), key, x),
        "torch.multinomial": torch_multinomial(drawn, dtype),
        "softmax": waiting(jsoftmax.softmax, x),
    }
    cuts: dict[str, dict[str, Any]] = {
        "temperature 0.7": {"temperature": 0.7},
        "top_k 50": {"top_k": 50},
        "top_p 0.9": {"top_p": 0.9},
        "min_p 0.05": {"min_p": 0.05},
        "top_k, top_p": {"top_k": 50, "top_p": 0.9, "temperature": 0.7},
    }
    for name, options in cuts.items():
        thunks[name] = waiting(lambda options: sampling.sample(key, x, **options), options)
    available = {name: thunk for name, thunk in thunks.items() if thunk is not None}
    samples = timing.rounds(available, *((3, 0.02) if quick else (7, 0.1)))
    # It takes seconds: two rounds are enough.
    samples |= timing.rounds({"sort, top_p": waiting(jax.jit(by_sorting), key, x)}, 2, 0)
    result: dict[str, Any] = {"ms": {name: statistics.median(ms) for name, ms in samples.items()}}
    for peer in PEERS[1:3]:
        if peer in samples:
            result[f"times {peer}"] = timing.ratio(samples[peer], samples["categorical"])[0]
    wanted_shape, wanted_dtype, factor = TARGET
    late = result[f"times {PEERS[1]}"] < factor
    result["missed"] = (
        [f"≥ {factor}x jax"] if (shape, dtype) == (wanted_shape, wanted_dtype) and late else []
    )
    return result


def rows(results: dict[str, dict[str, Any]], names: tuple[str, ...], more: bool) -> list[list[str]]:
    table = []
    for name, result in results.items():
        cells = [f"{result['ms'][column]:.3g}" if column in result["ms"] else "" for column in names]
        if more:
            factors = [result.get(f"times {peer}") for peer in PEERS[1:3]]
            cells += ["" if factor is None else f"{factor:.1f}" for factor in factors]
            cells.append(", ".join(result["missed"]))
        table.append([name, *cells])
    return table


def main() -> None:
    arguments = report.options(__doc__ or "")
    results: dict[str, dict[str, Any]] = {}
    for shape in QUICK if arguments.quick else SHAPES:
        for dtype in ("float32", "bfloat16"):
            name = f"{shape[0]}×{shape[1]} {dtype}"
            if report.chosen(name, arguments):
                results[name] = measure(shape, dtype, arguments.quick)
                print(name, {k: round(v, 2) for k, v in results[name]["ms"].items()}, flush=True)
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Drawing classes",
            report.headline(environment),
            "One draw per row, from logits; medians of interleaved rounds. times: the peer's time by "
            "that of `categorical`, round by round. torch's time has its softmax in it.",
            report.markdown(HEADER, rows(results, PEERS, True)),
            "`sample` with each restriction, and top-p by a sort and `jax.random.categorical`.",
            report.markdown(CUT_HEADER, rows(results, CUTS, False)),
        ]
    )
    print("\n" + text)
    report.save("sampling", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
