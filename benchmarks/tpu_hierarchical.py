"""Compile `jsoftmax.hierarchical` for a TPU, on a machine without one, and bound its memory.

A part of `make tpu-compile`, beside `benchmarks.tpu_compile`: a program for each public function, with
32,000 classes and bfloat16 hidden vectors, that returns the values and, of a loss, the gradients of
its kernels too. The table tells what a program takes besides its inputs and outputs. The run fails
where that exceeds a bound; the logits of all classes alone would be 131 MB.
"""

import functools
import inspect
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.tpu_compile import TOPOLOGY, described_chips
from jsoftmax import hierarchical

ROWS, FEATURES, CLASSES, DRAWN = 1024, 256, 32_000, 1024
FEW = 256  # rows where all classes are asked for
# What `--quick` compiles: one of each kind of program.
QUICK = ("hierarchical_cross_entropy", "row_adam", "top_k", "adaptive_cross_entropy",
         "adaptive_cross_entropy, mean", "sampled_cross_entropy")  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "tpu_hierarchical.json"

Function = Callable[..., Any]


class Case(NamedTuple):
    """A program, the names of its arguments, and what it may take beside them, in MB."""

    name: str
    program: Function
    arguments: str
    max_temp: float


def arguments() -> dict[str, Any]:
    """Everything that a case may take, by name; arrays or the shapes of them."""
    counts = 1e7 / np.arange(1, CLASSES + 1)
    trees = {"tree": hierarchical.huffman_tree(counts), "groups": hierarchical.two_level_tree(CLASSES)}

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    kernel = array(trees["tree"].num_rows, FEATURES, dtype=jnp.float32)
    return {
        **trees,
        "hidden": array(ROWS, FEATURES),
        "few": array(FEW, FEATURES),
        "labels": array(ROWS, dtype=jnp.int32),
        "few_labels": array(FEW, dtype=jnp.int32),
        "kernel": kernel,
        "group_kernel": array(trees["groups"].num_rows, FEATURES, dtype=jnp.float32),
        "class_kernel": array(CLASSES, FEATURES, dtype=jnp.float32),
        "state": jax.eval_shape(hierarchical.row_adam(0.1).init, kernel),
        "params": jax.eval_shape(
            lambda: hierarchical.adaptive_init(jax.random.key(0), FEATURES, CLASSES, counts=counts)
        ),
        "key": array(2, dtype=jnp.uint32),
        "proposal": hierarchical.unigram_proposal(counts),
    }


def gradient(loss: Function) -> Function:
    """The values of `loss(hidden, kernel, …)` and the gradients of their sum in these two."""

    def program(hidden: Any, kernel: Any, *rest: Any) -> Any:
        def total(hidden: Any, kernel: Any) -> Any:
            values = loss(hidden, kernel, *rest)
            return jnp.sum(values), values

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, kernel)

    return program


def row_step(optimizer: str) -> Function:
    """A training step that reads and writes few rows."""

    def program(hidden: Any, kernel: Any, labels: Any, tree: Any, state: Any = 0) -> Any:
        _, update = getattr(hierarchical, optimizer)(0.1)
        got = hierarchical.row_gradients(hidden, kernel, labels, tree)
        updates, state = update(got.values, state, got.rows)
        return hierarchical.apply_row_updates(kernel, got.rows, updates), state, got.d_hidden

    return program


def drawn(loss: Function) -> Function:
    """`loss(hidden, kernel, …)` of negatives drawn in the program."""

    def program(hidden: Any, kernel: Any, *rest: Any) -> Any:
        *labels, key, proposal = rest
        negatives = hierarchical.draw_negatives(key, proposal, DRAWN)
        return loss(hidden, kernel, *labels, negatives)

    return program


def adagrad(hidden: Any, kernel: Any, labels: Any, tree: Any, state: Any) -> Any:
    return row_step("row_adagrad")(hidden, kernel, labels, tree, state[:2])


def smoothed(labels: Any, tree: Any) -> Any:
    return hierarchical.smooth_over_tree(labels, tree, 0.1)


def distinct(hidden: Any, kernel: Any, labels: Any, key: Any, proposal: Any) -> Any:
    negatives = hierarchical.draw_negatives(key, proposal, DRAWN, replace=False)
    return tuple(hierarchical.sampled_row_gradients(hidden, kernel, labels, negatives))


