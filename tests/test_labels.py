"""The entries at the labels, read and written: where they are, and a label of no class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax._labels import at_label, with_label

LABELS = jnp.array([2, 0, -1, 4, 3, -100])


def rows() -> jax.Array:
    return jnp.arange(24, dtype=jnp.float32).reshape(6, 4)


def test_read():
    np.testing.assert_array_equal(at_label(rows(), LABELS), [2, 4, 0, 0, 19, 0])


def test_written():
    """A negative label does not count from the end."""
    expected = np.array(rows())
    expected[[0, 1, 4], [2, 0, 3]] = [-1, -2, -5]
    entries = -jnp.arange(1, 7, dtype=jnp.float32)
    np.testing.assert_array_equal(with_label(rows(), LABELS, entries), expected)
    several = jax.vmap(with_label)(rows()[:, None], LABELS[:, None], entries[:, None])
    np.testing.assert_array_equal(several[:, 0], expected)


def test_written_gradient():
    """The one that was there has none, and the one that is nowhere neither."""
    _, pull = jax.vjp(lambda v, entry: with_label(v, LABELS, entry), rows(), jnp.zeros(6))
    d_rows, d_entries = pull(rows() + 1)
    expected = np.array(rows() + 1)
    expected[[0, 1, 4], [2, 0, 3]] = 0
    np.testing.assert_array_equal(d_rows, expected)
    np.testing.assert_array_equal(d_entries, [3, 5, 0, 0, 20, 0])
