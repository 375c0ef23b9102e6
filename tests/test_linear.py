"""Cross-entropy and row statistics of `hidden @ kernel`: what the conformance table does not say."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jsoftmax
from jsoftmax.linear import chunked, linear_cross_entropy, linear_row_stats

FEATURES, CLASSES = 3, 5


def draw(rows: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "hidden": rng.standard_normal((*rows, FEATURES)).astype(np.float32),
        "kernel": rng.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, rows).astype(np.int32),
    }


def floats(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    moving = {k: x for k, x in tree.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return moving, {k: x for k, x in tree.items() if k not in moving}


def dense(
    hidden: Any,
    kernel: Any,
    labels: Any,
    bias: Any = 0.0,
    weights: Any = None,
    ignore_index: int | None = None,
    **options: Any,
) -> jax.Array:
    z = hidden @ kernel + bias
    loss = jsoftmax.cross_entropy(z, labels, ignore_index=ignore_index, **options)
    return loss if weights is None else weights * loss


def close(got: Any, expected: Any, rtol: float = 2e-5) -> None:
    scale = max(1.0, *(float(jnp.max(jnp.abs(x), initial=0)) for x in jax.tree.leaves(expected)))
    chex.assert_trees_all_close(got, expected, rtol=rtol, atol=rtol * scale)


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


@pytest.mark.parametrize("mask", [None, (CLASSES,), (7, 1), (7, CLASSES)], ids=str)
def test_everything_at_once(mask: Any):
    equals_dense(set(OPTIONS), soft=mask == (7, 1), mask=mask, prior=True, chunk_size=3, seed=0)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@COMBINATIONS
def test_equals_dense(**drawn: Any):
    equals_dense(**drawn)


def mean(**given: Any) -> jax.Array:
    return linear_cross_entropy(chunk_size=4, ignore_index=1, **given)


def dense_mean(**given: Any) -> jax.Array:
    counting = given["labels"] != 1
    loss = dense(**(given | {"weights": None}), ignore_index=1)
    return jsoftmax.weighted_mean(loss, jnp.where(counting, given["weights"], 0))


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


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_may_hold_anything(reduction: str):
    given = draw((5,))
    given["labels"] = np.array([0, -100, 2, 3, -100], np.int32)
    given["hidden"][[1, 4]] = np.nan

    def loss(hidden: Any, kernel: Any) -> Any:
        return linear_cross_entropy(
            hidden, kernel, given["labels"], ignore_index=-100, reduction=reduction, chunk_size=3
        )

    def kept(hidden: Any, kernel: Any) -> Any:
        rows = jsoftmax.cross_entropy(hidden[jnp.array([0, 2, 3])] @ kernel, jnp.array([0, 2, 3]))
        return jnp.mean(rows) if reduction == "mean" else jnp.sum(rows)

    operands = given["hidden"], given["kernel"]
    got = jax.value_and_grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(*operands)
    expected = jax.value_and_grad(kept, (0, 1))(*operands)
    close(got, expected)


def test_everything_ignored():
    given = draw((3,)) | {"labels": np.full(3, -1, np.int32)}

    def loss(hidden: Any) -> Any:
        return linear_cross_entropy(hidden, given["kernel"], given["labels"], ignore_index=-1)

    value, gradient = jax.value_and_grad(loss)(given["hidden"])
    assert value == 0
    assert not gradient.any()


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
    assert (
        temp_bytes(lambda h, k, y: linear_cross_entropy(h, k, (h, k), chunk_size=16))
        < 6 * CHUNK[walked]
    )


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_of_no_class(label: int):
    given = draw((5,))
    given["labels"][3] = label

    def loss(hidden: Any, kernel: Any) -> Any:
        return linear_cross_entropy(hidden, kernel, given["labels"], reduction="none", chunk_size=2)

    operands = given["hidden"], given["kernel"]
    np.testing.assert_array_equal(np.isnan(loss(*operands)), np.arange(5) == 3)
    d_hidden, d_kernel = jax.grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(*operands)
    np.testing.assert_array_equal(np.isnan(d_hidden), np.arange(5)[:, None].repeat(3, 1) == 3)
    assert np.isnan(d_kernel).all()
    total = jax.grad(lambda h: linear_cross_entropy(h, operands[1], given["labels"]))(operands[0])
    assert np.isnan(total[3]).all()
    assert np.isfinite(total[0]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits(dtype: Any):
    """The gradient of the kernel is that of float32, rounded, over many small chunks."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((256, 8)), dtype)
    kernel = jnp.asarray(rng.standard_normal((8, 16)), dtype)
    labels = jnp.asarray(rng.integers(0, 16, 256))

    def loss(h: Any, k: Any) -> Any:
        return linear_cross_entropy(h, k, labels, chunk_size=4)

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


