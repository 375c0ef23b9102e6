"""The language model on two processes of four devices each, its output layer sharded over classes.

    python examples/multihost_language_model.py             # both processes, then one for comparison
    python examples/multihost_language_model.py --resume    # go on after an interruption

What runs here over loopback runs on several machines: each process starts `jax.distributed`, sees the
devices of all, and does its share of one program. The mesh has an axis of data and an axis of classes,
and the classes lie across both processes: no process holds the whole layer, and none ever holds all
logits (`vocab_parallel_head`). Checkpoints are written by both, each its own part.

At the end one process alone trains the same model, and the largest difference of the two curves is
printed. The output folder then holds `metrics.json`, the checkpoints and the tokenised corpus.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _checkpoints
import _corpus
import jax
import numpy as np
from _heads import CHUNK, CHUNKED, DENSE, Head, Params
from _loop import train
from _network import CONTEXT
from _training import BATCH, Run, State, compile_train_step, init_state, make_train_step
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax

PROCESSES, LOCAL_DEVICES = 2, 4
DATA, VOCAB = 2, 4  # the sizes of the mesh


class WorkerDiedError(Exception):
    """A process ended before its work was done."""


def make_mesh() -> Mesh:
    """Half of each process's devices for each half of a batch: the classes lie across processes."""
    devices = np.array(jax.devices()).reshape(PROCESSES, DATA, VOCAB // PROCESSES)
    grid = devices.swapaxes(0, 1).reshape(DATA, VOCAB)
    return Mesh(grid, ("data", "vocab"), axis_types=(AxisType.Auto, AxisType.Auto))


# How the layer lies on the mesh: a device has a quarter of the classes.
HEAD_SPECS = {"kernel": P(None, "vocab"), "bias": P("vocab")}


def vocab_parallel_head(mesh: Mesh) -> Head:
    """The chunked head on a part of the classes each: per row, a few numbers cross the mesh."""
    on_shards = functools.partial(jax.shard_map, mesh=mesh, in_specs=(HEAD_SPECS, P("data"), P("data")))

    @functools.partial(on_shards, out_specs=P())
    def mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        loss = jsoftmax.linear_cross_entropy(
            hidden,
            params["kernel"],
            labels,
            bias=params["bias"],
            chunk_size=CHUNK,
            axis_name="vocab",
        )
        return jax.lax.pmean(loss, "data")

    @functools.partial(on_shards, out_specs=P("data"))
    def scores(params: Params, hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        stats = jsoftmax.linear_row_stats(
            hidden,
            params["kernel"],
            labels,
            bias=params["bias"],
            statistics=("nll", "correct"),
            axis_name="vocab",
        )
        return stats.nll, stats.correct

    return DENSE._replace(mean_loss=mean_loss, scores=scores)


def layout(mesh: Mesh, state: State) -> Any:
    """Where the arrays of a state lie: those of the head, and Adam's for them, by classes."""

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        del leaf
        keys = [getattr(key, "key", None) for key in path]
        return NamedSharding(mesh, HEAD_SPECS[keys[-1]] if "head" in keys else P())

    return jax.tree.map_with_path(sharding, state)


def sharded_training(
    head: Head, run: Run, mesh: Mesh, counts: np.ndarray
) -> tuple[State, jax.stages.Compiled, Callable[[np.ndarray], jax.Array]]:
    """The state on the mesh, the compiled step, and what puts a batch where that wants it."""
    start = functools.partial(init_state, head, run)
    places = layout(mesh, jax.eval_shape(start, counts))
    state = jax.jit(start, out_shardings=places)(counts)
    rows = NamedSharding(mesh, P("data"))
    words = jax.ShapeDtypeStruct((BATCH, CONTEXT + 1), np.int32, sharding=rows)
    train_step = jax.jit(
        make_train_step(head, run),
        donate_argnames="state",
        out_shardings=(places, NamedSharding(mesh, P())),
    )

    def place(batch: np.ndarray) -> jax.Array:
        # Every process knows the whole batch and gives its devices their rows.
        return jax.make_array_from_callback(batch.shape, rows, lambda index: batch[index])

    return state, train_step.lower(state, words).compile(), place


def work(process: int, coordinator: str, arguments: argparse.Namespace) -> None:
    """What each of the processes does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, PROCESSES, process)
    corpus, run = prepare(arguments)
    mesh = make_mesh()
    head = vocab_parallel_head(mesh)
    state, step, place = sharded_training(head, run, mesh, corpus.counts)
    train(head, step, state, run, corpus, folder(arguments, run), arguments.every, place)
    jax.distributed.shutdown()


def _end_with_parent() -> None:
    """Ends this process when its standard input ends: the parent holds the other end."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def prepare(arguments: argparse.Namespace) -> tuple[_corpus.Corpus, Run]:
    corpus = _corpus.load(arguments.corpus, arguments.vocab, arguments.out / "corpus.npz")
    run = Run("vocab_parallel", arguments.steps, arguments.vocab, arguments.seed, corpus.fingerprint)
    return corpus, run


def folder(arguments: argparse.Namespace, run: Run) -> Path:
    return arguments.out / "checkpoints" / run.head


def run_processes() -> None:
    """Starts the processes and waits for them; where one dies, ends the others.

    Raises:
        WorkerDiedError: One has died.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    devices = f"--xla_force_host_platform_device_count={LOCAL_DEVICES}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
    }
    python = [sys.executable, *(f"-W{option}" for option in sys.warnoptions)]
    workers = []
    with contextlib.ExitStack() as ending:
        for process in range(PROCESSES):
            role = ["--worker", str(process), "--coordinator", coordinator]
            worker = subprocess.Popen(
                [*python, __file__, *sys.argv[1:], *role],
                env=environment,
                stdin=subprocess.PIPE,
                # The connections that gloo makes; progress and errors go elsewhere.
                stdout=subprocess.DEVNULL,
                # An interrupt reaches this process alone, which ends them.
                start_new_session=True,
            )
            ending.enter_context(worker)
            ending.callback(worker.kill)
            workers.append(worker)
            print(
                f"process {process} of {PROCESSES}, {LOCAL_DEVICES} devices: pid {worker.pid}",
                flush=True,
            )
        codes: list[int | None] = [None]
        while None in codes:
            time.sleep(0.05)
            codes = [worker.poll() for worker in workers]
            for process, code in enumerate(codes):
                if code:
                    raise WorkerDiedError(
                        f"process {process} has died ({code}), the others were stopped; "
                        "--resume goes on from the last checkpoint"
                    )


def train_alone(run: Run, corpus: _corpus.Corpus, arguments: argparse.Namespace) -> Any:
    """The curves of the same training on one device of this process."""
    alone = replace(run, head="chunked")
    state = init_state(CHUNKED, alone, corpus.counts)
    step = compile_train_step(CHUNKED, alone)
    return train(CHUNKED, step, state, alone, corpus, folder(arguments, alone), arguments.every)[1]


def demo(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    jax.config.update("jax_platforms", "cpu")
    corpus, run = prepare(arguments)
    print(f"{len(corpus.train):,} tokens for training, a vocabulary of {len(corpus.words):,} words")
    checkpoints = folder(arguments, run)
    if arguments.resume:
        # What does not fit is refused here, not by each process.
        done = last_history(checkpoints, run)
        print(f"resumed after step {len(done['loss'])} of {run.steps}" if done else "nothing to resume")
    else:
        for path in checkpoints.parent.glob("*"):
            _checkpoints.clear(path)
    run_processes()
    curves = {run.head: last_history(checkpoints, run)}
    seconds = time.perf_counter() - started
    (_, before, _), *_, (_, after, _) = curves[run.head]["validation"]
    print(f"validation perplexity {math.exp(before):.1f} -> {math.exp(after):.1f}")

    results: dict[str, Any] = {
        "run": asdict(run),
        "mesh": {"processes": PROCESSES, "data": DATA, "vocab": VOCAB},
        "curves": curves,
        "seconds": {"processes": seconds},
    }
    end = f"{run.steps} steps on {PROCESSES} processes of {LOCAL_DEVICES} devices"
    if arguments.compare:
        curves["chunked"] = train_alone(run, corpus, arguments)
        several, alone = (np.array(history["loss"]) for history in curves.values())
        results["gap"] = float(np.max(np.abs(several / alone - 1)))
        end += f": losses within {results['gap']:.1e} of those of one process, all along"
    results["seconds"]["all"] = time.perf_counter() - started
    (arguments.out / "metrics.json").write_text(json.dumps(results, indent=1))
    print(f"{end}; {results['seconds']['all']:.0f} s in all")


def last_history(checkpoints: Path, run: Run) -> _checkpoints.History | None:
    with _checkpoints.open_folder(checkpoints) as opened:
        return _checkpoints.last_history(opened, run)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains the language model on two processes, its output layer split by classes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=40, metavar="N", help=f"of {BATCH * CONTEXT} tokens each")
    add("--vocab", type=int, default=4000, metavar="N", help=f"words, a multiple of {VOCAB}")
    add("--seed", type=int, default=0, metavar="N", help="decides parameters and batches")
    add("--every", type=int, default=10, metavar="N", help="steps from one checkpoint to the next")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    add("--corpus", type=Path, default=standard_library, metavar="DIR", help="folder of sources")
    add("--out", type=Path, default=Path("outputs/multihost"), metavar="DIR", help="folder for results")
    add(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train in one process too, and print how far the two curves are apart",
    )
    add("--worker", type=int, help=argparse.SUPPRESS)
    add("--coordinator", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, least in {"steps": 1, "vocab": 100, "seed": 0, "every": 1}.items():
        given = getattr(arguments, name)
        if given < least:
            parser.exit(2, f"{parser.prog}: error: --{name} must be at least {least}, got {given}\n")
    if arguments.vocab % VOCAB:
        text = f"--vocab must be a multiple of {VOCAB}, got {arguments.vocab}"
        parser.exit(2, f"{parser.prog}: error: {text}\n")
    arguments.out = arguments.out.resolve()
    return arguments


def main() -> None:
    arguments = parse_arguments()
    try:
        if arguments.worker is None:
            demo(arguments)
        else:
            work(arguments.worker, arguments.coordinator, arguments)
    except (_corpus.CorpusError, _checkpoints.OtherRunError, WorkerDiedError) as error:
        sys.exit(f"multihost_language_model.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume goes on from the last checkpoint")


if __name__ == "__main__":
    main()
