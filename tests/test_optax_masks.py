"""`where` and `axis` under optax's names mean what optax's function of that name means by them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
import pytest

import jsoftmax
from jsoftmax import losses

Loss = Callable[..., Any]


def log_p(z: Any, axis: Any) -> jax.Array:
    return jax.nn.log_softmax(z, axis)


# Of a library, with scores, distributions and indices of them.
LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": lambda of, z, q, y, **how: of.softmax_cross_entropy(z, q, **how),
    "softmax_cross_entropy_with_integer_labels": (
        lambda of, z, q, y, **how: of.softmax_cross_entropy_with_integer_labels(z, y, **how)
    ),
    "poly_loss_cross_entropy": lambda of, z, q, y, **how: of.poly_loss_cross_entropy(z, q, **how),
    "kl_divergence": lambda of, z, q, y, **how: of.kl_divergence(log_p(z, how["axis"]), q, **how),
    "kl_divergence_with_log_targets": (
        lambda of, z, q, y, **how: of.kl_divergence_with_log_targets(
            log_p(z, how["axis"]), jnp.log(q), **how
        )
    ),
    "generalized_kl_divergence": (
        lambda of, z, q, y, **how: of.generalized_kl_divergence(log_p(z, how["axis"]), q, **how)
    ),
    "smooth_labels": lambda of, z, q, y, **how: of.smooth_labels(q, 0.1, **how),
}
SHAPES = [
    ((3, 3), -1),
    ((3, 3), 0),
    ((2, 3), -1),
    ((2, 3), (0, 1)),
    ((2, 3), None),
    ((2, 2, 2), -1),
    ((2, 3, 4), 1),
    ((2, 3, 4), (2, 0)),
]


def masks(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Masks of every shape that such an array could have one of."""
    rng = np.random.default_rng(0)
    sizes = sorted({1, *shape})
    shapes = {s for rank in range(len(shape)) for s in itertools.product(sizes, repeat=rank)}
    shapes |= set(itertools.product(*({1, n} for n in shape)))
    found = []
    for one in sorted(shapes, key=lambda s: (len(s), s)):
        mask = np.asarray(rng.random(one) < 0.6)
        # Class 0, which all labels are, takes part: of a masked one optax gives a number, we +inf.
        mask[(0,) * mask.ndim] = True
        found.append(mask)
    return found


