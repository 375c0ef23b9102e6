"""The output layers to choose from: what each one learns, how it is trained and how it is scored.

A new head is four functions and a line in `HEADS`; the training loop stays as it is. `dense` makes all
scores, `chunked` makes them a part at a time; the others save work where words are many, and
`compare_heads.py` shows what that costs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _network import FEATURES

import jsoftmax
from jsoftmax import hierarchical

CHUNK = 64  # rows of a batch whose logits the chunked head holds at a time
SAMPLES = 1024  # words that a batch of the sampled head is trained against

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


DENSE = Head(dense_init, dense_mean_loss, dense_scores, dense_logits)

# The same layer trained with optax's loss, to compare with.
OPTAX_HEAD = DENSE._replace(mean_loss=optax_mean_loss)


def chunked_mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    return jsoftmax.linear_cross_entropy(
        hidden, params["kernel"], labels, bias=params["bias"], chunk_size=CHUNK
    )


def chunked_scores(params: Params, hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    stats = jsoftmax.linear_row_stats(
        hidden,
        params["kernel"],
        labels,
        bias=params["bias"],
        statistics=("nll", "correct"),
    )
    return stats.nll, stats.correct


# The dense layer in the memory of a chunk's logits. Only `logits` still makes all of them.
CHUNKED = DENSE._replace(mean_loss=chunked_mean_loss, scores=chunked_scores)


def hierarchical_head(counts: np.ndarray) -> Head:
    """A Huffman tree: a label needs the rows on its way from the root, not one for each word.

    Its gradient is dense here, for optax's Adam. `row_gradients` and `apply_row_updates` train the
    touched rows alone, as `word2vec.py` does: with many more words that is what makes a step short.
    """
    tree = hierarchical.huffman_tree(np.maximum(counts, 1))

    def init(key: jax.Array, features: int, counts: jax.Array) -> Params:
        # Rows of zeros already give each word about its frequency.
        del key, counts
        return {"kernel": jnp.zeros((tree.num_rows, features)), "bias": jnp.zeros(tree.num_rows)}

    def mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        losses = hierarchical.hierarchical_cross_entropy(
            hidden, params["kernel"], labels, tree, node_bias=params["bias"]
        )
        return jsoftmax.weighted_mean(losses)

    def logits(params: Params, hidden: jax.Array) -> jax.Array:
        return hierarchical.hierarchical_log_softmax(
            hidden, params["kernel"], tree, node_bias=params["bias"]
        )

    return Head(init, mean_loss, functools.partial(_scores, logits), logits)


def adaptive_head(counts: np.ndarray) -> Head:
    """Frequent words in one small softmax, rare ones in clusters of fewer features."""

    # Halving widths: quarters would leave the last cluster one of the network's 96 features.
    cutoffs = hierarchical.adaptive_cutoffs(counts, num_features=FEATURES, division=2.0)

    def draw(key: jax.Array, features: int) -> hierarchical.AdaptiveParams:
        return hierarchical.adaptive_init(
            key, features, len(counts), cutoffs, counts=counts, division=2.0, head_bias=True
        )

    # Checkpoints hold dictionaries of arrays: its arrays by number, and its form here.
    form = jax.tree.structure(jax.eval_shape(lambda: draw(jax.random.key(0), FEATURES)))

    def init(key: jax.Array, features: int, counts: jax.Array) -> Params:
        del counts
        return {str(i): array for i, array in enumerate(jax.tree.leaves(draw(key, features)))}

    def adaptive(params: Params) -> hierarchical.AdaptiveParams:
        return jax.tree.unflatten(form, [params[str(i)] for i in range(form.num_leaves)])

    def mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        # The mean is asked for: its gradient is made beside it, in less time than that of the rows.
        params = adaptive(params)
        return hierarchical.adaptive_cross_entropy(hidden, params, labels, reduction="mean")

    def logits(params: Params, hidden: jax.Array) -> jax.Array:
        return hierarchical.adaptive_log_softmax(hidden, adaptive(params))

    return Head(init, mean_loss, functools.partial(_scores, logits), logits)


def sampled_head(counts: np.ndarray) -> Head:
    """The dense layer, trained against some words drawn for each batch, and scored with all of them."""
    proposal = hierarchical.unigram_proposal(np.maximum(counts, 1))

    def init(key: jax.Array, features: int, counts: jax.Array) -> Params:
        params = dense_init(key, features, counts)
        # Rows, since they are gathered.
        return params | {"kernel": params["kernel"].T}

    def mean_loss(params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        # The batch decides which, so that a resumed run draws the same.
        key = jax.random.fold_in(jax.random.key(0), jnp.sum(labels))
        negatives = hierarchical.draw_negatives(key, proposal, min(SAMPLES, proposal.num_classes))
        losses = hierarchical.sampled_cross_entropy(
            hidden, params["kernel"], labels, negatives, bias=params["bias"]
        )
        return jsoftmax.weighted_mean(losses)

    def logits(params: Params, hidden: jax.Array) -> jax.Array:
        return hidden @ params["kernel"].T + params["bias"]

    return Head(init, mean_loss, functools.partial(_scores, logits), logits)


def _scores(
    logits: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    hidden: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores by all log-probabilities, whatever the head was trained with."""
    stats = jsoftmax.row_stats(logits(params, hidden), labels, statistics=("nll", "correct"))
    return stats.nll, stats.correct


HEADS: dict[str, Callable[[np.ndarray], Head]] = {
    "dense": lambda counts: DENSE,
    "chunked": lambda counts: CHUNKED,
    "hierarchical": hierarchical_head,
    "adaptive": adaptive_head,
    "sampled": sampled_head,
}

# Heads with the parameters and the loss of another: training gives the same curve with each.
SAME_LAYER: dict[str, dict[str, Head]] = {
    "dense": {"optax": OPTAX_HEAD},
    "chunked": {"dense": DENSE, "optax": OPTAX_HEAD},
}