ROWS_BIG, FEATURES_BIG, CLASSES_BIG = 512, 32, 8192


def temp_bytes(function: Any) -> int:
    shapes = [(ROWS_BIG, FEATURES_BIG), (FEATURES_BIG, CLASSES_BIG)]
    operands = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    labels = jax.ShapeDtypeStruct((ROWS_BIG,), jnp.int32)
    analysis = jax.jit(function).lower(*operands, labels).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def naive(h: Any, k: Any, y: Any) -> Any:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ k, y))


def walked(h: Any, k: Any, y: Any) -> Any:
    return linear_cross_entropy(h, k, y, chunk_size=16)


def walked_rows(h: Any, k: Any, y: Any) -> Any:
    rows = linear_cross_entropy(h, k, y, chunk_size=64, reduction="none")
    return jnp.sum(rows * jnp.arange(ROWS_BIG, dtype=jnp.float32))


# What the logits of a chunk take, of 16 rows or of 64 classes.
CHUNK = {walked: 16 * CLASSES_BIG * 4, walked_rows: ROWS_BIG * 64 * 4}
KERNEL = FEATURES_BIG * CLASSES_BIG * 4


@pytest.mark.parametrize("loss", [walked, walked_rows])
def test_memory_is_that_of_a_chunk(loss: Any):
    chunk = CHUNK[loss]
    gradient = temp_bytes(jax.value_and_grad(loss, (0, 1)))
    tied = temp_bytes(jax.value_and_grad(lambda h, e, y: loss(h, e.reshape(CLASSES_BIG, -1).T, y), 0))

    def curvature(h: Any, k: Any, y: Any) -> Any:
        return jax.jvp(lambda k: jax.grad(loss, 1)(h, k, y), (k,), (k,))[1]

    def twice(h: Any, k: Any, y: Any) -> Any:
        return jax.grad(lambda k: jnp.sum(k * jax.grad(loss, 1)(h, k, y)))(k)

    assert temp_bytes(loss) < 3 * chunk
    assert gradient < 3 * chunk < temp_bytes(jax.value_and_grad(naive, (0, 1))) / 10
    assert tied < 3 * chunk + 2 * KERNEL
    assert temp_bytes(curvature) < 12 * chunk + 4 * KERNEL
    assert temp_bytes(twice) < 12 * chunk + 6 * KERNEL


def test_rows_take_a_thirtieth_of_the_logits():
    """By default, at the smallest of the sizes that are measured."""
    shapes = ((1024, 64), (64, 32_000))
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((1024,), jnp.int32)

    def loss(h: Any, k: Any, y: Any) -> Any:
        return jnp.sum(jnp.sin(linear_cross_entropy(h, k, y, reduction="none")))

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands, labels).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 2 * 1024 * 32_000 * 4 / 30


