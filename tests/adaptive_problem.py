"""A small problem of adaptive softmax, and its formula in float64."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jsoftmax.hierarchical.adaptive_params import (
    AdaptiveParams,
    adaptive_init,
)
from tests.oracles import adaptive as oracle

CLASSES, FEATURES = 60, 16
CUTOFFS = (7, 20)


def counts_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(1.0 + np.arange(CLASSES))


def made(scale: float = 3.0, seed: int = 0, **options: Any) -> Any:
    options = {"counts": counts_of(seed), "head_bias": True, **options}
    params = adaptive_init(jax.random.key(seed), FEATURES, CLASSES, CUTOFFS, **options)
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), params)


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([7, seed])
    hidden = rng.standard_normal((count, FEATURES)).astype(np.float32)
    return hidden, rng.integers(0, CLASSES, count).astype(np.int32)


def order_of(params: AdaptiveParams) -> np.ndarray:
    return np.arange(CLASSES) if params.ranking is None else params.ranking.classes


def oracle_parts(params: AdaptiveParams) -> tuple[Any, Any, Any]:
    bias = 0.0 if params.head_bias is None else params.head_bias
    tails = list(zip(params.projections, params.tail_kernels, strict=True))
    return params.head_kernel, np.broadcast_to(bias, params.head_kernel.shape[1]), tails


def oracle_log_softmax(params: AdaptiveParams, hidden: Any) -> np.ndarray:
    return oracle.log_softmax(hidden, *oracle_parts(params), order_of(params))


def at(log_probs: Any, labels: Any) -> np.ndarray:
    return np.take_along_axis(np.asarray(log_probs), np.asarray(labels)[..., None], -1)[..., 0]
