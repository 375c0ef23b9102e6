"""Cross-entropy and row statistics of `hidden @ kernel`: what the conformance table does not say."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jsoftmax
from jsoftmax.linear import chunked, linear_cross_entropy, linear_row_stats
from tests.linear_problem import CLASSES, FEATURES, close, dense, draw


def floats(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    moving = {k: x for k, x in tree.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return moving, {k: x for k, x in tree.items() if k not in moving}


OPTIONS: dict[str, Any] = {
    "bias": lambda rng, n: rng.standard_normal(CLASSES),
    "temperature": lambda rng, n: rng.uniform(0.5, 2, n),
    "softcap": lambda rng, n: np.asarray(rng.uniform(1, 4)),
    "label_smoothing": lambda rng, n: np.asarray(rng.uniform(0, 0.5)),
    "z_loss": lambda rng, n: np.asarray(rng.uniform(0, 0.5)),
    "class_weights": lambda rng, n: rng.uniform(0.5, 2, CLASSES),
    "weights": lambda rng, n: rng.uniform(0, 2, n),
}

COMBINATIONS = given(
    chosen=st.sets(st.sampled_from(sorted(OPTIONS))),
    soft=st.booleans(),
    mask=st.sampled_from([None, (CLASSES,), (7, 1), (7, CLASSES)]),
    prior=st.booleans(),
    chunk_size=st.sampled_from([1, 3, 7]),
    seed=st.integers(0, 99),
)


def equals_dense(chosen: set[str], soft: bool, mask: Any, prior: bool, chunk_size: int, seed: int):
    rng = np.random.default_rng(seed)
    given = draw((7,), seed) | {k: OPTIONS[k](rng, 7).astype(np.float32) for k in chosen}
    if soft:
        given["labels"] = rng.dirichlet(np.ones(CLASSES), 7).astype(np.float32)
    if prior:
        given["scale"] = rng.uniform(0.5, 2, 7).astype(np.float32)
        given["log_prior"] = rng.standard_normal(CLASSES).astype(np.float32)
    more: dict[str, Any] = {} if soft else {"ignore_index": 2}
    if mask is not None:
        more["where"] = rng.random(mask) < 0.7
    moving, fixed = floats(given)
    by = rng.standard_normal(7).astype(np.float32)

    def weighed(function: Any, moving: Any) -> Any:
        moving = dict(moving)
        if prior:
            adjustment = jsoftmax.LogitAdjustment(moving.pop("log_prior"), moving.pop("scale"))
            moving["transform"] = adjustment
        loss = function(**moving, **fixed, **more)
        # Mass on a masked class costs +inf in both.
        return jnp.sum(by * jnp.where(jnp.isfinite(loss), loss, 0)), jnp.isinf(loss)

    def rows(**given: Any) -> Any:
        return linear_cross_entropy(reduction="none", chunk_size=chunk_size, **given)

    got, expected = (
        jax.jit(jax.value_and_grad(functools.partial(weighed, f), has_aux=True))(moving)
        for f in (rows, dense)
    )
    np.testing.assert_array_equal(got[0][1], expected[0][1])
    close((got[0][0], got[1]), (expected[0][0], expected[1]))


@pytest.mark.thin(2)
@pytest.mark.parametrize("mask", [None, (CLASSES,), (7, 1), (7, CLASSES)], ids=str)
def test_everything_at_once(mask: Any):
    equals_dense(set(OPTIONS), soft=mask == (7, 1), mask=mask, prior=True, chunk_size=3, seed=0)


@pytest.mark.slow
@settings(max_examples=60)
@COMBINATIONS
def test_equals_dense(**drawn: Any):
    equals_dense(**drawn)


def mean(**given: Any) -> jax.Array:
    return linear_cross_entropy(chunk_size=4, ignore_index=1, **given)


def dense_mean(**given: Any) -> jax.Array:
    counting = given["labels"] != 1
    loss = dense(**(given | {"weights": None}), ignore_index=1)
    return jsoftmax.weighted_mean(loss, jnp.where(counting, given["weights"], 0))


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "order",
    [
        "jvp",
        "forward-reverse",
        pytest.param("reverse-forward", marks=pytest.mark.slow),
        "reverse-reverse",
    ],
)
def test_ad_modes(order: str):
    """Over chunks that come out uneven, in all arguments at once."""
    weights = np.linspace(0.5, 2, 10, dtype=np.float32).reshape(2, 5)
    moving, fixed = floats(draw((2, 5)) | {"weights": weights, "z_loss": np.float32(0.1)})
    along = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape), moving)

    def run(function: Any) -> Any:
        def f(x: Any) -> Any:
            return function(**x, **fixed)

        def slope(x: Any) -> Any:
            return jax.jvp(f, (x,), (along,))[1]

        def reversed_slope(x: Any) -> Any:
            parts = jax.tree.map(lambda g, t: jnp.sum(g * t), jax.grad(f)(x), along)
            return sum(jax.tree.leaves(parts))

        return {
            "jvp": slope,
            "forward-reverse": lambda x: jax.jvp(jax.grad(f), (x,), (along,))[1],
            "reverse-forward": jax.grad(slope),
            "reverse-reverse": jax.grad(reversed_slope),
        }[order]

    close(jax.jit(run(mean))(moving), jax.jit(run(dense_mean))(moving), 1e-4)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("rows", "classes"), [((0,), 5), ((), 5), ((2, 3), 5), ((4,), 1)], ids=str)
def test_shapes(rows: tuple[int, ...], classes: int, reduction: str):
    hidden = np.ones((*rows, FEATURES), np.float32)
    kernel, labels = np.zeros((FEATURES, classes), np.float32), np.zeros(rows, np.int32)

    def loss(hidden: Any, kernel: Any) -> Any:
        return linear_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=3)

    each = np.full(rows, np.log(classes), np.float32)
    expected = {"mean": each.mean() if each.size else 0.0, "none": each}[reduction]
    np.testing.assert_allclose(loss(hidden, kernel), expected, rtol=1e-6)
    d_hidden, d_kernel = jax.grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(hidden, kernel)
    assert d_hidden.shape == hidden.shape
    assert not d_hidden.any()
    if classes > 1 and each.size:
        assert d_kernel[0, 0] < 0 < d_kernel[0, 1]
    else:
        assert not d_kernel.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_teacher_of_another_width(reduction: str):
    given = draw((7,))
    rng = np.random.default_rng(1)
    taught = (
        rng.standard_normal((7, 4)).astype(np.float32),
        rng.standard_normal((4, 5)).astype(np.float32),
    )

    def loss(h: Any, k: Any, teacher: Any) -> Any:
        return linear_cross_entropy(h, k, teacher, reduction=reduction, chunk_size=2)

    def whole(h: Any, k: Any, teacher: Any) -> Any:
        rows = dense(h, k, jax.nn.softmax(jnp.matmul(*teacher)))
        return jnp.mean(rows) if reduction == "mean" else jnp.sum(rows)

    operands = (given["hidden"], given["kernel"], taught)
    got, expected = (jax.value_and_grad(f, (0, 1, 2))(*operands) for f in (loss, whole))
    close(got, expected)


@pytest.mark.parametrize("rows", [7, 600])
@pytest.mark.parametrize(
    ("reduction", "denominator"), [("mean", None), ("mean", np.float32(3)), ("sum", None)]
)
def test_sums_by_default(rows: int, reduction: str, denominator: Any):
    """In as many chunks of rows as the rule says."""
    given = draw((rows,)) | {"bias": np.linspace(-1, 1, CLASSES, dtype=np.float32)}
    weights = np.linspace(0.5, 2, rows, dtype=np.float32)
    moving, fixed = floats(given | {"weights": weights, "z_loss": np.float32(0.1)})

    options: dict[str, Any] = {"reduction": reduction, "denominator": denominator}

    def loss(x: Any) -> Any:
        return linear_cross_entropy(**x, **fixed, ignore_index=1, **options)

    def whole(x: Any) -> Any:
        total = jnp.sum(dense(**x, **fixed, ignore_index=1))
        counted = jnp.sum(jnp.where(fixed["labels"] != 1, x["weights"], 0))
        return total if reduction == "sum" else total / (denominator or counted)

    close(jax.value_and_grad(loss)(moving), jax.value_and_grad(whole)(moving))


@pytest.mark.parametrize("size", [10, 5, 3, 2, 1])
def test_few_chunks_and_many(size: int):
    """A first chunk that goes ahead of the others, up to four, and none that does."""
    moving, fixed = floats(draw((10,)))

    def loss(x: Any) -> Any:
        return linear_cross_entropy(**x, **fixed, chunk_size=size)

    close(jax.value_and_grad(loss)(moving),
          jax.value_and_grad(lambda x: jnp.mean(dense(**x, **fixed)))(moving))  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits(dtype: Any):
    """The gradient of the kernel is that of float32, rounded, over many small chunks."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((256, 8)), dtype)
    kernel = jnp.asarray(rng.standard_normal((8, 16)), dtype)
    labels = jnp.asarray(rng.integers(0, 16, 256))

    def loss(h: Any, k: Any) -> Any:
        # A dtype to sum in asks for rows: classes are walked over by default.
        return linear_cross_entropy(h, k, labels, chunk_size=4, accum_dtype=jnp.float32)

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, kernel)
    wide = jax.value_and_grad(lambda h, k: jnp.mean(dense(h, k, labels)), (0, 1))
    true, true_gradients = wide(hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    assert value.dtype == jnp.float32
    assert gradients[1].dtype == dtype
    np.testing.assert_allclose(value, true, rtol=1e-6)
    for got, expected in zip(gradients, true_gradients, strict=True):
        scale = float(jnp.max(jnp.abs(expected)))
        error = np.abs(np.asarray(got, np.float32) - np.asarray(expected)).max() / scale
        assert error < 2 * float(jnp.finfo(dtype).eps)


def test_statistics():
    given = draw((2, 4))
    z = given["hidden"] @ given["kernel"]
    got = linear_row_stats(**given, chunk_size=3)
    close(got, jsoftmax.row_stats(z, given["labels"]), 1e-5)
    some = linear_row_stats(**given, statistics=("entropy",))
    assert some.nll is None
    assert some.entropy is not None


def test_statistics_can_be_differentiated():
    given = draw((5,))

    def f(make: Any) -> Any:
        def loss(hidden: Any) -> Any:
            stats = make(hidden)
            return jnp.sum(stats.nll * stats.entropy + jnp.where(stats.correct, stats.nll, 0))

        return jax.grad(loss)(given["hidden"])

    rest = given["kernel"], given["labels"]
    close(
        f(lambda h: linear_row_stats(h, *rest, chunk_size=2)),
        f(lambda h: jsoftmax.row_stats(h @ rest[0], rest[1])),
    )


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_chunked(reduction: str):
    """A loss of one's own, with an argument per row and one for all."""
    given = draw((7,))
    targets = np.cos(np.arange(7, dtype=np.float32))

    def loss(logits: Any, targets: Any, scale: Any) -> Any:
        return jnp.square(jnp.tanh(scale * logits).sum(axis=-1) - targets)

    walked = chunked(loss, reduction=reduction, chunk_size=3)

    def by_chunks(h: Any, k: Any, t: Any, s: Any) -> Any:
        return jnp.sum(walked(h, k, t, scale=s))

    def whole(h: Any, k: Any, t: Any, s: Any) -> Any:
        return jnp.sum(loss(h @ k, t, s))

    operands = given["hidden"], given["kernel"], targets, np.float32(0.7)
    every = (0, 1, 2, 3)
    close(jax.value_and_grad(by_chunks, every)(*operands), jax.value_and_grad(whole, every)(*operands))


def test_numbers_do_not_retrace():
    given = draw((6,))
    traces = 0

    def step(temperature: Any, z_loss: Any) -> Any:
        nonlocal traces
        traces += 1
        return linear_cross_entropy(**given, temperature=temperature, z_loss=z_loss)

    compiled = jax.jit(step)
    assert compiled(1.5, 0.1) != compiled(2.5, 0.2)
    assert traces == 1
