"""The oracles themselves, against mpmath at 60 digits and against formulas worked by hand."""

from typing import Any

import mpmath
import numpy as np
import pytest

from tests import families
from tests.oracles import exact, maps, transforms
from tests.oracles.cross_entropy import cross_entropy
from tests.oracles.rows import REAL, classes_back, classes_last, rows
from tests.oracles.ulp import ulp_error

# Far below what a float32 result is judged by, even where longdouble is float64.
RTOL = 1e-11


def close(got: np.ndarray, true: list[exact.Number]) -> None:
    np.testing.assert_allclose(np.asarray(got, REAL), exact.to_longdouble(true), rtol=RTOL, atol=1e-300)


@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f not in families.LARGE])
def test_rows(family: str):
    logits = families.make(family, "float32").logits[::37, :]
    row = rows(logits)
    for index, z in enumerate(logits):
        probs, log_sum = exact.probabilities(z)
        close(row.probs[index], probs)
        with mpmath.workdps(60):
            close(row.one_minus_probs[index], [1 - p for p in probs])
            close(row.log_probs[index], [mpmath.log(p) for p in probs])
            # Log-probabilities as logits: the sum is what is left of the rounding, hence absolute.
            scale = max(1, float(abs(row.maximum[index])))
            assert abs(float(row.logsumexp[index]) - float(log_sum)) <= 1e-15 * scale


@pytest.mark.parametrize("family", ["normal", "dominant", "binary8", "near_ties"])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"z_loss": 1e-2, "temperature": 0.7},
        {"softcap": 5.0, "temperature": 2.0},
        {"softcap": 30.0, "label_smoothing": 0.2, "z_loss": 0.5, "temperature": 1.5},
    ],
    ids=str,
)
def test_cross_entropy(family: str, hard: bool, options: dict[str, Any]):
    logits, labels = families.make(family, "float32")
    logits, labels = logits[::101], labels[::101]
    classes = logits.shape[-1]
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.5, 2, classes)
    soft = np.eye(classes)[labels] if hard else rng.dirichlet(np.ones(classes), len(labels))
    got = cross_entropy(logits, labels if hard else soft, class_weights=weights, **options)
    names = {"label_smoothing": "smoothing"}
    renamed = {names.get(name, name): value for name, value in options.items()}
    for index, (z, q) in enumerate(zip(logits, soft, strict=True)):
        value, gradient = exact.cross_entropy(z, q, weights=weights, **renamed)
        close(got.value[index], [value])
        close(got.logits[index], gradient)


PARAMETERS = ["temperature", "softcap", "label_smoothing", "z_loss"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_derivatives_by_parameters(name: str):
    logits, labels = families.make("normal", "float32")
    logits, labels = logits[:7], labels[:7]
    at: dict[str, Any] = {"temperature": 0.8, "softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.3}
    step = 1e-6
    here = cross_entropy(logits, labels, **at)
    ahead = cross_entropy(logits, labels, **at | {name: at[name] + step}).value
    back = cross_entropy(logits, labels, **at | {name: at[name] - step}).value
    np.testing.assert_allclose(getattr(here, name), (ahead - back) / (2 * step), rtol=1e-8)


def test_derivatives_by_labels_and_weights():
    rng = np.random.default_rng(0)
    logits, soft = rng.standard_normal((3, 5)), rng.dirichlet(np.ones(5), 3)
    weights = rng.uniform(0.5, 2, 5)
    options: dict[str, Any] = {"label_smoothing": 0.1, "temperature": 2.0}
    got = cross_entropy(logits, soft, class_weights=weights, **options)
    step = 1e-6
    for k in range(5):
        shift = step * np.eye(5)[k]
        by_label = (
            cross_entropy(logits, soft + shift, class_weights=weights, **options).value
            - cross_entropy(logits, soft - shift, class_weights=weights, **options).value
        )
        by_weight = (
            cross_entropy(logits, soft, class_weights=weights + shift, **options).value
            - cross_entropy(logits, soft, class_weights=weights - shift, **options).value
        )
        np.testing.assert_allclose(got.labels[:, k], by_label / (2 * step), rtol=1e-8)
        np.testing.assert_allclose(got.class_weights[k], by_weight.sum() / (2 * step), rtol=1e-8)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.temperature(0.7),
        transforms.softcap(2.0),
        transforms.logit_adjustment(np.log([0.1, 0.2, 0.7]), 1.5),
        transforms.margin(0.3, 4.0),
        transforms.margin(0.3, 4.0, "angular"),
        transforms.chain(transforms.margin(0.3, 4.0, "angular"), transforms.softcap(2.0)),
    ],
)
def test_slopes_of_transforms(transform: transforms.Transform):
    z = np.array([[0.1, -0.5, 0.3], [0.9, 0.2, -0.7]], REAL)
    labels = np.array([2, 0])
    step = REAL(1e-6)
    ahead, back = transform(z + step, labels)[0], transform(z - step, labels)[0]
    np.testing.assert_allclose(transform(z, labels)[1], (ahead - back) / (2 * step), rtol=1e-9)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("family", ["normal", "dominant", "binary8"])
