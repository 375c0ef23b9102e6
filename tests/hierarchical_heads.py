"""How the logits of the golden table reach the functions of `jsoftmax.hierarchical`.

Three classes hang below a tree or stand in clusters: what those compute are scores of nodes, functions
of the three logits that leave the probabilities as they are. So the table says what has to come back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import hierarchical
from jsoftmax.hierarchical import AdaptiveParams, Tree

INF = np.inf
# Scores that lead to the three classes of a large tree, and logits of classes besides them: what goes
# elsewhere has a probability below what float32 holds, and float32 and float16 hold the scores.
LEAD, BESIDES = 200.0, -1e9


class Head(NamedTuple):
    """A function of the scores of some rows.

    Attributes:
        function: The name of the public function.
        kind: What it returns: `integer`, `soft` or `noise` losses, `log_softmax` or `logsumexp`.
        scores: From logits `[n, 3]` to scores `[n, s]` and their Jacobian `[n, s, 3]`, in float64.
        call: Of the shared parameters, labels, and rows of hidden vectors that hold the scores and a
            feature that is 1; with `bias=True` of one row's scores, as a bias, which may be infinite.
        shared: The parameters that all rows read.
        classes: The ids of the three classes, −1 for one that is not there.
        num_classes: The number of all classes.
        ways: How scores may come.
        biases: So many scores come as a bias, where any do; the others as a kernel, and 0 · inf is NaN.
    """

    function: str
    kind: str
    scores: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    call: Callable[..., Any]
    shared: Any
    classes: tuple[int, int, int] = (0, 1, 2)
    num_classes: int = 3
    ways: tuple[str, ...] = ("hidden", "bias")
    biases: int = 3

    def knows(self, label: int, dtype: str) -> bool:
        """Whether a function can be given such a label of the table."""
        there = label not in range(3) or self.classes[label] >= 0
        id_here = max(label, self.num_classes) if label >= 3 else label
        return there and np.iinfo(dtype).min <= id_here <= np.iinfo(dtype).max

    def ids(self, labels: np.ndarray, dtype: str) -> np.ndarray:
        """The labels of the table as class ids; what is above the classes there is above them here."""
        known = (labels >= 0) & (labels < 3)
        above = np.where(labels >= 3, np.maximum(labels, self.num_classes), labels)
        return np.where(known, np.array(self.classes)[np.clip(labels, 0, 2)], above).astype(dtype)

    def spread(self, q: Any) -> Any:
        """Distributions over the three classes as distributions over all."""
        there = np.array(self.classes) >= 0
        every = jnp.zeros((*q.shape[:-1], self.num_classes), q.dtype)
        return every.at[..., np.array(self.classes)[there]].set(q[..., there])


def as_they_are(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return z, np.broadcast_to(np.eye(3), (len(z), 3, 3))


def first_and_others(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`log Σ exp` of the last two, by the logits."""
    with np.errstate(all="ignore"):
        joint = np.logaddexp(z[:, 1], z[:, 2])
        second = 1 / (1 + np.exp(z[:, 2] - z[:, 1]))
    # Where it is undefined the row is NaN, or ignored; 0 · NaN would be this test's own.
    second = np.where(np.isfinite(second), second, 0.5)
    return joint, np.stack([np.zeros_like(second), second, 1 - second], axis=-1)


