"""The text of every error: function, argument, expected in axis names, got, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax as typed

# What is passed here is wrong on purpose.
jsoftmax: Any = typed
losses: Any = typed.losses
Z = np.zeros((4, 3), np.float32)
Y = np.zeros(4, np.int32)
Q = np.full((4, 3), 1 / 3, np.float32)
MASK = np.ones((4, 3), bool)
CE = jsoftmax.cross_entropy

# what is called, the exception, its whole text
EXACT: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: jsoftmax.entmax(Z, 0.5),
        ValueError,
        "entmax: alpha must be at least 1, got 0.5; choose a value in range.",
    ),
    (
        lambda: losses.entmax_loss(Z, Y, Q[0]),
        ValueError,
        "entmax_loss: alpha must be a scalar or have shape [*batch] = [4], got [3]; one value per row.",
    ),
    (
        lambda: losses.multiclass_sparsemax_loss(Z, Q),
        TypeError,
        "multiclass_sparsemax_loss: labels must have an integer dtype, got float32; distributions go "
        "to fenchel_young_loss.",
    ),
    (
        lambda: CE(Z, Y[:, None]),
        ValueError,
        "cross_entropy: labels must have shape [*batch] = [4] to match logits [4, 3], got [4, 1]; "
        "class indices have no class axis, squeeze the last one.",
    ),
    (
        lambda: CE(Z, Y[:1]),
        ValueError,
        "cross_entropy: labels must have shape [*batch] = [4] to match logits [4, 3], got [1]; "
        "pass one class index per row.",
    ),
    (
        lambda: CE(Z, Z.astype(np.int32)),
        ValueError,
        "cross_entropy: labels must have shape [*batch] = [4] to match logits [4, 3], got [4, 3]; "
        "give distributions over the classes a floating dtype.",
    ),
    (
        lambda: CE(Z, Y.astype(bool)),
        TypeError,
        "cross_entropy: labels must be class indices of an integer dtype or distributions of a "
        "floating dtype, got bool; convert with labels.astype(jnp.int32).",
    ),
    (
        lambda: CE(Z, Y.astype(np.float32)),
        TypeError,
        "cross_entropy: class indices [*batch] = [4] must have an integer dtype, got float32; "
        "convert with labels.astype(jnp.int32).",
    ),
    (
        lambda: CE(Z, Q[:1]),
        ValueError,
        "cross_entropy: labels that are distributions must have shape [*batch, classes] = [4, 3] "
        "like logits, got [1, 3]; broadcast them explicitly.",
    ),
    (
        lambda: CE(Z.astype(np.int32), Y),
        TypeError,
        "cross_entropy: logits must have a floating dtype, got int32; convert with "
        "logits.astype(jnp.float32).",
    ),
    (
        lambda: CE(Z, Y, where=MASK.astype(np.float32)),
        TypeError,
        "cross_entropy: where must have dtype bool, got float32; convert with where != 0.",
    ),
    (
        lambda: CE(Z, Y, where=MASK[:, 0]),
        ValueError,
        "cross_entropy: where must broadcast to logits [*batch, classes] = [4, 3], got [4]; "
        "insert the missing axes with where[..., None].",
    ),
    (
        lambda: CE(Z, Y, axis=2),
        ValueError,
        "cross_entropy: axis must be in [-2, 2) for an array of 2 dimensions, got 2; "
        "count from 0, or from −1 backwards.",
    ),
    (
        lambda: CE(Z, Y, axis=(0, -2)),
        ValueError,
        "cross_entropy: axis must name each class axis once, got (0, -2); remove repeats.",
    ),
    (
        lambda: CE(Z, Y, temperature=-1.0),
        ValueError,
        "cross_entropy: temperature must be at least 0, got -1.0; choose a value in range.",
    ),
    (
        lambda: CE(Z, Y, temperature=np.ones(3, np.float32)),
        ValueError,
        "cross_entropy: temperature must be a scalar or have shape [*batch] = [4], got [3]; "
        "one value per row.",
    ),
    (
        lambda: CE(Z, Y, softcap=0.0),
        ValueError,
        "cross_entropy: softcap must be positive and finite, got 0.0; choose a value in range.",
    ),
    (
        lambda: CE(Z, Y, label_smoothing=1.5),
        ValueError,
        "cross_entropy: label_smoothing must be in [0, 1], got 1.5; choose a value in range.",
    ),
    (
        lambda: CE(Z, Y, z_loss=np.ones(4, np.float32)),
        ValueError,
        "cross_entropy: z_loss must be a scalar, got shape [4]; map over several values with jax.vmap.",
    ),
    (
        lambda: CE(Z, Y, class_weights=np.ones(4, np.float32)),
        ValueError,
        "cross_entropy: class_weights must have shape [classes] = [3] to match logits [4, 3], "
        "got [4]; one value per class.",
    ),
    (
        lambda: CE(Z, Q, ignore_index=0),
        ValueError,
        "cross_entropy: ignore_index must be None for labels that are distributions, got 0; "
        "leave rows out with weighted_mean(losses, weights).",
    ),
    (
        lambda: CE(Z, Y, transform=jnp.tanh),
        TypeError,
        "cross_entropy: transform must be a LogitTransform such as Temperature, Softcap, "
        "LogitAdjustment, Margin or chain(...), got PjitFunction; a function of your own becomes "
        "one as a frozen dataclass that subclasses LogitTransform.",
    ),
    (
        lambda: jsoftmax.row_stats(Z, Y, statistics=("nll", "accuracy")),
        ValueError,
        "row_stats: statistics must be one of 'nll', 'log_normalizer', 'target_log_prob', "
        "'mean_logit', 'expected_logit', 'entropy', 'correct', got 'accuracy'; check the spelling.",
    ),
    (
        lambda: jsoftmax.Margin(0.1, kind="cosine"),
        ValueError,
        "Margin: kind must be one of 'additive', 'angular', got 'cosine'; check the spelling.",
    ),
    (
        lambda: jsoftmax.weighted_mean(np.ones(4, np.float32), np.ones((4, 1), np.float32)),
        ValueError,
        "weighted_mean: weights must have shape [*batch] = [4] like values, got [4, 1]; "
        "broadcast them explicitly.",
    ),
    (
        lambda: losses.softmax_cross_entropy(Z, Q[:1]),
        ValueError,
        "softmax_cross_entropy: labels must have shape [*batch, classes] = [4, 3] like logits, "
        "got [1, 3]; broadcast them explicitly.",
    ),
    (
        lambda: losses.softmax_cross_entropy_with_integer_labels(Z, Q),
        TypeError,
        "softmax_cross_entropy_with_integer_labels: labels must be class indices [*batch] of an "
        "integer dtype, got float32; distributions go to softmax_cross_entropy.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), EXACT, ids=[text[:60] for _, _, text in EXACT])
def test_exact_text(call: Callable[[], Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text
    with pytest.raises(kind):
        jax.eval_shape(call)


Refused = tuple[str, str, Any, Callable[[], Any]]


def refused(kind: Any, function: str, argument: str, *args: Any, **options: Any) -> Refused:
    """A call of a public function that must raise, and the argument that the text must name."""
    found = getattr(jsoftmax, function, None) or getattr(losses, function)
    return function, argument, kind, lambda: found(*args, **options)


NAMED: list[Refused] = [
    refused(TypeError, "softmax", "x", Y),
    refused(ValueError, "softmax", "axis", Z, axis=(0, 5)),
    refused(ValueError, "softmax", "axis", Z, axis=(0, 0)),
    refused(ValueError, "softmax", "axis", Z, axis=()),
    refused(TypeError, "softmax", "axis", Z, axis=1.0),
    refused(TypeError, "softmax", "axis", Z, axis=True),
    refused(ValueError, "softmax", "axis", np.float32(1.0)),
    refused(ValueError, "softmax", "where", Z, where=MASK[0, :2]),
    refused(ValueError, "softmax", "where", Z, where=MASK[None]),
    refused(TypeError, "softmax", "where", Z, where=1),
    refused(ValueError, "softmax", "temperature", Z, temperature=-0.5),
    refused(ValueError, "softmax", "temperature", Z, temperature=Z),
    refused(TypeError, "softmax", "temperature", Z, temperature="hot"),
    refused(TypeError, "softmax", "temperature", Z, temperature=True),
    refused(TypeError, "log_softmax", "x", Y),
    refused(ValueError, "log_softmax", "temperature", Z, temperature=np.float32(-1)),
    refused(TypeError, "logsumexp", "x", Y),
    refused(ValueError, "logsumexp", "where", Z, where=MASK[:, :2]),
    refused(TypeError, "cross_entropy", "logits", Z.astype(np.complex64), Y),
    refused(ValueError, "cross_entropy", "softcap", Z, Y, softcap=-3),
    refused(ValueError, "cross_entropy", "softcap", Z, Y, softcap=np.inf),
    refused(ValueError, "cross_entropy", "softcap", Z, Y, softcap=np.ones(4, np.float32)),
    refused(ValueError, "cross_entropy", "label_smoothing", Z, Y, label_smoothing=-0.1),
    refused(ValueError, "cross_entropy", "label_smoothing", Z, Y, label_smoothing=float("nan")),
    refused(
        ValueError, "cross_entropy", "label_smoothing", Z, Y, label_smoothing=np.ones(4, np.float32)
    ),
    refused(TypeError, "cross_entropy", "z_loss", Z, Y, z_loss="a"),
    refused(ValueError, "cross_entropy", "class_weights", Z, Y, class_weights=np.float32(1)),
    refused(
        ValueError, "cross_entropy", "class_weights", Z, Y, class_weights=np.ones((1, 3), np.float32)
    ),
    refused(TypeError, "cross_entropy", "ignore_index", Z, Y, ignore_index=0.5),
    refused(TypeError, "cross_entropy", "transform", Z, Y, transform=lambda z: z),
    refused(ValueError, "cross_entropy", "labels", Z[0], Y),
    refused(ValueError, "cross_entropy", "axis", np.float32(0), Y[0]),
    refused(ValueError, "row_stats", "labels", Z, Y[:, None]),
    refused(ValueError, "row_stats", "softcap", Z, Y, softcap=0),
    refused(ValueError, "row_stats", "temperature", Z, Y, temperature=-1),
    refused(ValueError, "row_stats", "statistics", Z, Y, statistics=("loss",)),
    refused((ValueError, TypeError), "row_stats", "statistics", Z, Y, statistics="nll"),
    refused(TypeError, "weighted_mean", "values", Y),
    refused(ValueError, "weighted_mean", "denominator", Z[:, 0], denominator=Z[:, 0]),
    refused(ValueError, "weighted_mean", "weights", Z[:, 0], np.float32(1)),
    refused(ValueError, "Temperature", "value", -1.0),
    refused(ValueError, "Softcap", "cap", 0),
    refused(ValueError, "Softcap", "cap", np.float32(-2)),
    refused(ValueError, "Softcap", "cap", float("nan")),
    (
        "LogitAdjustment",
        "log_prior",
        ValueError,
        lambda: CE(Z, Y, transform=jsoftmax.LogitAdjustment(Z[:, 0])),
    ),
    (
        "LogitAdjustment",
        "log_prior",
        ValueError,
        lambda: CE(Z, Y, transform=jsoftmax.LogitAdjustment(Z)),
    ),
    ("Margin", "labels", ValueError, lambda: jsoftmax.Margin(0.1)(Z)),
    refused(TypeError, "chain", "transform", jsoftmax.Softcap(3.0), jnp.tanh),
    refused(TypeError, "softmax_cross_entropy", "logits", Y, Y),
    refused(ValueError, "softmax_cross_entropy", "labels", Z, Y),
    refused(ValueError, "softmax_cross_entropy", "where", Z, Q, where=MASK[0, :2]),
    refused(TypeError, "softmax_cross_entropy", "labels", Z, Q.astype(np.complex64)),
    refused(ValueError, "safe_softmax_cross_entropy", "labels", Z, Q[0]),
    refused(ValueError, "softmax_cross_entropy_with_integer_labels", "labels", Z, Y[:, None]),
    refused(TypeError, "sigmoid_binary_cross_entropy", "logits", Y, Y),
    refused(ValueError, "sigmoid_binary_cross_entropy", "labels", Z, Z[:, :2]),
    refused(TypeError, "sigmoid_focal_loss", "logits", Y, Y),
    refused(ValueError, "sigmoid_focal_loss", "gamma", Z, Q, gamma=-1.0),
    refused(ValueError, "sigmoid_focal_loss", "gamma", Z, Q, gamma=Z),
    refused(ValueError, "sigmoid_focal_loss", "alpha", Z, Q, alpha=Z[:, :2]),
    refused(ValueError, "poly_loss_cross_entropy", "labels", Z, Q[0]),
    refused(ValueError, "poly_loss_cross_entropy", "epsilon", Z, Q, epsilon=Z),
    refused(ValueError, "softmax_focal_loss", "gamma", Z, Y, gamma=-1),
    refused(ValueError, "softmax_focal_loss", "alpha", Z, Y, alpha=Z[:, 0]),
    refused(ValueError, "softmax_focal_loss", "labels", Z, Y[:, None]),
    refused(ValueError, "generalized_cross_entropy", "q", Z, Y, q=1.5),
    refused(ValueError, "generalized_cross_entropy", "q", Z, Y, q=Z),
    refused(ValueError, "generalized_cross_entropy", "labels", Z, Q[:1]),
    refused(ValueError, "multilabel_cross_entropy", "labels", Z, Y),
    refused(ValueError, "multilabel_cross_entropy", "pos_weight", Z, Q, pos_weight=Z[:, 0]),
    refused(TypeError, "kl_divergence", "log_predictions", Y, Y),
    refused(ValueError, "kl_divergence", "targets", Z, Q[:1]),
    refused(TypeError, "kl_divergence_with_log_targets", "log_targets", Z, Y),
    refused(ValueError, "generalized_kl_divergence", "targets", Z, Q[0]),
    refused(TypeError, "smooth_labels", "labels", Y, 0.1),
    refused(ValueError, "smooth_labels", "alpha", Q, 1.1),
    refused(ValueError, "smooth_labels", "alpha", Q, Z),
]


@pytest.mark.parametrize(
    ("function", "argument", "kind", "call"), NAMED, ids=[f"{f}-{a}" for f, a, _, _ in NAMED]
)
def test_names_function_and_argument(function: str, argument: str, kind: Any, call: Callable[[], Any]):
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    # A remedy follows what was got, and the whole is one sentence.
    assert re.match(rf"{function}: .*\b{argument}\b", text), text
    assert re.search(r"[;,] [^;]+\.$", text), text


TRACED: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "temperature": (lambda z, x: CE(z, Y, temperature=x), -1.0),
    "temperature of softmax": (lambda z, x: jsoftmax.softmax(z, temperature=x)[:, 0], -1.0),
    "softcap": (lambda z, x: CE(z, Y, softcap=x), 0.0),
    "softcap below 0": (lambda z, x: CE(z, Y, softcap=x), -1.0),
    "label_smoothing": (lambda z, x: CE(z, Y, label_smoothing=x), 1.5),
    "label_smoothing below 0": (lambda z, x: CE(z, Y, label_smoothing=x), -0.1),
    "Temperature": (lambda z, x: CE(z, Y, transform=jsoftmax.Temperature(x)), -1.0),
    "Softcap": (lambda z, x: CE(z, Y, transform=jsoftmax.Softcap(x)), -1.0),
    "gamma": (lambda z, x: losses.softmax_focal_loss(z, Y, gamma=x), -1.0),
    "gamma of sigmoid": (lambda z, x: losses.sigmoid_focal_loss(z, Q, gamma=x)[:, 0], -1.0),
    "q": (lambda z, x: losses.generalized_cross_entropy(z, Y, q=x), 1.5),
    "alpha": (lambda z, x: losses.smooth_labels(z, x)[:, 0], 1.5),
    "alpha of entmax": (lambda z, x: jsoftmax.entmax(z, x)[:, 0], 0.5),
    "alpha of entmax_loss": (lambda z, x: losses.entmax_loss(z, Y, x), 0.5),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_bad_numbers_give_nan(name: str):
    """What is not known before tracing cannot be an error; it must not be a number either."""
    f, bad = TRACED[name]
    z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    value = jax.jit(f)(z, bad)
    gradient = jax.jit(jax.grad(lambda z, x: jnp.sum(f(z, x)), (0, 1)))(z, bad)
    assert np.isnan(value).all()
    assert np.isnan(gradient[0]).any(-1).all()
    assert np.isnan(gradient[1])
