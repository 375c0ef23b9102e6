"""The formulas of the documentation in plain JAX, for any dtype: what derivatives are checked against.

No step is taken for stability; the arguments are moderate and the dtype is float64. Nothing here
imports jsoftmax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

Function = Callable[..., Any]


def _kept(x: Any, where: Any) -> Any:
    return x if where is None else jnp.where(where, x, 0)


def _column(x: Any) -> Any:
    """A number per row beside the classes; a number for all rows stays one."""
    return jnp.asarray(x)[..., None] if jnp.ndim(x) else x


def _scores(logits: Any, temperature: Any, softcap: Any = None) -> Any:
    capped = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    return capped / _column(temperature)


def _one_hot(labels: Any, like: Any) -> Any:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return labels
    hits = jnp.arange(like.shape[-1], dtype=labels.dtype) == labels[..., None]
    return hits.astype(like.dtype)


def softmax(x: Any, where: Any = None, *, temperature: Any = 1.0) -> Any:
    weights = _kept(jnp.exp(_scores(x, temperature)), where)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def log_softmax(x: Any, where: Any = None, *, temperature: Any = 1.0) -> Any:
    z = _scores(x, temperature)
    found = z - jnp.log(jnp.sum(_kept(jnp.exp(z), where), axis=-1, keepdims=True))
    return found if where is None else jnp.where(where, found, -jnp.inf)


def possible(function: Function, x: Any, where: Any = None, **options: Any) -> Any:
    """The log-probabilities that are finite, and 0 for the masked classes."""
    return _kept(function(x, where=where, **options), where)


def logsumexp(x: Any, where: Any = None) -> Any:
    return jnp.log(jnp.sum(_kept(jnp.exp(x), where), axis=-1))


def row_stats(
    logits: Any, labels: Any, *, where: Any = None, temperature: Any = 1.0, softcap: Any = None
) -> dict[str, Any]:
    z = _scores(logits, temperature, softcap)
    log_z = logsumexp(z, where)
    log_p = z - log_z[..., None]
    p = _kept(jnp.exp(log_p), where)
    allowed = _kept(jnp.ones_like(z), where)
    found = jnp.sum(_kept(_one_hot(labels, z) * log_p, where), axis=-1)
    return {
        "nll": -found,
        "log_normalizer": log_z,
        "target_log_prob": found,
        "mean_logit": jnp.sum(allowed * z, axis=-1) / jnp.sum(allowed, axis=-1),
        "expected_logit": jnp.sum(p * z, axis=-1),
        "entropy": -jnp.sum(p * log_p, axis=-1),
    }


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    where: Any = None,
    temperature: Any = 1.0,
    softcap: Any = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    class_weights: Any = 1.0,
    ignore_index: int | None = None,
) -> Any:
    z = _scores(logits, temperature, softcap)
    log_z = logsumexp(z, where)
    allowed = _kept(jnp.ones_like(z), where)
    uniform = allowed / jnp.sum(allowed, axis=-1, keepdims=True)
    q = (1 - label_smoothing) * _one_hot(labels, z) + label_smoothing * uniform
    costs = _kept(class_weights * q * (log_z[..., None] - z), where)
    loss = jnp.sum(costs, axis=-1) + z_loss * jnp.square(log_z)
    return loss if ignore_index is None else jnp.where(labels == ignore_index, 0, loss)


def transformed_cross_entropy(
    logits: Any, labels: Any, margin: Any, scale: Any, log_prior: Any, tau: Any, cap: Any, value: Any
) -> Any:
    target = _one_hot(labels, logits) > 0
    z = scale * jnp.where(target, jnp.cos(jnp.arccos(logits) + margin), logits)
    z = cap * jnp.tanh((z + tau * log_prior) / cap) / _column(value)
    return logsumexp(z) - jnp.sum(jnp.where(target, z, 0), axis=-1)


def weighted_mean(values: Any, weights: Any, denominator: Any = None) -> Any:
    return jnp.sum(values * weights) / (jnp.sum(weights) if denominator is None else denominator)


def dropping(function: Function) -> Function:
    """The same function of labels whose mass on masked classes is dropped."""

    @functools.wraps(function)
    def call(logits: Any, labels: Any, where: Any, **options: Any) -> Any:
        return function(logits, _kept(labels, where), where=where, **options)

    return call


def _binary_costs(logits: Any) -> tuple[Any, Any]:
    return jnp.log1p(jnp.exp(-logits)), jnp.log1p(jnp.exp(logits))


def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> Any:
    yes, no = _binary_costs(logits)
    return labels * yes + (1 - labels) * no


def sigmoid_focal_loss(logits: Any, labels: Any, *, alpha: Any, gamma: Any) -> Any:
    p = 1 / (1 + jnp.exp(-logits))
    missed = (1 - labels) * p + labels * (1 - p)
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return weight * missed**gamma * sigmoid_binary_cross_entropy(logits, labels)


def multilabel_cross_entropy(logits: Any, labels: Any, *, pos_weight: Any, where: Any) -> Any:
    yes, no = _binary_costs(logits)
    return jnp.sum(_kept(pos_weight * labels * yes + (1 - labels) * no, where), axis=-1)


def poly_loss_cross_entropy(logits: Any, labels: Any, *, epsilon: Any, where: Any) -> Any:
    missed = jnp.sum(labels * (1 - softmax(logits, where)), axis=-1)
    return cross_entropy(logits, labels, where=where) + epsilon * missed


def _shares(logits: Any, labels: Any, where: Any) -> tuple[Any, Any, Any]:
    q = _kept(_one_hot(labels, logits), where)
    log_p = _kept(log_softmax(logits), None) if where is None else possible(log_softmax, logits, where)
    return q, log_p, jnp.exp(log_p)


def softmax_focal_loss(
    logits: Any, labels: Any, *, gamma: Any, alpha: Any = 1.0, where: Any = None
) -> Any:
    q, log_p, p = _shares(logits, labels, where)
    missed = _kept(1 - p, where) if where is None else jnp.where(where, 1 - p, 1)
    return -jnp.sum(alpha * q * missed**gamma * log_p, axis=-1)


def generalized_cross_entropy(logits: Any, labels: Any, *, q: Any, where: Any = None) -> Any:
    share, _, p = _shares(logits, labels, where)
    return jnp.sum(share * (1 - p**q) / q, axis=-1)


def kl_divergence(log_predictions: Any, targets: Any, where: Any) -> Any:
    return jnp.sum(_kept(targets * (jnp.log(targets) - log_predictions), where), axis=-1)


def kl_divergence_with_log_targets(log_predictions: Any, log_targets: Any, where: Any) -> Any:
    return kl_divergence(log_predictions, jnp.exp(log_targets), where)


def generalized_kl_divergence(log_predictions: Any, targets: Any, where: Any) -> Any:
    excess = jnp.sum(_kept(jnp.exp(log_predictions) - targets, where), axis=-1)
    return kl_divergence(log_predictions, targets, where) + excess


def smooth_labels(labels: Any, alpha: Any, *, where: Any) -> Any:
    allowed = where.astype(labels.dtype)
    uniform = allowed / jnp.sum(allowed, axis=-1, keepdims=True)
    return (1 - alpha) * labels + alpha * uniform


def sample_rule(logits: Any, labels: Any, scale: Any) -> tuple[Any, Any]:
    log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    target = jnp.sum(_one_hot(labels, logits) * logits, axis=-1)
    return scale * (log_z - target), {"log_z": log_z}
