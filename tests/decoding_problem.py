"""Trees and scores that decoding is tested with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jsoftmax import hierarchical
from tests.oracles.decoding import Oracle, random_parents

FEATURES = 3


def scores(hidden: Any, kernel: Any, bias: Any) -> np.ndarray:
    hidden, kernel, bias = (np.asarray(x).astype(np.float64) for x in (hidden, kernel, bias))
    return hidden @ np.swapaxes(kernel, -1, -2) + bias[..., None, :]


BUSHY = random_parents(np.random.default_rng(1), 30, 2, "oldest")
WIDE = random_parents(np.random.default_rng(2), 25, 4, "any")


def problem(parents: list[int], dtype: Any = np.float32, rows: int = 6) -> tuple[Oracle, Any, Any]:
    """A tree and hidden vectors, a kernel and a bias for it."""
    oracle, rng = Oracle(parents), np.random.default_rng(rows)
    shapes = (rows, FEATURES), (oracle.num_rows, FEATURES), (oracle.num_rows,)
    arrays = tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return oracle, hierarchical.tree_from_parents(parents), arrays