def cases() -> list[Case]:
    h = hierarchical
    by_tree, by_group = "hidden kernel labels tree", "few group_kernel few_labels groups"
    by_draw = "hidden class_kernel labels key proposal"
    return [
        Case("hierarchical_cross_entropy", gradient(h.hierarchical_cross_entropy), by_tree, 25),
        Case(
            "hierarchical_cross_entropy, groups",
            gradient(h.hierarchical_cross_entropy),
            by_group,
            60,
        ),
        Case("hierarchical_log_softmax", h.hierarchical_log_softmax, "few kernel tree", 85),
        Case("node_log_probs", h.node_log_probs, "few kernel tree", 85),
        Case("row_gradients", lambda *given: tuple(h.row_gradients(*given)), by_tree, 25),
        Case("row_sgd, apply_row_updates", row_step("row_sgd"), by_tree, 65),
        Case("row_adagrad", adagrad, by_tree + " state", 85),
        Case("row_adam", row_step("row_adam"), by_tree + " state", 150),
        Case("smooth_over_tree", smoothed, "few_labels tree", 23),
        Case("tree_distance", lambda y, tree: h.tree_distance(y, y, tree), "labels tree", 1),
        Case("top_k", lambda *given: tuple(h.top_k(*given, 10)), "few kernel tree", 2),
        Case("top_k, exact", lambda *a: tuple(h.top_k(*a, 10, exact=True)), "few kernel tree", 23),
        Case("greedy", lambda *given: tuple(h.greedy(*given)), "hidden kernel tree", 1),
        Case("sample", h.sample, "key hidden kernel tree", 1),
        Case("adaptive_cross_entropy", gradient(h.adaptive_cross_entropy), "hidden params labels", 3),
        Case("adaptive_cross_entropy, mean",
             gradient(functools.partial(h.adaptive_cross_entropy, reduction="mean")),
             "hidden params labels", 3),
        Case("adaptive_log_softmax", h.adaptive_log_softmax, "few params", 1),
        Case("adaptive_top_k", functools.partial(h.adaptive_top_k, k=10), "few params", 2),
        Case("adaptive_sample", h.adaptive_sample, "key hidden params", 2),
        Case("sampled_cross_entropy", gradient(drawn(h.sampled_cross_entropy)), by_draw, 1),
        Case("noise_contrastive_loss", gradient(drawn(h.noise_contrastive_loss)), by_draw, 1),
        Case("sampled_log_normalizer", gradient(drawn(h.sampled_log_normalizer)),
             "hidden class_kernel key proposal", 2),
        Case("sampled_row_gradients", distinct, by_draw, 1),
        Case("draw_negatives", lambda key, q: h.draw_negatives(key, q, DRAWN, replace=False),
             "key proposal", 1),
    ]  # fmt: skip


def left_out(names: list[str]) -> set[str]:
    """Public functions that no case compiles; those that make trees and parameters run on the host."""
    compiled = {part for name in names for part in name.split(", ")}
    public = {
        name
        for name, value in vars(hierarchical).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    on_the_host = {name for name in public if "tree_from" in name or name.endswith("_tree")}
    on_the_host |= {"adaptive_init", "adaptive_cutoffs", "unigram_proposal"}
    return public - compiled - (on_the_host - {"smooth_over_tree"})


def main() -> int:
    mesh = Mesh(described_chips()[:1], ("chips",))
    here = NamedSharding(mesh, PartitionSpec())
    known = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments())
    work = cases()
    if missing := left_out([case.name for case in work]):
        print(f"no case compiles {', '.join(sorted(missing))}")
        return 1
    quick = "--quick" in sys.argv
    work = [case for case in work if case.name in QUICK] if quick else work
    print(f"\n{CLASSES} classes, {FEATURES} features, {ROWS} rows ({FEW} where all classes are made), "
          f"{TOPOLOGY}")  # fmt: skip
    print(f"{'':36} {'temp, MB':>10} {'at most':>10} {'compile, s':>10}")
    records, broken = [], []
    for case in work:
        given = [known[name] for name in case.arguments.split()]
        start = time.perf_counter()
        compiled = jax.jit(case.program).lower(*given).compile()
        seconds = time.perf_counter() - start
        temp = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(f"{case.name:36} {temp:10.1f} {case.max_temp:10.0f} {seconds:10.1f}", flush=True)
        records.append({"function": case.name, "temp_mb": temp, "max_temp_mb": case.max_temp})
        if temp > case.max_temp:
            broken.append(f"{case.name}: temp is {temp:.1f} MB, over {case.max_temp}")
    versions = {name: version(name) for name in ("jax", "libtpu")}
    sizes = {"rows": ROWS, "few_rows": FEW, "features": FEATURES, "classes": CLASSES, "drawn": DRAWN}
    report = {"topology": TOPOLOGY, "sizes": sizes, "versions": versions, "compiled": records}
    if not quick:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(broken) or f"{len(records)} programs compiled, every one within its bounds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
