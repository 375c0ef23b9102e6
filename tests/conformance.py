"""Every public function once: how to call it, on what, and what it should return.

A law is a test that runs over `CASES`. A reference is the function's formula of `tests.formulas`,
run in float64: it shares no code with jsoftmax, and JAX differentiates it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from jsoftmax import losses
from tests import formulas
from tests.cases import (
    CLASSES,
    IGNORED,
    Draw,
    certain,
    cosines,
    distributions,
    indices,
    log_probabilities,
    logits,
    masks,
    number,
    per_class,
    per_row,
)
from tests.cases import (
    ROWS as ROWS,
)
from tests.cases import (
    Case as Case,
)
from tests.cases import (
    Inputs as Inputs,
)
from tests.entmax_cases import ENTMAX
from tests.hierarchical_cases import HIERARCHICAL
from tests.linear_cases import LINEAR
from tests.sampling_cases import SAMPLING

STATISTICS = tuple(name for name in jsoftmax.RowStats.names() if name != "correct")


def statistics(**arguments: Any) -> dict[str, jax.Array]:
    stats = jsoftmax.row_stats(**arguments)
    return {name: getattr(stats, name) for name in STATISTICS}


def transformed(
    logits: Any, labels: Any, margin: Any, scale: Any, log_prior: Any, tau: Any, cap: Any, value: Any
) -> jax.Array:
    transform = jsoftmax.chain(
        jsoftmax.Margin(margin, scale, kind="angular"),
        jsoftmax.LogitAdjustment(log_prior, tau),
        jsoftmax.Softcap(cap),
        jsoftmax.Temperature(value),
    )
    return jsoftmax.cross_entropy(logits, labels, transform=transform)


@jsoftmax.custom_vjp
def sample_rule(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> tuple[Any, Any]:
    """A loss of a user's own, with two outputs and an integer argument."""
    peak = jnp.max(jax.lax.stop_gradient(logits), axis=-1, keepdims=True)
    log_z = jnp.log(jnp.sum(jnp.exp(logits - peak), axis=-1)) + peak[..., 0]
    ids = jnp.arange(logits.shape[-1], dtype=labels.dtype)[(None,) * labels.ndim]
    at_label = (ids == labels[..., None]).astype(logits.dtype)
    target = jnp.sum(at_label * logits, axis=-1)
    return scale * (log_z - target), {"log_z": log_z}


