"""The training loop, from one checkpoint to the next. On several processes, all run the same one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _checkpoints
import _corpus
import jax
import numpy as np
from _heads import Head
from _network import CONTEXT
from _training import BATCH, Run, State, evaluate, training_batch, validation_batches
from tqdm import tqdm

CURVE_BATCHES = 8  # of the validation split, scored at each checkpoint


def train(
    head: Head,
    train_step: jax.stages.Compiled,
    state: State,
    run: Run,
    corpus: _corpus.Corpus,
    folder: Path,
    every: int,
    place: Callable[[np.ndarray], Any] = lambda batch: batch,
) -> tuple[State, _checkpoints.History]:
    """Trains to the end, from the last checkpoint in `folder`, or from `state` where there is none.

    `place` puts a batch where `train_step` wants it.
    """
    history: _checkpoints.History = {"loss": [], "validation": []}
    speaks = jax.process_index() == 0
    with _checkpoints.open_folder(folder) as checkpoints:
        curve_batches = validation_batches(corpus, CURVE_BATCHES)
        saved = _checkpoints.restore(checkpoints, run, state)
        if saved:
            state, history = saved
            if speaks:
                print(f"{folder.name}: resumed after step {len(history['loss'])} of {run.steps}")
        else:
            history["validation"].append([0, *evaluate(head, state["params"], curve_batches)])
        with _progress(folder.name, len(history["loss"]), run.steps, not speaks) as progress:
            for step in range(len(history["loss"]), run.steps):
                state, loss = train_step(state, place(training_batch(corpus, run, step)))
                history["loss"].append(float(loss))
                progress.set_postfix(loss=f"{history['loss'][-1]:.3f}", refresh=False)
                progress.update(BATCH * CONTEXT)
                if (step + 1) % every == 0 or step + 1 == run.steps:
                    scores = evaluate(head, state["params"], curve_batches)
                    history["validation"].append([step + 1, *scores])
                    _checkpoints.save(checkpoints, run, state, history)
    return state, history


def _progress(name: str, done: int, steps: int, silent: bool) -> tqdm:
    tokens = BATCH * CONTEXT
    return tqdm(
        desc=name,
        initial=done * tokens,
        total=steps * tokens,
        unit=" tokens",
        unit_scale=True,
        mininterval=0.5,
        disable=silent,
    )
