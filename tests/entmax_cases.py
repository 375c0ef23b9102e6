"""The cases of sparsemax, entmax and their losses in the conformance table, and their formulas.

The formulas find the threshold by bisection, as a constant, and end with steps of Newton's method that
JAX differentiates: derivatives up to the fifteenth order are those of the root. Nothing of them
is jsoftmax's.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from jsoftmax import losses
from tests.cases import IGNORED, Case, distributions, indices, logits, masks, number, per_row


def _kept(x: Any, where: Any) -> Any:
    return x if where is None else jnp.where(where, x, 0)


def _column(x: Any) -> Any:
    return jnp.asarray(x)[..., None] if jnp.ndim(x) else x


def entmax(x: Any, alpha: Any = 1.5, *, where: Any = None, temperature: Any = 1.0) -> Any:
    a = _column(alpha) - 1
    z = x / _column(temperature)
    z = a * (z if where is None else jnp.where(where, z, -1e4))
    still = jax.lax.stop_gradient

    def powers(z: Any, a: Any, tau: Any, less: int) -> Any:
        u = z - tau
        return jnp.where(u > 0, jnp.where(u > 0, u, 1) ** (1 / a - less), 0)

    def halve(_: Any, bounds: Any) -> Any:
        middle = (bounds[0] + bounds[1]) / 2
        more = jnp.sum(powers(still(z), still(a), middle, 0), -1, keepdims=True) >= 1
        return jnp.where(more, middle, bounds[0]), jnp.where(more, bounds[1], middle)

    top = jnp.max(still(z), axis=-1, keepdims=True)
    tau = still(jax.lax.fori_loop(0, 60, halve, (top - 1, top))[0])
    for _ in range(4):
        s = jnp.sum(powers(z, a, tau, 0), -1, keepdims=True)
        tau = tau + a * (s - 1) / jnp.sum(powers(z, a, tau, 1), -1, keepdims=True)
    return powers(z, a, tau, 0)


def _negentropy(p: Any, alpha: Any) -> Any:
    a = _column(alpha)
    inside = p > 0
    return jnp.sum(jnp.where(inside, jnp.where(inside, p, 1) ** a - p, 0) / (a * (a - 1)), axis=-1)


def entmax_loss(
    logits: Any,
    labels: Any,
    alpha: Any = 1.5,
    *,
    where: Any = None,
    temperature: Any = 1.0,
    ignore_index: int | None = None,
) -> Any:
    q = labels
    if jnp.issubdtype(labels.dtype, jnp.integer):
        q = (jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[..., None]).astype(logits.dtype)
    p = entmax(logits, alpha, where=where, temperature=temperature)
    z = _kept(logits / _column(temperature), where)
    loss = jnp.sum((p - q) * z, axis=-1) - _negentropy(p, alpha)
    return loss if ignore_index is None else jnp.where(labels == ignore_index, 0, loss)


def fenchel_young_loss(logits: Any, labels: Any, alpha: Any = 1.5, **options: Any) -> Any:
    """Of labels that sum to 1; what is off counts the threshold, so that an offset changes nothing."""
    loss = entmax_loss(logits, labels, alpha, **options) + _negentropy(labels, alpha)
    z = logits / _column(options.get("temperature", 1.0))
    p, a = entmax(logits, alpha, **options), jnp.asarray(alpha)
    top = jnp.argmax(p, axis=-1, keepdims=True)
    z, p = (jnp.take_along_axis(x, top, -1)[..., 0] for x in (z, p))
    threshold = z - p ** (a - 1) / (a - 1) + 1 / (a * (a - 1))
    return loss + (jnp.sum(labels, axis=-1) - 1) * threshold


def bi_tempered(logits: Any, labels: Any, t1: Any, t2: Any, *, where: Any = None) -> Any:
    """The paper's formula; the normalizer by bisection, then by Newton's differentiable steps."""
    z, a = _kept(logits, where), 1 - t2
    gaps = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))

    def tail(level: Any) -> Any:
        found = jnp.power(1 + a * (gaps - level), 1 / a)
        return found if where is None else jnp.where(where, found, 0)

    low, high = jnp.zeros_like(gaps[..., :1]), jnp.full_like(gaps[..., :1], 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        enough = jnp.sum(tail(middle), axis=-1, keepdims=True) > 1
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
    level = jax.lax.stop_gradient(low)
    for _ in range(3):
        p = tail(level)
        level = level + (jnp.sum(p, -1, keepdims=True) - 1) / jnp.sum(p ** (1 - a), -1, keepdims=True)
    p, b = tail(level), 1 - t1
    q = labels
    if jnp.issubdtype(labels.dtype, jnp.integer):
        q = (jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[..., None]).astype(p.dtype)
    held = jnp.where(q > 0, q, 1)
    taken = jnp.where(p > 0, p, 1)
    by_q = jnp.where(q > 0, q * (held**b - taken**b) / b, 0)
    own = jnp.where(q > 0, held ** (1 + b), 0) - jnp.where(p > 0, taken ** (1 + b), 0)
    return jnp.sum(by_q - own / (1 + b), axis=-1)


def sparsemax_loss(logits: Any, labels: Any) -> Any:
    s = jnp.where(labels == 1, -logits, logits)
    return jnp.where(s >= 1, s, jnp.where(s <= -1, 0, (s + 1) ** 2 / 4))


def _loss_and_margin(logits: Any, labels: Any) -> Any:
    stats = losses.entmax_stats(logits, labels)
    return stats.loss, stats.margin


def loss_and_margin(logits: Any, labels: Any) -> Any:
    hit = jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[..., None]
    own = jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return entmax_loss(logits, labels), own - jnp.max(jnp.where(hit, -1e4, logits), axis=-1)


def binary(rng: np.random.Generator) -> np.ndarray:
    return (rng.random(logits(rng).shape) < 0.5).astype(np.int32)


def off_one(rng: np.random.Generator) -> np.ndarray:
    """Soft labels whose sum is not 1: they count the threshold, and so what moves it."""
    return np.asarray(1.3 * distributions(rng), np.float32)


def close(rng: np.random.Generator) -> np.ndarray:
    """Scores with several classes in the support for α up to 2."""
    return 0.4 * logits(rng)


ENTMAX = (
    Case(
        "sparsemax",
        jsoftmax.sparsemax,
        functools.partial(entmax, alpha=2.0),
        {"x": close, "where": masks, "temperature": per_row(0.6, 1.8)},
        output="classes",
    ),
    Case("entmax", jsoftmax.entmax, entmax, {"x": close}, output="classes"),
    Case(
        "entmax_traced",
        jsoftmax.entmax,
        entmax,
        {"x": close, "alpha": per_row(1.15, 1.8), "where": masks, "temperature": number(0.6, 1.8)},
        output="classes",
    ),
    Case(
        "fenchel_young_loss_integer",
        functools.partial(losses.fenchel_young_loss, ignore_index=IGNORED),
        functools.partial(entmax_loss, ignore_index=IGNORED),
        {
            "logits": close,
            "labels": indices,
            "alpha": per_row(1.15, 1.8),
            "where": masks,
            "temperature": per_row(0.6, 1.8),
        },
    ),
    Case(
        "fenchel_young_loss_soft",
        losses.fenchel_young_loss,
        fenchel_young_loss,
        {"logits": close, "labels": distributions},
    ),
    Case(
        "fenchel_young_loss_soft_traced",
        losses.fenchel_young_loss,
        fenchel_young_loss,
        {"logits": close, "labels": off_one, "alpha": number(1.3, 1.7)},
    ),
    Case(
        "entmax_loss",
        functools.partial(losses.entmax_loss, alpha=1.25),
        functools.partial(entmax_loss, alpha=1.25),
        {"logits": close, "labels": indices},
    ),
    Case(
        "entmax_stats",
        _loss_and_margin,
        loss_and_margin,
        {"logits": close, "labels": indices},
    ),
    Case(
        "bi_tempered_logistic_loss",
        losses.bi_tempered_logistic_loss,
        bi_tempered,
        {"logits": logits, "labels": off_one, "t1": number(0.3, 0.8), "t2": number(1.2, 2.0)},
    ),
    Case(
        "multiclass_sparsemax_loss",
        losses.multiclass_sparsemax_loss,
        lambda scores, labels: entmax_loss(scores, labels, 2.0),
        {"scores": close, "labels": indices},
    ),
    Case(
        "sparsemax_loss",
        losses.sparsemax_loss,
        sparsemax_loss,
        {"logits": logits, "labels": binary},
        output="classes",
    ),
    Case(
        "make_fenchel_young_loss",
        losses.make_fenchel_young_loss(jsoftmax.logsumexp),
        lambda scores, targets: jax.nn.logsumexp(scores, axis=-1) - jnp.sum(targets * scores, axis=-1),
        {"scores": logits, "targets": distributions},
    ),
)
