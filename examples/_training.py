"""One training run in plain JAX and optax: state, compiled step, batches, validation."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _corpus
import _network
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _heads import Head, Scores
from _network import CONTEXT

import jsoftmax

BATCH = 8  # windows of CONTEXT words
LEARNING_RATE = 4e-3

State = dict[str, Any]  # "params" and "optimizer": nested dictionaries and tuples of arrays


@dataclass(frozen=True)
class Run:
    """What determines a training run to the bit, on one machine."""

    head: str
    steps: int
    vocab: int
    seed: int
    corpus: str


def make_optimizer(steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=LEARNING_RATE,
        warmup_steps=steps // 10,
        decay_steps=steps,
        end_value=LEARNING_RATE / 50,
    )
    return optax.adam(schedule, b2=0.99)


@functools.partial(jax.jit, static_argnames=("head", "run"))
def init_state(head: Head, run: Run, counts: np.ndarray) -> State:
    network_key, head_key = jax.random.split(jax.random.key(run.seed))
    params = {
        "network": _network.init(network_key, len(counts)),
        "head": head.init(head_key, _network.FEATURES, counts),
    }
    return {"params": params, "optimizer": make_optimizer(run.steps).init(params)}


def mean_loss(params: Any, head: Head, words: jax.Array) -> jax.Array:
    """The loss, in nats per word, of predicting each of `words` [batch, time + 1]."""
    hidden = _network.apply(params["network"], words[:, :-1])
    return head.mean_loss(params["head"], hidden, words[:, 1:])


def make_train_step(head: Head, run: Run) -> Callable[[State, jax.Array], tuple[State, jax.Array]]:
    """Makes (state, words [batch, time + 1]) -> (state, loss)."""
    optimizer = make_optimizer(run.steps)

    def train_step(state: State, words: jax.Array) -> tuple[State, jax.Array]:
        loss, gradients = jax.value_and_grad(mean_loss)(state["params"], head, words)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": optimizer_state}, loss

    return train_step


def compile_train_step(head: Head, run: Run) -> jax.stages.Compiled:
    """Compiles the training step once: it cannot retrace."""
    state = jax.eval_shape(functools.partial(init_state, head, run), np.ones(run.vocab))
    words = jax.ShapeDtypeStruct((BATCH, CONTEXT + 1), np.int32)
    train_step = jax.jit(make_train_step(head, run), donate_argnames="state")
    return train_step.lower(state, words).compile()


def evaluate(head: Head, params: Any, batches: np.ndarray) -> tuple[float, float]:
    """Nats per word and accuracy over words [batches, batch, time + 1]."""
    nats, accuracy = np.mean([_evaluate(head.scores, params, words) for words in batches], axis=0)
    return float(nats), float(accuracy)


@functools.partial(jax.jit, static_argnames="scores")
def _evaluate(scores: Scores, params: Any, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = _network.apply(params["network"], words[:, :-1])
    nll, correct = scores(params["head"], hidden, words[:, 1:])
    return jsoftmax.weighted_mean(nll), jsoftmax.weighted_mean(correct.astype(jnp.float32))


def training_batch(corpus: _corpus.Corpus, run: Run, step: int) -> np.ndarray:
    """Random windows, int32 [batch, time + 1].

    The step decides, not the history of a generator, so a resumed run sees the same batches.
    """
    random = np.random.default_rng((run.seed, step))
    return _windows(corpus.train, random.integers(0, len(corpus.train) - CONTEXT, BATCH))


def validation_batches(corpus: _corpus.Corpus, batches: int) -> np.ndarray:
    """Windows at equal distances, int32 [batches, batch, time + 1]."""
    starts = np.linspace(0, len(corpus.validation) - CONTEXT - 1, batches * BATCH).astype(int)
    return _windows(corpus.validation, starts.reshape(batches, BATCH))


def _windows(stream: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return stream[starts[..., None] + np.arange(CONTEXT + 1)]
