"""What sampled softmax refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsoftmax.hierarchical.negatives import draw_negatives
from jsoftmax.hierarchical.proposals import LogUniform, Uniform, unigram_proposal
from jsoftmax.hierarchical.sampled import (
    noise_contrastive_loss,
    sampled_cross_entropy,
    sampled_log_normalizer,
    sampled_row_gradients,
)
from tests.sampled_problem import CLASSES, KERNEL, ROWS, H, Y, drawn

DRAWN = drawn()
CALL: Any = sampled_cross_entropy
OF: Any = LogUniform
UNIGRAM: Any = unigram_proposal
DRAW: Any = draw_negatives
KEY = jax.random.key(0)


class Bare:
    num_classes = 3

    def sample(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jnp.zeros(shape, jnp.int32)


class Complete(Bare):
    def log_prob(self, ids: Any) -> Any:
        return jnp.zeros(ids.shape)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: Uniform(0),
        ValueError,
        "Uniform: num_classes must be in [1, 2^31), got 0; pass the number of classes.",
    ),
    (
        lambda: OF(2.5),
        TypeError,
        "LogUniform: num_classes must be an integer, got 2.5; pass a Python int.",
    ),
    (
        lambda: UNIGRAM([1, 2], power=-1),
        ValueError,
        "unigram_proposal: power must be at least 0 and finite, got -1; choose a value in range.",
    ),
    (
        lambda: jax.jit(lambda c: UNIGRAM(c).log_probs)(np.ones(3)),
        TypeError,
        "unigram_proposal: counts must be known before tracing, got a traced array; make the proposal "
        "outside and pass it as an argument.",
    ),
    (
        lambda: UNIGRAM(np.ones((2, 2))),
        ValueError,
        "unigram_proposal: counts must have shape [classes], got [2, 2]; pass one number per class.",
    ),
    (
        lambda: UNIGRAM([]),
        ValueError,
        "unigram_proposal: counts must have shape [classes], got [0]; pass one number per class.",
    ),
    (
        lambda: UNIGRAM([1.0, -2.0]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got -2.0 for class 1; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: UNIGRAM([np.nan, 1]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got nan for class 0; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: UNIGRAM([0, 0]),
        ValueError,
        "unigram_proposal: counts must be at least 0, finite and not all 0, got nothing but 0; "
        "leave out what was never seen by a count of 0.",
    ),
    (
        lambda: DRAW(KEY, Bare(), 3),
        TypeError,
        "draw_negatives: proposal must be a pytree with num_classes, sample and log_prob, got a Bare "
        "without log_prob; see hierarchical.Proposal.",
    ),
    (
        lambda: DRAW(KEY, Complete(), 3),
        TypeError,
        "draw_negatives: proposal must be a pytree with num_classes, sample and log_prob, got a "
        "Complete that is no pytree; see hierarchical.Proposal.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 1.5),
        TypeError,
        "draw_negatives: num_samples must be an integer, got 1.5; pass a Python int.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 0),
        ValueError,
        "draw_negatives: num_samples must be at least 1, got 0; choose a value in range.",
    ),
    (
        lambda: DRAW(KEY, Uniform(3), 4, replace=False),
        ValueError,
        "draw_negatives: num_samples must be in [1, classes] = [1, 3] without replacement, got 4; "
        "choose a value in range.",
    ),
    (
        lambda: CALL(H, KERNEL, Y, np.arange(3)),
        TypeError,
        "sampled_cross_entropy: negatives must be Negatives, got ndarray; make them with "
        "draw_negatives.",
    ),
    (
        lambda: CALL(H, KERNEL.T, Y, DRAWN),
        ValueError,
        "sampled_cross_entropy: class_kernel must have shape [classes, features] = [9, 4] to match "
        "hidden [7, 4], got [4, 9]; transpose it.",
    ),
    (
        lambda: CALL(H.astype(np.int32), KERNEL, Y, DRAWN),
        TypeError,
        "sampled_cross_entropy: hidden must have a floating dtype, got int32; convert with "
        "hidden.astype(jnp.float32).",
    ),
    (
        lambda: CALL(H, KERNEL, Y[:, None], DRAWN),
        ValueError,
        "sampled_cross_entropy: labels must have shape [*batch] = [7] to match hidden [7, 4], got "
        "[7, 1]; class indices have no class axis, squeeze the last one.",
    ),
    (
        lambda: CALL(H, KERNEL, np.ones((ROWS, CLASSES), np.float32), DRAWN),
        TypeError,
        "sampled_cross_entropy: labels must have an integer dtype, got float32; give every row one "
        "class.",
    ),
    (
        lambda: noise_contrastive_loss(H, KERNEL, Y, DRAWN, bias=H[0]),
        ValueError,
        "noise_contrastive_loss: bias must have shape [classes] = [9], got [4]; one value each.",
    ),
    (
        lambda: noise_contrastive_loss(
            H, KERNEL, Y, DRAWN, class_weights=np.arange(CLASSES, dtype=np.int32)
        ),
        TypeError,
        "noise_contrastive_loss: class_weights must have a floating dtype, got int32; convert with "
        "class_weights.astype(jnp.float32).",
    ),
    (
        lambda: CALL(H, KERNEL, Y, DRAWN, ignore_index=-1.0),
        TypeError,
        "sampled_cross_entropy: ignore_index must be an integer, got -1.0; pass a Python int.",
    ),
    (
        lambda: sampled_log_normalizer(H, KERNEL[:5], DRAWN),
        ValueError,
        "sampled_log_normalizer: class_kernel must have shape [classes, features] = [9, 4] to match "
        "hidden [7, 4], got [5, 4]; it is gathered by rows.",
    ),
    (
        lambda: sampled_row_gradients(H, KERNEL, Y, DRAWN, objective="nce"),
        ValueError,
        "sampled_row_gradients: objective must be one of 'cross_entropy', 'noise_contrastive', got "
        "'nce'; check the spelling.",
    ),
    (
        lambda: sampled_row_gradients(H, KERNEL, Y, DRAWN, weights=np.ones(3)),
        ValueError,
        "sampled_row_gradients: weights must be a scalar or have shape [*batch] = [7], got [3]; one "
        "value per row.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call: Callable[[], Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text
