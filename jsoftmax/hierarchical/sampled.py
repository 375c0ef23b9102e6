"""Losses over a few classes drawn at random in place of all of them.

Negatives are drawn once for a whole batch, and drawn before the loss is called: a step then knows
which rows of the kernel it reads. The scores of a batch against shared negatives are one matmul; own
negatives for each row would be a gather of batch · samples rows. `jax.vmap` over keys gives those.

Imports `_sampled`, `negatives`, `rows`, `maps`, `_labels`, `_pytrees`, `_numerics`, `_checks`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import comparable
from jsoftmax._numerics import by_rows, without_tiny_dtypes
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.hierarchical._sampled import as_floats, gathered, loss_of_rows, rows_read, scores_of_drawn
from jsoftmax.hierarchical.negatives import Negatives
from jsoftmax.hierarchical.rows import RowGradients, gradients_layout
from jsoftmax.maps import logsumexp

_OBJECTIVES = ("cross_entropy", "noise_contrastive")
_OPTIONS = ("objective", "hits", "corrected")


@takes_arrays
def sampled_cross_entropy(
    hidden: ArrayLike,
    class_kernel: ArrayLike,
    labels: ArrayLike,
    negatives: Negatives,
    *,
    bias: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    remove_accidental_hits: bool = True,
    log_q_correction: bool = True,
) -> Array:
    r"""Cross-entropy of softmax against the label and some classes drawn at random.

    .. math:: \ell = -\log \frac{e^{z_y}}{e^{z_y} + \sum_{j: s_j \ne y} e^{z_{s_j}} / c_{s_j}},
        \qquad z_k = h \cdot k_k + b_k, \quad c_k = \mathrm{E}[\text{times } k \text{ is drawn}]

    The denominator is an unbiased estimate of the full softmax's; the loss, its logarithm, is too low
    on average by O(1 / samples), and equals `cross_entropy` where all classes are drawn without
    replacement. The label is always there, so it has no correction: TensorFlow's
    `sampled_softmax_loss` divides it by its count too, which turns the estimate away from the softmax
    as samples grow with replacement. For training only: evaluate with the full softmax.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        class_kernel: `[classes, features]`, floating: rows, since they are gathered.
        labels: Class indices `[*batch]`.
        negatives: What `draw_negatives` gave, shared by the batch.
        bias: `[classes]`, added to the scores.
        class_weights: `[classes]`: the loss of a class is multiplied with its weight.
        ignore_index: Rows with this label cost 0 and have no gradient, whatever `hidden` holds there.
        remove_accidental_hits: Whether a negative that is the label of a row is left out there. It
            is counted twice otherwise.
        log_q_correction: Whether to divide by the expected counts. Without, the loss learns scores
            that are off by the proposal's log-probabilities.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. NaN, value and gradient, for a label that is
        no class, and for all rows where a proposal drew what is no class.

    Gradient: in `hidden`, `class_kernel`, `bias` and `class_weights`, and in floating leaves of the
    proposal as the draws stand (`stop_gradient` keeps a learned one out). That of `class_kernel` is
    dense; `sampled_row_gradients` gives the touched rows alone. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit, distributions among them; for negatives that
            `draw_negatives` did not make.
        ValueError: For shapes that do not fit the proposal or each other.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> proposal = hierarchical.LogUniform(1000)
        >>> negatives = hierarchical.draw_negatives(jax.random.key(0), proposal, 20)
        >>> kernel, labels = jnp.zeros((1000, 5)), jnp.array([3, 999])
        >>> loss = hierarchical.sampled_cross_entropy(jnp.ones((2, 5)), kernel, labels, negatives)
        >>> loss.shape
        (2,)

    References:
        Bengio and Senécal, Adaptive importance sampling to accelerate training of a neural
        probabilistic language model, 2008; Jean et al., On using very large target vocabulary for
        neural machine translation, 2015; Blanc and Rendle, Adaptive sampled softmax with kernel based
        sampling, 2018; Rawat et al., Sampled softmax with random Fourier features, 2019.
    """
    given = (hidden, class_kernel, labels, negatives, bias, class_weights)
    args = _checked("sampled_cross_entropy", given, ignore_index)
    options = _options("sampled_cross_entropy", remove_accidental_hits, log_q_correction)
    return _loss(*args, objective="cross_entropy", **options)


@takes_arrays
def noise_contrastive_loss(
    hidden: ArrayLike,
    class_kernel: ArrayLike,
    labels: ArrayLike,
    negatives: Negatives,
    *,
    bias: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    remove_accidental_hits: bool = False,
    log_q_correction: bool = True,
) -> Array:
    r"""Noise-contrastive estimation: telling the label from the classes drawn, one sigmoid for each.

    .. math:: \ell = -\log \sigma(z_y - \log c_y) - \sum_j \log \sigma(\log c_{s_j} - z_{s_j}),
        \qquad z_k = h \cdot k_k + b_k, \quad c_k = \mathrm{E}[\text{times } k \text{ is drawn}]

    Its scores learn to be log-probabilities, normalised by themselves: no sum over the classes is
    estimated. TensorFlow's `nce_loss`; without the correction it is word2vec's negative sampling.
    Start `bias` at `-log(classes)`, or scores begin far too high.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        class_kernel: `[classes, features]`, floating: rows, since they are gathered.
        labels: Class indices `[*batch]`.
        negatives: What `draw_negatives` gave, shared by the batch. The theory is of draws with
            replacement; without, counts are inclusion probabilities, as in TensorFlow.
        bias: `[classes]`, added to the scores.
        class_weights: `[classes]`: the loss of a class is multiplied with its weight.
        ignore_index: Rows with this label cost 0 and have no gradient, whatever `hidden` holds there.
        remove_accidental_hits: Whether a negative that is the label of a row is left out there. The
            theory keeps them.
        log_q_correction: Whether to subtract the logarithms of the expected counts.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. NaN, value and gradient, for a label that is
        no class, and for all rows where a proposal drew what is no class. A label that the proposal
        never draws costs nothing itself: it cannot be noise.

    Gradient: `σ(z − log c) − [k = y]` times the row's hidden vector for the rows read; in `hidden`,
    `class_kernel`, `bias` and `class_weights`, and in floating leaves of the proposal as the draws
    stand. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit, distributions among them; for negatives that
            `draw_negatives` did not make.
        ValueError: For shapes that do not fit the proposal or each other.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> negatives = hierarchical.draw_negatives(jax.random.key(0), hierarchical.Uniform(8), 8)
        >>> kernel, labels = jnp.zeros((8, 5)), jnp.array([3])
        >>> print(hierarchical.noise_contrastive_loss(jnp.ones((1, 5)), kernel, labels, negatives))
        [6.2383246]

    References:
        Gutmann and Hyvärinen, Noise-contrastive estimation, 2010; Mnih and Teh, A fast and simple
        algorithm for training neural probabilistic language models, 2012.
    """
    given = (hidden, class_kernel, labels, negatives, bias, class_weights)
    args = _checked("noise_contrastive_loss", given, ignore_index)
    options = _options("noise_contrastive_loss", remove_accidental_hits, log_q_correction)
    return _loss(*args, objective="noise_contrastive", **options)


@takes_arrays
def sampled_log_normalizer(
    hidden: ArrayLike,
    class_kernel: ArrayLike,
    negatives: Negatives,
    *,
    bias: ArrayLike | None = None,
) -> Array:
    r"""Logarithm of an unbiased estimate of the sum over all classes that normalises a softmax.

    .. math:: \log \hat Z = \log \sum_j \frac{e^{z_{s_j}}}{c_{s_j}}, \qquad
        \mathrm{E}[\hat Z] = Z = \sum_k e^{z_k}

    Unbiased with and without replacement, for a proposal that draws every class; `log Ẑ` itself is
    too low on average.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        class_kernel: `[classes, features]`, floating.
        negatives: What `draw_negatives` gave, shared by the batch.
        bias: `[classes]`, added to the scores.

    Returns:
        `[*batch]`, in nats, float32 or wider; exactly `logsumexp` of the scores where all classes
        are drawn without replacement.

    Gradient: in `hidden`, `class_kernel`, `bias` and floating leaves of the proposal as the draws
    stand. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit; for negatives that `draw_negatives` did not make.
        ValueError: For shapes that do not fit the proposal or each other.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> negatives = hierarchical.draw_negatives(jax.random.key(0), hierarchical.Uniform(8), 3)
        >>> kernel = jnp.zeros((8, 5))
        >>> print(jnp.exp(hierarchical.sampled_log_normalizer(jnp.ones(5), kernel, negatives)))
        8.0

    References:
        Bengio and Senécal, Adaptive importance sampling to accelerate training of a neural
        probabilistic language model, 2008; Cohen and Kaplan, Tighter estimation using bottom k
        sketches, 2008.
    """
    h, kernel, *_ = _checked(
        "sampled_log_normalizer", (hidden, class_kernel, None, negatives, bias, None), None, False
    )
    return _log_normalizer(h, kernel, bias, negatives)


@takes_arrays
def sampled_row_gradients(
    hidden: ArrayLike,
    class_kernel: ArrayLike,
    labels: ArrayLike,
    negatives: Negatives,
    *,
    objective: str = "cross_entropy",
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    remove_accidental_hits: bool | None = None,
    log_q_correction: bool = True,
) -> RowGradients:
    r"""The loss and its gradient, that of `class_kernel` by the rows read: of labels and negatives.

    .. math:: \nabla_K \sum_i w_i \ell_i = \sum_{j} e_{\mathrm{rows}_j} \mathrm{values}_j^\top

    Use it in a step that donates the kernel, with `row_sgd`, `row_adagrad` or `row_adam` and
    `apply_row_updates`: no array of the kernel's size is made. For some thousand classes, or where
    optax should see the gradient, differentiate the loss instead.

    Args:
        hidden: `[*batch, features]`, as in `sampled_cross_entropy`, and so are `class_kernel`,
            `labels`, `negatives`, `bias`, `class_weights`, `ignore_index` and `log_q_correction`.
        class_kernel: `[classes, features]`.
        labels: Class indices `[*batch]`.
        negatives: What `draw_negatives` gave.
        objective: `"cross_entropy"` for `sampled_cross_entropy`, or `"noise_contrastive"`.
        bias: `[classes]`.
        weights: `[*batch]` or a scalar, `w`, 1 by default: `1 / rows` gives the gradient of a mean.
        class_weights: `[classes]`.
        ignore_index: Rows with this label cost 0 and have no gradient.
        remove_accidental_hits: By default as in the objective's own function.
        log_q_correction: Whether to divide by the expected counts.

    Returns:
        `(loss, d_hidden, rows, values)`, the losses without `weights`; `rows` are one for each label
        in row order, then the negatives' `ids`. NaN, value and gradients, for a label that is no
        class.

    Gradient: it is one; it can be differentiated again in `hidden`, `class_kernel` and `bias`.

    Raises:
        TypeError: For a dtype that does not fit, distributions among them; for negatives that
            `draw_negatives` did not make.
        ValueError: For shapes that do not fit the proposal or each other, or another objective.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> key, proposal = jax.random.key(0), hierarchical.LogUniform(1000)
        >>> @jax.jit
        ... def step(kernel, key):  # donate the kernel where it is large
        ...     negatives = hierarchical.draw_negatives(key, proposal, 20)
        ...     got = hierarchical.sampled_row_gradients(
        ...         jnp.ones((2, 5)), kernel, jnp.array([3, 7]), negatives, weights=0.5
        ...     )
        ...     updates = jax.tree.map(lambda g: -0.1 * g, got.values)
        ...     return hierarchical.apply_row_updates(kernel, got.rows, updates), got.rows
        >>> kernel, rows = step(jnp.zeros((1000, 5)), key)
        >>> rows.shape, int(jnp.sum(jnp.any(kernel != 0, axis=-1))) <= 22
        ((22,), True)

    References:
        Mikolov et al., Distributed representations of words and phrases, 2013.
    """
    name = "sampled_row_gradients"
    _checks.one_of(name, "objective", objective, _OBJECTIVES)
    args = _checked(name, (hidden, class_kernel, labels, negatives, bias, class_weights), ignore_index)
    if weights is not None:
        _checks.per_row(name, "weights", weights, args[3].shape)
    removed = objective == "cross_entropy" if remove_accidental_hits is None else remove_accidental_hits
    options = _options(name, removed, log_q_correction)
    return _row_gradients(*args, weights, objective=objective, **options)


@compiled(*_OPTIONS)
@by_rows
def _loss(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    class_weights: Array | None,
    negatives: Negatives,
    ignore_index: ArrayLike | None,
    **options: Any,
) -> Array:
    rows, ignored = rows_read(labels, negatives, ignore_index)
    vectors, offsets = gathered(kernel, rows), None if bias is None else gathered(bias, rows)
    return loss_of_rows(hidden, vectors, offsets, labels, class_weights, negatives, ignored, **options)


@compiled(*_OPTIONS)
@functools.partial(by_rows, results=gradients_layout)
def _row_gradients(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    class_weights: Array | None,
    negatives: Negatives,
    ignore_index: ArrayLike | None,
    weights: ArrayLike | None,
    **options: Any,
) -> RowGradients:
    rows, ignored = rows_read(labels, negatives, ignore_index)
    vectors, offsets = gathered(kernel, rows), None if bias is None else gathered(bias, rows)

    def loss_of(hidden: Array, vectors: Any, offsets: Any) -> Array:
        return loss_of_rows(
            hidden, vectors, offsets, labels, class_weights, negatives, ignored, **options
        )

    def joined(own: Array, drawn: Array) -> Array:
        return jnp.concatenate([own.reshape(-1, *drawn.shape[1:]), drawn])

    loss, pull = jax.vjp(loss_of, hidden, vectors, offsets)
    ct = jnp.broadcast_to(jnp.asarray(1 if weights is None else weights, loss.dtype), loss.shape)
    d_hidden, d_vectors, d_offsets = pull(ct)
    values = joined(*d_vectors) if bias is None else (joined(*d_vectors), joined(*d_offsets))
    return RowGradients(loss, d_hidden, joined(*rows), values)


@compiled()
@by_rows
def _log_normalizer(hidden: Array, kernel: Array, bias: Array | None, negatives: Negatives) -> Array:
    rows = (jnp.clip(negatives.ids, 0, kernel.shape[0] - 1),)
    (vectors,) = gathered(kernel, rows)
    offsets = None if bias is None else gathered(bias, rows)[0]
    logits, possible = scores_of_drawn(as_floats(hidden, vectors), vectors, offsets, negatives, True)
    return logsumexp(logits, where=possible)


def _options(name: str, removed: Any, corrected: Any) -> dict[str, bool]:
    _checks.flag(name, "remove_accidental_hits", removed)
    _checks.flag(name, "log_q_correction", corrected)
    return {"hits": not removed, "corrected": bool(corrected)}


def _checked(
    name: str, given: tuple[Any, ...], ignore_index: Any, labelled: bool = True
) -> tuple[Any, ...]:
    """The arguments as the functions under `jit` take them, once all that is static fits."""
    hidden, class_kernel, labels, negatives, bias, class_weights = given
    if not isinstance(negatives, Negatives):
        raise TypeError(
            f"{name}: negatives must be Negatives, got {type(negatives).__name__}; make them with "
            "draw_negatives."
        )
    h, classes = _checks.array(name, "hidden", hidden), negatives.proposal.num_classes
    kernel = _checks.array(name, "class_kernel", class_kernel)
    _checks.rows_of(name, "hidden", h, "class_kernel", kernel, "[classes, features]", classes)
    h, kernel = without_tiny_dtypes(h), without_tiny_dtypes(kernel)
    for option, value in (("bias", bias), ("class_weights", class_weights)):
        if value is not None:
            _checks.floating(name, option, value)
            _checks.vector(name, option, value, "classes", classes)
    if not labelled:
        return h, kernel, bias, labels, class_weights, negatives, ignore_index
    y, ignore_index = comparable(name, labels, ignore_index)
    batch = h.shape[:-1]
    _checks.labels(name, (*batch, classes), batch, y, f"hidden {list(h.shape)}")
    _checks.indices_only(name, "labels", y, "give every row one class.")
    return h, kernel, bias, y, class_weights, negatives, ignore_index
