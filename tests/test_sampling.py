"""Draws have the probabilities of their softmax, whole or cut; none is ever an impossible class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import sampling
from jsoftmax.sampling import _draw, _threshold
from tests.oracles import sampling as oracle
from tests.sampling_problem import KEY, fits, many

pytestmark = pytest.mark.thin(6)

INF, NAN = np.inf, np.nan


def few() -> np.ndarray:
    return np.array([0.5, -1.0, 2.0, -INF, 1.0, 0.0, 2.0], np.float32)


# One block of classes; several; several of which the last is not full; and that not even begun.
@pytest.mark.parametrize(
    ("z", "dtype"),
    [
        (few(), "float32"),
        (many(256), "bfloat16"),
        (many(1024), "float32"),
        (many(300), "bfloat16"),
        (many(257), "float32"),
    ],
)
def test_categorical(z: np.ndarray, dtype: str):
    logits = jnp.asarray(z, dtype)
    ids = sampling.categorical(KEY, logits, shape=(200_000,))
    assert ids.dtype == jnp.int32
    fits(ids, oracle.softmax(np.asarray(logits, np.float64)))


def test_categorical_of_each_row():
    z = np.stack([many(500), 3 * many(500)[::-1]])
    where = np.arange(500) % 3 > 0
    ids = sampling.categorical(KEY, z, shape=(50_000, 2), where=where)
    for row, drawn in zip(z, ids.T, strict=True):
        fits(drawn // 10, oracle.softmax(np.where(where, row, -INF)).reshape(50, 10).sum(axis=1))
        assert where[np.asarray(drawn)].all()
    # Rows and draws are independent.
    joint = np.asarray(ids < 250)
    assert abs(np.corrcoef(joint.T)[0, 1]) < 0.02
    assert abs(np.corrcoef(joint[1:, 0], joint[:-1, 0])[0, 1]) < 0.02


def test_a_rare_class_is_as_rare_as_it_should_be():
    # All but one have a probability of 1e-6, in 79 blocks; half of them come after the likely one.
    p = np.full(10_000, 1e-6)
    p[5_000] = 1 - 9_999e-6
    logits = jnp.log(jnp.asarray(p, jnp.float32))
    keys = jax.random.split(KEY, 40)
    ids = np.asarray(jax.lax.map(lambda key: sampling.categorical(key, logits, shape=(50_000,)), keys))
    expected = np.full(101, 1e-4)
    expected[[50, 100]] = 99e-6, p[5_000]
    fits(np.where(ids == 5_000, 100, ids // 100), expected)


@pytest.mark.parametrize("place", ["first", "last"])
def test_whole_numbers_hold_rare_classes(place: str):
    p = np.full(200, 1e-6)
    p[-1 if place == "first" else 0] = 1 - 199e-6
    below = np.asarray(_draw.whole(jnp.asarray(p, jnp.float32)), np.float64)
    share = np.diff(below, prepend=0) / below[-1]
    np.testing.assert_allclose(share, p, rtol=3e-4)
    assert 2**31 < below[-1] < 2**32


def test_whole_numbers_do_not_overflow():
    for n in (1, 2, 255, 4096):
        below = np.asarray(_draw.whole(jnp.full((3, n), 1e-20)), np.float64)
        assert (np.diff(below) > 0).all()
        assert (below[:, -1] < 2**32).all()
    assert not np.asarray(_draw.whole(jnp.full(4, jnp.nan))).any()


CUT = {"top_k": 4, "top_p": 0.99, "min_p": 0.01, "temperature": 0.5}

SPECIAL = {
    "nan": ([0.0, NAN, 1.0, 2.0], {-1}),
    "two +inf": ([INF, 0.0, INF, 0.0], {-1}),
    "nothing": ([-INF, -INF, -INF, -INF], {-1}),
    "one +inf": ([0.0, 3.0, INF, -INF], {2}),
    "+inf beside nan": ([0.0, NAN, INF, 0.0], {-1}),
    "one possible": ([-INF, -5.0, -INF, -INF], {1}),
    "far apart": ([-3e38, 3e38, 0.0, 0.0], {1}),
    "equal and large": ([3e38, 3e38, -3e38, 3e38], {0, 1, 3}),
    "equal and small": ([-3e38, -3e38, -INF, -3e38], {0, 1, 3}),
}


@pytest.mark.parametrize("classes", [4, 700], ids=["one block", "blocks"])
@pytest.mark.parametrize("options", [{}, CUT], ids=["whole", "cut"])
def test_special_rows(classes: int, options: dict[str, Any]):
    rows = np.array([row for row, _ in SPECIAL.values()], np.float32)
    z = np.full((len(rows), classes), -INF, np.float32)
    places = np.array([0, 1, 2, 3]) * (classes - 1) // 3
    z[:, places] = rows
    draw = jax.vmap(lambda key: sampling.sample(key, z, **options))
    ids = np.asarray(draw(jax.random.split(KEY, 100)))
    where = np.tile(np.arange(classes) < classes - 1, (len(rows), 1))
    for (name, (_, expected)), drawn in zip(SPECIAL.items(), ids.T, strict=True):
        assert set(drawn) == {-1 if k < 0 else places[k] for k in expected}, name
    # A masked class is not there, whatever it holds.
    hidden = np.where(where, z, NAN)
    masked = sampling.sample(KEY, hidden, where=where, **options)
    np.testing.assert_array_equal(masked, sampling.sample(KEY, np.where(where, z, -INF), **options))
    assert (np.asarray(sampling.sample(KEY, z, where=False & where, **options)) == -1).all()


def test_a_special_row_leaves_the_others_alone():
    z = np.stack([many(1000)] * 3)
    special = z.copy()
    special[1, 7] = INF
    ids, others = (np.asarray(sampling.categorical(KEY, x)) for x in (z, special))
    assert ids[[0, 2]].tolist() == others[[0, 2]].tolist()
    assert others[1] == 7


def test_no_rows_and_no_classes():
    assert sampling.categorical(KEY, np.zeros((0, 3), np.float32)).shape == (0,)
    assert np.array_equal(sampling.categorical(KEY, np.zeros((2, 0), np.float32)), [-1, -1])
    assert np.array_equal(sampling.sample(KEY, np.zeros((2, 0), np.float32), top_k=1), [-1, -1])
    assert sampling.categorical(KEY, np.zeros((2, 3), np.float32), shape=(0, 2)).shape == (0, 2)
    assert np.array_equal(sampling.categorical(KEY, np.zeros((2, 1), np.float32)), [0, 0])


@pytest.mark.parametrize("batch", [(), (4,), (2, 1)])
@pytest.mark.parametrize("shape", [None, (2, 4), (3, 2, 4)])
def test_shape_as_in_jax(batch: tuple[int, ...], shape: tuple[int, ...] | None):
    z = np.zeros((*batch, 5), np.float32)
    true = jax.random.categorical(KEY, z, shape=shape).shape
    assert sampling.categorical(KEY, z, shape=shape).shape == true


def test_a_broadcast_row_is_drawn_from_again():
    z = np.zeros((2, 1, 1000), np.float32)
    z[1, 0, :999] = -INF
    ids = np.asarray(sampling.categorical(KEY, z, shape=(2, 50)))
    assert set(ids[1]) == {999}
    assert len(set(ids[0])) > 40


def test_any_axis_is_the_last_one():
    z = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    for axis in (1, (2, 0)):
        axes = np.atleast_1d(axis)
        last = np.moveaxis(z, axes, range(-len(axes), 0))
        last = last.reshape(*last.shape[: 3 - len(axes)], -1)
        for draw in (sampling.categorical, sampling.gumbel_softmax):
            got = np.asarray(draw(KEY, z, axis=axis))
            if draw is sampling.gumbel_softmax:
                got = np.moveaxis(got, axes, range(-len(axes), 0)).reshape(last.shape)
            np.testing.assert_array_equal(got, draw(KEY, last))
        k = sampling.gumbel_top_k(KEY, z, 2, axis=axis)
        np.testing.assert_array_equal(k, sampling.gumbel_top_k(KEY, last, 2))


OPTIONS = [
    {"top_k": 1}, {"top_k": 17}, {"top_k": 600}, {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.95},
    {"top_p": 1.0}, {"min_p": 0.2}, {"min_p": 1.0}, {"top_k": 20, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.05}, {"top_k": 30, "top_p": 0.9, "min_p": 0.1},
]  # fmt: skip


@pytest.mark.thin
@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept(temperature: float, dtype: str):
    rng = np.random.default_rng(5)
    v = jnp.asarray(2 * rng.standard_normal((40, 600)), dtype).at[:, ::7].set(-jnp.inf)
    rounds = jnp.round(v[:10])
    v = v.at[:10].set(rounds) if dtype == "float32" else v
    t = jnp.full((40, 1), temperature)
    for option in OPTIONS:
        given = [
            None if name not in option else jnp.full(40, option[name], kind)
            for name, kind in (("top_k", "int32"), ("top_p", "float32"), ("min_p", "float32"))
        ]
        got = np.asarray(jax.jit(_threshold.restricted)(v, t, *given), np.float64)
        for row, left in zip(np.asarray(v, np.float64), got, strict=True):
            # What the rounding of a sum may decide is left open.
            bounds = [oracle.kept(row, temperature, **nudged(option, sign * 1e-5)) for sign in (-1, 1)]
            assert (left[left > -INF] == row[left > -INF]).all()
            assert ((left > -INF) <= bounds[0] | bounds[1]).all(), option
            assert ((left > -INF) >= (bounds[0] & bounds[1])).all(), option
            assert left.max() == row.max()


def nudged(option: dict[str, Any], by: float) -> dict[str, Any]:
    """More or less of each fraction strictly between 0 and 1."""
    return {k: x + by if isinstance(x, float) and 0 < x < 1 else x for k, x in option.items()}


def test_sample():
    z = np.array([0.3, 2.0, 1.0, -INF, 1.0, -0.5, 1.8, -1.0], np.float32)
    options = {"temperature": 1.5, "top_k": 5, "top_p": 0.8, "min_p": 0.2}
    ids = jax.vmap(lambda key: sampling.sample(key, z, **options))(jax.random.split(KEY, 100_000))
    left = oracle.kept(z, **options)
    assert left.tolist() == [False, True, True, False, True, False, True, False]
    fits(ids, oracle.softmax(np.where(left, z, -INF), 1.5))


def test_the_order_of_the_restrictions():
    # Of the two that top_k leaves, the first has 0.6: enough for top_p=0.55, not of all three.
    z = jnp.log(jnp.array([0.48, 0.32, 0.20]))
    draws = jax.vmap(lambda key: sampling.sample(key, z, top_k=2, top_p=0.55))
    assert set(np.asarray(draws(jax.random.split(KEY, 200)))) == {0}
    assert set(np.asarray(jax.vmap(lambda key: sampling.sample(key, z, top_p=0.55))(
        jax.random.split(KEY, 200)))) == {0, 1}  # fmt: skip


def test_neutral_options_change_nothing():
    z = np.stack([many(900)] * 4)
    plain = sampling.categorical(KEY, z)
    all_neutral = {"temperature": 1.0, "top_k": 10**12, "top_p": 1.0, "min_p": 0.0}
    for options in (all_neutral, {"top_p": jnp.float32(1), "min_p": jnp.float32(0)}):
        np.testing.assert_array_equal(sampling.sample(KEY, z, **options), plain)


def test_temperature_limits_and_options_per_row():
    z = np.array([[1.0, 3.0, 3.0, 0.0]] * 6, np.float32)
    t = np.array([0.0, 1e-38, 1.0, INF, 1.0, 5.0], np.float32)
    top_k = np.array([4, 4, 1, 4, 4, 3], np.int32)
    top_p = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 1.0], np.float32)
    draw = jax.vmap(lambda key: sampling.sample(key, z, temperature=t, top_k=top_k, top_p=top_p))
    ids = np.asarray(draw(jax.random.split(KEY, 20_000)))
    for row, expected in enumerate([{1, 2}, {1, 2}, {1, 2}, {0, 1, 2, 3}, {1, 2}, {0, 1, 2}]):
        assert set(ids[:, row]) == expected
    fits(ids[:, 0] - 1, np.array([0.5, 0.5]))
    fits(ids[:, 3], np.full(4, 0.25))


def test_traced_options_out_of_range_draw_nothing():
    z = np.zeros((5, 4), np.float32)
    good = sampling.sample(KEY, z, top_k=2, top_p=0.5, min_p=0.5)
    assert (np.asarray(good) >= 0).all()
    for name, values in {
        "temperature": [-1, NAN, 1], "top_p": [-0.1, 1.1, NAN, 0.5], "min_p": [-0.1, 1.1, NAN, 0.5]
    }.items():  # fmt: skip
        for value in values:
            ids = sampling.sample(KEY, z, **{name: jnp.float32(value)})
            expected = value in (0.5, 1)
            assert ((np.asarray(ids) >= 0) == expected).all(), (name, value)
    assert np.array_equal(
        sampling.sample(KEY, z, top_k=jnp.array([0, -1, 1, 4, 9])) < 0, [1, 1, 0, 0, 0]
    )


def test_gumbel_top_k():
    # Whole numbers far from 0: noise must not be rounded as they are.
    z = np.array([1.0, 0.0, -1.0, 2.0], np.float32) + 2.0**22
    p = oracle.plackett_luce(oracle.softmax(z), 2)
    ids = jax.vmap(lambda key: sampling.gumbel_top_k(key, z, 2))(jax.random.split(KEY, 100_000))
    orders = {order: n for n, order in enumerate(p)}
    fits([orders[tuple(pair)] for pair in np.asarray(ids).tolist()], np.array(list(p.values())))
    whole = np.asarray(sampling.gumbel_top_k(KEY, np.tile(z, (50, 1)), 4))
    assert (np.sort(whole, axis=1) == np.arange(4)).all()
    assert sampling.gumbel_top_k(KEY, z, 0).shape == (0,)


def test_gumbel_top_k_where_there_are_fewer():
    z = np.array([row for row, _ in SPECIAL.values()], np.float32)
    possible = [0, 0, 0, 1, 0, 1, 4, 4, 3]  # of the rows of `SPECIAL`
    ids = np.asarray(sampling.gumbel_top_k(KEY, z, 4))
    for drawn, number in zip(ids, possible, strict=True):
        assert (drawn[number:] == -1).all()
        assert len(set(drawn[:number]) - {-1}) == number
    where = np.array([True, False, True, False])
    hidden = np.where(where, np.zeros((30, 4), np.float32), NAN)
    pairs = np.asarray(sampling.gumbel_top_k(KEY, hidden, 3, where=where))
    assert (np.sort(pairs, axis=1) == [-1, 0, 2]).all()
    assert (np.asarray(sampling.gumbel_top_k(KEY, hidden, 3, where=where & False)) == -1).all()
