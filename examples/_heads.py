"""The output layers to choose from: what each one learns, how it is trained and how it is scored.

A new head is four functions and a line in `HEADS`; the training loop stays as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jsoftmax

Params = Mapping[str, Any]
Loss = Callable[[Params, jax.Array, jax.Array], jax.Array]
Scores = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Head(NamedTuple):
    """The output layer, from hidden vectors [*batch, features] to classes.

    Attributes:
        init: (key, features, word counts) -> parameters.
        mean_loss: (parameters, hidden, labels) -> the loss to train with, a scalar.
        scores: (parameters, hidden, labels) -> negative log-likelihood in nats, and whether the
            most probable class is the label; both [*batch].
        logits: (parameters, hidden) -> [*batch, classes], what `generate` samples from.
    """

    init: Callable[[jax.Array, int, jax.Array], Params]
    mean_loss: Loss
    scores: Scores
    logits: Callable[[Params, jax.Array], jax.Array]


def dense_init(key: jax.Array, features: int, counts: jax.Array) -> Params:
    # The bias starts at the log frequencies: what is left to learn is what the context adds.
    smoothed = counts.astype(jnp.float32) + 0.5
    return {
        "kernel": jax.random.normal(key, (features, len(counts))) * 0.02,
        "bias": jnp.log(smoothed / jnp.sum(smoothed)),
    }


def dense_logits(params: Params, hidden: jax.Array) -> jax.Array:
    return hidden @ params["kernel"] + params["bias"]


def dense_mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    logits = dense_logits(params, hidden)
    losses = jsoftmax.cross_entropy(logits, labels)
    return jsoftmax.weighted_mean(losses)


def dense_scores(params: Params, hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = dense_logits(params, hidden)
    stats = jsoftmax.row_stats(logits, labels, statistics=("nll", "correct"))
    return stats.nll, stats.correct


def optax_mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    logits = dense_logits(params, hidden)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


HEADS = {"dense": Head(dense_init, dense_mean_loss, dense_scores, dense_logits)}

# The same layer trained with optax's loss, to compare with.
OPTAX_HEAD = HEADS["dense"]._replace(mean_loss=optax_mean_loss)
