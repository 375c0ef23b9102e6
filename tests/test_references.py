"""Every option of `cross_entropy`, and every loss, against the oracles: values and gradients."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import losses
from tests.oracles import losses as plain
from tests.oracles import transforms
from tests.oracles.cross_entropy import cross_entropy

ROWS, CLASSES = 6, 5
Arguments = dict[str, Any]


def agree(got: Any, true: np.ndarray) -> None:
    """To float32 rounding, relative to the largest entry."""
    true = np.asarray(true, np.float64)
    scale = np.max(np.abs(true), initial=1e-3)
    np.testing.assert_allclose(np.asarray(got), true, rtol=1e-5, atol=2e-6 * scale)


def options(rng: np.random.Generator) -> dict[str, Arguments]:
    """One value for every option; the numbers are float32, so that both sides see the same."""
    single = np.float32
    return {
        "where": {"where": rng.random((ROWS, CLASSES)) < 0.8},
        "temperature": {"temperature": single(0.7)},
        "temperature per row": {"temperature": rng.uniform(0.5, 2, ROWS).astype(single)},
        "softcap": {"softcap": single(3.0)},
        "label_smoothing": {"label_smoothing": single(0.1)},
        "z_loss": {"z_loss": single(0.05)},
        "class_weights": {"class_weights": rng.uniform(0.5, 2, CLASSES).astype(single)},
        "ignore_index": {"ignore_index": 2},
    }


NAMES = list(options(np.random.default_rng()))
PAIRS = [*itertools.combinations(NAMES, 2)]
# Alone, in pairs, all but one, and all: what interferes shows in a pair.
COMBINATIONS = [
    (),
    *((name,) for name in NAMES),
    *(pair for pair in PAIRS if set(pair) != {"temperature", "temperature per row"}),
    tuple(name for name in NAMES if name != "temperature"),
]


@pytest.mark.thin
@pytest.mark.parametrize("hard", [True, False], ids=["integer", "soft"])
@pytest.mark.parametrize("chosen", COMBINATIONS, ids=", ".join)
def test_cross_entropy(chosen: tuple[str, ...], hard: bool):
    if not hard and "ignore_index" in chosen:
        chosen = tuple(name for name in chosen if name != "ignore_index")
    rng = np.random.default_rng(abs(hash_of(chosen)))
    z = (2 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    given: Arguments = {}
    for name in chosen:
        given |= options(rng)[name]
    ids = rng.integers(0, CLASSES, ROWS)
    soft = rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    if "where" in given:
        given["where"][np.arange(ROWS), ids] = True
        soft = np.where(given["where"], soft, 0)
    true = cross_entropy(z, ids if hard else soft, **given)

    static = {name: given[name] for name in ("where", "ignore_index") if name in given}
    traced = {name: value for name, value in given.items() if name not in static}
    labels = jnp.asarray(ids if hard else soft)

    def total(z: jax.Array, labels: jax.Array, traced: Arguments) -> tuple[jax.Array, jax.Array]:
        value = jsoftmax.cross_entropy(z, labels, **traced, **static)
        return jnp.sum(value), value

    wanted = (0, 2) if hard else (0, 1, 2)
    gradients, value = jax.jit(jax.grad(total, wanted, has_aux=True))(z, labels, traced)
    agree(value, true.value)
    agree(gradients[0], true.logits)
    if not hard:
        agree(gradients[1], true.labels)
    for name, gradient in gradients[-1].items():
        expected = getattr(true, name)
        agree(gradient, expected.sum() if np.ndim(gradient) < expected.ndim else expected)


def hash_of(names: tuple[str, ...]) -> int:
    """The same in every process, unlike `hash`."""
    return sum(map(ord, "".join(names)))


PRIOR = np.array([0.1, 0.2, 0.3, 0.3, 0.1], np.float32)
TRANSFORMS: dict[str, tuple[Callable[[], Any], transforms.Transform]] = {
    "Temperature": (lambda: jsoftmax.Temperature(0.7), transforms.temperature(0.7)),
    "Softcap": (lambda: jsoftmax.Softcap(3.0), transforms.softcap(3.0)),
    "LogitAdjustment": (
        lambda: jsoftmax.LogitAdjustment(np.log(PRIOR), scale=1.5),
        transforms.logit_adjustment(np.log(PRIOR), 1.5),
    ),
    "Margin": (
        lambda: jsoftmax.Margin(0.3, scale=4.0),
        transforms.margin(0.3, 4.0),
    ),
    "Margin angular": (
        lambda: jsoftmax.Margin(0.3, scale=4.0, kind="angular"),
        transforms.margin(0.3, 4.0, "angular"),
    ),
    "chain": (
        lambda: jsoftmax.chain(
            jsoftmax.Margin(0.3, scale=4.0), jsoftmax.Softcap(3.0), jsoftmax.Temperature(0.7)
        ),
        transforms.chain(
            transforms.margin(0.3, 4.0), transforms.softcap(3.0), transforms.temperature(0.7)
        ),
    ),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, smoothing: float):
    make, oracle = TRANSFORMS[name]
    rng = np.random.default_rng(5)
    z = rng.uniform(-0.9, 0.9, (ROWS, CLASSES)).astype(np.float32)
    y = rng.integers(0, CLASSES, ROWS)
    common: Arguments = {"label_smoothing": smoothing, "z_loss": 0.05, "temperature": 0.8}
    true = cross_entropy(z, y, transform=oracle, **common)

    def loss(z: jax.Array) -> jax.Array:
        return jsoftmax.cross_entropy(z, y, transform=make(), **common)

    agree(jax.jit(loss)(z), true.value)
    agree(jax.jit(jax.grad(lambda z: jnp.sum(loss(z))))(z), true.logits)


def test_row_stats():
    rng = np.random.default_rng(6)
    z = (2 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    y = rng.integers(0, CLASSES, ROWS)
    y[0] = z[0].argmax()
    mask = rng.random((ROWS, CLASSES)) < 0.8
    mask[np.arange(ROWS), y] = True
    mask[:, 0] = True
    stats = jsoftmax.row_stats(z, y, where=mask, temperature=0.7, softcap=3.0)
    moved = np.where(mask, 3.0 * np.tanh(z.astype(np.float64) / 3.0) / 0.7, -np.inf)
    weights = np.where(mask, np.exp(moved), 0)
    probs = weights / weights.sum(-1, keepdims=True)
    target = np.arange(CLASSES) == y[:, None]
    log_target = np.log(probs[target])
    finite = np.where(mask, moved, 0)
    agree(stats.nll, -log_target)
    agree(stats.target_log_prob, log_target)
    agree(stats.log_normalizer, np.log(weights.sum(-1)))
    agree(stats.mean_logit, finite.sum(-1) / mask.sum(-1))
    agree(stats.expected_logit, (probs * finite).sum(-1))
    entropy = -(probs * np.log(np.where(mask, probs, 1))).sum(-1)
    agree(stats.entropy, entropy)
    np.testing.assert_array_equal(stats.correct, moved.argmax(-1) == y)


def distribution(rng: np.random.Generator) -> np.ndarray:
    return rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)


def binary(rng: np.random.Generator) -> np.ndarray:
    return (rng.random((ROWS, CLASSES)) < 0.4).astype(np.float32)


def integer(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, CLASSES, ROWS)


def log_distribution(rng: np.random.Generator) -> np.ndarray:
    return np.log(distribution(rng))


Draw = Callable[[np.random.Generator], np.ndarray]
ALPHAS = np.array([0.5, 1.0, 2.0, 0.25, 1.5], np.float32)
SOME = np.broadcast_to(np.arange(CLASSES) != 1, (ROWS, CLASSES))
# name, how to draw the labels, options; the oracle of the same name takes the same options.
LOSSES: list[tuple[str, Draw, Arguments]] = [
    ("sigmoid_binary_cross_entropy", binary, {}),
    ("sigmoid_binary_cross_entropy", distribution, {}),
    ("sigmoid_focal_loss", binary, {}),
    ("sigmoid_focal_loss", distribution, {"alpha": 0.25, "gamma": 1.5}),
    ("sigmoid_focal_loss", binary, {"gamma": 0.5}),
    ("multilabel_cross_entropy", binary, {}),
    ("multilabel_cross_entropy", binary, {"pos_weight": ALPHAS}),
    ("multilabel_cross_entropy", binary, {"where": SOME}),
    ("poly_loss_cross_entropy", distribution, {}),
    ("poly_loss_cross_entropy", distribution, {"epsilon": -1.0}),
    ("poly_loss_cross_entropy", distribution, {"where": SOME}),
    ("kl_divergence", distribution, {}),
    ("kl_divergence_with_log_targets", log_distribution, {}),
    ("generalized_kl_divergence", distribution, {}),
    ("softmax_focal_loss", integer, {}),
    ("softmax_focal_loss", integer, {"gamma": 0.5, "alpha": 0.25}),
    ("softmax_focal_loss", integer, {"gamma": 0.0, "alpha": ALPHAS}),
    ("generalized_cross_entropy", integer, {}),
    ("generalized_cross_entropy", integer, {"q": 1.0}),
    ("generalized_cross_entropy", integer, {"q": 0.01}),
]


@pytest.mark.parametrize(("name", "draw", "given"), LOSSES)
def test_losses(name: str, draw: Draw, given: Arguments):
    rng = np.random.default_rng(7)
    z = (2 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    y = draw(rng)
    if "where" in given:
        y = np.where(given["where"], y, 0).astype(y.dtype)
    oracle = getattr(plain, name)
    labels = jnp.asarray(y)

    def loss(z: jax.Array) -> jax.Array:
        return getattr(losses, name)(z, labels, **given)

    agree(jax.jit(loss)(z), oracle(z, y, **given))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(loss(z))))(z)
    agree(gradient, plain.gradient(lambda z: oracle(z, y, **given), z))


def test_smooth_labels():
    y = np.eye(CLASSES, dtype=np.float32)
    agree(losses.smooth_labels(y, 0.1), plain.smooth_labels(y, 0.1))


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("softmax_cross_entropy", distribution),
        ("safe_softmax_cross_entropy", distribution),
        ("softmax_cross_entropy_with_integer_labels", integer),
    ],
)
def test_softmax_losses(name: str, draw: Draw):
    rng = np.random.default_rng(8)
    z = (2 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    y = jnp.asarray(draw(rng))
    true = cross_entropy(z, np.asarray(y))

    def loss(z: jax.Array) -> jax.Array:
        return getattr(losses, name)(z, y)

    agree(jax.jit(loss)(z), true.value)
    agree(jax.jit(jax.grad(lambda z: jnp.sum(loss(z))))(z), true.logits)
