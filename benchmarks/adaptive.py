"""Adaptive softmax beside torch's: forward and backward, the same numbers, cutoffs and widths.

`python -m benchmarks.adaptive [--quick] [--only REGEX] [--json FOLDER]`; the names that `--only`
matches are those of the table's rows. Losses and gradients are compared before anything is timed.
"""

from __future__ import annotations

import functools
import os
import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report, timing
from jsoftmax import cross_entropy
from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy
from jsoftmax.hierarchical.adaptive_params import AdaptiveParams, adaptive_cutoffs, adaptive_init

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's idle threads spin by default, and lose whole time slices where others have work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch

ROWS, FEATURES, THREADS = 1024, 128, 2
LEAST = {100_000: 3.0, 1_000_000: 2.0}
PEERS = ["mean", "mean of rows", "torch", "full softmax"]
RATIOS = ["by torch", "rows by torch", "by full"]
HEADER = ["", "cutoffs", *(f"{name} ms" for name in PEERS), *RATIOS, "temp", "missed"]


def inputs(classes: int) -> tuple[AdaptiveParams, np.ndarray, np.ndarray]:
    """Labels by Zipf's law, unsorted, the most frequent class first, as torch needs it."""
    rng = np.random.default_rng(classes)
    counts = 1 / np.arange(1, classes + 1)
    cutoffs = adaptive_cutoffs(counts, num_features=FEATURES, batch_size=ROWS)
    params = adaptive_init(jax.random.key(0), FEATURES, classes, cutoffs)
    hidden = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    labels = rng.choice(classes, size=ROWS, p=counts / counts.sum()).astype(np.int32)
    return params, hidden, labels


def in_torch(params: AdaptiveParams) -> torch.nn.AdaptiveLogSoftmaxWithLoss:
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(
        FEATURES, params.num_classes, list(params.cutoffs), div_value=4.0
    )
    ours = [params.head_kernel, *_alternating(params)]
    weights = list(module.parameters())
    with torch.no_grad():
        for weight, kernel in zip(weights, ours, strict=True):
            weight.copy_(torch.tensor(np.asarray(kernel).T))
    return module


def _alternating(params: AdaptiveParams) -> list[jax.Array]:
    pairs = zip(params.projections, params.tail_kernels, strict=True)
    return [kernel for pair in pairs for kernel in pair]


def measure(classes: int, quick: bool) -> dict[str, object]:
    params, hidden, labels = inputs(classes)
    module = in_torch(params)
    x, y = torch.tensor(hidden, requires_grad=True), torch.tensor(labels.astype(np.int64))

    def torch_step() -> object:
        module.zero_grad()
        x.grad = None
        loss = module(x, y).loss
        loss.backward()
        return loss

    # Labels are an argument, as for torch: of constants the compiler would sort the rows beforehand.
    batch = jnp.asarray(hidden), jnp.asarray(labels)
    thunks: dict[str, Callable[[], object]] = {}
    temp_bytes: dict[str, int] = {}
    for name, loss in (("mean", _mean), ("mean of rows", _mean_of_rows)):
        step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, *batch).compile()
        analysis: Any = step.memory_analysis()
        temp_bytes[name] = analysis.temp_size_in_bytes
        _agree(step(params, *batch), torch_step(), module, x)
        thunks[name] = functools.partial(_wait, step, params, *batch)
    thunks["torch"] = torch_step
    if classes <= 100_000:
        kernel = jax.random.normal(jax.random.key(1), (FEATURES, classes)) / FEATURES**0.5
        full = jax.jit(jax.value_and_grad(lambda k, x, y: jnp.mean(cross_entropy(x @ k, y)), (0, 1)))
        thunks["full softmax"] = functools.partial(_wait, full, kernel, *batch)
    samples = timing.rounds(thunks, *((5, 0.02) if quick else (11, 0.1)))
    found: dict[str, Any] = {
        "cutoffs": list(params.cutoffs),
        "ms": {name: statistics.median(values) for name, values in samples.items()},
        "least_ms": {name: min(values) for name, values in samples.items()},
        "temp_bytes": temp_bytes,
    }
    by_torch = timing.ratio(samples["torch"], samples["mean"])
    rows_by_torch = timing.ratio(samples["torch"], samples["mean of rows"])
    found |= {"by torch": by_torch[0], "by torch, quartiles": by_torch[1:]}
    found |= {"rows by torch": rows_by_torch[0], "rows by torch, quartiles": rows_by_torch[1:]}
    if "full softmax" in samples:
        found["by full"] = timing.ratio(samples["full softmax"], samples["mean"])[0]
    least = LEAST.get(classes, 0)
    found["missed"] = [f"{name} ≥ {least:g}" for name in RATIOS[:2] if found[name] < least]
    return found


def _mean(params: AdaptiveParams, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    return adaptive_cross_entropy(hidden, params, labels, reduction="mean")


def _mean_of_rows(params: AdaptiveParams, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(adaptive_cross_entropy(hidden, params, labels))


def _agree(ours: Any, torch_loss: Any, module: torch.nn.Module, x: torch.Tensor) -> None:
    """The same loss and gradients as torch, or the times mean nothing."""
    value, (d_params, d_hidden) = ours
    np.testing.assert_allclose(value, torch_loss.item(), 1e-5)
    _close(d_hidden, x.grad)
    kernels = [d_params.head_kernel, *_alternating(d_params)]
    for kernel, weight in zip(kernels, module.parameters(), strict=True):
        _close(kernel.T, weight.grad)


def _close(ours: jax.Array, theirs: torch.Tensor | None) -> None:
    assert theirs is not None
    expected = theirs.numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def _wait(function: Callable[..., object], *arguments: object) -> None:
    jax.block_until_ready(function(*arguments))


def row(name: str, result: dict[str, Any]) -> list[str]:
    times = result["ms"]
    return [
        name,
        ", ".join(map(str, result["cutoffs"])),
        *(f"{times[peer]:.3g}" if peer in times else "" for peer in PEERS),
        *(f"{result[name]:.3g}" if name in result else "" for name in RATIOS),
        ", ".join(f"{result['temp_bytes'][name] / 2**20:.1f}" for name in PEERS[:2]),
        ", ".join(result["missed"]),
    ]


def main() -> None:
    arguments = report.options("Adaptive softmax beside torch's: a loss and its gradients.")
    torch.set_num_threads(THREADS)
    results: dict[str, dict[str, object]] = {}
    for classes in (10_000, 100_000, 1_000_000):
        name = f"V = {classes}"
        if report.chosen(name, arguments) and not (arguments.quick and classes > 100_000):
            results[name] = measure(classes, arguments.quick)
            print(" | ".join(row(name, results[name])), flush=True)
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Adaptive softmax: milliseconds of a loss and its gradients",
            report.headline(environment),
            f"N = {ROWS} rows, {FEATURES} features, labels by Zipf's law, torch on {THREADS} threads; "
            "cutoffs by `adaptive_cutoffs`, the same for torch, whose module gives the mean. mean: "
            '`reduction="mean"`; mean of rows: `jnp.mean` of one value per row. by torch, by full: '
            "their time by that of the mean, rows by torch: by that of the other; medians over the "
            "rounds, so more is better. temp: MB besides inputs and outputs, of both forms. missed: "
            "targets.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
        ]
    )
    print("\n" + text)
    report.save("adaptive", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
