"""A row without a distribution gives class −1 and NaN log-probabilities, in every sampler and decoder.

That is a row with a NaN of either sign, two +inf, or nothing but −inf, wherever it comes from.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax import hierarchical

KEY = jax.random.key(0)
FEATURES, CLASSES = 4, 40
NANS = {"nan": np.float32(np.nan), "-nan": -np.float32(np.nan)}
PARAMS = hierarchical.adaptive_init(KEY, FEATURES, CLASSES, (8, 20), division=1.0, counts=range(1, 41))
PARAMS = dataclasses.replace(PARAMS, head_bias=jnp.zeros(10))
HIDDEN = jax.random.normal(jax.random.key(1), (5, FEATURES))
# A tree of more than two ways, and one of two.
TREES = {
    "wide": hierarchical.two_level_tree(CLASSES),
    "binary": hierarchical.balanced_tree(CLASSES),
}

Adaptive = Callable[[Any, Any], tuple[Any, Any]]
ADAPTIVE: dict[str, Adaptive] = {
    "adaptive_sample": lambda h, p: (None, hierarchical.adaptive_sample(KEY, h, p)[:, None]),
    "adaptive_top_k": lambda h, p: hierarchical.adaptive_top_k(h, p, 3),
    "adaptive_top_k, all": lambda h, p: hierarchical.adaptive_top_k(h, p, CLASSES),
}


def spoiled(array: Any, at: Any, value: Any) -> jax.Array:
    changed = np.array(array)
    changed[at] = value
    return jnp.asarray(changed)


def check(found: tuple[Any, Any], clean: tuple[Any, Any], bad: Any) -> None:
    """Those rows have none, and the others what they had."""
    for got, expected, none in zip(found, clean, (np.nan, -1), strict=True):
        if got is not None:
            np.testing.assert_array_equal(got, np.where(np.asarray(bad)[:, None], none, expected))


@pytest.mark.parametrize("sign", NANS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive(name: str, sign: str):
    run, clean = ADAPTIVE[name], ADAPTIVE[name](HIDDEN, PARAMS)
    second = np.arange(5) == 2
    check(run(spoiled(HIDDEN, (2, 1), NANS[sign]), PARAMS), clean, second)
    check(run(spoiled(HIDDEN, (2, 1), np.inf), PARAMS), clean, second)
    whole = np.ones(5, bool)
    for field in ("head_kernel", "head_bias"):
        bad = spoiled(getattr(PARAMS, field), (0,) * np.ndim(getattr(PARAMS, field)), NANS[sign])
        check(run(HIDDEN, dataclasses.replace(PARAMS, **{field: bad})), clean, whole)


def with_bias(bias: Any) -> Any:
    return dataclasses.replace(PARAMS, head_bias=jnp.asarray(bias, jnp.float32))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_infinities(name: str):
    run, clean = ADAPTIVE[name], ADAPTIVE[name](HIDDEN, PARAMS)
    whole = np.ones(5, bool)
    check(run(HIDDEN, with_bias([np.inf, np.inf, *[0] * 8])), clean, whole)
    check(run(HIDDEN, with_bias([-np.inf] * 10)), clean, whole)
    # One that is certain: the most frequent class, the last; and a class of the first cluster.
    log_probs, ids = run(HIDDEN, with_bias([np.inf, *[0] * 9]))
    assert (ids[:, 0] == CLASSES - 1).all()
    assert log_probs is None or (log_probs[:, 0] == 0).all()
    _, ids = run(HIDDEN, with_bias([*[0] * 8, np.inf, 0]))
    assert ((ids[:, 0] >= CLASSES - 20) & (ids[:, 0] < CLASSES - 8)).all()


@pytest.mark.parametrize("sign", NANS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_clusters(name: str, sign: str):
    """A NaN of a cluster matters to the rows that look into it, not to others of the same tile."""
    bias = np.zeros((5, 10), np.float32)
    bias[:3, 8] = 30
    bias[3:, :3] = 30
    hidden = jnp.concatenate([HIDDEN, jnp.eye(5)], axis=1)
    kernel = jnp.concatenate([PARAMS.head_kernel, bias])
    inner = [jnp.pad(x, ((0, 5), (0, 0))) for x in PARAMS.projections]
    params = dataclasses.replace(PARAMS, head_kernel=kernel, projections=tuple(inner))
    clean = ADAPTIVE[name](hidden, params)
    tails = list(params.tail_kernels)
    tails[0] = spoiled(tails[0], (0, 0), NANS[sign])
    found = ADAPTIVE[name](hidden, dataclasses.replace(params, tail_kernels=tuple(tails)))
    looks = np.arange(5) < (5 if name == "adaptive_top_k, all" else 3)
    check(found, clean, looks)


def test_adaptive_tiles_do_not_mix_rows():
    """Alone or beside others, a row has one answer."""
    bias = jnp.array([0, 0, 0, *[-40.0] * 5, -50.0, -50.0])
    tails = spoiled(PARAMS.tail_kernels[0], (0, 0), np.nan), PARAMS.tail_kernels[1]
    params = dataclasses.replace(with_bias(bias), tail_kernels=tails)
    calm, needy = HIDDEN[:1], 100 * PARAMS.head_kernel[:, 8][None]
    together = hierarchical.adaptive_top_k(jnp.concatenate([calm, needy]), params, 2)
    alone = hierarchical.adaptive_top_k(calm, params, 2)
    np.testing.assert_array_equal(together[1][0], alone[1][0])
    assert (alone[1] >= 0).all()
    assert (together[1][1] == -1).all()


def test_an_impossible_cluster_has_no_ids():
    log_probs, ids = hierarchical.adaptive_top_k(HIDDEN, with_bias([0.0] * 8 + [-np.inf] * 2), 12)
    assert (ids[:, :8] >= CLASSES - 8).all()
    assert (ids[:, 8:] == -1).all()
    assert (log_probs[:, 8:] == -np.inf).all()


Decoder = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
DECODERS: dict[str, Decoder] = {
    "sample": lambda h, k, t, b: (
        None,
        hierarchical.sample(KEY, h, k, t, node_bias=b, num_samples=7).T,
    ),
    "greedy": lambda h, k, t, b: jax.tree.map(
        lambda x: x[:, None], tuple(hierarchical.greedy(h, k, t, node_bias=b))
    ),
    "top_k": lambda h, k, t, b: hierarchical.top_k(h, k, t, 3, node_bias=b)[:2],
    "top_k, exact": lambda h, k, t, b: hierarchical.top_k(h, k, t, 3, node_bias=b, exact=True)[:2],
}


@pytest.mark.parametrize("sign", NANS)
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", DECODERS)
def test_trees(name: str, tree: str, sign: str):
    run, t = DECODERS[name], TREES[tree]
    kernel, bias = jax.random.normal(KEY, (t.num_rows, FEATURES)), jnp.zeros(t.num_rows)
    clean = run(HIDDEN, kernel, t, bias)
    assert all(x is None or not np.isnan(x).any() for x in clean)
    check(run(spoiled(HIDDEN, (2, 1), NANS[sign]), kernel, t, bias), clean, np.arange(5) == 2)
    whole = np.ones(5, bool)
    check(run(HIDDEN, spoiled(kernel, (0, 0), NANS[sign]), t, bias), clean, whole)
    check(run(HIDDEN, kernel, t, spoiled(bias, 0, NANS[sign])), clean, whole)
    if tree == "wide":
        check(run(HIDDEN, kernel, t, spoiled(bias, [0, 1], np.inf)), clean, whole)
        check(run(HIDDEN, kernel, t, jnp.full(t.num_rows, -jnp.inf)), clean, whole)


def test_negatives_of_a_proposal_that_is_no_distribution():
    table = hierarchical.unigram_proposal([5, 3, 2, 1, 1])
    for value in NANS.values():
        bad = dataclasses.replace(table, log_probs=spoiled(table.log_probs, 3, value))
        negatives = hierarchical.draw_negatives(KEY, bad, 2, replace=False)
        assert (negatives.ids == -1).all()
        kernel = jnp.ones((5, FEATURES))
        for loss in (hierarchical.sampled_cross_entropy, hierarchical.noise_contrastive_loss):
            assert np.isnan(loss(HIDDEN, kernel, jnp.zeros(5, int), negatives)).all()
