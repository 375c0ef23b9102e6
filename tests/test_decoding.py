"""Decoding on a tree: a certified answer is right, whatever the rows hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jsoftmax import hierarchical
from jsoftmax.hierarchical import decoding
from tests.decoding_problem import BUSHY, FEATURES, WIDE, problem, scores
from tests.oracles.decoding import Oracle, random_parents
from tests.truth import quick

pytestmark = pytest.mark.thin(6)

KERNELS, ROWS = 40, 25

# Leaves, the widest node, which leaf is divided next; k and a beam.
SHAPES = [
    (2, 2, "any", 1, 1),
    (7, 2, "any", 7, 2),
    (64, 2, "oldest", 3, 3),
    (70, 2, "oldest", 10, 12),
    (60, 2, "any", 5, 5),
    (40, 2, "newest", 4, 1),
    (60, 2, "any", 4, 2),
    (9, 9, "any", 2, 3),
    (80, 5, "oldest", 4, 8),
    (60, 4, "any", 3, 4),
]


def close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal to the rounding of a sum over a path of float32 scores."""
    return np.abs(a - b) <= 2e-5 + 2e-6 * np.abs(b)


def cases(shape: tuple[Any, ...]) -> tuple[Oracle, Any, tuple[np.ndarray, ...]]:
    """A tree, and 1000 rows in 40 kernels: flat, peaked, extreme ones, and such with many ties."""
    classes, widest, next_leaf, *_ = shape
    rng = np.random.default_rng(classes)
    parents = random_parents(rng, classes, widest, next_leaf)
    oracle, tree = Oracle(parents), hierarchical.tree_from_parents(parents)
    hidden = rng.standard_normal((KERNELS, ROWS, FEATURES))
    kernel = rng.standard_normal((KERNELS, oracle.num_rows, FEATURES))
    bias = rng.standard_normal((KERNELS, oracle.num_rows))
    scale = np.array([0, 0.1, 1, 4, 40])[np.arange(KERNELS) % 5, None, None]
    kernel, bias = scale * kernel, scale[..., 0] * bias
    # Whole numbers tie, in the scores and in what they add up to.
    kernel[::4], bias[::4], hidden[::4] = (
        np.round(kernel[::4]),
        np.round(bias[::4]),
        np.round(hidden[::4]),
    )
    return oracle, tree, tuple(x.astype(np.float32) for x in (hidden, kernel, bias))


def right(found: Any, true: np.ndarray) -> np.ndarray:
    """Which rows have the `k` largest of `true`, at classes that have those values."""
    log_probs, ids = np.asarray(found.log_probs), np.asarray(found.ids)
    best = -np.sort(-true, axis=-1)[..., : ids.shape[-1]]
    known = (ids >= 0) & (ids < true.shape[-1])
    at = np.take_along_axis(true, np.where(known, ids, 0), axis=-1)
    ordered = np.sort(ids, axis=-1)
    fits = known & close(log_probs, best) & close(at, best)
    return fits.all(-1) & (ordered[..., 1:] != ordered[..., :-1]).all(-1)


def search(shape: tuple[Any, ...]) -> tuple[Any, Any, np.ndarray]:
    oracle, tree, arrays = cases(shape)
    *_, k, beam = shape

    def both(hidden: Any, kernel: Any, bias: Any) -> Any:
        def one(exact: bool) -> Any:
            return decoding.top_k(hidden, kernel, tree, k, node_bias=bias, beam=beam, exact=exact)

        return one(False), one(True)

    found, exact = quick(jax.vmap(both))(*arrays)
    return found, exact, oracle.log_probs(scores(*arrays))


def test_certified_is_never_wrong():
    """10,000 rows, with beams so narrow that what is not certified is often wrong."""
    certified = wrong = total = 0
    for shape in SHAPES:
        found, exact, true = search(shape)
        sure, ok = np.asarray(found.certified), right(found, true)
        assert ok[sure].all(), shape
        # A beam of 1 / p is enough where the k-th class has the probability p.
        last = np.exp(-np.sort(-true, axis=-1)[..., shape[3] - 1])
        assert sure[shape[4] * last > 1.001].all(), shape
        assert np.asarray(exact.certified).all(), shape
        assert right(exact, true).all(), shape
        for answer in (found, exact):
            assert (np.diff(answer.log_probs, axis=-1) <= 0).all(), shape
        total, certified, wrong = total + sure.size, certified + sure.sum(), wrong + (~ok).sum()
    assert total == 10_000
    # Neither claim is empty: many rows are certified, and many of the others are wrong.
    assert certified > 4000
    assert wrong > 1000


def top_k(hidden: Any, kernel: Any, tree: Any, k: int, node_bias: Any = None, **options: Any) -> Any:
    """`decoding.top_k`, compiled in a hurry."""

    def run(hidden: Any, kernel: Any, tree: Any, bias: Any) -> Any:
        return decoding.top_k(hidden, kernel, tree, k, node_bias=bias, **options)

    return quick(run)(hidden, kernel, tree, node_bias)


