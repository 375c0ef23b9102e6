"""Every public function under the flags that a user may set, all at once: value and gradient.

Ranks are not promoted, dtypes not either, a NaN inside is an error, so is a leaked tracer, and 64 bits
are on. The flags are read while JAX traces, so a case is compiled anew under them, once.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses, sampling
from tests.cases import CLASSES, ROWS
from tests.conformance import CASES
from tests.truth import quick, x64

FEATURES = 3
Call = Callable[..., Any]


@contextlib.contextmanager
def all_flags() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.debug_nans(True))
        stack.enter_context(jax.checking_leaks())
        stack.enter_context(x64())
        yield


def value_and_gradient(call: Call, inputs: dict[str, Any]) -> Any:
    """Both, from one compilation; of integers and keys there is no gradient."""
    floats = {k: jnp.asarray(x) for k, x in inputs.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    others = {k: jnp.asarray(x) for k, x in inputs.items() if k not in floats}

    @quick
    @functools.partial(jax.value_and_grad, has_aux=True)
    def both(floats: Any, others: Any) -> Any:
        out = call(**floats, **others)
        leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        # log-probabilities of masked classes are −inf, and have no gradient
        finite = [jnp.where(jnp.isfinite(x), x, 0) for x in leaves]
        return sum((jnp.sum(x, dtype=float) for x in finite), jnp.zeros((), float)), out

    return both(floats, others)


# `number`, not `case`, so that none is left to the slow tests.
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_every_function_under_all_flags(number: int):
    case = CASES[number]
    with all_flags():
        (value, _), gradient = value_and_gradient(case.call, case.inputs())
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(x)) for x in gradient.values())


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([2031, seed]).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(random(*shape, seed=1)) + np.float32(0.5)


LABELS = np.arange(ROWS, dtype=np.int32) % CLASSES
# Two axes of rows, whatever has one number per row or per class, and masks of the classes alone.
SOFT = np.asarray(jax.nn.softmax(random(2, ROWS, CLASSES)))
BATCH = np.stack([LABELS, LABELS])
SOME = np.arange(CLASSES) < CLASSES - 1
LOGITS = random(2, ROWS, CLASSES)
TREES = {
    "binary": hierarchical.huffman_tree(np.arange(1, CLASSES + 1)),
    "wide": hierarchical.two_level_tree(CLASSES, 2),
}


def on_tree(name: str, tree: str, **more: Any) -> tuple[Call, dict[str, Any]]:
    rows = TREES[tree].num_rows
    call = functools.partial(getattr(hierarchical, name), tree=TREES[tree], **more)
    return call, {
        "hidden": random(2, ROWS, FEATURES),
        "node_kernel": random(rows, FEATURES, seed=2),
        "node_bias": random(rows, seed=3),
    }


def with_negatives(name: str, replace: bool, **more: Any) -> tuple[Call, dict[str, Any]]:
    proposals = hierarchical.unigram_proposal(np.arange(1, CLASSES + 1)), hierarchical.Uniform(CLASSES)

    def call(**given: Any) -> Any:
        key = jax.random.key(0)
        negatives = hierarchical.draw_negatives(key, proposals[replace], 3, replace=replace)
        return getattr(hierarchical, name)(negatives=negatives, **given)

    inputs = {
        "hidden": random(2, ROWS, FEATURES),
        "class_kernel": random(CLASSES, FEATURES, seed=2),
        "bias": random(CLASSES, seed=3),
    }
    return call, {**inputs, **more}


def adaptive(name: str, *before: Any, **more: Any) -> tuple[Call, dict[str, Any]]:
    def call(hidden: Any, **given: Any) -> Any:
        params = hierarchical.adaptive_init(
            jax.random.key(0), FEATURES, CLASSES, (2, 4), division=1.5, head_bias=True
        )
        return getattr(hierarchical, name)(*before, hidden, params, **given)

    return call, {"hidden": random(2, ROWS, FEATURES), **more}


def of_transform(**leaves: Any) -> tuple[Call, dict[str, Any]]:
    def call(logits: Any, labels: Any, **leaves: Any) -> Any:
        transform = jsoftmax.chain(
            jsoftmax.Margin(leaves["per_row"], leaves["per_row"]),
            jsoftmax.LogitAdjustment(leaves["log_prior"], leaves["per_row"]),
            jsoftmax.Softcap(leaves["per_row"]),
            jsoftmax.Temperature(leaves["per_row"]),
        )
        return jsoftmax.cross_entropy(logits, labels, transform=transform, where=jnp.asarray(SOME))

    return call, {"logits": LOGITS, "labels": BATCH % (CLASSES - 1), **leaves}


def drawing(name: str, *before: Any, **options: Any) -> tuple[Call, dict[str, Any]]:
    def call(logits: Any, **given: Any) -> Any:
        return getattr(sampling, name)(jax.random.key(0), logits, *before, **options, **given)

    return call, {"logits": LOGITS}


def stepped(optimizer: Any) -> tuple[Call, dict[str, Any]]:
    def call(kernel: Any, values: Any) -> Any:
        rows = jnp.array([1, 0, 1], jnp.int32)
        updates, _ = optimizer.update(values, optimizer.init(kernel), rows)
        return hierarchical.apply_row_updates(kernel, rows, updates)

    return call, {"kernel": random(CLASSES, FEATURES), "values": random(3, FEATURES, seed=1)}


HEAD = {
    "hidden": random(2, ROWS, FEATURES),
    "kernel": random(FEATURES, CLASSES, seed=2),
    "bias": random(CLASSES, seed=3),
}
EVERYTHING = {
    "where": SOME,
    "temperature": positive(2, ROWS),
    "softcap": np.float32(3),
    "label_smoothing": np.float32(0.1),
    "z_loss": np.float32(0.1),
    "class_weights": positive(CLASSES),
}
KEY = jax.random.key(1)
OPTIONS: dict[str, tuple[Call, dict[str, Any]]] = {
    "softmax": (jsoftmax.softmax, {"x": LOGITS, "where": SOME, "temperature": positive(2, ROWS)}),
    "log_softmax": (jsoftmax.log_softmax, {"x": LOGITS, "temperature": positive(2, ROWS)}),
    "logsumexp": (functools.partial(jsoftmax.logsumexp, axis=(0, 2)), {"x": LOGITS, "where": SOME}),
    "sparsemax": (jsoftmax.sparsemax, {"x": random(2, 3000), "temperature": positive(2)}),
    "sparsemax_long": (jsoftmax.sparsemax, {"x": 100 * random(2, 8192)}),
    "entmax_long": (jsoftmax.entmax, {"x": 100 * random(2, 8192)}),
    "entmax": (jsoftmax.entmax, {"x": LOGITS, "where": SOME, "alpha": 1 + positive(2, ROWS)}),
    "cross_entropy": (
        functools.partial(jsoftmax.cross_entropy, ignore_index=1),
        {"logits": LOGITS, "labels": BATCH % (CLASSES - 1), **EVERYTHING},
    ),
    "cross_entropy_soft": (
        functools.partial(jsoftmax.cross_entropy, axis=1),
        {
            "logits": np.swapaxes(LOGITS, 1, 2),
            "labels": np.swapaxes(np.where(SOME, SOFT, 0), 1, 2),
            **EVERYTHING,
            "where": SOME[:, None],
        },
    ),
    "transforms": of_transform(per_row=positive(2, ROWS), log_prior=random(CLASSES, seed=4)),
    "transforms_shared": of_transform(per_row=np.float32(1.5), log_prior=random(CLASSES, seed=4)),
    "focal": (
        losses.softmax_focal_loss,
        {"logits": LOGITS, "labels": SOFT, "alpha": positive(CLASSES), "where": SOME},
    ),
    "focal_integer": (
        losses.softmax_focal_loss,
        {"logits": LOGITS, "labels": BATCH, "alpha": positive(CLASSES)},
    ),
    "multilabel": (
        losses.multilabel_cross_entropy,
        {"logits": LOGITS, "labels": SOFT, "pos_weight": positive(CLASSES), "where": SOME},
    ),
    "sigmoid": (losses.sigmoid_binary_cross_entropy, {"logits": LOGITS, "labels": SOFT[0, 0]}),
    "sigmoid_focal": (
        losses.sigmoid_focal_loss,
        {"logits": LOGITS, "labels": SOFT[0], "alpha": np.float32(0.3)},
    ),
    "binary_sparsemax": (
        losses.sparsemax_loss,
        {"logits": LOGITS, "labels": np.ones(CLASSES, np.float32)},
    ),
    "smooth_labels": (
        losses.smooth_labels,
        {"labels": SOFT, "alpha": np.float32(0.1), "where": SOME},
    ),
    "entmax_stats": (
        losses.entmax_stats,
        {"logits": LOGITS, "labels": BATCH % (CLASSES - 1), "where": SOME, "alpha": 1 + positive(2, 4)},
    ),
    "linear": (
        functools.partial(jsoftmax.linear_cross_entropy, chunk_size=3),
        {**HEAD, "labels": BATCH % (CLASSES - 1), **EVERYTHING, "weights": positive(2, ROWS)},
    ),
    "linear_rows": (
        functools.partial(jsoftmax.linear_cross_entropy, chunk_size=4, reduction="none"),
        {**HEAD, "labels": np.where(SOME, SOFT, 0), **EVERYTHING},
    ),
    "linear_statistics": (
        functools.partial(jsoftmax.linear_row_stats, chunk_size=4),
        {**HEAD, "labels": BATCH % (CLASSES - 1), "where": SOME},
    ),
    **{
        f"{name}_{tree}": on_tree(name, tree) for tree in TREES for name in ("greedy", "node_log_probs")
    },
    **{f"top_k_{tree}": on_tree("top_k", tree, k=3, exact=True) for tree in TREES},
    **{f"sample_{tree}": on_tree("sample", tree, key=KEY, num_samples=2) for tree in TREES},
    **{
        f"row_gradients_{tree}": on_tree("row_gradients", tree, labels=BATCH, weights=positive(2, ROWS))
        for tree in TREES
    },
    "grouped": on_tree("row_gradients", "wide", labels=BATCH[:, 0], grouped=True),
    **{
        f"tree_loss_{tree}": on_tree(
            "hierarchical_cross_entropy", tree, labels=SOFT, class_weights=positive(CLASSES)
        )
        for tree in TREES
    },
    "smooth_over_tree": (
        functools.partial(hierarchical.smooth_over_tree, tree=TREES["wide"], labels=BATCH),
        {"smoothing": np.float32(0.2), "decay": positive(2, ROWS)},
    ),
    "tree_distance": (
        lambda **_: hierarchical.tree_distance(BATCH, BATCH[::-1], TREES["binary"]),
        {"unused": random(1)},
    ),
    "sampled": with_negatives("sampled_cross_entropy", True, labels=BATCH),
    "noise_contrastive": with_negatives(
        "noise_contrastive_loss", False, labels=BATCH, class_weights=positive(CLASSES)
    ),
    "sampled_rows": with_negatives("sampled_row_gradients", True, labels=BATCH),
    "sampled_normalizer": with_negatives("sampled_log_normalizer", False),
    "adaptive": adaptive("adaptive_cross_entropy", labels=BATCH, class_weights=positive(CLASSES)),
    "adaptive_all": adaptive("adaptive_log_softmax"),
    "adaptive_top_k": (
        lambda hidden: adaptive("adaptive_top_k")[0](hidden=hidden, k=3),
        {"hidden": random(2, ROWS, FEATURES)},
    ),
    "adaptive_sample": adaptive("adaptive_sample", KEY),
    "categorical": drawing("categorical", shape=(3, 2, ROWS)),
    "categorical_long": (
        lambda logits: sampling.categorical(KEY, logits, shape=(3, 2)),
        {"logits": random(2, 5000)},
    ),
    "sample": drawing(
        "sample", top_k=3, top_p=positive(2, ROWS) / 9, min_p=0.1, temperature=positive(2, ROWS)
    ),
    "gumbel_softmax": drawing("gumbel_softmax", positive(2, ROWS), hard=True, where=SOME),
    "gumbel_top_k": drawing("gumbel_top_k", 3, where=SOME),
    "straight_through": drawing("straight_through", where=SOME),
    "rao_blackwell": drawing("rao_blackwell_gumbel_softmax", num_samples=3, where=SOME),
    "row_sgd": stepped(hierarchical.row_sgd(0.1)),
    "row_adagrad": stepped(hierarchical.row_adagrad(0.1)),
    "row_adam": stepped(hierarchical.row_adam(0.1)),
}


@pytest.mark.thin(6)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_other_ranks_under_all_flags(name: str):
    call, inputs = OPTIONS[name]
    with all_flags():
        (value, _), gradient = value_and_gradient(call, inputs)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(x)) for x in gradient.values())