def of_two_forks(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first class or the others; then the second or the third."""
    joint, slope = first_and_others(z)
    with np.errstate(all="ignore"):
        scores = np.stack([z[:, 0] - joint, z[:, 1] - z[:, 2]], axis=-1)
    below = np.broadcast_to([0.0, 1.0, -1.0], slope.shape)
    return scores, np.stack([np.array([1.0, 0, 0]) - slope, below], axis=1)


def of_one_fork(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The second or the third class, where there is no first."""
    scores, slope = of_two_forks(z)
    return scores[:, 1:], slope[:, 1:]


def of_clusters(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first class and the cluster of the others in the head, and the cluster's own logits."""
    joint, slope = first_and_others(z)
    scores = np.stack([z[:, 0], joint, z[:, 1], z[:, 2]], axis=-1)
    alone = np.broadcast_to(np.eye(3), (len(z), 3, 3))
    return scores, np.stack([alone[:, 0], slope, alone[:, 1], alone[:, 2]], axis=1)


class Shape(NamedTuple):
    """A tree, the rows whose scores are those of the logits, and the rows that lead there."""

    tree: Tree
    scores: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    rows: tuple[int, ...]
    leading: tuple[int, ...] = ()
    classes: tuple[int, int, int] = (0, 1, 2)


def below(ways: int, inner: int) -> list[int]:
    """Parents of a full tree, breadth first, of so many inner nodes."""
    return [-1, *(node for node in range(inner) for _ in range(ways))]


SHAPES = {
    "smallest": Shape(hierarchical.huffman_tree([1, 1]), of_one_fork, (0,), classes=(-1, 0, 1)),
    "wide": Shape(hierarchical.tree_from_parents(below(3, 1)), as_they_are, (0, 1, 2)),
    # Levels of so many rows that the rows of the way are gathered; the way is always the first.
    "large binary": Shape(
        hierarchical.tree_from_parents([*below(2, 31), 31, 31, 64, 64]),
        of_two_forks,
        (31, 32),
        (0, 1, 3, 7, 15),
        (31, 32, 33),
    ),
    "large wide": Shape(
        hierarchical.tree_from_parents(below(3, 13)), as_they_are, (12, 13, 14), (0, 3)
    ),
    "binary": Shape(hierarchical.tree_from_parents([-1, 0, 0, 2, 2]), of_two_forks, (0, 1)),
}


def only_constant(scores: int, dtype: Any) -> Any:
    """A hidden vector whose scores are 0, before the feature that is 1."""
    return jnp.asarray(np.eye(scores + 1)[scores], dtype)


def row_gradient_loss(function: Callable[..., Any]) -> Callable[..., Any]:
    """The loss of a function that gives its own gradients, with these as its derivative."""

    def loss(hidden: Any, kernel: Any, *given: Any, **options: Any) -> Any:
        @jax.custom_vjp
        def rule(hidden: Any, kernel: Any) -> Any:
            return function(hidden, kernel, *given, **options).loss

        def forward(hidden: Any, kernel: Any) -> Any:
            got = function(hidden, kernel, *given, **options)
            return got.loss, (got, kernel)

        def backward(residuals: Any, ct: Any) -> Any:
            # The rule is asked with cotangents of 1, as is every loss of the table.
            got, kernel = residuals
            d_kernel = jnp.zeros(kernel.shape, got.values.dtype).at[got.rows].add(got.values)
            return got.d_hidden, d_kernel.astype(kernel.dtype)

        rule.defvjp(forward, backward)
        return rule(hidden, kernel)

    return loss


def on_tree(function: str, kind: str, shape: Shape) -> Head:
    given: Any = getattr(hierarchical, function)
    apply = row_gradient_loss(given) if function == "row_gradients" else given
    s, rows = len(shape.rows), shape.tree.num_rows
    kernel = np.zeros((rows, s + 1), np.float32)
    kernel[shape.rows, range(s)] = 1
    kernel[shape.leading, s] = LEAD

    def call(scores: Any, kernel: Any, *labels: Any, bias: bool, dtype: Any, **options: Any) -> Any:
        if bias:
            options["node_bias"] = jnp.zeros(rows, scores.dtype).at[np.array(shape.rows)].set(scores)
            scores = only_constant(s, dtype)
        out = apply(scores, kernel, *labels, shape.tree, **options)
        if kind != "log_softmax":
            return out
        ids = np.array(shape.classes)
        return out[..., shape.tree.leaves[ids] if function == "node_log_probs" else ids]

    ways = ("hidden",) if function == "row_gradients" else ("hidden", "bias")
    return Head(function, kind, shape.scores, call, kernel, shape.classes, shape.tree.num_classes, ways)


def adaptive(function: str, kind: str, besides: int = 0) -> Head:
    """One class in the head and two in a cluster, `besides` others that are all but impossible."""
    template = hierarchical.adaptive_init(
        jax.random.key(0), 4, 3 + besides, (1,), division=1.0, head_bias=True
    )
    apply: Any = getattr(hierarchical, function)
    tail = np.concatenate([np.eye(3, 2), np.zeros((3, besides))], axis=-1).astype(np.float32)
    tail[2, 2:] = BESIDES
    eye = np.eye(5, dtype=np.float32)

    def call(scores: Any, head: Any, *labels: Any, bias: bool, dtype: Any, **options: Any) -> Any:
        hidden, parts = scores, (eye[:, 2:], tail)
        offsets = jnp.zeros(2, scores.dtype)
        if bias:
            # Clusters have no bias: their logits come as the kernel of a feature that is 1.
            hidden, offsets = only_constant(4, dtype), scores[:2]
            others = jnp.full(besides, BESIDES, scores.dtype)
            parts = eye[:, 4:], jnp.concatenate([scores[2:], others])[None]
        params: AdaptiveParams = dataclasses.replace(
            template, head_kernel=head, head_bias=offsets,
            projections=(parts[0],), tail_kernels=(parts[1],),
        )  # fmt: skip
        out = apply(hidden, params, *labels, **options)
        return out[..., :3] if kind == "log_softmax" else out

    ways = ("hidden",) if besides else ("hidden", "bias")
    classes = 3 + besides
    return Head(function, kind, of_clusters, call, eye[:, :2], (0, 1, 2), classes, ways, biases=2)


def sampled(function: str, kind: str, **more: Any) -> Head:
    """Against all classes, drawn without replacement: nothing is left to chance."""
    every = hierarchical.draw_negatives(jax.random.key(0), hierarchical.Uniform(3), 3, replace=False)
    given: Any = getattr(hierarchical, function)
    apply = row_gradient_loss(given) if function == "sampled_row_gradients" else given

    def call(scores: Any, kernel: Any, *labels: Any, bias: bool, dtype: Any, **options: Any) -> Any:
        if bias:
            options["bias"], scores = scores, only_constant(3, dtype)
        return apply(scores, kernel, *labels, negatives=every, **options, **more)

    ways = ("hidden",) if function == "sampled_row_gradients" else ("hidden", "bias")
    return Head(function, kind, as_they_are, call, np.eye(3, 4, dtype=np.float32), ways=ways)


LOSS = "hierarchical_cross_entropy"
HEADS = {
    **{f"{LOSS}, {name}": on_tree(LOSS, "integer", shape) for name, shape in SHAPES.items()},
    **{
        f"{LOSS}, {name}, soft": on_tree(LOSS, "soft", SHAPES[name])
        for name in ("smallest", "binary", "wide")
    },
    **{
        f"{function}, {name}": on_tree(function, "log_softmax", SHAPES[name])
        for function in ("hierarchical_log_softmax", "node_log_probs")
        for name in ("binary", "wide")
    },
    **{
        f"row_gradients, {name}": on_tree("row_gradients", "integer", SHAPES[name])
        for name in ("large wide", "binary")
    },
    "adaptive_cross_entropy, many": adaptive("adaptive_cross_entropy", "integer", 5000),
    "adaptive_cross_entropy": adaptive("adaptive_cross_entropy", "integer"),
    "adaptive_log_softmax": adaptive("adaptive_log_softmax", "log_softmax"),
    "sampled_cross_entropy": sampled("sampled_cross_entropy", "integer"),
    "sampled_log_normalizer": sampled("sampled_log_normalizer", "logsumexp"),
    "sampled_row_gradients": sampled("sampled_row_gradients", "integer"),
    "noise_contrastive_loss": sampled("noise_contrastive_loss", "noise", remove_accidental_hits=True),
}
# Functions that no row of the table can call: what they return is no function of real numbers.
BUILDERS = "makes a tree, parameters or a proposal, once and on the host"
DRAWS = "returns classes drawn at random"
BEST = "returns the best classes and their log-probabilities, those of hierarchical_log_softmax"
OTHERS = {
    **dict.fromkeys(("adaptive_cutoffs", "adaptive_init", "unigram_proposal"), BUILDERS),
    **dict.fromkeys(("balanced_tree", "huffman_tree", "two_level_tree"), BUILDERS),
    **dict.fromkeys(("tree_from_names", "tree_from_parents"), BUILDERS),
    **dict.fromkeys(("adaptive_sample", "draw_negatives", "sample"), DRAWS),
    **dict.fromkeys(("adaptive_top_k", "greedy", "top_k"), BEST),
    **dict.fromkeys(("row_adagrad", "row_adam", "row_sgd"), "makes an optimizer"),
    **dict.fromkeys(("smooth_over_tree", "tree_distance"), "takes no logits"),
    "apply_row_updates": "adds rows",
}


def carried(scores: np.ndarray, slope: np.ndarray, dtype: Any) -> Callable[[Any], Any]:
    """The scores as a function of the logits: the numbers and the Jacobian that are known exactly."""
    known, jacobian = jnp.asarray(scores, dtype), jnp.asarray(slope, jnp.float32)

    @jax.custom_vjp
    def f(z: Any) -> Any:
        return known

    def backward(z: Any, ct: Any) -> Any:
        return (jnp.einsum("ns,nsk->nk", ct.astype(jnp.float32), jacobian).astype(z.dtype),)

    f.defvjp(lambda z: (known, z[:0]), backward)
    return f


def function_of_logits(
    head: Head, logits: np.ndarray, labels: np.ndarray | None, dtype: str, way: str
) -> Callable[..., Any]:
    """Of logits, the head's shared parameters and, for `soft` losses, distributions."""
    bias = way == "bias"
    scores, slope = head.scores(logits)
    if not bias:
        scores = np.concatenate([scores, np.ones((len(scores), 1))], axis=1)
        slope = np.concatenate([slope, np.zeros((len(slope), 1, 3))], axis=1)
    given_scores = carried(scores, slope, jnp.float32 if bias else dtype)
    options = {} if labels is None else {"ignore_index": -100}
    call = functools.partial(head.call, bias=bias, dtype=dtype, **options)

    def f(z: Any, shared: Any, *q: Any) -> Any:
        given = (labels,) if labels is not None else tuple(map(head.spread, q))
        if not bias:
            return call(given_scores(z), shared, *given)
        return jax.vmap(lambda s, *y: call(s, shared, *y))(given_scores(z), *given)

    return f
