"""What decoding refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jsoftmax import hierarchical
from jsoftmax.hierarchical import decoding

K, H = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)
TREE = hierarchical.huffman_tree([8, 4, 2, 1, 1])

WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: decoding.top_k(H, K, TREE, 6),
        ValueError,
        "top_k: k must be in [1, classes] = [1, 5], got 6; a tree has no more classes than leaves.",
    ),
    (
        lambda: decoding.top_k(H, K, TREE, 0),
        ValueError,
        "top_k: k must be in [1, classes] = [1, 5], got 0; a tree has no more classes than leaves.",
    ),
    (
        lambda: decoding.top_k(H, K, TREE, 2.0),  # pyright: ignore[reportArgumentType]
        TypeError,
        "top_k: k must be an integer, got 2.0; pass a Python int.",
    ),
    (
        lambda: decoding.top_k(H, K, TREE, 2, beam=0),
        ValueError,
        "top_k: beam must be at least 1, got 0; leave it out for a default.",
    ),
    (
        lambda: decoding.greedy(H, K[1:], TREE),
        ValueError,
        "greedy: node_kernel must have shape [tree.num_rows, features] = [4, 3] to match hidden "
        "[2, 3], got [3, 3]; it is gathered by rows.",
    ),
    (
        lambda: decoding.sample(0, H, K, TREE),
        TypeError,
        "sample: key must be a key of jax.random, got int32[]; make one with jax.random.key(seed).",
    ),
    (
        lambda: decoding.sample(jax.random.split(jax.random.key(0)), H, K, TREE),
        ValueError,
        "sample: key must be one key, got key<fry>[2]; map over several with jax.vmap.",
    ),
    (
        lambda: decoding.sample(jax.random.key(0), H, K, TREE, num_samples=-1),
        ValueError,
        "sample: num_samples must be at least 0, got -1; leave it out for one draw per row.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text[:30] for *_, text in WRONG])
def test_errors(call: Callable[[], Any], error: type[Exception], text: str):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == text