def test_vjps(name: str, family: str):
    x = families.make(family, "float32").logits[:20].astype(REAL)
    function, pull = getattr(maps, name), getattr(maps, f"{name}_vjp")
    ct = np.random.default_rng(1).standard_normal(function(x).shape)
    step = REAL(1e-6)
    columns = []
    for k in range(x.shape[-1]):
        shift = step * (np.arange(x.shape[-1]) == k)
        change = (function(x + shift) - function(x - shift)) / (2 * step)
        columns.append((ct * change).sum(-1) if change.ndim == 2 else ct * change)
    np.testing.assert_allclose(pull(x, ct), np.stack(columns, -1), rtol=1e-7, atol=1e-9)


def test_axes_round_trip():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for axis in (0, -1, (1, 3), (3, 1), (-4, -1)):
        merged = classes_last(x, axis)
        np.testing.assert_array_equal(classes_back(merged, axis, x.shape), x)
    np.testing.assert_allclose(maps.softmax(x, (1, 3)).sum((1, 3)).astype(float), 1)


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("z", "where", "probs", "log_sum"),
    [
        ([0.0, NAN], [True, False], [1, 0], 0),
        ([NAN, INF], [False, False], [0, 0], -INF),
        ([INF, 0.0], None, [1, 0], INF),
        ([INF, INF], None, [NAN, NAN], INF),
        ([-INF, -INF], None, [NAN, NAN], -INF),
        ([-INF, 5.0], None, [0, 1], 5),
        ([NAN, 0.0], None, [NAN, NAN], NAN),
    ],
)
def test_special_rows(z: list[float], where: list[bool] | None, probs: list[float], log_sum: float):
    row = rows(np.array(z), None if where is None else np.array(where))
    np.testing.assert_array_equal(row.probs.astype(float), probs)
    np.testing.assert_array_equal(row.logsumexp.astype(float), log_sum)


@pytest.mark.parametrize(
    ("temperature", "probs"), [(0.0, [0.5, 0.5, 0]), (INF, [1 / 3] * 3), (-1.0, [NAN] * 3)]
)
def test_limits_of_temperature(temperature: float, probs: list[float]):
    got = rows(np.array([2.0, 2.0, 1.0]), temperature=temperature).probs
    np.testing.assert_allclose(got.astype(float), probs)


@pytest.mark.parametrize(("label", "value"), [(0, 0.0), (1, INF), (-1, 0.0), (3, NAN), (-100, NAN)])
def test_label_policy(label: int, value: float):
    z, mask = np.array([[0.0, 7.0, -INF]]), np.array([True, False, True])
    got = cross_entropy(z, np.array([label]), where=mask, ignore_index=-1)
    np.testing.assert_array_equal(got.value.astype(float), [value])
    gradient = [NAN] * 3 if np.isnan(value) else [[0, 0, 0], [1, 0, 0]][label == 1]
    np.testing.assert_array_equal(got.logits[0].astype(float), gradient)


@pytest.mark.parametrize("dtype", families.DTYPES)
def test_ulp_error(dtype: str):
    kind = families.DTYPES[dtype]
    one, after = kind.type(1), np.nextafter(kind.type(1), kind.type(2))
    got = np.array([one, after, kind.type(0), kind.type(INF), kind.type(INF), kind.type(NAN)])
    true = np.array([1, 1, 0, INF, 1, NAN], REAL)
    np.testing.assert_allclose(ulp_error(got, true), [0, 1, 0, 0, INF, 0])
    tiny = np.array([0], kind), np.array([1e-41], REAL)
    assert (ulp_error(*tiny) > 0.1).all() == (dtype != "float16")
    assert (ulp_error(*tiny, slack=1e-41) == 0).all()
