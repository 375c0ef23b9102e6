"""What holds for every input: laws of softmax and its losses, on inputs that hypothesis looks for."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jsoftmax
from jsoftmax import losses
from tests.conformance import CASES, Case
from tests.truth import agree, cotangent, cotangents, quick, truth, weigh

ROWS, CLASSES = 3, 5
lawful = settings(
    derandomize=True,
    max_examples=25,
    database=None,
)
# Numbers with few digits, so that shifting and scaling them is exact.
numbers = st.integers(-80, 80).map(lambda n: n / 8)
logits = hnp.arrays(np.float32, (ROWS, CLASSES), elements=numbers)
indices = hnp.arrays(np.int32, ROWS, elements=st.integers(0, CLASSES - 1))
masks = hnp.arrays(np.bool_, (ROWS, CLASSES))
fractions = st.integers(0, 16).map(lambda n: n / 16)


class Scored(NamedTuple):
    value: Any
    logits: Any


@quick
def hard(z: Any, y: Any, where: Any = None, **options: Any) -> Scored:
    def total(z: Any) -> Any:
        loss = jsoftmax.cross_entropy(z, y, where=where, **options)
        return jnp.sum(jnp.where(jnp.isfinite(loss), loss, 0)), loss

    gradient, loss = jax.grad(total, has_aux=True)(z)
    return Scored(loss, gradient)


maps = quick(
    lambda z, where=None: (
        jsoftmax.softmax(z, where=where),
        jsoftmax.log_softmax(z, where=where),
        jsoftmax.logsumexp(z, where=where),
    )
)


def close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def one_hot(y: np.ndarray) -> np.ndarray:
    return (np.arange(CLASSES) == y[:, None]).astype(np.float32)


@lawful
@given(logits, indices, numbers)
def test_shift_invariance(z: np.ndarray, y: np.ndarray, shift: float):
    p, log_p, log_z = maps(z)
    close(maps(z + np.float32(64 * shift)), (p, log_p, log_z + np.float32(64 * shift)))
    close(hard(z + np.float32(64 * shift), y), hard(z, y))


@lawful
@given(logits, indices, st.permutations(range(CLASSES)))
def test_permutation_equivariance(z: np.ndarray, y: np.ndarray, order: list[int]):
    p, log_p, log_z = maps(z)
    close(maps(z[:, order]), (p[:, order], log_p[:, order], log_z))
    moved = hard(z[:, order], np.argsort(order).astype(np.int32)[y])
    close(moved, Scored(hard(z, y).value, hard(z, y).logits[:, order]))


@lawful
@given(logits, masks, indices, st.sampled_from([0.0, np.nan, np.inf, -np.inf, 3e38]))
def test_masked_is_deleted(z: np.ndarray, where: np.ndarray, y: np.ndarray, slot: float):
    """A class masked in every row against the same array without that column."""
    where = where | (np.arange(CLASSES) == y[:, None])
    gone = (y[0] + 1) % CLASSES
    y = np.where(y == gone, y[0], y)
    kept = np.arange(CLASSES) != gone
    where = np.where(kept, True, False) & (where | (np.arange(CLASSES) == y[:, None]))
    dirty = np.where(kept, z, np.float32(slot))
    found, deleted = hard(dirty, y, where), hard(z[:, kept], y - (y > gone), where[:, kept])
    close(found.value, deleted.value)
    close(found.logits[:, kept], deleted.logits)
    assert not np.asarray(found.logits)[~where].any()
    close(maps(dirty, where)[0][:, kept], maps(z[:, kept], where[:, kept])[0])
    close(maps(dirty, where)[2], maps(z[:, kept], where[:, kept])[2])


@lawful
@given(logits, masks, indices)
def test_integer_is_one_hot(z: np.ndarray, where: np.ndarray, y: np.ndarray):
    everything: dict[str, Any] = {
        "temperature": jnp.float32(0.75),
        "label_smoothing": jnp.float32(0.125),
        "z_loss": jnp.float32(0.25),
        "class_weights": jnp.arange(1.0, 1 + CLASSES),
    }
    for options in ({}, everything):
        found, soft = hard(z, y, where, **options), hard(z, one_hot(y), where, **options)
        close(found.value, soft.value, 1e-5)
        finite = np.isfinite(found.value)
        close(found.logits[finite], soft.logits[finite], 1e-5)


@lawful
@given(logits, masks)
def test_softmax_sums_to_one(z: np.ndarray, where: np.ndarray):
    p, log_p, _ = maps(z, where)
    close(jnp.sum(p, axis=-1), where.any(-1).astype(np.float32))
    close(jnp.exp(log_p), p)
    assert not np.asarray(p)[~where].any()


@lawful
@given(logits, indices)
def test_gradient_sums_to_zero(z: np.ndarray, y: np.ndarray):
    found = hard(z, y)
    close(jnp.sum(found.logits, axis=-1), np.zeros(ROWS))
    close(found.logits, maps(z)[0] - one_hot(y))


@lawful
@given(logits, indices, fractions)
def test_smoothing(z: np.ndarray, y: np.ndarray, eps: float):
    """`(1 − ε) · loss + ε · mean loss over the classes`, and the same as smoothed labels."""
    _, log_p, _ = maps(z)
    expected = (1 - eps) * hard(z, y).value - eps * jnp.mean(log_p, axis=-1)
    close(hard(z, y, label_smoothing=jnp.float32(eps)).value, expected, 1e-5)
    smoothed = losses.smooth_labels(one_hot(y), jnp.float32(eps))
    close(hard(z, smoothed).value, expected, 1e-5)


@lawful
@given(logits, indices, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_temperature_is_scaled_logits(z: np.ndarray, y: np.ndarray, t: float):
    warm, scaled = hard(z, y, temperature=jnp.float32(t)), hard(z / np.float32(t), y)
    close(warm, Scored(scaled.value, scaled.logits / np.float32(t)), 1e-5)
    per_row = hard(z, y, temperature=jnp.full(ROWS, t, jnp.float32))
    close(warm, per_row)
    transform = jsoftmax.Temperature(jnp.float32(t))
    close(warm, hard(z, y, transform=transform), 1e-5)


@lawful
@given(hnp.arrays(np.float32, 8, elements=numbers), hnp.arrays(np.float32, 8, elements=fractions))
def test_weighted_mean_adds_up_over_microbatches(values: np.ndarray, weights: np.ndarray):
    whole = jsoftmax.weighted_mean(values, weights)
    total = np.float32(weights.sum())
    parts = [
        jsoftmax.weighted_mean(values[i : i + 2], weights[i : i + 2], denominator=total)
        for i in range(0, 8, 2)
    ]
    close(sum(parts[1:], start=parts[0]), whole, 1e-5)
    true = (values.astype(float) * weights).sum() / weights.sum() if weights.any() else 0
    close(whole, true, 1e-5)


def test_weighted_mean_corners():
    mean = jsoftmax.weighted_mean
    bad = np.array([1.0, np.nan, np.inf, 3.0], np.float32)
    assert mean(bad, np.array([1, 0, 0, 1])) == 2
    assert mean(bad, np.array([True, False, False, True])) == 2
    assert np.isnan(mean(bad))
    assert mean(np.zeros((0,), np.float32)) == 0
    assert mean(bad[:1], np.zeros(1, np.float32)) == 0
    assert mean(bad[:1], denominator=0) == 0
    gradient = jax.grad(mean, (0, 1))(jnp.asarray(bad), jnp.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(gradient[0], [0.5, 0, 0, 0.5])
    assert np.isfinite(gradient[1]).all()
    nothing = jax.grad(mean)(jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(nothing, np.zeros(3))
    assert mean(np.ones((2, 3), np.float16)).dtype == jnp.float32
    shards = np.arange(4, dtype=np.float32).reshape(2, 2)
    rows = np.array([[1, 3], [2, 2]], np.float32)
    over = jax.vmap(lambda v, w: mean(v, w, axis_name="shards"), axis_name="shards")(shards, rows)
    np.testing.assert_allclose(over, np.full(2, (shards * rows).sum() / 8))


AXES = [0, -2, (0, 2), (-1, 0), (0, 1, 2)]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_any_axis_is_the_last_one(axis: Any):
    """Moved to the end and joined in the order given, with the gradient in the original layout."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    where = rng.random(x.shape) < 0.8
    axes = [a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))]
    order = [a for a in range(3) if a not in axes] + axes
    batch = tuple(x.shape[a] for a in order[: 3 - len(axes)])

    def last(a: np.ndarray) -> np.ndarray:
        return a.transpose(order).reshape(*batch, -1)

    y = rng.integers(0, last(x).shape[-1], batch)
    q = rng.dirichlet(np.ones(x.size), ()).reshape(x.shape).astype(np.float32)

    def everything(axis: Any, x: Any, where: Any, y: Any, q: Any) -> tuple[Any, ...]:
        maps = [f(x, axis, where) for f in (jsoftmax.softmax, jsoftmax.log_softmax)]
        slope = jax.grad(lambda x: jnp.sum(jsoftmax.cross_entropy(x, y, axis=axis)))(x)
        soft = losses.softmax_cross_entropy(x, q, axis)
        return *maps, slope, soft, jsoftmax.logsumexp(x, axis, where)

    ours = quick(functools.partial(everything, axis))(x, where, y, q)
    true = quick(functools.partial(everything, -1))(last(x), last(where), y, last(q))
    close([last(np.asarray(a)) for a in ours[:3]], list(true[:3]))
    close(ours[3:], true[3:])
    kept = jax.eval_shape(lambda x: jsoftmax.logsumexp(x, axis, keepdims=True), x)
    assert kept.shape == tuple(1 if a in axes else n for a, n in enumerate(x.shape))


