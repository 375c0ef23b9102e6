"""sparsemax, entmax and their losses against extended precision, and on special values."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import jsoftmax
from jsoftmax import losses
from tests.oracles import entmax as oracle
from tests.special_values import COTANGENT, INF, LOGITS, NAN, Line
from tests.truth import x64

ALPHAS = (1.25, 1.5, 2.0)
OTHERS = (1.0, 1.05, 1.3, 4 / 3, 1.8, 2.5, 4.0)


def draws(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "normal": rng.standard_normal((16, 10)),
        "normal, 1000 classes": 3 * rng.standard_normal((8, 1000)),
        "offset 1e6": 1e6 + rng.standard_normal((16, 10)),
        "offset −1e4": -1e4 + rng.standard_normal((8, 1000)),
        "ties": rng.integers(0, 3, (16, 50)) * 0.4,
        "wide": rng.uniform(-80, 80, (16, 100)),
        "heavy tails": rng.standard_t(1.5, (8, 600)),
        "largest": 3e38 * rng.choice([-1.0, 0.0, 1.0], (8, 10)),
        "one far ahead of many": np.pad(
            np.full((2, 1), 0.77), ((0, 0), (0, 4999)), constant_values=0.13
        ),
    }


def agree(got: Any, z: np.ndarray, alpha: float) -> None:
    true = oracle.rows(z, alpha)
    found = np.asarray(got, np.longdouble)
    assert np.max(np.abs(found - true)) <= 2.5e-7
    assert np.max(np.abs(found.sum(-1) - 1)) <= 1e-6
    # What rounds to 0 in float32, or is there but for the rounding of a boundary, may be either.
    certain = (true == 0) | (true > 1e-9)
    assert ((found > 0) == (true > 0))[certain].all()


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", draws(np.random.default_rng(0)))
@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
def test_accuracy(name: str, traced: bool):
    z = draws(np.random.default_rng(7))[name].astype(np.float32)
    for alpha in ALPHAS + OTHERS if traced else ALPHAS:
        given = jnp.float32(alpha) if traced else alpha
        agree(jsoftmax.entmax(z, given), z, float(np.float32(alpha)) if traced else alpha)
    agree(jsoftmax.sparsemax(z), z, 2.0)


@pytest.mark.thin(2)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("offset", [0.0, 1.3, 1e6])
def test_constant_rows_of_many_classes(alpha: float, offset: float):
    z = np.full((2, 32000), offset, np.float32)
    np.testing.assert_allclose(jsoftmax.entmax(z, alpha), 1 / 32000, 1e-6)
    z[:, 7] += 0.5
    agree(jsoftmax.entmax(z, alpha), z, alpha)


@pytest.mark.parametrize("n", range(1, 9))
def test_one_long_row_sums_to_one(n: int):
    """XLA:CPU sums products of a single row as a dot product, with two digits fewer."""
    p = np.asarray(jsoftmax.entmax(np.full((1, 5000), 1.3, np.float32), 1 + 1 / n), np.float64)
    np.testing.assert_allclose(p.sum(), 1, 0, 1e-6)


def test_chunks_of_rows_are_as_rows_alone():
    """More numbers than a chunk holds, and a number of rows that is no multiple of its size."""
    z = np.random.default_rng(1).standard_normal((1123, 1000)).astype(np.float32)
    alpha = 1.5
    whole = np.asarray(jsoftmax.entmax(z, alpha))
    parts = [np.asarray(jsoftmax.entmax(z[i : i + 100], alpha)) for i in range(0, 1123, 100)]
    np.testing.assert_allclose(whole, np.concatenate(parts), 0, 2e-7)
    labels = np.arange(1123, dtype=np.int32) % 1000
    loss, pull = jax.vjp(functools.partial(losses.entmax_loss, labels=labels, alpha=alpha), z)
    (slope,) = pull(jnp.ones(1123))
    rows = losses.entmax_loss(z[200:300], labels[200:300], alpha)
    np.testing.assert_allclose(loss[200:300], rows, 1e-6)
    np.testing.assert_allclose(slope, whole - np.eye(1000)[labels], 0, 1e-6)


def test_alpha_one_is_softmax_and_infinity_argmax():
    z = np.random.default_rng(2).standard_normal((5, 9)).astype(np.float32)
    np.testing.assert_array_equal(jsoftmax.entmax(z, 1.0), jsoftmax.softmax(z))
    np.testing.assert_allclose(jsoftmax.entmax(z, jnp.float32(1)), jsoftmax.softmax(z), 2e-6)
    hard = np.eye(9)[z.argmax(-1)]
    np.testing.assert_allclose(jsoftmax.entmax(z, 200.0), hard, 0, 1e-6)
    np.testing.assert_array_equal(jsoftmax.entmax(z, np.inf), hard)
    ties = np.array([1.0, 3.0, 3.0], np.float32)
    np.testing.assert_allclose(jsoftmax.entmax(ties, jnp.float32(np.inf)), [0, 0.5, 0.5])


def test_alpha_below_one():
    z = np.zeros((2, 3), np.float32)
    got = jsoftmax.entmax(z, jnp.array([0.9, 1.5]))
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()
    slope = jax.grad(lambda z: jsoftmax.entmax(z, jnp.array([0.9, 1.5]))[:, 0].sum())(z)
    assert np.isnan(slope[0]).all()
    assert np.isfinite(slope[1]).all()


@pytest.mark.parametrize(
    "alpha", [pytest.param(a, marks=pytest.mark.slow) for a in (1.25, 1.5, 1.7, 2.0, 2.6)]
)
def test_check_grads(alpha: float):
    """In float64, away from kinks, in both modes and to second order; α and T with the scores."""
    with x64():
        z = jnp.asarray([[0.3, 0.0, -0.25, -9.0], [0.1, 0.5, 0.45, 0.2]])
        t = jnp.asarray(0.9)
        known = functools.partial(jsoftmax.entmax, alpha=alpha)
        check_grads(lambda z, t: known(z, temperature=t), (z, t), 2, atol=1e-5, rtol=1e-5, eps=1e-5)
        each = jnp.asarray([alpha, alpha + 0.05])
        traced = jsoftmax.entmax
        check_grads(lambda z, a: traced(z, a), (z, each), 2, atol=2e-5, rtol=2e-5, eps=1e-5)
        y = jnp.asarray([2, 1])
        check_grads(
            lambda z, a: losses.entmax_loss(z, y, a), (z, each), 2, atol=2e-5, rtol=2e-5, eps=1e-5
        )


def test_kink_has_the_derivative_of_the_outside():
    """The second class is just at the threshold: moving it up alone would let it in."""
    z = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(jsoftmax.sparsemax(z), [1, 0])
    np.testing.assert_array_equal(jax.jacrev(jsoftmax.sparsemax)(z), np.zeros((2, 2)))


# ---- losses ----


@pytest.mark.thin(3)
@pytest.mark.parametrize("alpha", [1.0, *ALPHAS])
def test_losses(alpha: float):
    losses_agree(alpha, alpha, alpha)


def test_losses_of_a_traced_alpha():
    for alpha in (*ALPHAS, 1.0, 2.5):
        losses_agree(alpha, jnp.float32(alpha), float(np.float32(alpha)))


def losses_agree(alpha: float, given: Any, true_alpha: float) -> None:
    rng = np.random.default_rng(3)
    z = (1.5 * rng.standard_normal((40, 7))).astype(np.float32)
    y = rng.integers(0, 7, 40).astype(np.int32)
    q = rng.dirichlet(np.full(7, 0.7), 40).astype(np.float32)
    p = oracle.rows(z, true_alpha)
    for labels, rows in ((y, np.eye(7)[y]), (q, q / q.sum(-1, keepdims=True, dtype=np.longdouble))):
        loss, pull = jax.vjp(
            functools.partial(losses.fenchel_young_loss, labels=labels, alpha=given), z
        )
        np.testing.assert_allclose(loss, oracle.loss(z, rows, true_alpha).astype(float), 2e-6, 5e-7)
        np.testing.assert_allclose(pull(jnp.ones(40))[0], (p - rows).astype(float), 0, 3e-7)
    own = oracle.negentropy(q, true_alpha).astype(float)
    gap = losses.fenchel_young_loss(z, q, given) - losses.entmax_loss(z, q, given)
    np.testing.assert_allclose(gap, own, 2e-6, 1e-6)
    if alpha == 1:
        np.testing.assert_allclose(
            losses.entmax_loss(z, y, given), jsoftmax.cross_entropy(z, y), 2e-6, 1e-12
        )


def test_small_losses_keep_their_digits():
    """Two classes, α = 2: the loss is ε² for the gap 1 − 2ε."""
    gap = np.array([0.9999, 0.999, 0.5], np.float32)
    z = np.stack([gap, np.zeros(3, np.float32)], -1) + np.float32(0)
    true = ((1 - gap.astype(np.longdouble)) / 2) ** 2
    got = losses.multiclass_sparsemax_loss(z, np.zeros(3, np.int32))
    np.testing.assert_allclose(got, true.astype(float), 2e-6)
    far = losses.multiclass_sparsemax_loss(z + np.float32(1024), np.zeros(3, np.int32))
    assert (np.asarray(far) >= 0).all()


def test_loss_is_zero_exactly_at_the_margin():
    for alpha in ALPHAS:
        gap = np.array([0.99, 1.0, 3.0], np.float32) / np.float32(alpha - 1)
        z = np.stack([gap, np.zeros(3, np.float32)], -1)
        stats = losses.entmax_stats(z, np.zeros(3, np.int32), alpha)
        assert float(stats.loss[0]) > 0
        np.testing.assert_array_equal(stats.loss[1:], [0, 0])
        np.testing.assert_array_equal(stats.support_size, [2, 1, 1])
        np.testing.assert_allclose(stats.margin, gap)


def test_label_policy():
    z = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32)
    z[1] = NAN
    for name in ("entmax_loss", "fenchel_young_loss"):
        for kind in (np.int8, np.int32, np.uint8):
            y = np.array([0, 99, 3, 255 if kind is np.uint8 else -1]).astype(kind)

            def total(z: Any, y: Any = y, name: str = name) -> tuple[Any, Any]:
                rows = getattr(losses, name)(z, y, jnp.float32(1.5), ignore_index=99)
                return rows.sum(), rows

            slope, rows = jax.grad(total, has_aux=True)(z)
            assert np.isfinite(rows[0])
            assert rows[1] == 0
            assert np.isnan(rows[2:]).all()
            assert np.isfinite(slope[0]).all()
            assert not slope[1].any()
            assert np.isnan(slope[2:]).all()


def test_binary_labels():
    z = jnp.array([-INF, -1.0, 0.5, INF])
    np.testing.assert_allclose(losses.sparsemax_loss(z, jnp.ones(4)), [INF, 1, 0.0625, 0])
    np.testing.assert_allclose(losses.sparsemax_loss(z, jnp.zeros(4, bool)), [0, 0, 0.5625, INF])
    loss, slope = jax.value_and_grad(lambda z: losses.sparsemax_loss(z, 2).sum())(z)
    assert np.isnan(loss)
    assert np.isnan(slope).all()


@settings(max_examples=6)
@given(st.integers(0, 2**31), st.sampled_from([1.2, 1.5, 2.0, 3.0]))
def test_laws(seed: int, alpha: float):
    """Shifts change nothing, order is kept, masked is deleted, and a loss is 0 only at its labels."""
    rng = np.random.default_rng(seed)
    # Of so many digits that a shift rounds none: for α = 3 a rounding may show sixfold.
    z = (np.round(rng.standard_normal((3, 6)) * 2**17) / 2**16).astype(np.float32)
    p = np.asarray(jsoftmax.entmax(z, alpha))
    np.testing.assert_allclose(jsoftmax.entmax(z + np.float32(8), alpha), p, 0, 2e-7)
    order = np.argsort(z, -1)
    assert (np.diff(np.take_along_axis(p, order, -1), axis=-1) >= 0).all()
    keep = rng.random(6) < 0.6
    keep[0] = True
    hidden = np.where(keep, z, NAN).astype(np.float32)
    masked = np.asarray(jsoftmax.entmax(hidden, alpha, where=keep))
    assert not masked[:, ~keep].any()
    np.testing.assert_allclose(masked[:, keep], jsoftmax.entmax(z[:, keep], alpha), 0, 2e-7)
    np.testing.assert_allclose(losses.fenchel_young_loss(z, p, alpha), 0, atol=3e-7)
    q = rng.dirichlet(np.ones(6), 3).astype(np.float32)
    assert (np.asarray(losses.fenchel_young_loss(z, q, alpha)) >= 0).all()


# ---- special values ----


def expected(line: Line, alpha: float) -> np.ndarray:
    """The probabilities of a line of the golden table, by the limits that it is about."""
    if not line.clean:
        return np.full(3, NAN)
    z = np.where(line.where, np.array(line.logits), -INF)
    if (z == -INF).all():
        return np.zeros(3)
    if (z == INF).any() or line.temperature == 0:
        best = z == z.max()
        return best / best.sum()
    inside = z > -INF
    p = np.zeros(3)
    p[inside] = oracle.rows(z[inside][None] / line.temperature, alpha)[0].astype(float)
    return p


@pytest.mark.thin
@pytest.mark.parametrize("run", ["jit", "eager"])
@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("alpha", [1.5, 2.0, "traced", "steep"])
def test_special_values(alpha: Any, width: int, run: str):
    number: float = {"traced": 1.5, "steep": 3.0}.get(alpha) or alpha
    given = jnp.float32(number) if alpha == "traced" else number
    lines = [line for line in LOGITS if line.smooth]
    pad = ((0, 0), (0, width - 3))
    z = jnp.pad(jnp.array([line.logits for line in lines], jnp.float32), pad, constant_values=NAN)
    where = jnp.pad(jnp.array([line.where for line in lines]), pad)
    t = jnp.array([line.temperature for line in lines], jnp.float32)
    p = np.array([expected(line, number) for line in lines])
    clean = np.array([line.clean for line in lines])

    def value(z: Any, t: Any) -> Any:
        return jsoftmax.entmax(z, given, where=where, temperature=t)[:, :3]

    def value_and_slope(z: Any, t: Any) -> Any:
        out, pull = jax.vjp(value, z, t)
        return out, *pull(jnp.broadcast_to(jnp.asarray(COTANGENT, jnp.float32), out.shape))

    got, dz, dt = (jax.jit(value_and_slope) if run == "jit" else value_and_slope)(z, t)
    np.testing.assert_allclose(got, p, 1e-6, 1e-6)
    assert np.isnan(dz[~clean, :3]).any(-1).all()
    assert not np.asarray(dz)[:, 3:][clean].any()
    for i, line in enumerate(lines):
        if clean[i]:
            jacobian = (
                oracle.jacobian(p[i].astype(np.longdouble), number) if p[i].any() else np.zeros((3, 3))
            )
            slope = (jacobian @ COTANGENT).astype(float) / (line.temperature or 1)
            np.testing.assert_allclose(dz[i, :3], slope, 2e-6, 2e-6, err_msg=line.name)
            assert np.isfinite(dt[i]) or line.temperature == 0


@pytest.mark.thin(3)
@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("alpha", [1.5, 2.0, "traced"])
def test_special_values_of_losses(alpha: Any, label: int):
    number = 1.5 if alpha == "traced" else alpha
    given = jnp.float32(1.5) if alpha == "traced" else alpha
    lines = [line for line in LOGITS if line.smooth and line.temperature == 1]
    z = jnp.array([line.logits for line in lines], jnp.float32)
    where = jnp.array([line.where for line in lines])
    y = jnp.full(len(lines), label, jnp.int32)

    def value(z: Any) -> Any:
        return losses.fenchel_young_loss(z, y, given, where=where)

    with jax.debug_nans(False):
        loss, pull = jax.vjp(jax.jit(value), z)
        (slope,) = pull(jnp.ones(len(lines)))
    for i, line in enumerate(lines):
        p = expected(line, number)
        if not line.clean:
            assert np.isnan([loss[i], jnp.sum(slope[i])]).all(), line.name
            continue
        possible = np.where(line.where, np.array(line.logits), -INF)
        possible = possible == INF if (possible == INF).any() else possible > -INF
        if not possible.any():
            assert not np.any([loss[i], *slope[i]]), line.name
            continue
        hit = np.arange(3) == label
        np.testing.assert_allclose(
            slope[i], np.where(possible, p - hit, 0), 1e-6, 1e-6, err_msg=line.name
        )
        if not possible[label]:
            assert loss[i] == INF, line.name
        else:
            held = np.where(possible, np.where(np.isfinite(line.logits), line.logits, 0), 0)[possible]
            true = oracle.loss(held[None], hit[possible][None].astype(float), number)
            np.testing.assert_allclose(loss[i], float(true[0]), 2e-6, 1e-6, err_msg=line.name)


def test_no_classes_and_one():
    assert jsoftmax.sparsemax(jnp.zeros((2, 0))).shape == (2, 0)
    assert jsoftmax.entmax(jnp.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(jsoftmax.entmax(jnp.array([[3.0], [-7.0]])), [[1], [1]])
    np.testing.assert_array_equal(
        losses.entmax_loss(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32)), [0, 0]
    )


@pytest.mark.parametrize(("t1", "t2"), [(0.0, 1.0), (0.5, 1.5), (0.8, 1.2), (1.0, 4.0)])
def test_bi_tempered_is_bounded_and_accurate(t1: float, t2: float):
    """Against extended precision; and an outlier costs `1 / (1 − t1)` at most."""
    rng = np.random.default_rng(0)
    z = np.concatenate([3 * rng.standard_normal((6, 50)), np.eye(2, 50) * 1e6]).astype(np.float32)
    labels = rng.integers(0, 50, 8)
    labels[6:] = (0, 3)
    got = np.asarray(losses.bi_tempered_logistic_loss(jnp.asarray(z), jnp.asarray(labels), t1, t2))
    p = oracle.heavy_tailed(z, t2)
    expected = oracle.bi_tempered(p, np.eye(50)[labels], t1)
    np.testing.assert_allclose(got, expected.astype(float), rtol=3e-5, atol=1e-6)
    assert np.all(got >= 0)
    if t1 < 1:
        assert np.all(got <= 1 / (1 - t1) * (1 + 1e-6))


def test_bi_tempered_is_cross_entropy_at_one():
    z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    labels = jnp.array([0, 6, 3, 3])
    got = losses.bi_tempered_logistic_loss(z, labels, 1.0, 1.0)
    np.testing.assert_allclose(got, jsoftmax.cross_entropy(z, labels), rtol=1e-6)


def test_bi_tempered_policies():
    z = jnp.array([[1.0, 2.0, -INF], [1.0, np.nan, 0.0], [0.0, 1.0, 2.0], [INF, 0.0, 1.0]])

    def total(z: Any, t1: Any, t2: Any) -> Any:
        rows = losses.bi_tempered_logistic_loss(z, jnp.array([0, -1, 7, 0]), t1, t2, ignore_index=-1)
        return jnp.sum(jnp.where(jnp.isnan(rows), 0, rows)), rows

    (_, rows), slope = jax.value_and_grad(total, has_aux=True)(z, 0.5, 1.5)
    without = losses.bi_tempered_logistic_loss(z[:1, :2], jnp.array([0]), 0.5, 1.5)
    np.testing.assert_allclose(rows, [float(without[0]), 0, np.nan, 0], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(slope).any(-1), [False, False, True, False])
    assert np.isnan(total(z, jnp.float32(1.5), 1.5)[1][0])
    assert np.isnan(total(z, 0.5, jnp.float32(0.5))[1][0])
    masked = losses.bi_tempered_logistic_loss(
        z, jnp.zeros(4, int), 0.5, 1.5, where=jnp.zeros_like(z, bool)
    )
    np.testing.assert_array_equal(masked, 0)
    with pytest.raises(ValueError, match=r"t1 must be in \[0, 1\], got 1.5"):
        losses.bi_tempered_logistic_loss(z, jnp.zeros(4, int), 1.5, 1.5)
    with pytest.raises(ValueError, match=r"t2 must be in \[1, 4\], got 0.5"):
        losses.bi_tempered_logistic_loss(z, jnp.zeros(4, int), 0.5, 0.5)
