"""Bias and variance of gradients through a sample, beside the exact gradient.

`python -m benchmarks.estimators [--quick] [--only REGEX] [--json FOLDER]`. What is estimated is the
gradient of the mean of a nonlinear function over the one-hot vectors of a few classes, in the logits.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import jsoftmax
from benchmarks import report
from jsoftmax import sampling

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES, DRAWS = 8, 100_000
HEADER = ["estimator", "relative bias", "± of the bias", "variance", "relative RMS error"]

hard_gumbel = functools.partial(sampling.gumbel_softmax, hard=True)
ESTIMATORS: dict[str, Callable[..., Any] | None] = {
    "REINFORCE": None,
    "straight-through": sampling.straight_through,
    "ST-Gumbel T=0.5": functools.partial(hard_gumbel, temperature=0.5),
    "ST-Gumbel T=1": functools.partial(hard_gumbel, temperature=1.0),
    "Rao-Blackwell(10) T=0.5": functools.partial(
        sampling.rao_blackwell_gumbel_softmax, temperature=0.5, num_samples=10
    ),
    "Rao-Blackwell(100) T=0.5": functools.partial(
        sampling.rao_blackwell_gumbel_softmax, temperature=0.5, num_samples=100
    ),
    "Rao-Blackwell(10) T=1": functools.partial(
        sampling.rao_blackwell_gumbel_softmax, temperature=1.0, num_samples=10
    ),
    "Rao-Blackwell(100) T=1": functools.partial(
        sampling.rao_blackwell_gumbel_softmax, temperature=1.0, num_samples=100
    ),
    "ReinMax": sampling.reinmax,
}


def problem() -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Logits, and a function of a distribution: a small network's squared error."""
    keys = jax.random.split(jax.random.key(1), 4)
    logits = jax.random.normal(keys[0], (CLASSES,))
    first = jax.random.normal(keys[1], (CLASSES, 16))
    second = jax.random.normal(keys[2], (16, 3)) / 2
    goal = jax.random.normal(keys[3], (3,))
    return logits, lambda y: jnp.sum((jnp.tanh(y @ first) @ second - goal) ** 2)


def measure(draw: Callable[..., Any] | None, draws: int) -> dict[str, float]:
    logits, f = problem()
    values = jax.vmap(f)(jnp.eye(CLASSES))
    exact = jax.grad(lambda z: jsoftmax.softmax(z) @ values)(logits)

    def score_function(key: jax.Array) -> jax.Array:
        k = sampling.categorical(key, logits)
        return values[k] * jax.grad(lambda z: jsoftmax.log_softmax(z)[k])(logits)

    def through(draw: Callable[..., Any], key: jax.Array) -> jax.Array:
        return jax.grad(lambda z: f(draw(key, z)))(logits)

    estimate = score_function if draw is None else functools.partial(through, draw)
    keys = jax.random.split(jax.random.key(0), draws)
    found = jax.jit(lambda keys: jax.lax.map(estimate, keys, batch_size=1000))(keys)
    size = jnp.sum(exact**2)
    bias, variance = jnp.mean(found, axis=0) - exact, jnp.sum(jnp.var(found, axis=0))
    return {
        "bias": float(jnp.sqrt(jnp.sum(bias**2) / size)),
        "noise_of_bias": float(jnp.sqrt(variance / draws / size)),
        "variance": float(variance / size),
        "error": float(jnp.sqrt((jnp.sum(bias**2) + variance) / size)),
    }


def main() -> None:
    arguments = report.options(__doc__ or "")
    draws = DRAWS // 10 if arguments.quick else DRAWS
    results = {}
    for name, draw in ESTIMATORS.items():
        if report.chosen(name, arguments):
            results[name] = measure(draw, draws)
    rows = [
        [
            name,
            f"{r['bias']:.3f}",
            f"{r['noise_of_bias']:.3f}",
            f"{r['variance']:.2f}",
            f"{r['error']:.2f}",
        ]
        for name, r in results.items()
    ]
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Gradients through a sample",
            report.headline(environment),
            f"The gradient of the mean of a nonlinear function of a draw among {CLASSES} classes, "
            f"estimated {draws:,} times and compared with the exact one, by enumeration. Bias and root "
            "mean square error are relative to the length of the exact gradient, the variance (summed "
            "over the logits) to its square. ±: what chance adds to the bias; such a bias is none.",
            report.markdown(HEADER, rows),
        ]
    )
    print(text)
    report.save("estimators", {"environment": environment, "rows": results}, text, arguments)


if __name__ == "__main__":
    main()
