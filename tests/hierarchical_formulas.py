"""The formulas of a softmax over a tree in plain JAX: node by node, in the order of the node's numbers.

As in `tests.formulas`: no step is taken for stability, and nothing here imports jsoftmax. What is
written down twice is which row scores which edge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


def breadth_first(parents: Sequence[int]) -> tuple[list[int], dict[int, list[int]]]:
    """The nodes level by level, and the children of each inner node."""
    children = defaultdict(list)
    for node, parent in enumerate(parents):
        children[parent].append(node)
    order = []
    queue = children.pop(-1)
    while queue:
        node, *queue = queue
        order.append(node)
        queue += children.get(node, [])
    return order, dict(children)


def node_log_probs(
    hidden: Any, node_kernel: Any, parents: Sequence[int], *, node_bias: Any = None
) -> Any:
    order, children = breadth_first(parents)
    scores = hidden @ node_kernel.T + (0 if node_bias is None else node_bias)
    found = {order[0]: jnp.zeros(scores.shape[:-1], scores.dtype)}
    inner = [node for node in order if node in children]
    binary = all(len(below) == 2 for below in children.values())
    for i, node in enumerate(inner):
        below = children[node]
        if binary:
            z = jnp.stack([scores[..., i], jnp.zeros_like(scores[..., i])], axis=-1)
        else:
            z = jnp.stack([scores[..., order.index(child) - 1] for child in below], axis=-1)
        edges = z - jnp.log(jnp.sum(jnp.exp(z), axis=-1, keepdims=True))
        for j, child in enumerate(below):
            found[child] = found[node] + edges[..., j]
    return jnp.stack([found[node] for node in range(len(parents))], axis=-1)


def leaves(parents: Sequence[int]) -> list[int]:
    return [node for node in range(len(parents)) if node not in parents]


def hierarchical_log_softmax(
    hidden: Any, node_kernel: Any, parents: Sequence[int], *, node_bias: Any = None
) -> Any:
    found = node_log_probs(hidden, node_kernel, parents, node_bias=node_bias)
    return found[..., jnp.array(leaves(parents))]


def top_log_probs(
    hidden: Any, node_kernel: Any, parents: Sequence[int], k: int, *, node_bias: Any = None
) -> Any:
    found = hierarchical_log_softmax(hidden, node_kernel, parents, node_bias=node_bias)
    return -jnp.sort(-found, axis=-1)[..., :k]


def hierarchical_cross_entropy(
    hidden: Any,
    node_kernel: Any,
    labels: Any,
    parents: Sequence[int],
    *,
    node_bias: Any = None,
    class_weights: Any = None,
    ignore_index: int | None = None,
) -> Any:
    log_p = hierarchical_log_softmax(hidden, node_kernel, parents, node_bias=node_bias)
    q = labels
    if jnp.issubdtype(labels.dtype, jnp.integer):
        q = (jnp.arange(log_p.shape[-1], dtype=labels.dtype) == labels[..., None]).astype(log_p.dtype)
    q = q if class_weights is None else q * class_weights
    loss = -jnp.sum(q * log_p, axis=-1)
    return loss if ignore_index is None else jnp.where(labels == ignore_index, 0, loss)


def smooth_over_tree(labels: Any, smoothing: Any, decay: Any, parents: Sequence[int]) -> Any:
    def way(node: int) -> list[int]:
        return [node, *way(parents[node])] if node >= 0 else []

    ways = [set(way(leaf)) for leaf in leaves(parents)]
    distances = jnp.array([[len(a ^ b) for b in ways] for a in ways], smoothing.dtype)[labels]
    is_label = distances == 0
    weights = jnp.where(is_label, 0, jnp.exp(-decay * distances))
    shares = smoothing[..., None] * weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.where(is_label, 1 - smoothing[..., None], shares)


def _sampled_scores(
    hidden: Any, class_kernel: Any, labels: Any, bias: Any, drawn: Sequence[int]
) -> tuple[Any, Any, Any]:
    """Corrected scores of the label, not corrected ones, and those of the classes drawn."""
    z = hidden @ class_kernel.T + bias
    rank = jnp.arange(z.shape[-1], dtype=z.dtype)
    counts = len(drawn) * jnp.log((rank + 2) / (rank + 1)) / jnp.log(z.shape[-1] + 1.0).astype(z.dtype)
    corrected = z - jnp.log(counts)
    of_label = (jnp.arange(z.shape[-1], dtype=labels.dtype) == labels[:, None]).astype(z.dtype)
    return jnp.sum(of_label * corrected, -1), jnp.sum(of_label * z, -1), corrected[:, jnp.array(drawn)]


def _weighted(loss: Any, labels: Any, class_weights: Any, ignore_index: int) -> Any:
    return jnp.where(labels == ignore_index, 0, loss * class_weights[labels])


def sampled_cross_entropy(
    hidden: Any,
    class_kernel: Any,
    labels: Any,
    bias: Any,
    class_weights: Any,
    drawn: Sequence[int],
    ignore_index: int,
) -> Any:
    _, own, others = _sampled_scores(hidden, class_kernel, labels, bias, drawn)
    counted = jnp.array(drawn, labels.dtype) != labels[:, None]
    total = jnp.exp(own) + jnp.sum(jnp.where(counted, jnp.exp(others), 0), axis=-1)
    return _weighted(jnp.log(total) - own, labels, class_weights, ignore_index)


def noise_contrastive_loss(
    hidden: Any,
    class_kernel: Any,
    labels: Any,
    bias: Any,
    class_weights: Any,
    drawn: Sequence[int],
    ignore_index: int,
) -> Any:
    own, _, others = _sampled_scores(hidden, class_kernel, labels, bias, drawn)
    loss = jnp.log(1 + jnp.exp(-own)) + jnp.sum(jnp.log(1 + jnp.exp(others)), axis=-1)
    return _weighted(loss, labels, class_weights, ignore_index)


def _logs(z: Any) -> Any:
    return z - jnp.log(jnp.sum(jnp.exp(z), axis=-1, keepdims=True))


def adaptive_log_softmax(
    hidden: Any, head_kernel: Any, head_bias: Any, projections: Any, tails: Any, order: Sequence[int]
) -> Any:
    """Three classes in the head, two in a cluster of two features and one in one of one feature."""
    head = _logs(hidden @ head_kernel + head_bias)
    first = head[:, 3:4] + _logs(hidden @ projections[:, :2] @ tails[:4].reshape(2, 2))
    second = head[:, 4:5] + _logs(hidden @ projections[:, 2:] @ tails[4:].reshape(1, 1))
    by_place = jnp.concatenate([head[:, :3], first, second], axis=-1)
    return by_place[:, jnp.array([order.index(k) for k in range(len(order))])]


def adaptive_cross_entropy(
    hidden: Any, labels: Any, class_weights: Any, order: Sequence[int], **params: Any
) -> Any:
    logs = adaptive_log_softmax(hidden, **params, order=order)
    own = jnp.arange(logs.shape[-1], dtype=labels.dtype) == labels[:, None]
    return -jnp.sum(jnp.where(own, class_weights * logs, 0), axis=-1)


def adaptive_mean(*, weights: Any, denominator: Any, **given: Any) -> Any:
    """Of adaptive_cross_entropy."""
    return jnp.sum(weights * adaptive_cross_entropy(**given)) / denominator
