"""Compile every public function for a TPU, on a machine without one, and bound its memory.

Each function is compiled as one program that returns its value and its gradient. The compiler
tells how much memory the program takes besides its inputs and outputs (temp) and how many bytes
it reads and writes; the table gives both as multiples of the logits, beside the same work by
jax.nn or optax. Three layouts: one chip, rows sharded over four chips, classes sharded over four
chips. The run fails where a function exceeds its bound, or where more than a few numbers per row
travel between chips.

Run it as `make tpu-compile`: the compiler has an environment of its own, and one process at a
time may load it.
"""

import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jsoftmax
from jsoftmax import losses

TOPOLOGY = "v5e:2x2"
AXIS = "chips"
SIZES = {"rows": 8192, "classes": 32000, "features": 1024}
RESULTS = Path(__file__).parent / "results" / "tpu_compile.json"

# The dimension that is sharded over the chips; none on one chip.
LAYOUTS = {"one chip": None, "rows over 4": "rows", "classes over 4": "classes"}

# Arguments by name: dimensions, and a dtype where it does not follow the logits.
ARGUMENTS = {
    "logits": (("rows", "classes"), None),
    "targets": (("rows", "classes"), None),
    "cotangent": (("rows", "classes"), None),
    "row_cotangent": (("rows",), None),
    "labels": (("rows",), jnp.int32),
    "row_weights": (("rows",), jnp.float32),
    "class_weights": (("classes",), jnp.float32),
    "log_prior": (("classes",), jnp.float32),
    "where": (("classes",), jnp.bool_),
    "number": ((), jnp.float32),
    "hidden": (("rows", "features"), None),
    "kernel": (("features", "classes"), None),
}

# Temp as a multiple of one chip's logits; traffic between chips in 4-byte numbers per row.
MAX_TEMP = 0.01
MAX_TEMP_SPARSE = 5.1
MAX_TEMP_LINEAR = 0.6
MAX_TRAFFIC = 12

Program = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """A function at some options, the same work by a peer where there is one, and its arguments."""

    name: str
    program: Program
    peer: Program | None
    arguments: str
    layouts: tuple[str, ...] = ("one chip",)
    dtypes: tuple[str, ...] = ("bfloat16",)
    max_temp: float = MAX_TEMP


def gradient(function: Callable[..., jax.Array]) -> Program:
    """Values of a loss, per row or per element, and the gradient of their sum."""

    def program(logits: jax.Array, *rest: jax.Array) -> object:
        def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = function(logits, *rest)
            return jnp.sum(values, dtype=jnp.float32), values

        (_, values), derivative = jax.value_and_grad(total, has_aux=True)(logits)
        return values, derivative

    return program


def pullback(function: Callable[..., jax.Array]) -> Program:
    """Values of a map and the product of a cotangent with its Jacobian."""

    def program(logits: jax.Array, cotangent: jax.Array, *rest: jax.Array) -> object:
        values, pull = jax.vjp(lambda logits: function(logits, *rest), logits)
        return values, pull(cotangent)[0]

    return program


def every_option(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array,
    class_weights: jax.Array,
    log_prior: jax.Array,
    number: jax.Array,
) -> jax.Array:
    return jsoftmax.cross_entropy(
        logits,
        labels,
        where=where,
        temperature=number,
        softcap=number,
        label_smoothing=number,
        z_loss=number,
        class_weights=class_weights,
        ignore_index=-1,
        transform=jsoftmax.chain(
            jsoftmax.Margin(number),
            jsoftmax.LogitAdjustment(log_prior, number),
            jsoftmax.Softcap(number),
            jsoftmax.Temperature(number),
        ),
    )


def every_statistic(logits: jax.Array, labels: jax.Array) -> jax.Array:
    stats = jsoftmax.row_stats(logits, labels)
    return (
        stats.nll
        + stats.log_normalizer
        + stats.target_log_prob
        + stats.mean_logit
        + stats.expected_logit
        + stats.entropy
        + stats.correct
    )


def of_both(function: Callable[..., jax.Array]) -> Program:
    """The sum of a loss of hidden vectors and a kernel, and its gradient in both."""
    return lambda hidden, kernel, labels: jax.value_and_grad(
        lambda *both: jnp.sum(function(*both, labels)), (0, 1)
    )(hidden, kernel)