def _sample_fwd(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> tuple[Any, Any]:
    out = sample_rule(logits, labels, scale)
    return out, (logits, labels, scale, out[1]["log_z"])


def _sample_bwd(residuals: Any, cts: Any) -> tuple[Any, None, Any]:
    logits, labels, scale, log_z = residuals
    ct_loss, ct_log_z = cts[0], cts[1]["log_z"]
    ids = jnp.arange(logits.shape[-1], dtype=labels.dtype)[(None,) * labels.ndim]
    at_label = (ids == labels[..., None]).astype(logits.dtype)
    p = jnp.exp(logits - log_z[..., None])
    d_loss = (scale * ct_loss)[..., None]
    d_logits = (d_loss + ct_log_z[..., None]) * p - d_loss * at_label
    loss = log_z - jnp.sum(at_label * logits, axis=-1)
    return d_logits, None, jnp.sum(ct_loss * loss)


sample_rule.defvjp(_sample_fwd, _sample_bwd)

EVERYTHING: dict[str, Draw] = {
    "temperature": per_row(0.6, 1.8),
    "softcap": number(2.0, 4.0),
    "label_smoothing": number(0.1, 0.3),
    "z_loss": number(0.05, 0.2),
    "class_weights": per_class(0.5, 2.0),
}
ALL = (
    Case(
        "softmax",
        jsoftmax.softmax,
        formulas.softmax,
        {"x": logits, "where": masks, "temperature": per_row(0.6, 1.8)},
        output="classes",
    ),
    Case(
        "log_softmax",
        functools.partial(formulas.possible, jsoftmax.log_softmax),
        functools.partial(formulas.possible, formulas.log_softmax),
        {"x": logits, "where": masks, "temperature": number(0.6, 1.8)},
        output="classes",
    ),
    Case("logsumexp", jsoftmax.logsumexp, formulas.logsumexp, {"x": logits, "where": masks}),
    Case(
        "cross_entropy",
        jsoftmax.cross_entropy,
        formulas.cross_entropy,
        {"logits": logits, "labels": indices},
        over_classes=functools.partial(jsoftmax.cross_entropy, axis_name="classes"),
    ),
    Case(
        "cross_entropy_integer_everything",
        functools.partial(jsoftmax.cross_entropy, ignore_index=IGNORED),
        functools.partial(formulas.cross_entropy, ignore_index=IGNORED),
        {"logits": logits, "labels": indices, "where": masks, **EVERYTHING},
        over_classes=functools.partial(
            jsoftmax.cross_entropy, ignore_index=IGNORED, axis_name="classes"
        ),
    ),
    Case(
        "cross_entropy_soft_everything",
        jsoftmax.cross_entropy,
        formulas.cross_entropy,
        {"logits": logits, "labels": certain, "where": masks, **EVERYTHING},
        over_classes=functools.partial(jsoftmax.cross_entropy, axis_name="classes"),
    ),
    Case(
        "cross_entropy_transforms",
        transformed,
        formulas.transformed_cross_entropy,
        {
            "logits": cosines,
            "labels": indices,
            "margin": number(0.2, 0.4),
            "scale": number(3.0, 5.0),
            "log_prior": lambda rng: np.log(rng.dirichlet(np.ones(CLASSES))).astype(np.float32),
            "tau": number(0.5, 1.5),
            "cap": number(3.0, 5.0),
            "value": per_row(0.6, 1.8),
        },
    ),
    Case(
        "row_stats_integer",
        statistics,
        formulas.row_stats,
        {
            "logits": logits,
            "labels": indices,
            "where": masks,
            "temperature": per_row(0.6, 1.8),
            "softcap": number(2.0, 4.0),
        },
        over_classes=functools.partial(statistics, axis_name="classes"),
    ),
    Case(
        "row_stats_soft",
        statistics,
        formulas.row_stats,
        {"logits": logits, "labels": distributions},
        over_classes=functools.partial(statistics, axis_name="classes"),
    ),
    Case(
        "weighted_mean",
        jsoftmax.weighted_mean,
        formulas.weighted_mean,
        {"values": per_row(0.0, 2.0), "weights": per_row(0.5, 2.0)},
        over_rows=functools.partial(jsoftmax.weighted_mean, axis_name="rows"),
        output="scalar",
    ),
    Case(
        "weighted_mean_denominator",
        jsoftmax.weighted_mean,
        formulas.weighted_mean,
        {
            "values": per_row(0.0, 2.0),
            "weights": per_row(0.5, 2.0),
            "denominator": number(3.0, 5.0),
        },
        over_rows=functools.partial(jsoftmax.weighted_mean, axis_name="rows"),
        output="scalar",
    ),
    Case(
        "softmax_cross_entropy",
        losses.softmax_cross_entropy,
        formulas.dropping(formulas.cross_entropy),
        {"logits": logits, "labels": distributions, "where": masks},
    ),
    Case(
        "safe_softmax_cross_entropy",
        losses.safe_softmax_cross_entropy,
        formulas.cross_entropy,
        {"logits": logits, "labels": distributions},
    ),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        losses.softmax_cross_entropy_with_integer_labels,
        formulas.cross_entropy,
        {"logits": logits, "labels": indices, "where": masks},
    ),
    Case(
        "sigmoid_binary_cross_entropy",
        losses.sigmoid_binary_cross_entropy,
        formulas.sigmoid_binary_cross_entropy,
        {"logits": logits, "labels": distributions},
        output="classes",
    ),
    Case(
        "sigmoid_focal_loss",
        losses.sigmoid_focal_loss,
        formulas.sigmoid_focal_loss,
        {
            "logits": logits,
            "labels": distributions,
            "alpha": number(0.2, 0.4),
            "gamma": number(1.2, 2.5),
        },
        output="classes",
    ),
    Case(
        "multilabel_cross_entropy",
        losses.multilabel_cross_entropy,
        formulas.multilabel_cross_entropy,
        {
            "logits": logits,
            "labels": distributions,
            "pos_weight": per_class(0.5, 2.0),
            "where": masks,
        },
    ),
    Case(
        "poly_loss_cross_entropy",
        losses.poly_loss_cross_entropy,
        formulas.dropping(formulas.poly_loss_cross_entropy),
        {"logits": logits, "labels": distributions, "epsilon": number(1.0, 2.0), "where": masks},
    ),
    Case(
        "softmax_focal_loss_integer",
        losses.softmax_focal_loss,
        formulas.softmax_focal_loss,
        {
            "logits": logits,
            "labels": indices,
            "gamma": number(1.2, 2.5),
            "alpha": per_class(0.5, 2.0),
            "where": masks,
        },
    ),
    Case(
        "softmax_focal_loss_soft",
        losses.softmax_focal_loss,
        formulas.softmax_focal_loss,
        {"logits": logits, "labels": distributions, "gamma": number(1.2, 2.5)},
    ),
    Case(
        "generalized_cross_entropy_integer",
        losses.generalized_cross_entropy,
        formulas.generalized_cross_entropy,
        {"logits": logits, "labels": indices, "q": number(0.5, 0.8), "where": masks},
    ),
    Case(
        "generalized_cross_entropy_soft",
        losses.generalized_cross_entropy,
        formulas.generalized_cross_entropy,
        {"logits": logits, "labels": distributions, "q": number(0.5, 0.8)},
    ),
    Case(
        "kl_divergence",
        losses.kl_divergence,
        formulas.kl_divergence,
        {"log_predictions": log_probabilities, "targets": distributions, "where": masks},
    ),
    Case(
        "kl_divergence_with_log_targets",
        losses.kl_divergence_with_log_targets,
        formulas.kl_divergence_with_log_targets,
        {"log_predictions": log_probabilities, "log_targets": log_probabilities, "where": masks},
    ),
    Case(
        "generalized_kl_divergence",
        losses.generalized_kl_divergence,
        formulas.generalized_kl_divergence,
        {"log_predictions": log_probabilities, "targets": distributions, "where": masks},
    ),
    Case(
        "smooth_labels",
        losses.smooth_labels,
        formulas.smooth_labels,
        {"labels": distributions, "alpha": number(0.1, 0.3), "where": masks},
        output="classes",
    ),
    Case(
        "custom_vjp",
        sample_rule,
        formulas.sample_rule,
        {"logits": logits, "labels": indices, "scale": number(0.5, 1.5)},
    ),
    *ENTMAX,
    *HIERARCHICAL,
    *SAMPLING,
    *LINEAR,
)

# One for each way through the code; of the other cases a default run takes a part.
CORE = {
    "softmax",
    "cross_entropy_integer_everything",
    "cross_entropy_soft_everything",
    "row_stats_integer",
    "custom_vjp",
    "hierarchical_cross_entropy_binary",
    "sparsemax",
    "linear_cross_entropy",
}
CASES = tuple(case._replace(core=case.name in CORE) for case in ALL)


def named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
