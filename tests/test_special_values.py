"""The golden table, and other special values: labels of no class, masks, extreme options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses
from tests.hierarchical_heads import HEADS, OTHERS
from tests.special_values import (
    ALL,
    C0,
    C1,
    CLEAN,
    DTYPES,
    FORMS,
    INF,
    LOG2,
    NAN,
    NONE,
    NOT_FIRST,
    P0,
    P1,
    TABLE,
    Form,
    cases,
    check,
    hierarchical_case,
    jitted,
    with_gradient,
)

NAMES = list(cases(TABLE[:1], "float32"))
runs = pytest.mark.parametrize("run", [jitted, with_gradient], ids=["jit", "eager"])
every_head = pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name, head in HEADS.items() for way in head.ways]
)

# Of each function and kind of labels.
one_head_each = pytest.mark.parametrize(
    "name", {head[:2]: name for name, head in HEADS.items()}.values()
)


@pytest.mark.thin(2)
@runs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_table(name: str, dtype: str, run: Callable[..., Any]):
    problem = cases(TABLE, dtype)[name]
    got = run(*problem.call)
    assert got[1].dtype == dtype
    assert got[0].dtype == (dtype if name in ("softmax", "log_softmax", "logsumexp") else "float32")
    check(problem, got)


@pytest.mark.thin(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_table_in_other_forms(name: str, form: str):
    problem = cases(FORMS[form].lines(TABLE), "float32", FORMS[form])[name]
    check(problem, jitted(*problem.call))


def check_hierarchical(name: str, way: str, dtype: str, run: Callable[..., Any]) -> None:
    problem = hierarchical_case(name, TABLE, dtype, way)
    got = run(*problem.call)
    assert (got[0].dtype, got[1].dtype) == ("float32", dtype)
    check(problem, got)


@one_head_each
def test_table_of_hierarchical_functions(name: str):
    check_hierarchical(name, "hidden", "float32", jitted)


@pytest.mark.thin(100)
@runs
@pytest.mark.parametrize("dtype", DTYPES)
@every_head
def test_hierarchical_functions_in_other_forms(
    name: str, way: str, dtype: str, run: Callable[..., Any]
):
    check_hierarchical(name, way, dtype, run)


def test_the_table_has_every_hierarchical_function():
    public = {name for name, f in vars(hierarchical).items() if callable(f) and name.islower()}
    assert {head.function for head in HEADS.values()} | set(OTHERS) == public
    assert not {head.function for head in HEADS.values()} & set(OTHERS)


@pytest.mark.thin(6)
@pytest.mark.parametrize("form", [None, *FORMS.values()], ids=["given", *FORMS])
@pytest.mark.parametrize("name", NAMES)
def test_value_without_a_gradient_is_the_same(name: str, form: Form | None):
    """What is not differentiated is computed in another way."""
    f, _, *primals = call = cases((form or Form()).lines(TABLE), "float32", form)[name].call
    np.testing.assert_allclose(jax.jit(f)(*primals), jitted(*call)[0], 4e-6, 4e-6)


@runs
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "integer 2", "soft 2"])
def test_legitimate_lines_are_clean(name: str, run: Callable[..., Any]):
    # Log-probabilities at T = 0 are beyond what float32 holds, and their slopes more so.
    lines = tuple(line for line in CLEAN if name != "log_softmax" or line.temperature)
    problem = cases(lines, "float32")[name]
    with jax.debug_nans(True):
        got = run(*problem.call)
    check(problem, got)


def check_clean(name: str, way: str, run: Callable[..., Any]) -> None:
    # What all rows share may not be undefined.
    lines = CLEAN if way == "hidden" else tuple(line for line in CLEAN if line.softmax[0] >= 0)
    problem = hierarchical_case(name, lines, "float32", way)
    assert problem.columns.defined.all()
    with jax.debug_nans(True):
        got = run(*problem.call)
    check(problem, got)


@one_head_each
def test_legitimate_lines_are_clean_in_hierarchical_functions(name: str):
    """So are the gradients of what all rows share, whatever the ignored ones hold."""
    check_clean(name, "hidden", jitted)


@pytest.mark.thin(100)
@runs
@every_head
def test_legitimate_lines_are_clean_in_other_forms(name: str, way: str, run: Callable[..., Any]):
    check_clean(name, way, run)


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", HEADS)
def test_no_lines(name: str):
    problem = hierarchical_case(name, (), "float32", "hidden")
    got = with_gradient(*problem.call)
    assert got[0].shape == ((0, 3) if problem.kind == "log_softmax" else (0,))
    assert got[1].shape == (0, 3)
    assert not np.asarray(got[2]).any()


@pytest.mark.parametrize(
    "option", ["temperature", "softcap", "label_smoothing", "z_loss", "class_weights"]
)
def test_an_ignored_row_adds_nothing_to_what_rows_share(option: str):
    z, labels = jnp.zeros((2, 3)), np.array([0, -100])

    def loss(x: Any, rows: slice) -> Any:
        options = {option: x, "ignore_index": -100}
        return jnp.sum(jsoftmax.cross_entropy(z[rows], labels[rows], **options))

    x = jnp.full(3, 0.5) if option == "class_weights" else jnp.float32(0.5)
    both, first = (jax.grad(loss)(x, rows) for rows in (slice(2), slice(1)))
    np.testing.assert_allclose(both, first, 1e-6)


@pytest.mark.parametrize("shape", [(1, 5000), (64, 100), (4, 6000)])
def test_a_nan_in_long_rows(shape: tuple[int, int]):
    """XLA's maximum of a long row on a CPU drops it."""
    for fill in (NAN, -INF, INF, 0.0):
        z = jnp.full(shape, fill, jnp.float32).at[:, shape[1] // 2].set(NAN)
        labels = np.zeros(shape[0], np.int32)
        stats = jsoftmax.row_stats(z, labels)
        assert np.isnan(jsoftmax.logsumexp(z)).all()
        assert np.isnan(jsoftmax.log_softmax(z)).all()
        assert np.isnan(jax.grad(lambda z: jnp.sum(jsoftmax.logsumexp(z)))(z)).all()
        assert np.isnan(np.asarray(stats.log_normalizer, np.float32)).all()
        assert np.isnan(np.asarray(stats.nll, np.float32)).all()


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
