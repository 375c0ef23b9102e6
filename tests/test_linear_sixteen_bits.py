"""Kernels of 16 bits: their gradient, which a CPU writes in groups of blocks, against float32's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.linear import linear_cross_entropy, linear_row_stats
from jsoftmax.transforms import LogitAdjustment

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, FEATURES = 5, 3


# Of 203 classes there are seven groups of three blocks each; of 323 nine, of which the last one starts
# early; of 211, a prime, one.
def draw(classes: int, dtype: Any, soft: bool = False) -> tuple[dict[str, jax.Array], jax.Array]:
    """What moves, and labels."""
    rng = np.random.default_rng(classes)
    shapes = {"hidden": (ROWS, FEATURES), "kernel": (FEATURES, classes), "bias": (classes,)}
    moving = {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    moving["prior"] = jnp.asarray(rng.uniform(0.1, 1, classes), dtype)
    if soft:
        return moving, jnp.asarray(rng.dirichlet(np.ones(classes), ROWS), jnp.float32)
    return moving, jnp.asarray(rng.integers(0, classes, ROWS))


def loss_of(labels: jax.Array) -> Callable[[dict[str, jax.Array]], jax.Array]:
    by = jnp.sin(1 + jnp.arange(ROWS, dtype=jnp.float32))

    def loss(x: dict[str, jax.Array]) -> jax.Array:
        rows = linear_cross_entropy(
            x["hidden"],
            x["kernel"],
            labels,
            bias=x["bias"],
            where=jnp.arange(x["kernel"].shape[1]) != 1,
            transform=LogitAdjustment(x["prior"]),
            reduction="none",
            chunk_size=13,
        )
        return jnp.sum(by * rows**2)

    return loss


def close(got: Any, expected: Any, dtype: Any, ulps: float = 8) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(
            a, b, rtol=0, atol=ulps * float(jnp.finfo(dtype).eps) * np.abs(b).max()
        )


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("classes", "soft", "dtype"),
    [
        (203, False, jnp.bfloat16),
        (323, True, jnp.bfloat16),
        (211, False, jnp.bfloat16),
        (323, False, jnp.float16),
    ],
)
def test_gradients(classes: int, soft: bool, dtype: Any):
    moving, labels = draw(classes, dtype, soft)
    labels = jnp.where(jnp.arange(classes) == 1 if soft else labels == 1, 0, labels)
    loss = loss_of(labels)
    got = jax.jit(jax.value_and_grad(loss))(moving)
    close(got, jax.jit(jax.value_and_grad(loss))(widened(moving)), dtype)
    assert all(got[1][name].dtype == dtype for name in moving)


def along(x: Any) -> Any:
    """A direction."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), x)


def forward_over_reverse(loss: Any, x: Any) -> Any:
    return jax.jvp(jax.grad(loss), (x,), (along(x),))[1]


def reverse_over_reverse(loss: Any, x: Any) -> Any:
    def slope(x: Any) -> Any:
        terms = jax.tree.map(lambda g, v: jnp.sum(widened(g * v)), jax.grad(loss)(x), along(x))
        return sum(jax.tree.leaves(terms))

    return jax.grad(slope)(x)


def in_scan(loss: Any, x: Any) -> Any:
    """Of second order inside a scan, where jax forgets the rules of custom functions."""

    def step(x: Any, _: Any) -> tuple[Any, Any]:
        return x, forward_over_reverse(loss, x)

    return jax.lax.scan(step, x, None, length=2)[1]


def through_scan(loss: Any, x: Any) -> Any:
    """The gradient of steps of descent."""

    def after(x: Any) -> Any:
        def step(x: Any, _: Any) -> tuple[Any, None]:
            return jax.tree.map(lambda a, g: a - (0.01 * g).astype(a.dtype), x, jax.grad(loss)(x)), None

        return loss(jax.lax.scan(step, x, None, length=2)[0])

    return jax.grad(after)(x)


def batched(loss: Any, x: Any) -> Any:
    both = jax.tree.map(lambda a: jnp.stack([a, a[..., ::-1]]), x)
    return jax.vmap(jax.grad(loss))(both)


MODES: dict[str, Any] = {
    "jvp": lambda loss, x: jax.jvp(loss, (x,), (along(x),)),
    "forward over reverse": forward_over_reverse,
    "reverse over reverse": reverse_over_reverse,
    "in scan": in_scan,
    "through scan": through_scan,
    "vmap": batched,
}


@pytest.mark.thin(4)
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str):
    moving, labels = draw(323, jnp.bfloat16)
    loss = loss_of(jnp.where(labels == 1, 0, labels))
    derivative = jax.jit(lambda x: MODES[mode](loss, x))
    close(derivative(moving), derivative(widened(moving)), jnp.bfloat16)


def test_statistics():
    moving, labels = draw(323, jnp.bfloat16)

    def loss(h: Any, k: Any) -> Any:
        stats = linear_row_stats(h, k, labels, chunk_size=13)
        return jnp.sum(jnp.asarray(stats.nll) * jnp.asarray(stats.entropy))

    operands = moving["hidden"], moving["kernel"]
    got, expected = (jax.jit(jax.grad(loss, (0, 1)))(*x) for x in (operands, widened(operands)))
    close(got, expected, jnp.bfloat16)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_small_chunks(reduction: str):
    moving, labels = draw(323, jnp.bfloat16)

    def loss(h: Any, k: Any) -> Any:
        return linear_cross_entropy(h, k, labels, reduction=reduction, chunk_size=1)

    operands = moving["hidden"], moving["kernel"]
    got, expected = (jax.value_and_grad(loss, (0, 1))(*x) for x in (operands, widened(operands)))
    close(got, expected, jnp.bfloat16)
