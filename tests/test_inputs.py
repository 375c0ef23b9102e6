"""Integers as they come: labels wider than JAX's, and any label to ignore, never taken for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses, sampling

ROWS, CLASSES, FEATURES = 3, 4, 5
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((ROWS, CLASSES)).astype(np.float32)
H = RNG.standard_normal((ROWS, FEATURES)).astype(np.float32)
K = RNG.standard_normal((FEATURES, CLASSES)).astype(np.float32)
TREE = hierarchical.balanced_tree(CLASSES)
NODES = RNG.standard_normal((TREE.num_rows, FEATURES)).astype(np.float32)
ADAPTIVE = hierarchical.adaptive_init(jax.random.key(0), FEATURES, CLASSES, (2,), division=2.0)
DRAWN = hierarchical.draw_negatives(jax.random.key(0), hierarchical.Uniform(CLASSES), 6)

Loss = Callable[..., Any]

# Losses of rows, or what is in place of them: of scores or hidden vectors, labels, one to ignore.
LOSSES: dict[str, tuple[Any, Loss]] = {
    "cross_entropy": (Z, lambda x, y, **k: jsoftmax.cross_entropy(x, y, **k)),
    "row_stats": (Z, lambda x, y, **k: jsoftmax.row_stats(x, y, **k).nll),
    "linear": (
        H,
        lambda x, y, **k: jsoftmax.linear_cross_entropy(x, K, y, reduction="none", **k),
    ),
    "linear in chunks": (
        H,
        lambda x, y, **k: jnp.stack(
            [
                jsoftmax.linear_cross_entropy(x[i : i + 1], K, y[i : i + 1], chunk_size=1, **k)
                for i in range(ROWS)
            ]
        ),
    ),
    "linear_row_stats": (H, lambda x, y, **k: jsoftmax.linear_row_stats(x, K, y, **k).nll),
    "entmax_loss": (Z, lambda x, y, **k: losses.entmax_loss(x, y, **k)),
    "bi_tempered": (Z, lambda x, y, **k: losses.bi_tempered_logistic_loss(x, y, 0.5, 1.5, **k)),
    "hierarchical": (
        H,
        lambda x, y, **k: hierarchical.hierarchical_cross_entropy(x, NODES, y, TREE, **k),
    ),
    "row_gradients": (H, lambda x, y, **k: hierarchical.row_gradients(x, NODES, y, TREE, **k).loss),
    "adaptive": (H, lambda x, y, **k: hierarchical.adaptive_cross_entropy(x, ADAPTIVE, y, **k)),
    "sampled": (H, lambda x, y, **k: hierarchical.sampled_cross_entropy(x, K.T, y, DRAWN, **k)),
    "noise_contrastive": (
        H,
        lambda x, y, **k: hierarchical.noise_contrastive_loss(x, K.T, y, DRAWN, **k),
    ),
    "sampled_row_gradients": (
        H,
        lambda x, y, **k: hierarchical.sampled_row_gradients(x, K.T, y, DRAWN, **k).loss,
    ),
    "smooth_over_tree": (
        np.full(ROWS, 0.1, np.float32),
        lambda x, y, **k: hierarchical.smooth_over_tree(y, TREE, x, **k),
    ),
}
PLAIN: dict[str, tuple[Any, Loss]] = {
    "with_integer_labels": (Z, losses.softmax_cross_entropy_with_integer_labels),
    "softmax_focal_loss": (Z, losses.softmax_focal_loss),
    "generalized_cross_entropy": (Z, losses.generalized_cross_entropy),
    "multiclass_sparsemax_loss": (Z, losses.multiclass_sparsemax_loss),
}


def value_and_gradient(loss: Loss, x: Any, labels: Any, **options: Any) -> tuple[Any, Any]:
    gradient = jax.grad(lambda x: jnp.sum(loss(x, labels, **options)))(jnp.asarray(x))
    return loss(x, labels, **options), gradient


def same(name: str, labels: Any, plain: list[int], **options: Any):
    """A loss of labels is that of plain ones; every one of `plain` that is no class is none."""
    x, loss = (LOSSES | PLAIN)[name]
    few = {"ignore_index": -100} if "ignore_index" in options else {}
    expected = value_and_gradient(loss, x, jnp.array(plain, jnp.int32), **few)
    for got, want in zip(value_and_gradient(loss, x, labels, **options), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for i, label in enumerate(plain):
        rows = [np.asarray(part)[i] for part in expected]
        if label == -100:
            assert all(np.all(row == 0) for row in rows)
        else:
            assert np.isnan(rows[0]).all() == np.isnan(rows[1]).all() == (label > CLASSES)


WIDE = {
    "int64": np.array([2**32, 1, 2**40 + 1]),
    "negative": np.array([-(2**32), 1, -(2**63)]),
    "uint64": np.array([2**32, 1, 2**64 - 2**32], np.uint64),
    "uint32": np.array([2**32 - 1, 1, 2**31], np.uint32),
}


@pytest.mark.parametrize("labels", WIDE)
def test_labels_too_wide_for_jax_stay_out_of_range(labels: str):
    same("cross_entropy", WIDE[labels], [77, 1, 77])


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", [*LOSSES, *PLAIN])
def test_no_loss_wraps_a_label(name: str):
    same(name, WIDE["int64"], [77, 1, 77])


def test_python_integers_too_wide_for_jax_stay_out_of_range():
    loss: Any = jsoftmax.cross_entropy
    got = loss(Z, [2**32, 1, -(2**32)])
    np.testing.assert_array_equal(np.isnan(got), [True, False, True])
    assert np.isnan(loss(Z[0], 2**32))
    assert np.isnan(loss(Z[0], np.int64(2**32)))


def test_distances_of_labels_too_wide_for_jax():
    far = hierarchical.tree_distance(WIDE["int64"], np.array([0, 1, 2**40 + 1]), TREE)
    np.testing.assert_array_equal(far, [np.nan, 0, np.nan])


@pytest.mark.parametrize(
    "top_k", [np.int64(10**12), np.full(ROWS, 2**32 + 1), 10**12, np.uint64(2**63)]
)
def test_counts_too_wide_for_jax_keep_all_classes(top_k: Any):
    draw = jax.vmap(lambda key, k: sampling.sample(key, Z, top_k=k), (0, None))
    keys = jax.random.split(jax.random.key(0), 20)
    got = [sampling.sample(key, Z, top_k=top_k) for key in keys]
    np.testing.assert_array_equal(np.stack(got), draw(keys, CLASSES))


def test_a_count_below_1_too_wide_for_jax_draws_nothing():
    got = sampling.sample(jax.random.key(0), Z, top_k=np.full(ROWS, -(2**32) + 2))
    np.testing.assert_array_equal(got, [-1] * ROWS)


# Labels, what they are with −100 for the one to ignore and 77 for no class, and that one.
IGNORED: dict[str, tuple[Any, list[int], list[Any]]] = {
    "uint32": (
        np.array([2**32 - 1, 1, 2**32 - 5], np.uint32),
        [-100, 1, 77],
        [2**32 - 1, np.uint32(2**32 - 1), jnp.uint32(2**32 - 1)],
    ),
    "uint32 of JAX": (
        jnp.array([2**32 - 1, 1, 2**31 - 1], jnp.uint32),
        [-100, 1, 77],
        [2**32 - 1, np.uint64(2**32 - 1), jnp.uint32(2**32 - 1)],
    ),
    "uint64": (
        np.array([2**64 - 1, 1, 2**63], np.uint64),
        [-100, 1, 77],
        [2**64 - 1, np.uint64(2**64 - 1)],
    ),
    "int64": (np.array([-(2**40), 1, -(2**41)]), [-100, 1, 77], [-(2**40), np.int64(-(2**40))]),
    "the largest": (
        np.array([2**31 - 1, 1, 2**32]),
        [-100, 1, 77],
        [2**31 - 1, np.int32(2**31 - 1), jnp.int32(2**31 - 1)],
    ),
    "the lowest": (
        np.array([-(2**31), 1, 1 - 2**31], np.int32),
        [-100, 1, 77],
        [-(2**31), np.int32(-(2**31)), jnp.int32(-(2**31))],
    ),
    "no int32": (
        np.array([-1, 1, 0], np.int32),
        [77, 1, 0],
        [2**32 - 1, 2**63, np.uint32(2**32 - 1), jnp.uint32(2**32 - 1)],
    ),
    "no int8": (np.array([-1, 1, 0], np.int8), [77, 1, 0], [255, np.uint8(255), jnp.uint8(255)]),
    "no uint8": (np.array([255, 1, 254], np.uint8), [77, 1, 77], [-1, np.int8(-1), jnp.int8(-1)]),
    "uint8": (np.array([255, 1, 254], np.uint8), [-100, 1, 77], [255, jnp.int32(255), np.uint8(255)]),
    "a class": (np.array([0, 1, 2**32]), [-100, 1, 77], [0, np.uint64(0), jnp.uint32(0)]),
}


@pytest.mark.parametrize("labels", IGNORED)
def test_every_integer_can_be_ignored(labels: str):
    given, plain, indices = IGNORED[labels]
    for index in indices:
        same("cross_entropy", given, plain, ignore_index=index)


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_ignores_what_int32_does_not_hold(name: str):
    for labels in ("uint32", "no int32"):
        given, plain, indices = IGNORED[labels]
        same(name, given, plain, ignore_index=indices[0])


def test_a_traced_label_to_ignore():
    labels = np.array([2**32 - 1, 1, 2**32 - 5], np.uint32)
    loss = jax.jit(lambda y, i: jsoftmax.cross_entropy(Z, y, ignore_index=i))
    got = loss(labels, np.uint32(2**32 - 1))
    expected = jsoftmax.cross_entropy(Z, np.array([-100, 1, 77]), ignore_index=-100)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(loss(labels.astype(np.int32), np.uint32(2**32 - 1))[0], np.nan)