@pytest.mark.parametrize("parents", [BUSHY, WIDE], ids=["binary", "wide"])
def test_all_classes_and_default_beam(parents: list[int]):
    oracle, tree, (hidden, kernel, bias) = problem(parents)
    found = top_k(hidden, kernel, tree, tree.num_classes, node_bias=bias)
    log_probs, ids, certified = found
    assert ids.dtype == jnp.int32
    assert certified.all()
    assert right(found, oracle.log_probs(scores(hidden, kernel, bias))).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        np.sort(ids), np.broadcast_to(np.arange(len(oracle.leaves)), ids.shape)
    )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("parents", [BUSHY, WIDE], ids=["binary", "wide"])
def test_gradients_of_log_probs(parents: list[int], exact: bool):
    """In every float argument, both modes, against the closed form at the classes found."""
    oracle, tree, arrays = problem(parents)
    hidden, kernel, bias = (np.asarray(x, np.float64) for x in arrays)
    rng = np.random.default_rng(0)
    ct = rng.standard_normal((6, 4)).astype(np.float32)

    def phi(hidden: Any, kernel: Any, bias: Any) -> Any:
        found = decoding.top_k(hidden, kernel, tree, 4, node_bias=bias, beam=2, exact=exact)
        return jnp.sum(ct * jnp.where(found.ids < 0, 0, found.log_probs)), found

    (_, found), gradients = quick(jax.value_and_grad(phi, (0, 1, 2), has_aux=True))(*arrays)
    weights = np.zeros((6, tree.num_classes))
    known = found.ids >= 0
    np.add.at(weights, (np.nonzero(known)[0], np.asarray(found.ids)[known]), ct[known])
    d_scores = oracle.score_gradient(scores(hidden, kernel, bias), weights)
    true = d_scores @ kernel, d_scores.T @ hidden, d_scores.sum(0)
    for got, expected in zip(gradients, true, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    tangents = tuple(jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in arrays)
    along = quick(lambda x, t: jax.jvp(lambda *x: phi(*x)[0], x, t)[1])(arrays, tangents)
    expected = sum(np.sum(np.asarray(t) * g) for t, g in zip(tangents, true, strict=True))
    np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_greedy():
    oracle, tree, (hidden, kernel, bias) = problem(WIDE)
    found = decoding.greedy(hidden, kernel, tree, node_bias=bias)
    true = scores(hidden, kernel, bias)
    ids = [oracle.greedy(row) for row in true]
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.log_probs, oracle.log_probs(true)[np.arange(6), ids], atol=1e-5)
    got = quick(jax.grad(lambda b: jnp.sum(decoding.greedy(hidden, kernel, tree, node_bias=b)[0])))(
        bias
    )
    weights = np.eye(tree.num_classes)[ids]
    np.testing.assert_allclose(got, oracle.score_gradient(true, weights).sum(0), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits(dtype: Any):
    """The scores of narrow arguments are float32; so are the answers."""
    oracle, tree, (hidden, kernel, bias) = problem(BUSHY, dtype)
    found = top_k(hidden, kernel, tree, 3, node_bias=bias, exact=True)
    assert found.log_probs.dtype == jnp.float32
    assert found.certified.all()
    assert right(found, oracle.log_probs(scores(hidden, kernel, bias))).all()
    gradient = quick(jax.grad(lambda h: jnp.sum(decoding.top_k(h, kernel, tree, 3).log_probs)))(hidden)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("parents", [BUSHY, WIDE], ids=["binary", "wide"])
def test_nan_rows_are_marked(parents: list[int]):
    """They end, are not certified, and leave the other rows and their gradients alone."""
    _, tree, (hidden, kernel, bias) = problem(parents)
    spoiled = hidden.at[2, 1].set(jnp.nan)
    for exact in (False, True):
        both = jnp.stack([hidden, spoiled])
        both = top_k(both, kernel, tree, 3, node_bias=bias, beam=16, exact=exact)
        clean, found = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
        assert np.isnan(found.log_probs[2]).all()
        assert not found.certified[2]
        others = np.arange(6) != 2
        for a, b in zip(found, clean, strict=True):
            np.testing.assert_array_equal(a[others], b[others])
        assert clean.certified.all()
    log_probs, ids = decoding.greedy(spoiled, kernel, tree)
    np.testing.assert_array_equal(np.isnan(log_probs), ~others)
    np.testing.assert_array_equal(ids < 0, ~others)
    drawn = decoding.sample(jax.random.key(0), spoiled, kernel, tree, num_samples=4)
    np.testing.assert_array_equal(drawn < 0, np.broadcast_to(~others, (4, 6)))


def test_nan_that_only_the_dense_pass_meets():
    """Never a certificate, in either mode, where a class that was not dropped for good is NaN."""
    _, tree, (hidden, kernel, bias) = problem(BUSHY)
    bias = jnp.zeros_like(bias).at[-1].set(jnp.nan)
    found = top_k(hidden, 0 * kernel, tree, 8, node_bias=bias, beam=2, exact=True)
    assert not found.certified.any()
    assert np.isnan(found.log_probs).all()


def test_impossible_classes_come_last():
    """A class of probability 0 is a class: −inf, after all others, and certified."""
    oracle, tree, (hidden, kernel, bias) = problem(BUSHY)
    bias = bias.at[3].set(jnp.inf)
    found = top_k(hidden, kernel, tree, tree.num_classes, node_bias=bias)
    assert found.certified.all()
    np.testing.assert_array_equal(np.sort(found.ids), np.broadcast_to(np.arange(30), (6, 30)))
    dense = hierarchical.hierarchical_log_softmax(hidden, kernel, tree, node_bias=bias)
    at = np.take_along_axis(np.asarray(dense), np.asarray(found.ids), axis=-1)
    np.testing.assert_allclose(np.exp(found.log_probs), np.exp(at), atol=1e-6)
    assert oracle.num_rows == 29


def test_a_beam_that_finds_too_few():
    _, tree, (hidden, kernel, bias) = problem(BUSHY)
    found = top_k(hidden, kernel, tree, 12, node_bias=bias, beam=1)
    missing = found.ids < 0
    assert missing.any(-1).all()
    assert not found.certified.any()
    np.testing.assert_array_equal(found.log_probs == -np.inf, missing)


@pytest.mark.slow  # ten seconds of compiling
def test_batches():
    """Any rank, none, no rows; a stack of trees of one shape."""
    _, tree, (hidden, kernel, bias) = problem(BUSHY)
    whole = top_k(hidden, kernel, tree, 3, node_bias=bias)
    for shape in ((2, 3), (0, 2)):
        h = jnp.resize(hidden, (*shape, FEATURES))
        found = top_k(h, kernel, tree, 3, node_bias=bias, exact=True)
        assert found.ids.shape == found.log_probs.shape == (*shape, 3)
        assert found.certified.shape == shape
        np.testing.assert_array_equal(found.ids.reshape(-1, 3), whole.ids[: found.certified.size])
        assert decoding.greedy(h, kernel, tree).ids.shape == shape
        assert decoding.sample(jax.random.key(0), h, kernel, tree).shape == shape
    one = top_k(hidden[0], kernel, tree, 3, node_bias=bias, exact=True)
    np.testing.assert_array_equal(one.ids, whole.ids[0])
    stack = jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    both = quick(jax.vmap(lambda t: decoding.top_k(hidden, kernel, t, 3, node_bias=bias)))(stack)
    np.testing.assert_array_equal(both.ids, jnp.stack([whole.ids] * 2))


def test_shard_map():
    _, tree, (hidden, kernel, bias) = problem(BUSHY, rows=8)
    key = jax.random.key(0)

    def all_of(hidden: Any, kernel: Any, bias: Any) -> Any:
        found = decoding.top_k(hidden, kernel, tree, 3, node_bias=bias, beam=2, exact=True)
        drawn = decoding.sample(key, hidden, kernel, tree, node_bias=bias)
        return found, decoding.greedy(hidden, kernel, tree, node_bias=bias), drawn

    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(all_of, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    (found, greedy, _), (alone, walked, _) = (quick(f)(hidden, kernel, bias) for f in (mapped, all_of))
    np.testing.assert_array_equal(found.ids, alone.ids)
    np.testing.assert_array_equal(greedy.ids, walked.ids)


def test_export_for_any_batch():
    _, tree, (hidden, kernel, bias) = problem(BUSHY)
    key, rows = jax.random.key(0), export.symbolic_shape("rows")[0]

    def all_of(hidden: Any) -> Any:
        def value(hidden: Any) -> Any:
            found = decoding.top_k(hidden, kernel, tree, 3, node_bias=bias, beam=2, exact=True)
            return jnp.sum(found.log_probs), found

        gradient, found = jax.grad(value, has_aux=True)(hidden)
        return (
            gradient,
            found.ids,
            decoding.greedy(hidden, kernel, tree).ids,
            decoding.sample(key, hidden, kernel, tree),
        )

    lower = export.export(jax.jit(all_of), platforms=("cpu", "cuda", "tpu"))
    stored = lower(jax.ShapeDtypeStruct((rows, FEATURES), jnp.float32))
    for a, b in zip(quick(stored.call)(hidden), quick(all_of)(hidden), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_work_does_not_grow_with_the_classes():
    """Twice the levels, twice the work: the programs hold no array of the size of the classes."""
    rows = 64

    def temporary(f: Callable[..., Any], classes: int) -> int:
        tree = hierarchical.balanced_tree(classes)
        types = (
            jax.ShapeDtypeStruct((rows, 8), jnp.float32),
            jax.ShapeDtypeStruct((tree.num_rows, 8), jnp.float32),
        )
        memory = jax.jit(f).lower(*types, tree).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    for f in (
        lambda h, k, tree: decoding.top_k(h, k, tree, 5),
        lambda h, k, tree: decoding.sample(jax.random.key(0), h, k, tree),
    ):
        assert temporary(f, 2**13) < min(2 * temporary(f, 2**8), 4 * rows * 2**13)
