"""Checkpoints with orbax: the state and the curves so far, written whole or not at all."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from _training import Run, State


class OtherRunError(Exception):
    """A checkpoint belongs to a run with other arguments."""


History = dict[str, list[Any]]  # "loss" per step; "validation": [step, nats per word, accuracy]


def open_folder(folder: Path) -> ocp.CheckpointManager:
    # The next step overwrites the state's memory: an asynchronous save would have to copy it first.
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options)


def save(checkpoints: ocp.CheckpointManager, run: Run, state: State, history: History) -> None:
    parts = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        record=ocp.args.JsonSave({"run": asdict(run), "history": history}),
    )
    checkpoints.save(len(history["loss"]), args=parts)


def restore(checkpoints: ocp.CheckpointManager, run: Run, state: State) -> tuple[State, History] | None:
    """The last state and history, the state shaped like `state`; None where nothing was saved.

    Raises:
        OtherRunError: The checkpoint belongs to another run.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    record = checkpoints.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    for name, here in asdict(run).items():
        if record["run"].get(name) != here:
            raise OtherRunError(
                f"--resume: the checkpoint has {name} {record['run'].get(name)}, this run {here}; "
                "give the same arguments, or leave --resume out to start afresh"
            )
    shapes = ocp.args.StandardRestore(jax.eval_shape(lambda: state))
    restored = checkpoints.restore(step, args=ocp.args.Composite(state=shapes))
    return restored["state"], record["history"]


def clear(folder: Path) -> None:
    with open_folder(folder) as checkpoints:
        for step in checkpoints.all_steps():
            checkpoints.delete(step)