H, K, Y = (draw((4,))[name] for name in ("hidden", "kernel", "labels"))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (
            (H, K.T, Y),
            {},
            ValueError,
            "linear_cross_entropy: kernel must have shape [features, classes] = [3, classes] to match "
            "hidden [4, 3], got [5, 3]; transpose it.",
        ),
        (
            (H, K, Y[:, None]),
            {},
            ValueError,
            "linear_cross_entropy: labels must have shape [*batch] = [4] to match hidden [4, 3] and "
            "kernel [3, 5], got [4, 1]; class indices have no class axis, squeeze the last one.",
        ),
        (
            (H, K, Y),
            {"bias": H},
            ValueError,
            "linear_cross_entropy: bias must have shape [classes] = [5], got [4, 3]; one value each.",
        ),
        (
            (H, K, Y),
            {"reduction": "max"},
            ValueError,
            "linear_cross_entropy: reduction must be one of 'mean', 'sum', 'none', got 'max'; "
            "check the spelling.",
        ),
        (
            (H, K, Y),
            {"weights": K},
            ValueError,
            "linear_cross_entropy: weights must have shape [*batch] = [4] to match hidden [4, 3], got "
            "[3, 5]; broadcast them explicitly.",
        ),
        (
            (H, K, Y),
            {"reduction": "sum", "denominator": 3.0},
            ValueError,
            "linear_cross_entropy: denominator must be None for reduction 'sum', got 3.0; divide the "
            "result.",
        ),
        (
            (H, K, Y),
            {"chunk_size": 0},
            ValueError,
            "linear_cross_entropy: chunk_size must be at least 1, got 0; choose a value in range.",
        ),
        (
            (H, K, Y),
            {"accum_dtype": jnp.int32},
            TypeError,
            "linear_cross_entropy: accum_dtype must be a floating dtype, got int32; leave it out for "
            "float32.",
        ),
        (
            (H, K, (H, K[:, :4])),
            {},
            ValueError,
            "linear_cross_entropy: labels must have shapes [*batch, features] = [4, 3] and [features, "
            "classes] = [3, 5] to match hidden [4, 3] and kernel [3, 5], got [4, 3] and [3, 4]; "
            "teacher and student share rows and classes.",
        ),
        (
            (H, K, (H, K, K)),
            {},
            ValueError,
            "linear_cross_entropy: labels must be one array or a teacher's (hidden, kernel), got 3 "
            "values; leave out the bias, or add it as a column of the kernel.",
        ),
        (
            (H, K, (Y, K)),
            {},
            TypeError,
            "linear_cross_entropy: labels[0] must have a floating dtype, got int32; convert with "
            "labels[0].astype(jnp.float32).",
        ),
        (
            (H, K, (H, K)),
            {"ignore_index": 0},
            ValueError,
            "linear_cross_entropy: ignore_index must be None for labels that are distributions, got 0; "
            "leave rows out with weighted_mean(losses, weights).",
        ),
    ],
    ids=[
        "kernel",
        "labels",
        "bias",
        "reduction",
        "weights",
        "denominator",
        "chunk",
        "accum",
        "teacher",
        "three",
        "teacher's dtype",
        "teacher ignored",
    ],
)
def test_errors(arguments: Any, options: Any, error: type[Exception], text: str):
    with pytest.raises(error) as raised:
        linear_cross_entropy(*arguments, **options)
    assert str(raised.value) == text


INF = np.inf
BIASES = {
    "one impossible": [0, -INF, 1, 0, -INF],
    "first block impossible": [-INF, -INF, 3, 1, 2],
    "last block impossible": [3, 1, 2, -INF, -INF],
    "all impossible": [-INF] * 5,
    "one certain": [0, INF, 0, 0, -INF],
    "two certain": [INF, 0, 0, 0, INF],
    "nan": [0, 0, 0, np.nan, 0],
    "large offset": [1e6] * 5,
}


@pytest.mark.parametrize("mask", [None, [[True] * 5, [False] * 5, [True, False, True, True, False]]])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "label_smoothing": 0.2, "z_loss": 0.1}])
def test_special_values_as_dense(options: Any, soft: bool, mask: Any):
    """Two classes a block: what is special lies in one block, and the label in another."""
    rng = np.random.default_rng(0)
    h, k = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, 2), (2, 5)))
    labels = jnp.asarray(rng.dirichlet(np.ones(5), 3), jnp.float32) if soft else jnp.array([0, 4, 3])
    where = None if mask is None else jnp.asarray(mask)
    by = jnp.array([1.0, -2.0, 3.0])

    def blocks(h: Any, k: Any, b: Any) -> Any:
        loss = linear_cross_entropy(
            h, k, labels, bias=b, where=where, reduction="none", chunk_size=2, **options
        )
        return jnp.dot(by, loss), loss

    def dense(h: Any, k: Any, b: Any) -> Any:
        loss = jsoftmax.cross_entropy(h @ k + b, labels, where=where, **options)
        return jnp.dot(by, loss), loss

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True)) for f in (blocks, dense))
    for name, bias in BIASES.items():
        b = jnp.asarray(bias, jnp.float32)
        pairs = zip(jax.tree.leaves(got(h, k, b)), jax.tree.leaves(expected(h, k, b)), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5, err_msg=name)
