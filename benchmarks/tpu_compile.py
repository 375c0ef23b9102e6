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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jsoftmax
from benchmarks.tpu_cases import ARGUMENTS, AXIS, LAYOUTS, SIZES, Case, Program, cases
from jsoftmax import losses, sampling

TOPOLOGY = "v5e:2x2"
RESULTS = Path(__file__).parent / "results" / "tpu_compile.json"

# Between chips, in 4-byte numbers per row.
MAX_TRAFFIC = 12


def left_out(names: list[str]) -> set[str]:
    """Public functions that no case compiles."""
    compiled = {name.split(",")[0].split(" ")[0] for name in names}
    public = {
        prefix + name
        for prefix, module in (("", jsoftmax), ("losses.", losses), ("sampling.", sampling))
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


def record_of(case: Case, layout: str, dtype: str, mesh: Mesh) -> dict:
    arguments = shapes(case, dtype, mesh, LAYOUTS[layout])
    return {
        "function": case.name,
        "layout": layout,
        "dtype": dtype,
        "max_temp": case.max_temp,
        "jsoftmax": measure(case.program, arguments, mesh.size),
        "peer": case.peer and measure(case.peer, arguments, mesh.size),
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
    if missing := left_out([case.name for case in work]):
        print(f"no case compiles {', '.join(sorted(missing))}")
        return 1
    # One dtype, nothing of the peers, few layouts.
    quick = "--quick" in sys.argv
    if quick:
        work = [
            replace(case, dtypes=case.dtypes[:1], peer=None, layouts=case.layouts[: case.quick])
            for case in work
        ]

    print(f"{SIZES['rows']} x {SIZES['classes']} logits, {TOPOLOGY}: value and gradient")
    print(f"{'':71} {'temp / logits':>19} {'accessed / logits':>19} {'numbers/row moved':>19}")
    print(f"{'':71}" + f" {'jsoftmax':>9} {'peer':>9}" * 3)
    records, broken = [], []
    jobs = [(case, at, dtype) for case in work for at in case.layouts for dtype in case.dtypes]
    with ThreadPoolExecutor() as pool:
        for record in pool.map(lambda job: record_of(*job, meshes[job[1]]), jobs):
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
