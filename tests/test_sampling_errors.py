"""What samplers refuse, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jsoftmax import sampling
from tests.sampling_problem import KEY

Z = np.zeros((2, 3), np.float32)
DRAW_SOME: Any = sampling.gumbel_top_k

ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sampling.categorical(0, Z), TypeError,
     "categorical: key must be a key of jax.random, got int32[]; make one with jax.random.key(seed)."),
    (lambda: sampling.categorical(KEY, np.zeros(3, int)), TypeError,
     "categorical: logits must have a floating dtype, got int32; convert with "
     "logits.astype(jnp.float32)."),
    (lambda: sampling.categorical(KEY, Z, shape=(2, 3)), ValueError,
     "categorical: shape must be one that [*batch] = [2] of logits broadcasts to, got [2, 3]; put the "
     "number of draws before the axes of the batch."),
    (lambda: sampling.categorical(KEY, Z, shape=()), ValueError,
     "categorical: shape must be one that [*batch] = [2] of logits broadcasts to, got []; put the "
     "number of draws before the axes of the batch."),
    (lambda: sampling.categorical(KEY, Z, where=np.zeros(3)), TypeError,
     "categorical: where must have dtype bool, got float32; convert with where != 0."),
    (lambda: sampling.categorical(KEY, Z, axis=2), ValueError,
     "categorical: axis must be in [-2, 2) for an array of 2 dimensions, got 2; count from 0, or from "
     "−1 backwards."),
    (lambda: sampling.sample(KEY, Z, temperature=-1.0), ValueError,
     "sample: temperature must be at least 0, got -1.0; choose a value in range."),
    (lambda: sampling.sample(KEY, Z, top_k=0), ValueError,
     "sample: top_k must be at least 1, got 0; choose a value in range."),
    (lambda: sampling.sample(KEY, Z, top_k=2.0), TypeError,
     "sample: top_k must have an integer dtype, got float32; it is a number of classes."),
    (lambda: sampling.sample(KEY, Z, top_k=np.array([1, 2, 3])), ValueError,
     "sample: top_k must be a scalar or have shape [*batch] = [2], got [3]; one value per row."),
    (lambda: sampling.sample(KEY, Z, top_p=1.5), ValueError,
     "sample: top_p must be in [0, 1], got 1.5; choose a value in range."),
    (lambda: sampling.sample(KEY, Z, min_p=np.zeros(3)), ValueError,
     "sample: min_p must be a scalar or have shape [*batch] = [2], got [3]; one value per row."),
    (lambda: sampling.gumbel_softmax(jax.random.split(KEY), Z), ValueError,
     "gumbel_softmax: key must be one key, got key<fry>[2]; map over several with jax.vmap."),
    (lambda: sampling.gumbel_softmax(KEY, Z, np.ones(3)), ValueError,
     "gumbel_softmax: temperature must be a scalar or have shape [*batch] = [2], got [3]; one value "
     "per row."),
    (lambda: sampling.gumbel_top_k(KEY, Z, 4), ValueError,
     "gumbel_top_k: k must be in [0, classes] = [0, 3], since classes are not put back, got 4; draw "
     "them with replacement by categorical."),
    (lambda: DRAW_SOME(KEY, Z, 1.0), TypeError,
     "gumbel_top_k: k must be an integer, got 1.0; pass a Python int."),
    (lambda: sampling.rao_blackwell_gumbel_softmax(KEY, Z, num_samples=0), ValueError,
     "rao_blackwell_gumbel_softmax: num_samples must be at least 1, got 0; the gradient is the mean of "
     "those of so many soft samples."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text
