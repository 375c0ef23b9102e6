"""What adaptive softmax refuses, and what it says."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy, adaptive_log_softmax
from jsoftmax.hierarchical.adaptive_decoding import adaptive_top_k
from jsoftmax.hierarchical.adaptive_params import (
    adaptive_cutoffs,
    adaptive_init,
)
from tests.adaptive_problem import FEATURES, made

PARAMS = made()
NOT_PARAMS: Any = {}
HIDDEN = jnp.zeros((2, 3, FEATURES))
LABELS = jnp.zeros((2, 3), jnp.int32)
SMALL = adaptive_init(jax.random.key(0), 4, 6, (2,))

ERRORS = [
    (
        lambda: adaptive_cross_entropy(HIDDEN[..., :5], PARAMS, LABELS),
        ValueError,
        "adaptive_cross_entropy: hidden must have shape [*batch, features] with features = 16 to match "
        "params, got [2, 3, 5]; make params for these features with adaptive_init.",
    ),
    (
        lambda: adaptive_cross_entropy(LABELS, PARAMS, LABELS),
        TypeError,
        "adaptive_cross_entropy: hidden must have a floating dtype, got int32; "
        "convert with hidden.astype(jnp.float32).",
    ),
    (
        lambda: adaptive_log_softmax(jnp.ones((2, 4)), dataclasses.replace(SMALL, cutoffs=(3,))),
        ValueError,
        "adaptive_log_softmax: params must have arrays of shapes [(4, 4), (4, 1), (1, 3)] to match "
        "cutoffs (3,) of 6 classes, got [(4, 3), (4, 1), (1, 4)]; make them anew with adaptive_init.",
    ),
    (
        lambda: adaptive_log_softmax(HIDDEN, NOT_PARAMS),
        TypeError,
        "adaptive_log_softmax: params must be AdaptiveParams, got dict; make them with adaptive_init.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, LABELS[..., None]),
        ValueError,
        "adaptive_cross_entropy: labels must have shape [*batch] = [2, 3] to match hidden [2, 3, 16], "
        "got [2, 3, 1]; pass one class index per row.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, HIDDEN[..., 0]),
        TypeError,
        "adaptive_cross_entropy: labels must be class indices of an integer dtype, got float32; "
        "convert with labels.astype(jnp.int32).",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, LABELS, reduction="average"),
        ValueError,
        "adaptive_cross_entropy: reduction must be one of 'mean', 'sum', 'none', got 'average'; "
        "check the spelling.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, LABELS, denominator=3.0),
        ValueError,
        "adaptive_cross_entropy: denominator must be None for reduction 'none', got 3.0; "
        "divide the result.",
    ),
    (
        lambda: adaptive_cross_entropy(HIDDEN, PARAMS, LABELS, weights=np.ones(3)),
        ValueError,
        "adaptive_cross_entropy: weights must have shape [*batch] = [2, 3] to match hidden "
        "[2, 3, 16], got [3]; broadcast them explicitly.",
    ),
    (
        lambda: adaptive_top_k(HIDDEN, PARAMS, 61),
        ValueError,
        "adaptive_top_k: k must be in [1, classes] = [1, 60], got 61; choose a value in range.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (5, 10)),
        ValueError,
        "adaptive_init: cutoffs must increase within (0, classes) = (0, 10), got (5, 10); "
        "sort them, and leave out the number of classes itself.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2, 5)),
        ValueError,
        "adaptive_init: division must leave each of 2 clusters a feature of 8, got 4.0; "
        "take a smaller one or fewer cutoffs.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2,), dtype=jnp.int32),
        TypeError,
        "adaptive_init: dtype must be a floating dtype, got int32; choose jnp.float32 or another.",
    ),
    (
        lambda: adaptive_init(jax.random.key(0), 8, 10, (2,), counts=np.ones(9)),
        ValueError,
        "adaptive_init: counts must have shape [classes] = [10], got [9]; one number per class.",
    ),
    (
        lambda: adaptive_cutoffs(np.array([1.0, -2.0])),
        ValueError,
        "adaptive_cutoffs: counts must be finite and at least 0, got -2.0; count the labels.",
    ),
    (
        lambda: adaptive_cutoffs(np.zeros(3)),
        ValueError,
        "adaptive_cutoffs: counts must not all be 0, got no occurrence; count the labels.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Any, kind: type[Exception], text: str):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()
