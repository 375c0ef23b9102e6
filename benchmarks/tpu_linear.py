"""Compile the head of a large language model for TPUs, on a machine without one: its memory per chip.

8192 tokens, 2304 features, 256,000 words in bfloat16, value and gradient, on one v5e and one v6e: the
walk over rows that makes its gradient on the way, with the kernel's gradient summed in float32 or in
bfloat16, and the walk over classes with one value per row, that makes the logits again. Then a
vocab-parallel step inside `shard_map`, tokens and classes both sharded, on 8 x 8 chips of v5e and
16 x 16 of v6e. The run fails where a program exceeds its bound, or gathers what has the classes.

Run by `make tpu-compile`; `--quick` compiles three of the programs.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from benchmarks.tpu_compile import prepare, traffic

TOKENS, FEATURES, CLASSES = 8192, 2304, 256_000
RESULTS = Path(__file__).parent / "results" / "tpu_linear.json"
GIGABYTE = 1e9

Program = Callable[..., Any]


class Case(NamedTuple):
    """A program, the chips it is for, and how much temporary memory a chip may need for it."""

    name: str
    program: Program
    topology: str
    mesh: tuple[int, int]
    tokens: int
    max_gigabytes: float
    quick: bool = False


def mean(accum_dtype: Any = None, **options: Any) -> Program:
    """The mean and its gradient, made on the way."""
    loss = partial(jsoftmax.linear_cross_entropy, accum_dtype=accum_dtype, **options)
    return jax.value_and_grad(loss, (0, 1))


def per_row(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Any:
    """A value for each row, and the gradient of what a user makes of them."""

    def loss(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        rows = jsoftmax.linear_cross_entropy(hidden, kernel, labels, reduction="none")
        return jnp.mean(jnp.tanh(rows))

    return jax.value_and_grad(loss, (0, 1))(hidden, kernel)


def vocab_parallel(mesh: Mesh) -> Program:
    """A step's loss and gradient on a part of the tokens and a part of the classes each."""
    specs = (P("data"), P(None, "vocab"), P("data"))

    @partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=P())
    def loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        local = jsoftmax.linear_cross_entropy(hidden, kernel, labels, axis_name="vocab")
        return jax.lax.pmean(local, "data")

    return jax.value_and_grad(loss, (0, 1))


ONE = (1, 1)
CASES = (
    Case("mean", mean(), "v5e:2x2", ONE, TOKENS, 3.5, quick=True),
    Case("mean, accum_dtype=bfloat16", mean(jnp.bfloat16), "v5e:2x2", ONE, TOKENS, 2.1),
    Case("one value per row", per_row, "v5e:2x2", ONE, TOKENS, 0.1, quick=True),
    Case("mean", mean(), "v6e:2x2", ONE, TOKENS, 3.5),
    # There the compiler writes the kernel's gradient in another layout, and copies it at the end.
    Case("one value per row", per_row, "v6e:2x2", ONE, TOKENS, 1.4),
    Case("vocab-parallel mean", vocab_parallel, "v5e:8x8", (8, 8), 8 * TOKENS, 0.8, quick=True),
    Case("vocab-parallel mean", vocab_parallel, "v6e:16x16", (16, 16), 16 * TOKENS, 0.5),
)


def measure(case: Case) -> dict[str, Any]:
    devices = np.array(topologies.get_topology_desc(case.topology, "tpu").devices)
    rows, columns = case.mesh
    mesh = Mesh(devices.reshape(-1)[: rows * columns].reshape(case.mesh), ("data", "vocab"))
    program = case.program(mesh) if case.program is vocab_parallel else case.program

    def argument(shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    arguments = (
        argument((case.tokens, FEATURES), jnp.bfloat16, P("data")),
        argument((FEATURES, CLASSES), jnp.bfloat16, P(None, "vocab")),
        argument((case.tokens,), jnp.int32, P("data")),
    )
    compiled = jax.jit(program).lower(*arguments).compile()
    found, text = compiled.memory_analysis(), compiled.as_text()
    assert found is not None
    assert text is not None
    return {
        "case": case.name,
        "chips": case.topology if rows * columns > 1 else case.topology.split(":")[0],
        "tokens": case.tokens,
        "temp": found.temp_size_in_bytes / GIGABYTE,
        "arguments": found.argument_size_in_bytes / GIGABYTE,
        "outputs": found.output_size_in_bytes / GIGABYTE,
        "max_temp": case.max_gigabytes,
        "moved": traffic(text) / GIGABYTE,
        "gathers": len(re.findall(r"all-gather(?:-start)?\(", text)),
    }


def line(record: dict[str, Any]) -> str:
    numbers = " ".join(f"{record[name]:9.3f}" for name in ("temp", "arguments", "outputs", "moved"))
    return (
        f"{record['case']:28} {record['chips']:10} {record['tokens']:8} {numbers} {record['gathers']:8}"
    )


def main() -> int:
    prepare()
    print(f"{FEATURES} features, {CLASSES} classes, bfloat16, value and gradient; GB per chip")
    names = ("temp", "arguments", "outputs", "moved")
    print(f"{'':28} {'chips':10} {'tokens':>8} " + " ".join(f"{n:>9}" for n in names) + "  gathers")
    quick, records, broken = "--quick" in sys.argv, [], []
    for case in CASES:
        if quick and not case.quick:
            continue
        record = measure(case)
        records.append(record)
        print(line(record), flush=True)
        if record["temp"] > case.max_gigabytes:
            broken.append(f"{case.name} on {case.topology}: over {case.max_gigabytes} GB")
        if record["gathers"]:
            broken.append(f"{case.name} on {case.topology}: gathers")
    if not quick:
        versions = {name: version(name) for name in ("jax", "libtpu")}
        RESULTS.write_text(json.dumps({"versions": versions, "compiled": records}, indent=1) + "\n")
    print("\n".join(broken) or f"{len(records)} programs compiled, every one within its bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