def compare(name: str, shape: tuple[int, ...], axis: Any, where: np.ndarray) -> bool:
    """Whether optax takes the mask; then the values are its values."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=shape).astype(np.float32)
    q = np.asarray(jax.nn.softmax(rng.normal(size=shape).astype(np.float32), axis))
    axes = {a % len(shape) for a in (range(len(shape)) if axis is None else np.atleast_1d(axis))}
    batch = tuple(n for a, n in enumerate(shape) if a not in axes)
    arguments = (z, q, np.zeros(batch, np.int32))
    try:
        # Of an integer and a float, which optax divides, strict promotion is the end.
        with jax.numpy_dtype_promotion("standard"):
            expected = LOSSES[name](optax.losses, *arguments, axis=axis, where=jnp.asarray(where))
    except (TypeError, ValueError):
        return False
    result = shape if name == "smooth_labels" else batch
    fits = all(n in (1, m) for n, m in zip(where.shape[::-1], shape[::-1], strict=False))
    if expected.shape != result or (name == "smooth_labels" and not fits):
        # optax's smooth_labels only sums its mask, whatever the sizes.
        # A mask of more axes than it should have makes optax give more losses than there are rows.
        with pytest.raises(ValueError, match="where"):
            LOSSES[name](losses, *arguments, axis=axis, where=where)
        return False
    found = np.asarray(LOSSES[name](losses, *arguments, axis=axis, where=where))
    expected, compared = np.asarray(expected), np.ones(result, bool)
    if name == "smooth_labels":
        # optax counts the classes of the mask as it is, not broadcast, and gives masked ones a share.
        if any(n != m for n, m in zip(where.shape[::-1], shape[::-1], strict=False)):
            return False
        compared = np.broadcast_to(where, shape) & (where.ndim == len(shape) or axis == -1)
    elif axis is not None and name == "softmax_cross_entropy_with_integer_labels":
        whole = where if where.ndim in (0, len(shape)) else np.expand_dims(where, axis)
        classes = [int(a) % len(shape) for a in np.atleast_1d(axis)]
        order = [a for a in range(len(shape)) if a not in axes] + classes
        rows = np.broadcast_to(whole, shape).transpose(order).reshape(*batch, -1)
        compared = rows[..., 0] | ~rows.any(axis=-1)
    np.testing.assert_allclose(found[compared], expected[compared], 2e-5, 2e-6)
    return True


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_means_what_optax_means(name: str, shape: tuple[int, ...], axis: Any):
    if name == "softmax_cross_entropy_with_integer_labels" and axis is None:
        axis = tuple(range(len(shape)))
    taken = sum(compare(name, shape, axis, where) for where in masks(shape))
    assert taken >= (1 if name == "smooth_labels" else 2)


def test_a_square_batch_in_a_divergence():
    log_predictions = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    targets = jnp.array([[0.8, 0.2], [0.4, 0.6]])
    where = jnp.array([True, False])
    found = losses.kl_divergence(log_predictions, targets, where=where)
    np.testing.assert_allclose(found, [0.376, 0.188], atol=5e-4)


SOFT = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], np.float32)
# What optax has no name for.
OTHERS: dict[str, Loss] = {
    "softmax_focal_loss": losses.softmax_focal_loss,
    "generalized_cross_entropy": losses.generalized_cross_entropy,
    "multilabel_cross_entropy": losses.multilabel_cross_entropy,
    "fenchel_young_loss": losses.fenchel_young_loss,
    "entmax_loss": losses.entmax_loss,
    "entmax_stats": lambda z, y, where: losses.entmax_stats(z, y, where=where).loss,
    "bi_tempered": lambda z, y, where: losses.bi_tempered_logistic_loss(z, y, 0.8, 1.2, where=where),
    "cross_entropy": jsoftmax.cross_entropy,
    "row_stats": lambda z, y, where: jsoftmax.row_stats(z, y, where=where).nll,
}


@pytest.mark.parametrize("rows", [3, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_elsewhere_a_mask_is_of_classes(name: str, rows: int):
    z = np.asarray(np.random.default_rng(0).normal(size=(rows, 3)), np.float32)
    q = SOFT[:rows] * np.array([1, 0, 1], np.float32)
    where = np.array([True, False, True])
    short, whole = (OTHERS[name](z, q, where=x) for x in (where, np.broadcast_to(where, z.shape)))
    np.testing.assert_array_equal(short, whole)
    assert np.isfinite(short).all()


@pytest.mark.parametrize("name", OTHERS)
def test_elsewhere_a_mask_of_rows_is_refused(name: str):
    with pytest.raises(ValueError, match=r"where must broadcast to logits .*\[2, 3\], got \[2\]"):
        OTHERS[name](np.zeros((2, 3), np.float32), SOFT[:2], where=np.ones(2, bool))


def test_a_mask_of_classes_in_optaxs_cross_entropy_has_all_axes():
    z, q = jnp.zeros((2, 3)), jnp.asarray(SOFT[:2])
    text = (
        r"softmax_cross_entropy: where of fewer axes than logits \[2, 3\] must have shape \[\*batch\] "
        r"= \[2\], as in optax, got \[3\]; give a mask of classes all axes, those of the batch of size "
        r"1\."
    )
    with pytest.raises(ValueError, match=text):
        losses.softmax_cross_entropy(z, q, where=np.ones(3, bool))
    assert losses.softmax_cross_entropy(z, q, where=np.ones((1, 3), bool)).shape == (2,)