ROWWISE = [case for case in CASES if case.output != "scalar"]


@pytest.mark.parametrize("case", ROWWISE, ids=lambda case: case.name)
def test_rows_alone_are_rows_together(case: Case):
    inputs = case.inputs()
    axes = {name: 0 if case.rowwise(name) else None for name in inputs}
    got = quick(jax.vmap(lambda given: case.call(**given), in_axes=(axes,)))(inputs)
    agree(got, truth(case).value)


# A rule of a user's own decides on its dtypes itself.
OURS = [case for case in CASES if case.name != "custom_vjp"]


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.name)
def test_sixteen_bits(case: Case):
    """The result of the rounded inputs in float32; the gradient in the dtype of its input."""
    inputs = case.inputs()
    first = next(iter(case.draws))
    rounded = jnp.asarray(inputs.pop(first), jnp.bfloat16)

    def run(x: Any, others: Any) -> tuple[Any, Any]:
        def phi(x: Any) -> tuple[Any, Any]:
            out = case.call(**others, **{first: x})
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), out)
            return weigh(wide, cotangents(case)), out

        gradient, out = jax.grad(phi, has_aux=True)(x)
        return out, gradient

    got, slope = quick(run)(rounded, inputs)
    true = truth(case, inputs | {first: np.asarray(rounded, np.float32)})
    maps = (
        "softmax",
        "log_softmax",
        "logsumexp",
        "sparsemax",
        "entmax",
        "entmax_traced",
        "gumbel_softmax",
        "reinmax",
        "smooth_labels",
    )
    assert jax.tree.leaves(got)[0].dtype == (jnp.bfloat16 if case.name in maps else jnp.float32)
    assert slope.dtype == jnp.bfloat16
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    agree(got, true.value, eps if case.name in maps else 1e-5)
    names = sorted(case.floats(case.inputs()))
    start = sum(case.inputs()[name].size for name in names[: names.index(first)])
    gradient = cotangent(case) @ true.jacobian
    agree(slope, gradient[start : start + slope.size], eps)
