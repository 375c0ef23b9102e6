"""What accuracy costs: each dense operation in two forms, ours and the plain one, beside the peer.

`python -m benchmarks.forms [--quick] [--only REGEX] [--json FOLDER]`. The plain form is what is usually
written: the maximum is subtracted, and the logarithm of the sum of exponentials taken. Its losses have
the gradient rule `p − y`, so that the forms differ in their digits alone. The digits are the largest
error over the families of `benchmarks.accuracy`.
"""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import jsoftmax
from benchmarks import operations, report, timing
from benchmarks.accuracy import SEED
from benchmarks.accuracy_peers import library, ours
from tests import families, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

# What a form may cost: the more accurate one is taken up to here without a word.
MOST = 1.10
HEADER = ["", "ours ms", "plain ms", "peer ms", "ours / plain", "ours / peer"]
MEASURES = ("softmax", "log_softmax", "logsumexp", "cross_entropy_value", "label_gradient")


def sums(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    m = jnp.max(jax.lax.stop_gradient(z), axis=-1, keepdims=True)
    return m, jnp.sum(jnp.exp(z - m), axis=-1, keepdims=True)


def softmax(z: jax.Array) -> jax.Array:
    m, s = sums(z)
    return jnp.exp(z - m) / s


def log_softmax(z: jax.Array) -> jax.Array:
    m, s = sums(z)
    return z - m - jnp.log(s)


def logsumexp(z: jax.Array) -> jax.Array:
    m, s = sums(z)
    return (m + jnp.log(s))[..., 0]


@jsoftmax.custom_vjp
def cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    return forward(z, y)[0]


def forward(z: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    m, s = sums(z)
    at_label = jnp.take_along_axis(z, y[:, None], -1) - m
    return (jnp.log(s) - at_label)[:, 0], (z, y, m, s)


def backward(residuals: Any, ct: jax.Array) -> tuple[jax.Array, None]:
    z, y, m, s = residuals
    one = jnp.arange(z.shape[-1]) == y[:, None]
    return jnp.exp(z - m) * (ct[:, None] / s) - jnp.where(one, ct[:, None], 0), None


cross_entropy.defvjp(forward, backward)

PLAIN: dict[str, Callable[..., jax.Array]] = {
    "softmax": lambda z, _: softmax(z),
    "log_softmax": lambda z, _: log_softmax(z),
    "logsumexp": lambda z, _: logsumexp(z),
    "integer CE": cross_entropy,
    "integer CE value+grad": cross_entropy,
}


def measure(operation: operations.Operation, shape: tuple[int, int], quick: bool) -> dict[str, Any]:
    z, y = operations.inputs(shape, operation.labels, "float32")
    peer = next(name for name in operation.functions if name != "jsoftmax")
    named = {**operation.functions, "plain": PLAIN[operation.name]}
    thunks: dict[str, Callable[[], object]] = {}
    for name, function in named.items():
        given = operations.Operation(
            operation.name, operation.labels, operation.gradient, {name: function}
        )
        program = operations.jax_function(given, name)
        thunks[name] = functools.partial(_wait, program, z, y)
    samples = timing.rounds(thunks, *((5, 0.01) if quick else (15, 0.02)))
    return {
        "peer": peer,
        "ms": {name: statistics.median(values) for name, values in samples.items()},
        "by_plain": timing.ratio(samples["jsoftmax"], samples["plain"])[0],
        "by_peer": timing.ratio(samples["jsoftmax"], samples[peer])[0],
    }


def _wait(function: Callable[..., object], *arguments: jax.Array) -> None:
    jax.block_until_ready(function(*arguments))


def digits(quick: bool) -> dict[str, dict[str, float]]:
    """The largest errors in units in the last place, float32."""
    forms = {"ours": ours(), "plain": library(softmax, log_softmax, logsumexp, cross_entropy)}
    found = {measure: dict.fromkeys(forms, 0.0) for measure in MEASURES}
    for name in families.FAMILIES:
        if quick and name in families.LARGE:
            continue
        item = sweep.case(name, "float32", SEED)
        for kind, functions in forms.items():
            for measured in MEASURES:
                error = sweep.errors(functions, measured, item)
                assert error is not None
                found[measured][kind] = max(found[measured][kind], float(error.max(initial=0)))
    return found


def row(name: str, result: dict[str, Any]) -> list[str]:
    ms = result["ms"]
    return [
        name,
        *(f"{ms[form]:.3g}" for form in ("jsoftmax", "plain", result["peer"])),
        f"{result['by_plain']:.2f}",
        f"{result['by_peer']:.2f}",
    ]


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    results: dict[str, dict[str, Any]] = {}
    for operation in operations.operations():
        for shape in operations.SHAPES if operation.name in PLAIN else ():
            name = f"{operation.name} {shape}"
            small = shape[0] * shape[1] <= 5e6
            if report.chosen(name, arguments) and (small or not arguments.quick):
                results[name] = measure(operation, shape, arguments.quick)
                print(" | ".join(row(name, results[name])), flush=True)
    errors = digits(arguments.quick)
    within = sum(result["by_plain"] <= MOST for result in results.values())
    environment = report.environment()
    text = "\n\n".join(
        [
            "# Both forms of the dense operations: time and digits",
            report.headline(environment),
            "Milliseconds, float32, medians of interleaved rounds. plain: the maximum is subtracted, "
            "and the logarithm of the sum taken, with the same rule for the gradient; peer: jax.nn or "
            "optax. ours / plain: what the digits cost.",
            report.markdown(HEADER, [row(name, result) for name, result in results.items()]),
            f"{within} of {len(results)} rows within {MOST:.2f} of the plain form.",
            "Largest error in units in the last place, over all families:",
            report.markdown(
                ["", "ours", "plain"],
                [[name, f"{e['ours']:.3g}", f"{e['plain']:.3g}"] for name, e in errors.items()],
            ),
        ]
    )
    print("\n" + text)
    saved = {"environment": environment, "rows": results, "ulp": errors}
    report.save("forms", saved, text, arguments)


if __name__ == "__main__":
    main()
