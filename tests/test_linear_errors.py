"""What linear losses refuse, and what they say."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from jsoftmax.linear import linear_cross_entropy
from tests.linear_problem import draw

H, K, Y = (draw((4,))[name] for name in ("hidden", "kernel", "labels"))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (
            (H, K.T, Y),
            {},
            ValueError,
            "linear_cross_entropy: kernel must have shape [features, classes] = [3, classes] to match "
            "hidden [4, 3], got [5, 3]; transpose it.",
        ),
        (
            (H, K, Y[:, None]),
            {},
            ValueError,
            "linear_cross_entropy: labels must have shape [*batch] = [4] to match hidden [4, 3] and "
            "kernel [3, 5], got [4, 1]; class indices have no class axis, squeeze the last one.",
        ),
        (
            (H, K, Y),
            {"bias": H},
            ValueError,
            "linear_cross_entropy: bias must have shape [classes] = [5], got [4, 3]; one value each.",
        ),
        (
            (H, K, Y),
            {"reduction": "max"},
            ValueError,
            "linear_cross_entropy: reduction must be one of 'mean', 'sum', 'none', got 'max'; "
            "check the spelling.",
        ),
        (
            (H, K, Y),
            {"weights": K},
            ValueError,
            "linear_cross_entropy: weights must have shape [*batch] = [4] to match hidden [4, 3], got "
            "[3, 5]; broadcast them explicitly.",
        ),
        (
            (H, K, Y),
            {"reduction": "sum", "denominator": 3.0},
            ValueError,
            "linear_cross_entropy: denominator must be None for reduction 'sum', got 3.0; divide the "
            "result.",
        ),
        (
            (H, K, Y),
            {"chunk_size": 0},
            ValueError,
            "linear_cross_entropy: chunk_size must be at least 1, got 0; choose a value in range.",
        ),
        (
            (H, K, Y),
            {"accum_dtype": jnp.int32},
            TypeError,
            "linear_cross_entropy: accum_dtype must be a floating dtype, got int32; leave it out for "
            "float32.",
        ),
        (
            (H, K, (H, K[:, :4])),
            {},
            ValueError,
            "linear_cross_entropy: labels must have shapes [*batch, features] = [4, 3] and [features, "
            "classes] = [3, 5] to match hidden [4, 3] and kernel [3, 5], got [4, 3] and [3, 4]; "
            "teacher and student share rows and classes.",
        ),
        (
            (H, K, (H, K, K)),
            {},
            ValueError,
            "linear_cross_entropy: labels must be one array or a teacher's (hidden, kernel), got 3 "
            "values; leave out the bias, or add it as a column of the kernel.",
        ),
        (
            (H, K, (Y, K)),
            {},
            TypeError,
            "linear_cross_entropy: labels[0] must have a floating dtype, got int32; convert with "
            "labels[0].astype(jnp.float32).",
        ),
        (
            (H, K, (H, K)),
            {"ignore_index": 0},
            ValueError,
            "linear_cross_entropy: ignore_index must be None for labels that are distributions, got 0; "
            "leave rows out with weighted_mean(losses, weights).",
        ),
    ],
    ids=[
        "kernel",
        "labels",
        "bias",
        "reduction",
        "weights",
        "denominator",
        "chunk",
        "accum",
        "teacher",
        "three",
        "teacher's dtype",
        "teacher ignored",
    ],
)
def test_errors(arguments: Any, options: Any, error: type[Exception], text: str):
    with pytest.raises(error) as raised:
        linear_cross_entropy(*arguments, **options)
    assert str(raised.value) == text