def normalizer_of_rows(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jsoftmax.linear_row_stats(
        hidden, kernel, labels, statistics=("log_normalizer",)
    ).log_normalizer


def margin_and_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    stats = losses.entmax_stats(logits, labels)
    return stats.loss + stats.margin


def bi_tempered(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return losses.bi_tempered_logistic_loss(logits, labels, t1=0.8, t2=1.2)


def mean_loss(logits: jax.Array, labels: jax.Array, row_weights: jax.Array) -> jax.Array:
    return jsoftmax.weighted_mean(jsoftmax.cross_entropy(logits, labels), row_weights)


def mean_loss_of_optax(logits: jax.Array, labels: jax.Array, row_weights: jax.Array) -> jax.Array:
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(values * row_weights) / jnp.sum(row_weights)


def local_classes(mesh: Mesh) -> Callable[..., jax.Array]:
    """cross_entropy that sees one chip's classes and is told the name of the mesh axis."""
    logits, labels = PartitionSpec(None, AXIS), PartitionSpec()
    return jax.shard_map(
        lambda logits, labels: jsoftmax.cross_entropy(logits, labels, axis_name=AXIS),
        mesh=mesh,
        in_specs=(logits, labels),
        out_specs=labels,
    )


def cases(mesh: Mesh) -> list[Case]:
    both, everywhere = ("bfloat16", "float32"), tuple(LAYOUTS)
    peers = optax.losses
    maps = [
        Case(
            name,
            pullback(getattr(jsoftmax, name)),
            pullback(partial(getattr(jax.nn, name), axis=-1)),
            arguments,
            everywhere,
            both,
        )
        for name, arguments in [
            ("softmax", "logits cotangent"),
            ("log_softmax", "logits cotangent"),
            ("logsumexp", "logits row_cotangent"),
        ]
    ]
    core = [
        Case(
            "cross_entropy",
            gradient(jsoftmax.cross_entropy),
            gradient(peers.softmax_cross_entropy_with_integer_labels),
            "logits labels",
            everywhere,
            both,
        ),
        Case(
            "cross_entropy, soft labels",
            gradient(jsoftmax.cross_entropy),
            gradient(peers.softmax_cross_entropy),
            "logits targets",
            everywhere,
            both,
        ),
        Case(
            "cross_entropy, every option",
            gradient(every_option),
            None,
            "logits labels where class_weights log_prior number",
            everywhere,
            both,
            # The compiler prefers keeping tanh(logits) to computing it again for the gradient.
            max_temp=1.1,
        ),
        Case(
            "cross_entropy, axis_name",
            gradient(local_classes(mesh)),
            gradient(peers.softmax_cross_entropy_with_integer_labels),
            "logits labels",
            ("classes over 4",),
            both,
        ),
        Case(
            "weighted_mean of cross_entropy",
            gradient(mean_loss),
            gradient(mean_loss_of_optax),
            "logits labels row_weights",
            everywhere,
        ),
        Case("row_stats", gradient(every_statistic), None, "logits labels", everywhere, both),
    ]
    with_peer = [
        Case(
            f"losses.{name}",
            gradient(getattr(losses, name)),
            gradient(getattr(peers, name)),
            arguments,
        )
        for name, arguments in [
            ("softmax_cross_entropy", "logits targets"),
            ("softmax_cross_entropy_with_integer_labels", "logits labels"),
            ("safe_softmax_cross_entropy", "logits targets"),
            ("sigmoid_binary_cross_entropy", "logits targets"),
            ("sigmoid_focal_loss", "logits targets"),
            ("poly_loss_cross_entropy", "logits targets"),
            ("kl_divergence", "logits targets"),
            ("kl_divergence_with_log_targets", "logits targets"),
            ("generalized_kl_divergence", "logits targets"),
            ("smooth_labels", "targets number"),
        ]
    ]
    without_peer = [
        Case(f"losses.{name}", gradient(getattr(losses, name)), None, arguments)
        for name, arguments in [
            ("softmax_focal_loss", "logits labels"),
            ("generalized_cross_entropy", "logits labels"),
            ("multilabel_cross_entropy", "logits targets"),
        ]
    ]
    # The threshold is searched for in a loop over gaps that are held, in float32, and so are the
    # probabilities for the gradient: four arrays of bfloat16.
    sparsemax_loss = losses.multiclass_sparsemax_loss
    sparse = [
        Case(name, program, None, arguments, max_temp=MAX_TEMP_SPARSE)
        for name, program, arguments in [
            ("sparsemax", pullback(jsoftmax.sparsemax), "logits cotangent"),
            ("entmax", pullback(jsoftmax.entmax), "logits cotangent"),
            ("losses.entmax_loss", gradient(losses.entmax_loss), "logits labels"),
            ("losses.fenchel_young_loss", gradient(losses.fenchel_young_loss), "logits targets"),
            ("losses.multiclass_sparsemax_loss", gradient(sparsemax_loss), "logits labels"),
            ("losses.entmax_stats", gradient(margin_and_loss), "logits labels"),
            ("losses.bi_tempered_logistic_loss", gradient(bi_tempered), "logits labels"),
        ]
    ]
    sparse[0] = replace(sparse[0], layouts=("one chip", "rows over 4"))
    binary = Case("losses.sparsemax_loss", gradient(losses.sparsemax_loss), None, "logits targets")
    linear = [
        Case(name, of_both(function), None, "hidden kernel labels", max_temp=MAX_TEMP_LINEAR)
        for name, function in [
            ("linear_cross_entropy", jsoftmax.linear_cross_entropy),
            ("linear_row_stats", normalizer_of_rows),
        ]
    ]
    return [*maps, *core, *with_peer, *without_peer, *sparse, binary, *linear]


def left_out(names: list[str]) -> set[str]:
    """Public functions that no case compiles."""
    compiled = {name.split(",")[0].split(" ")[0] for name in names}
    public = {
        prefix + name
        for prefix, module in (("", jsoftmax), ("losses.", losses))
        for name, value in vars(module).items()
        if callable(value) and not inspect.isclass(value) and not name.startswith("_")
    }
    # These take no arrays; every_option, every derivative rule and linear_cross_entropy run the first
    # three. What is in `hierarchical` has a module of its own beside this.
    no_arrays = {"chain", "custom_vjp", "chunked", "losses.make_fenchel_young_loss"}
    return public - compiled - no_arrays


def shapes(case: Case, dtype: str, mesh: Mesh, sharded: str | None) -> list[jax.ShapeDtypeStruct]:
    found = []
    for name in case.arguments.split():
        dimensions, own_dtype = ARGUMENTS[name]
        spec = PartitionSpec(*(AXIS if each == sharded else None for each in dimensions))
        found.append(
            jax.ShapeDtypeStruct(
                tuple(SIZES[each] for each in dimensions),
                own_dtype or jnp.dtype(dtype),
                sharding=NamedSharding(mesh, spec),
            )
        )
    return found


def traffic(hlo: str) -> int:
    """Bytes that one chip receives in collectives."""
    total = 0
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    # An asynchronous collective is two instructions; the one that ends it has the result.
    for result in re.findall(rf"= (.*?) (?:{kinds})(?:-done)?\(", hlo):
        for bits, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", result):
            total += int(bits) // 8 * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def measure(program: Program, arguments: list[jax.ShapeDtypeStruct], chips: int) -> dict:
    compiled = jax.jit(program).lower(*arguments).compile()
    logits = SIZES["rows"] * SIZES["classes"] * arguments[0].dtype.itemsize / chips
    return {
        "temp": compiled.memory_analysis().temp_size_in_bytes / logits,
        "accessed": compiled.cost_analysis()["bytes accessed"] / logits,
        "traffic": traffic(compiled.as_text()) / 4 / SIZES["rows"],
    }


def failures(record: dict) -> list[str]:
    label = f"{record['function']} ({record['layout']}, {record['dtype']})"
    ours, found = record["jsoftmax"], []
    if ours["temp"] > record["max_temp"]:
        found.append(f"{label}: temp is {ours['temp']:.3f} of the logits, over {record['max_temp']}")
    if ours["traffic"] > MAX_TRAFFIC:
        found.append(f"{label}: {ours['traffic']:.1f} numbers per row between chips")
    return found


def line(record: dict) -> str:
    cells = [f"{record['function']:47} {record['layout']:14} {record['dtype']:8}"]
    for figure, digits in [("temp", 4), ("accessed", 2), ("traffic", 1)]:
        for who in ("jsoftmax", "peer"):
            value = record[who] and f"{record[who][figure]:.{digits}f}"
            cells.append(f"{value or '':>9}")
    return " ".join(cells)


def prepare() -> None:
    """Lets the compiler describe a TPU that this machine need not have."""
    # Without these the compiler looks for a TPU on this machine and for the cloud that it is in.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    jax.config.update("jax_platforms", "cpu")


def described_chips() -> np.ndarray:
    """The chips of one."""
    prepare()
    return np.array(topologies.get_topology_desc(TOPOLOGY, "tpu").devices)


def main() -> int:
    chips = described_chips()
    meshes = {
        layout: Mesh(chips.reshape(-1) if sharded else chips[:1], (AXIS,))
        for layout, sharded in LAYOUTS.items()
    }
    work = cases(meshes["classes over 4"])
    # One dtype and nothing of the peers: what has to hold, without what it is compared with.
    quick = "--quick" in sys.argv
    if quick:
        work = [replace(case, dtypes=case.dtypes[:1], peer=None) for case in work]
    if missing := left_out([case.name for case in work]):
        print(f"no case compiles {', '.join(sorted(missing))}")
        return 1

    print(f"{SIZES['rows']} x {SIZES['classes']} logits, {TOPOLOGY}: value and gradient")
    print(f"{'':71} {'temp / logits':>19} {'accessed / logits':>19} {'numbers/row moved':>19}")
    print(f"{'':71}" + f" {'jsoftmax':>9} {'peer':>9}" * 3)
    records, broken = [], []
    for case in work:
        for layout in case.layouts:
            for dtype in case.dtypes:
                mesh = meshes[layout]
                arguments = shapes(case, dtype, mesh, LAYOUTS[layout])
                record = {
                    "function": case.name,
                    "layout": layout,
                    "dtype": dtype,
                    "max_temp": case.max_temp,
                    "jsoftmax": measure(case.program, arguments, mesh.size),
                    "peer": case.peer and measure(case.peer, arguments, mesh.size),
                }
                print(line(record), flush=True)
                records.append(record)
                broken += failures(record)

    versions = {name: version(name) for name in ("jax", "libtpu", "optax")}
    report = {"topology": TOPOLOGY, "sizes": SIZES, "versions": versions, "compiled": records}
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(broken) or f"{len(records)} programs compiled, every one within its bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
