"""The language model on two processes: one curve, no gather of classes, and a kill in the middle."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.example_runs import EXAMPLES, STEPS, VOCAB, corpus, metrics, output

MULTIHOST_EVERY = 15  # a checkpoint of two processes takes a second


def multihost_command(out: Path, sources: Path, *more: str) -> list[str]:
    # jax 0.7.0 warns of what it does itself.
    warnings = ["-W", "error", "-W", "ignore:jax.interpreters.xla:DeprecationWarning"]
    script = [sys.executable, *warnings, str(EXAMPLES / "multihost_language_model.py")]
    sizes = ["--steps", str(STEPS), "--every", str(MULTIHOST_EVERY), "--vocab", str(VOCAB)]
    return [*script, *sizes, "--corpus", str(sources), "--out", str(out), *more]


@pytest.fixture(scope="module")
def on_a_mesh(
    sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], jax.stages.Compiled]:
    """A checkpoint of the vocab-parallel head, made by one process that has all eight devices.

    Returns the output folder, the losses up to the checkpoint, and the compiled step.
    """
    out = tmp_path_factory.mktemp("multihost")
    checkpoints, loop, multihost, training = (
        importlib.import_module(name)
        for name in ("_checkpoints", "_loop", "multihost_language_model", "_training")
    )
    data = corpus.load(sources, VOCAB, out / "corpus.npz")
    run = training.Run("vocab_parallel", STEPS, VOCAB, 0, data.fingerprint)
    mesh = multihost.make_mesh()
    head = multihost.vocab_parallel_head(mesh)
    batches = training.validation_batches(data, loop.CURVE_BATCHES)
    losses: list[float] = []
    with jax.numpy_dtype_promotion("standard"):
        state, step, place = multihost.sharded_training(head, run, mesh, data.counts)
        for leaf in (state["params"]["head"]["kernel"], state["optimizer"][0].mu["head"]["kernel"]):
            assert leaf.addressable_shards[0].data.shape == (96, VOCAB // multihost.VOCAB)
        scores = [[0, *training.evaluate(head, state["params"], batches)]]
        for i in range(MULTIHOST_EVERY):
            state, loss = step(state, place(training.training_batch(data, run, i)))
            losses.append(float(loss))
        scores.append([MULTIHOST_EVERY, *training.evaluate(head, state["params"], batches)])
    with checkpoints.open_folder(out / "checkpoints" / run.head) as folder:
        checkpoints.save(folder, run, state, {"loss": losses, "validation": scores})
    return out, losses, step


def test_vocab_parallel_step_gathers_no_classes(
    on_a_mesh: tuple[Path, list[float], jax.stages.Compiled],
):
    text = on_a_mesh[2].as_text()
    assert text is not None
    results = re.findall(r"= (.*) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    sizes: dict[str, int] = {}
    for shapes, operation in results:
        size = sum(
            math.prod(int(axis) for axis in shape.split(",") if axis)
            for shape in re.findall(r"\[([\d,]*)\]", shapes)
        )
        sizes[operation] = max(size, sizes.get(operation, 0))
    # Gradients are summed over the axis of data, and nothing else of that size goes anywhere.
    assert sizes.pop("all-reduce") > VOCAB
    assert max(sizes.values(), default=0) < VOCAB


@pytest.fixture(scope="module")
def two_processes(
    on_a_mesh: tuple[Path, list[float], jax.stages.Compiled],
    sources: Path,
    environment: dict[str, str],
) -> tuple[dict[str, Any], str]:
    out, losses, _ = on_a_mesh
    text = output(multihost_command(out, sources, "--resume"), environment)
    results = metrics(out)
    assert results["curves"]["vocab_parallel"]["loss"][: len(losses)] == losses
    return results, text


def test_two_processes_resume_and_give_the_curve_of_one(two_processes: tuple[dict[str, Any], str]):
    results, text = two_processes
    assert f"resumed after step {MULTIHOST_EVERY} of {STEPS}\n" in text
    check_multihost(results, text)


def check_multihost(results: dict[str, Any], text: str) -> None:
    several, alone = (results["curves"][name] for name in ("vocab_parallel", "chunked"))
    assert len(several["loss"]) == len(alone["loss"]) == STEPS
    np.testing.assert_allclose(several["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(several["validation"], alone["validation"], rtol=1e-4)
    assert several["loss"][-1] < 0.6 * several["loss"][0]
    gap = np.max(np.abs(np.array(several["loss"]) / alone["loss"] - 1))
    assert results["gap"] == pytest.approx(gap, rel=1e-3)
    end = f"{STEPS} steps on 2 processes of 4 devices: losses within {gap:.1e} of those of one process"
    assert text.splitlines()[-1].startswith(end)


@pytest.mark.slow
def test_chunked_head_gives_the_curve_of_the_dense_one(
    two_processes: tuple[dict[str, Any], str], finished: tuple[Path, str]
):
    chunked = two_processes[0]["curves"]["chunked"]["loss"]
    dense = metrics(finished[0])["curves"]["jsoftmax"]["loss"]
    np.testing.assert_allclose(chunked, dense, rtol=1e-5)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_one(
    arguments: list[str], environment: dict[str, str], killed: str, once: Path
) -> tuple[int, str]:
    """Kills a process once the path exists; returns the parent's status and errors."""
    parent = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline() for _ in range(3)]
    workers = [int(line.rsplit(" ", 1)[1]) for line in lines[1:]]
    while not once.exists() and parent.poll() is None:
        time.sleep(0.01)
    os.kill(workers[1] if killed == "worker" else parent.pid, signal.SIGKILL)
    _, errors = parent.communicate()
    # They hold the pipe that was read to its end; all that is left is the system's own work.
    for _ in range(10_000):
        if any(map(is_alive, workers)):
            time.sleep(0.01)
    assert not any(map(is_alive, workers))
    return parent.returncode, errors


def test_death_of_a_process_ends_the_others(sources: Path, environment: dict[str, str], tmp_path: Path):
    status, errors = kill_one(multihost_command(tmp_path, sources), environment, "worker", tmp_path)
    assert status == 1
    assert errors.splitlines()[-1] == (
        "multihost_language_model.py: error: process 1 has died (-9), the others were stopped; "
        "--resume goes on from the last checkpoint"
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "parent"])
def test_two_processes_survive_a_kill(
    killed: str, sources: Path, environment: dict[str, str], tmp_path: Path
):
    saved = tmp_path / "checkpoints" / "vocab_parallel" / str(MULTIHOST_EVERY)
    status, _ = kill_one(multihost_command(tmp_path, sources), environment, killed, saved)
    assert status == (1 if killed == "worker" else -signal.SIGKILL)
    text = output(multihost_command(tmp_path, sources, "--resume"), environment)
    assert re.search(rf"resumed after step (?!{STEPS} )\d+ of {STEPS}\n", text)
    check_multihost(metrics(tmp_path), text)


@pytest.mark.parametrize(
    ("script", "bad", "text"),
    [
        ("multihost_language_model", "--vocab=1001", "--vocab must be a multiple of 4, got 1001"),
        ("vocabulary_memory", "--memory-limit=1", "--memory-limit must be at least 100, got 1"),
    ],
)
def test_number_that_does_not_do_is_one_clear_line(
    script: str,
    bad: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", bad])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).parse_arguments()
    assert capsys.readouterr().err == f"{script}.py: error: {text}\n"
