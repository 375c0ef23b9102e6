"""Checkpoints with orbax: the state and the curves so far, written whole or not at all.

Of several processes each writes and reads its own part of the state.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from _training import Run, State


class OtherRunError(Exception):
    """A checkpoint belongs to a run with other arguments."""


History = dict[str, list[Any]]  # "loss" per step; "validation": [step, nats per word, accuracy]

# What all devices hold is written by one of them: to share that work fails with jax 0.7.
_ARRAYS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)


def open_folder(folder: Path) -> ocp.CheckpointManager:
    # The next step overwrites the state's memory: an asynchronous save would have to copy it first.
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_ARRAYS),
        "record": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def save(checkpoints: ocp.CheckpointManager, run: Run, state: State, history: History) -> None:
    parts = ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        record=ocp.args.JsonSave({"run": asdict(run), "history": history}),
    )
    checkpoints.save(len(history["loss"]), args=parts)


def restore(checkpoints: ocp.CheckpointManager, run: Run, state: State) -> tuple[State, History] | None:
    """The last state and history, the state shaped and laid out like `state`; None where none is.

    Raises:
        OtherRunError: The checkpoint belongs to another run.
    """
    history = last_history(checkpoints, run)
    if history is None:
        return None
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    places = ocp.checkpoint_utils.construct_restore_args(like)
    parts = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=places))
    return checkpoints.restore(len(history["loss"]), args=parts)["state"], history


def last_history(checkpoints: ocp.CheckpointManager, run: Run) -> History | None:
    """The curves up to the last checkpoint; None where nothing was saved.

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
    return record["history"]


def clear(folder: Path) -> None:
    with open_folder(folder) as checkpoints:
        for step in checkpoints.all_steps():
            checkpoints.delete(step)
