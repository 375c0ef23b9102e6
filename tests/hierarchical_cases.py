"""The cases of `jsoftmax.hierarchical` in the conformance table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import hierarchical
from tests import hierarchical_formulas as formulas
from tests.cases import (
    CLASSES,
    IGNORED,
    ROWS,
    Case,
    Draw,
    distributions,
    indices,
    number,
    per_class,
    per_row,
)

FEATURES = 3
# Six classes below a binary tree, whose first levels are scored for all rows, and below a wide one.
BINARY = (-1, 0, 0, 1, 1, 2, 2, 3, 3, 7, 7)
WIDE = (-1, 0, 0, 0, 1, 1, 2, 2, 3, 3)
KNOWN = {BINARY: hierarchical.tree_from_parents(BINARY), WIDE: hierarchical.tree_from_parents(WIDE)}


def hidden(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((ROWS, FEATURES)).astype(np.float32)


def kernel(rows: int) -> Draw:
    return lambda rng: rng.standard_normal((rows, FEATURES)).astype(np.float32)


def bias(rows: int) -> Draw:
    return lambda rng: rng.standard_normal(rows).astype(np.float32)


def on_tree(name: str, parents: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The function on a tree, its formula there, and what both need."""
    options = more.pop("options", {})
    rows = KNOWN[parents].num_rows
    return {
        "call": functools.partial(getattr(hierarchical, name), tree=KNOWN[parents], **options),
        "reference": functools.partial(getattr(formulas, name), parents=parents, **options),
        "draws": {"hidden": hidden, "node_kernel": kernel(rows), "node_bias": bias(rows), **more},
    }


# Of an adaptive softmax with three classes in the head, a cluster of two and one of one.
COUNTS, CUTOFFS = np.array([1, 7, 9, 5, 4, 2]), (3, 5)
# Two of one class, one a label of some rows.
DRAWN = (1, 4, 4)


def sampled(name: str, objective: Callable[..., Any]) -> Case:
    def call(**given: Any) -> Any:
        rate = jnp.log(jnp.asarray(len(DRAWN), jnp.result_type(float)))
        drawn = jnp.array(DRAWN, jnp.int32)
        negatives = hierarchical.Negatives(drawn, rate, hierarchical.LogUniform(CLASSES), True)
        return getattr(hierarchical, name)(negatives=negatives, ignore_index=IGNORED, **given)

    return Case(
        name,
        call,
        functools.partial(objective, drawn=DRAWN, ignore_index=IGNORED),
        {
            "hidden": hidden,
            "class_kernel": kernel(CLASSES),
            "labels": indices,
            "bias": bias(CLASSES),
            "class_weights": per_class(0.5, 2.0),
        },
    )


def adaptive(name: str, output: str, formula: Any = None, options: Any = None, **more: Any) -> Case:
    """On parameters that come one by one."""
    fixed = options or {}
    template = hierarchical.adaptive_init(
        jax.random.key(0), FEATURES, CLASSES, CUTOFFS, counts=COUNTS, division=1.5, head_bias=True
    )

    def call(
        hidden: Any, head_kernel: Any, head_bias: Any, projections: Any, tails: Any, **options: Any
    ) -> Any:
        params = dataclasses.replace(
            template,
            head_kernel=head_kernel,
            head_bias=head_bias,
            projections=(projections[:, :2], projections[:, 2:]),
            tail_kernels=(tails[:4].reshape(2, 2), tails[4:].reshape(1, 1)),
        )
        return getattr(hierarchical, name)(hidden, params, **options, **fixed)

    def over_rows(**given: Any) -> Any:
        return jax.lax.psum(call(**given), "rows")

    return Case(
        "_".join([name, *fixed.values()]),
        call,
        functools.partial(
            formula or getattr(formulas, name), order=tuple(np.argsort(-COUNTS).tolist())
        ),
        {
            "hidden": hidden,
            "head_kernel": lambda rng: rng.standard_normal((FEATURES, 5)).astype(np.float32),
            "head_bias": bias(5),
            "projections": lambda rng: rng.standard_normal((FEATURES, 3)).astype(np.float32),
            "tails": bias(5),
            **more,
        },
        over_rows=over_rows if output == "scalar" else None,
        output=output,
    )


HIERARCHICAL = (
    adaptive("adaptive_cross_entropy", "rows", labels=indices, class_weights=per_class(0.5, 2.0)),
    adaptive(
        "adaptive_cross_entropy",
        "scalar",
        formulas.adaptive_mean,
        {"reduction": "mean"},
        labels=indices,
        class_weights=per_class(0.5, 2.0),
        weights=per_row(0.5, 2.0),
        denominator=number(3.0, 5.0),
    ),
    adaptive("adaptive_log_softmax", "classes"),
    sampled("sampled_cross_entropy", formulas.sampled_cross_entropy),
    sampled("noise_contrastive_loss", formulas.noise_contrastive_loss),
    Case(
        "hierarchical_cross_entropy_binary",
        **on_tree(
            "hierarchical_cross_entropy",
            BINARY,
            labels=indices,
            class_weights=per_class(0.5, 2.0),
            options={"ignore_index": IGNORED},
        ),
    ),
    Case(
        "hierarchical_cross_entropy_wide",
        **on_tree("hierarchical_cross_entropy", WIDE, labels=indices),
    ),
    Case(
        "hierarchical_cross_entropy_soft",
        **on_tree(
            "hierarchical_cross_entropy",
            BINARY,
            labels=distributions,
            class_weights=per_class(0.5, 2.0),
        ),
    ),
    Case(
        "hierarchical_log_softmax",
        **on_tree("hierarchical_log_softmax", WIDE),
        output="classes",
    ),
    Case(
        "top_k",
        lambda **given: hierarchical.top_k(tree=KNOWN[BINARY], k=4, beam=2, exact=True, **given)[0],
        functools.partial(formulas.top_log_probs, parents=BINARY, k=4),
        {"hidden": hidden, "node_kernel": kernel(5), "node_bias": bias(5)},
        output="classes",
    ),
    Case("node_log_probs", **on_tree("node_log_probs", WIDE), output="classes"),
    Case(
        "smooth_over_tree",
        functools.partial(hierarchical.smooth_over_tree, tree=KNOWN[WIDE]),
        functools.partial(formulas.smooth_over_tree, parents=WIDE),
        {"smoothing": per_row(0.1, 0.3), "decay": number(0.5, 1.5), "labels": indices},
        output="classes",
    ),
)
