"""The golden table: what comes back for infinities, NaN, masks and extreme temperatures.

Every line is one row of a batch, so that a row that is NaN also shows that it stays alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import losses

INF, NAN = np.inf, np.nan
ALL, NOT_FIRST, NONE = (True, True, True), (False, True, True), (False, False, False)
# softmax and costs of the logits 0 and 1
P0, P1 = 0.2689414213699951, 0.7310585786300049
C0, C1 = 1.3132616875182228, 0.3132616875182228
LOG2 = 0.6931471805599453
DTYPES = ("float32", "bfloat16", "float16")


class Line(NamedTuple):
    name: str
    logits: tuple[float, float, float]
    where: tuple[bool, bool, bool]
    temperature: float
    softmax: tuple[float, float, float]
    logsumexp: float  # of the logits, without the temperature
    costs: tuple[float, float, float]  # the cross-entropy of each label; NaN rows see `clean`
    clean: bool = True  # whether no step on the way may make a NaN
    smooth: bool = True  # whether the gradient exists


TABLE = (
    Line("plain", (-INF, 0, 1), ALL, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("NaN masked", (NAN, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("+inf masked", (INF, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("−inf masked", (-INF, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("largest masked", (99, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("all masked", (NAN, INF, 3), NONE, 1, (0, 0, 0), -INF, (0, 0, 0)),
    Line("all masked, −inf", (-INF, -INF, -INF), NONE, 1, (0, 0, 0), -INF, (0, 0, 0)),
    Line("all masked, T=0", (1, 2, 3), NONE, 0, (0, 0, 0), -INF, (0, 0, 0)),
    Line("one possible", (-INF, -INF, 1), ALL, 1, (0, 0, 1), 1, (INF, INF, 0)),
    Line("one +inf", (INF, 0, 1), ALL, 1, (1, 0, 0), INF, (0, INF, INF)),
    Line("one +inf, one −inf", (INF, -INF, 1), ALL, 1, (1, 0, 0), INF, (0, INF, INF)),
    Line("one +inf, T=0", (INF, 0, 1), ALL, 0, (1, 0, 0), INF, (0, INF, INF)),
    Line("far apart", (-6e4, 0, 6e4), ALL, 1, (0, 0, 1), 6e4, (1.2e5, 6e4, 0)),
    Line("T=0", (0, 0, 1), ALL, 0, (0, 0, 1), 1 + np.log1p(2 * np.exp(-1)), (NAN, NAN, 0)),
    Line("T=0, mask", (9, 0, 1), NOT_FIRST, 0, (0, 0, 1), 1 + C1, (INF, NAN, 0)),
    Line("T=0, −inf", (-INF, 0, 1), ALL, 0, (0, 0, 1), 1 + C1, (INF, NAN, 0)),
    Line("T=0, ties", (-INF, 1, 1), ALL, 0, (0, 0.5, 0.5), 1 + LOG2, (INF, LOG2, LOG2), smooth=False),
    Line("T=inf", (-3, 9, 5), (True, False, True), INF, (0.5, 0, 0.5), 5.0003354, (LOG2, INF, LOG2)),
    Line("T=inf, −inf", (-INF, 0, 1), ALL, INF, (0, 0.5, 0.5), 1 + C1, (INF, LOG2, LOG2)),
    Line("two +inf", (INF, INF, 1), ALL, 1, (NAN, NAN, NAN), INF, (NAN, NAN, NAN), False),
    Line("NaN", (NAN, 0, 1), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("NaN last", (0, 1, NAN), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("NaN and +inf", (NAN, INF, 1), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("all −inf", (-INF, -INF, -INF), ALL, 1, (NAN, NAN, NAN), -INF, (NAN, NAN, NAN), False),
    Line(
        "T<0", (0, 0, 1), ALL, -1, (NAN, NAN, NAN), 1 + np.log1p(2 * np.exp(-1)), (NAN, NAN, NAN), False
    ),
    Line(
        "T NaN",
        (0, 0, 1),
        ALL,
        NAN,
        (NAN, NAN, NAN),
        1 + np.log1p(2 * np.exp(-1)),
        (NAN, NAN, NAN),
        False,
    ),
)
CLEAN = tuple(line for line in TABLE if line.clean)
COTANGENT = np.array([1.0, 2.0, 4.0])


class Columns:
    """The lines as arrays, and what follows from them."""

    def __init__(self, lines: tuple[Line, ...], dtype: str):
        self.lines, self.names = lines, [line.name for line in lines]
        self.logits = jnp.asarray([line.logits for line in lines], dtype)
        self.where = np.array([line.where for line in lines])
        self.temperature = jnp.asarray([line.temperature for line in lines], jnp.float32)
        self.p = np.array([line.softmax for line in lines])
        self.logsumexp = np.array([line.logsumexp for line in lines])
        self.costs = np.array([line.costs for line in lines])
        # What is finite is as far below +inf as −inf below what is finite.
        raw = np.where(self.where, np.array([line.logits for line in lines]), -INF)
        self.possible = (raw != -INF) & ((raw == INF) | ~(raw == INF).any(-1, keepdims=True))
        self.defined = np.array([line.clean for line in lines])
        self.smooth = np.array([line.smooth for line in lines])
        # A gradient of 0 by T = 0 is 0: where one class has everything, nothing moves.
        self.t = np.where(np.array([line.temperature for line in lines]) == 0, 1, self.temperature)
        self.eps = float(jnp.finfo(dtype).eps)

    def agree(self, got: Any, true: np.ndarray, where: Any = True) -> None:
        tolerance = max(4e-6, self.eps)
        chosen = np.broadcast_to(
            np.reshape(
                where,
                np.shape(where) + (1,) * (true.ndim - 1) if np.ndim(where) == 1 else np.shape(where),
            ),
            true.shape,
        )
        found = np.where(chosen, np.asarray(got, np.float64), true)
        for name, row, expected in zip(self.names, found, true, strict=True):
            np.testing.assert_allclose(row, expected, tolerance, tolerance, err_msg=name)


def with_gradient(f: Callable[..., Any], by: Any, *primals: Any) -> tuple[Any, ...]:
    out, pull = jax.vjp(f, *primals)
    return out, *pull(jnp.broadcast_to(jnp.asarray(by, out.dtype), out.shape))


def jitted(f: Callable[..., Any], by: Any, *primals: Any) -> tuple[Any, ...]:
    return jax.jit(lambda *primals: with_gradient(f, by, *primals))(*primals)


def cases(lines: tuple[Line, ...], dtype: str) -> tuple[Columns, dict[str, tuple[Any, ...]]]:
    """Functions on the table: the call, its cotangent, and its primals."""
    c = Columns(lines, dtype)
    both = (c.logits, c.temperature)
    found: dict[str, tuple[Any, ...]] = {
        "softmax": (
            lambda z, t: jsoftmax.softmax(z, where=c.where, temperature=t), COTANGENT, *both,
        ),
        "log_softmax": (
            lambda z, t: jsoftmax.log_softmax(z, where=c.where, temperature=t), COTANGENT, *both,
        ),
        "logsumexp": (lambda z: jsoftmax.logsumexp(z, where=c.where), 2.0, c.logits),
    }  # fmt: skip
    for label in range(3):
        ids = np.full(len(lines), label, np.int32)
        one_hot = jnp.asarray(np.arange(3) == ids[:, None], jnp.float32)
        found[f"integer {label}"] = (
            lambda z, t, ids=ids: jsoftmax.cross_entropy(z, ids, where=c.where, temperature=t),
            1.0, *both,
        )  # fmt: skip
        found[f"soft {label}"] = (
            lambda z, t, q: jsoftmax.cross_entropy(z, q, where=c.where, temperature=t),
            1.0, *both, one_hot,
        )  # fmt: skip
    return c, found


def check(c: Columns, name: str, got: tuple[Any, ...]) -> None:
    value, d_logits = np.asarray(got[0], np.float64), np.asarray(got[1], np.float64)
    t = c.t[:, None]
    with np.errstate(all="ignore"):
        if name == "softmax":
            c.agree(value, c.p)
            p = np.where(c.defined[:, None], c.p, 0)
            slope = p * (COTANGENT - np.sum(p * COTANGENT, -1, keepdims=True)) / t
            c.agree(d_logits, slope, c.defined & c.smooth)
        elif name == "log_softmax":
            # A row of one possible class is the only one whose log-probabilities go below float16.
            far = np.array(c.names) == "far apart"
            hot = c.temperature == 0
            c.agree(value, np.where(c.possible | ~c.defined[:, None], np.log(c.p), -INF), ~far & ~hot)
            heard = np.where(c.possible, COTANGENT, 0)
            slope = (heard - c.p * heard.sum(-1, keepdims=True)) / t
            inner = np.isfinite(np.where(c.defined[:, None], c.logits, NAN)).any(-1)
            one_inf = np.array([INF in line.logits for line in c.lines])
            c.agree(d_logits, np.where(c.possible, slope, 0), c.defined & inner & ~hot & ~one_inf)
        elif name == "logsumexp":
            c.agree(value, c.logsumexp)
            plain = np.array([line.temperature == 1 for line in c.lines])
            c.agree(d_logits, 2 * c.p, c.defined & plain)
        else:
            label = int(name[-1])
            skip = np.isnan(c.costs[:, label]) & c.defined
            c.agree(value, c.costs[:, label], ~skip)
            slope = np.where(c.possible, (c.p - (np.arange(3) == label)) / t, 0)
            slope = np.where((c.where.sum(-1) == 0)[:, None], 0, slope)
            settled = ~skip & c.smooth & ((c.temperature != 0) | (c.costs[:, label] == 0))
            c.agree(d_logits, slope, settled & c.defined)
            assert np.isnan(d_logits[~c.defined]).all()
            gone = ~c.possible & c.defined[:, None]
            assert not d_logits[gone].any()
            # NaN-free under masks: the temperature's gradient too, wherever it is not at its limit.
            moderate = c.defined & (np.asarray(c.temperature) > 0)
            assert np.isfinite(np.asarray(got[2]))[moderate].all()
            if not name.startswith("soft "):
                return
            surprise = np.where(c.possible & (c.p > 0), -np.log(c.p), 0)
            c.agree(np.where(c.possible & (c.p > 0), got[3], 0), surprise, c.defined)
            assert not np.asarray(got[3])[gone].any()


NAMES = list(cases(TABLE[:1], "float32")[1])


@pytest.mark.parametrize("run", [jitted, with_gradient], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_table(name: str, dtype: str, run: Callable[..., Any]):
    columns, found = cases(TABLE, dtype)
    got = run(*found[name])
    assert got[1].dtype == dtype
    assert got[0].dtype == (dtype if name in ("softmax", "log_softmax", "logsumexp") else "float32")
    check(columns, name, got)


@pytest.mark.parametrize("run", [jitted, with_gradient], ids=["jit", "eager"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "integer 2", "soft 2"])
def test_legitimate_lines_are_clean(name: str, run: Callable[..., Any]):
    # Log-probabilities at T = 0 are beyond what float32 holds, and their slopes more so.
    lines = tuple(line for line in CLEAN if name != "log_softmax" or line.temperature)
    columns, found = cases(lines, "float32")
    with jax.debug_nans(True):
        got = run(*found[name])
    check(columns, name, got)


def test_bad_labels_are_nan_and_ignored_ones_nothing():
    z = np.tile(np.array([[0.5, -1.0, 2.0]], np.float32), (6, 1))
    z[4:] = np.array([[np.nan, 0, 1], [np.inf, np.inf, 0]])
    labels = np.array([-1, 3, 1_000_000, 1, -100, -100])

    def loss(z: Any) -> Any:
        return jsoftmax.cross_entropy(z, labels, ignore_index=-100, label_smoothing=0.1, z_loss=0.1)

    value, slope = with_gradient(loss, 1.0, jnp.asarray(z))
    assert np.isnan(value).tolist() == [True, True, True, False, False, False]
    assert np.isnan(slope).all(-1).tolist() == [True, True, True, False, False, False]
    assert not np.isnan(slope[3]).any()
    assert not np.any(value[4:])
    assert not np.any(slope[4:])
    others = [losses.softmax_cross_entropy_with_integer_labels, losses.softmax_focal_loss,
              losses.generalized_cross_entropy]  # fmt: skip
    for other in others:
        value, slope = with_gradient(lambda z, f=other: f(z, labels[:4]), 1.0, jnp.asarray(z[:4]))
        assert np.isnan(value).tolist() == [True, True, True, False]
        assert np.isnan(slope).all(-1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int32"])
def test_small_integers_do_not_wrap(dtype: str):
    z = jnp.zeros((3, 1000)).at[:, 100].set(3.0).at[:, 999].set(7.0)
    labels = np.array([100, 127, 0]).astype(dtype)
    value, slope = with_gradient(lambda z: jsoftmax.cross_entropy(z, labels), 1.0, z)
    log_z = np.log(998 + np.exp(3.0) + np.exp(7.0))
    np.testing.assert_allclose(value, [log_z - 3, log_z, log_z], rtol=1e-5)
    assert np.argmin(np.asarray(slope), -1).tolist() == [100, 127, 0]
    ignored = jsoftmax.cross_entropy(z, labels, ignore_index=127)
    assert (np.asarray(ignored) == 0).tolist() == [False, True, False]


def test_unsigned_labels_are_not_negative():
    labels = np.array([2**32 - 1], np.uint32)
    assert np.isnan(jsoftmax.cross_entropy(jnp.zeros((1, 4)), labels, ignore_index=-1)).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (2, 1)])
def test_empty_shapes(shape: tuple[int, int]):
    z, q = jnp.ones(shape), jnp.ones(shape)
    np.testing.assert_array_equal(jsoftmax.softmax(z), np.ones(shape))
    np.testing.assert_array_equal(jsoftmax.log_softmax(z), np.zeros(shape))
    np.testing.assert_array_equal(jsoftmax.logsumexp(z), np.full(shape[:1], 1.0 if shape[1] else -INF))
    np.testing.assert_array_equal(jsoftmax.cross_entropy(z, q), np.zeros(shape[:1]))
    np.testing.assert_array_equal(losses.softmax_cross_entropy(z, q), np.zeros(shape[:1]))
    slope = jax.grad(lambda z: jnp.sum(jsoftmax.cross_entropy(z, q, label_smoothing=0.1)))(z)
    np.testing.assert_array_equal(slope, np.zeros(shape))
    if shape[1]:
        labels = np.zeros(shape[:1], np.int32)
        np.testing.assert_array_equal(jsoftmax.cross_entropy(z, labels), np.zeros(shape[:1]))


def test_mass_on_masked_classes():
    """In `cross_entropy` it costs everything, in `losses` it is dropped, as optax has it."""
    z, q = jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[0.5, 0.25, 0.25]])
    mask = np.array([NOT_FIRST])
    value, slope = with_gradient(lambda z: jsoftmax.cross_entropy(z, q, where=mask), 1.0, z)
    assert np.isposinf(value).all()
    assert np.isfinite(slope).all()
    value, slope = with_gradient(lambda z: losses.softmax_cross_entropy(z, q, where=mask), 1.0, z)
    np.testing.assert_allclose(value, [0.25 * (C0 + C1)], rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0.5 * P0 - 0.25, 0.5 * P1 - 0.25]], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_options_keep_impossible_classes_impossible(smoothing: float):
    """A softcap or a transform must not revive them; smoothing must not pay for masked ones."""
    z = jnp.array([[-INF, 0.0, 1.0], [2.0, 0.0, 1.0]])
    mask = np.array([ALL, NOT_FIRST]) if smoothing == 0 else np.array([NOT_FIRST, NOT_FIRST])
    transform = jsoftmax.chain(jsoftmax.LogitAdjustment(np.ones(3, np.float32)), jsoftmax.Margin(0.0))
    got = jsoftmax.cross_entropy(
        z, np.array([2, 2]), where=mask, softcap=1e4, transform=transform, label_smoothing=smoothing
    )
    expected = (1 - smoothing) * C1 + smoothing * (C0 + C1) / 2
    np.testing.assert_allclose(got, [expected, expected], rtol=1e-4)
    if smoothing:
        assert np.isposinf(jsoftmax.cross_entropy(z[:1], np.array([2]), label_smoothing=0.1)).all()


BINARY = (  # logit, label, cost, gradient by the logit
    (INF, 1, 0, 0),
    (INF, 0, INF, 1),
    (-INF, 0, 0, 0),
    (-INF, 1, INF, -1),
    (0, 1, LOG2, -0.5),
    (100, 1, 3.783506e-44, -3.783506e-44),
    (6e4, 0, 6e4, 1),
    (NAN, 1, NAN, NAN),
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary(dtype: str):
    x, y, cost, slope = np.array(BINARY).T
    z = jnp.asarray(x, dtype)
    tolerance = float(jnp.finfo(dtype).eps)
    value, d_z = with_gradient(lambda z: losses.sigmoid_binary_cross_entropy(z, y), 1.0, z)
    cost = np.where(x == 6e4, np.asarray(z, np.float64), cost)
    np.testing.assert_allclose(value, cost, tolerance, 1e-37)
    np.testing.assert_allclose(np.asarray(d_z, np.float64), slope, tolerance, 1e-37)
    focal, d_focal = with_gradient(lambda z: losses.sigmoid_focal_loss(z, y, gamma=2.0), 1.0, z)
    weight = np.array([0, 1, 0, 1, 0.25, 0, 1, NAN])
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(focal, np.where(weight == 0, 0, weight * cost), tolerance)
    assert np.isfinite(np.asarray(d_focal, np.float32))[:-1].all()
    rows = losses.multilabel_cross_entropy(z[:, None], y[:, None])
    np.testing.assert_allclose(rows, cost, tolerance, 1e-37)


def test_divergences():
    log_p = jnp.array([[-INF, -LOG2, -LOG2], [-INF, -LOG2, -LOG2], [0.0, -INF, NAN]])
    t = jnp.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    mask = np.array([ALL, ALL, (True, True, False)])
    with jax.debug_nans(True):
        for name in ("kl_divergence", "generalized_kl_divergence"):
            f = getattr(losses, name)
            value, slope = with_gradient(lambda x, f=f: f(x, t, where=mask), 1.0, log_p)
            excess = 0.5 if name == "generalized_kl_divergence" else 0
            np.testing.assert_allclose(value, [0, INF, 0.5 * np.log(0.5) + excess], atol=1e-6)
            p = np.where(mask & (name != "kl_divergence"), np.exp(log_p), 0)
            keep = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
            np.testing.assert_allclose(
                np.where(keep, slope, 0), np.where(keep & mask, p - t, 0), atol=1e-6
            )
    value = losses.kl_divergence_with_log_targets(log_p, jnp.log(t), where=mask)
    np.testing.assert_allclose(value, [0, INF, 0.5 * np.log(0.5)], atol=1e-6)


def test_row_stats():
    stats: Any = jsoftmax.row_stats
    line = stats(jnp.array([[NAN, 0.0, 0.0]]), np.array([1]), where=np.array([NOT_FIRST]))
    np.testing.assert_allclose(
        [
            line.nll[0],
            line.log_normalizer[0],
            line.mean_logit[0],
            line.expected_logit[0],
            line.entropy[0],
        ],
        [LOG2, LOG2, 0, 0, LOG2],
        atol=1e-6,
    )
    assert line.correct.tolist() == [True]
    dead = stats(jnp.array([[NAN, 0.0, 0.0]]), np.array([1]), where=np.array([NONE]))
    assert (dead.nll[0], dead.entropy[0], dead.log_normalizer[0]) == (0, 0, -INF)
    assert dead.correct.tolist() == [False]
    bad = stats(jnp.zeros((3, 2)), np.array([-1, 2, 0]))
    assert np.isnan(bad.nll).tolist() == [True, True, False]
    assert bad.correct.tolist() == [False, False, True]
