"""What `benchmarks.tpu_compile` compiles: every public function, its options, and its bounds.

A case has a program of arrays, the same work by jax.nn or optax where there is such, the names of its
arguments, and the layouts of them over chips.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

import jsoftmax
from jsoftmax import losses, sampling

AXIS = "chips"
SIZES = {"rows": 8192, "classes": 32000, "features": 1024}

# The dimension that is sharded over the chips; none on one chip.
LAYOUTS = {"one chip": None, "rows over 4": "rows", "classes over 4": "classes"}

# Arguments by name: dimensions, and a dtype where it does not follow the logits.
ARGUMENTS = {
    "logits": (("rows", "classes"), None),
    "targets": (("rows", "classes"), None),
    "cotangent": (("rows", "classes"), None),
    "row_cotangent": (("rows",), None),
    "labels": (("rows",), jnp.int32),
    "row_weights": (("rows",), jnp.float32),
    "class_weights": (("classes",), jnp.float32),
    "log_prior": (("classes",), jnp.float32),
    "where": (("classes",), jnp.bool_),
    "number": ((), jnp.float32),
    "hidden": (("rows", "features"), None),
    "kernel": (("features", "classes"), None),
}

# Temp as a multiple of one chip's logits.
MAX_TEMP = 0.01
MAX_TEMP_SPARSE = 5.1
MAX_TEMP_LINEAR = 0.6
# Samplers hold what they widen, some of them several samples.
MAX_TEMP_SAMPLING = {
    "categorical": 5.1,
    "sample": 5.1,
    "gumbel_top_k": 1.1,
    "gumbel_softmax": 2.1,
    "straight_through": 6.1,
    "rao_blackwell_gumbel_softmax": 7.6,
    "reinmax": 5.1,
}

Program = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """A function at some options, the same work by a peer where there is one, and its arguments."""

    name: str
    program: Program
    peer: Program | None
    arguments: str
    layouts: tuple[str, ...] = ("one chip",)
    dtypes: tuple[str, ...] = ("bfloat16",)
    max_temp: float = MAX_TEMP
    quick: int = 1  # how many of the layouts a quick run compiles


def gradient(function: Callable[..., jax.Array]) -> Program:
    """Values of a loss, per row or per element, and the gradient of their sum."""

    def program(logits: jax.Array, *rest: jax.Array) -> object:
        def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = function(logits, *rest)
            return jnp.sum(values, dtype=jnp.float32), values

        (_, values), derivative = jax.value_and_grad(total, has_aux=True)(logits)
        return values, derivative

    return program


def pullback(function: Callable[..., jax.Array]) -> Program:
    """Values of a map and the product of a cotangent with its Jacobian."""

    def program(logits: jax.Array, cotangent: jax.Array, *rest: jax.Array) -> object:
        values, pull = jax.vjp(lambda logits: function(logits, *rest), logits)
        return values, pull(cotangent)[0]

    return program


def every_option(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array,
    class_weights: jax.Array,
    log_prior: jax.Array,
    number: jax.Array,
) -> jax.Array:
    return jsoftmax.cross_entropy(
        logits,
        labels,
        where=where,
        temperature=number,
        softcap=number,
        label_smoothing=number,
        z_loss=number,
        class_weights=class_weights,
        ignore_index=-1,
        transform=jsoftmax.chain(
            jsoftmax.Margin(number),
            jsoftmax.LogitAdjustment(log_prior, number),
            jsoftmax.Softcap(number),
            jsoftmax.Temperature(number),
        ),
    )


def every_statistic(logits: jax.Array, labels: jax.Array) -> jax.Array:
    stats = jsoftmax.row_stats(logits, labels)
    return (
        stats.nll
        + stats.log_normalizer
        + stats.target_log_prob
        + stats.mean_logit
        + stats.expected_logit
        + stats.entropy
        + stats.correct
    )


def of_both(function: Callable[..., jax.Array]) -> Program:
    """The sum of a loss of hidden vectors and a kernel, and its gradient in both."""
    return lambda hidden, kernel, labels: jax.value_and_grad(
        lambda *both: jnp.sum(function(*both, labels)), (0, 1)
    )(hidden, kernel)


def normalizer_of_rows(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jsoftmax.linear_row_stats(
        hidden, kernel, labels, statistics=("log_normalizer",)
    ).log_normalizer


def margin_and_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    stats = losses.entmax_stats(logits, labels)
    return stats.loss + stats.margin


def bi_tempered(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return losses.bi_tempered_logistic_loss(logits, labels, t1=0.8, t2=1.2)


def drawn(function: Callable[..., jax.Array], **options: float) -> Program:
    """A sampler without a derivative, at one key."""
    return lambda logits: function(jax.random.key(0), logits, **options)


def through_a_sample(function: Callable[..., jax.Array]) -> Program:
    """A sample, and a cotangent's way back through it."""
    return pullback(lambda logits: function(jax.random.key(0), logits))


def mean_loss(logits: jax.Array, labels: jax.Array, row_weights: jax.Array) -> jax.Array:
    return jsoftmax.weighted_mean(jsoftmax.cross_entropy(logits, labels), row_weights)


def mean_loss_of_optax(logits: jax.Array, labels: jax.Array, row_weights: jax.Array) -> jax.Array:
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(values * row_weights) / jnp.sum(row_weights)


def local_classes(mesh: Mesh) -> Callable[..., jax.Array]:
    """cross_entropy that sees one chip's classes and is told the name of the mesh axis."""
    logits, labels = PartitionSpec(None, AXIS), PartitionSpec()
    return jax.shard_map(
        lambda logits, labels: jsoftmax.cross_entropy(logits, labels, axis_name=AXIS),
        mesh=mesh,
        in_specs=(logits, labels),
        out_specs=labels,
    )


def cases(mesh: Mesh) -> list[Case]:
    both, everywhere = ("bfloat16", "float32"), tuple(LAYOUTS)
    peers = optax.losses
    maps = [
        Case(
            name,
            pullback(getattr(jsoftmax, name)),
            pullback(partial(getattr(jax.nn, name), axis=-1)),
            arguments,
            everywhere,
            both,
        )
        for name, arguments in [
            ("softmax", "logits cotangent"),
            ("log_softmax", "logits cotangent"),
            ("logsumexp", "logits row_cotangent"),
        ]
    ]
    core = [
        Case(
            "cross_entropy",
            gradient(jsoftmax.cross_entropy),
            gradient(peers.softmax_cross_entropy_with_integer_labels),
            "logits labels",
            everywhere,
            both,
            quick=len(everywhere),
        ),
        Case(
            "cross_entropy, soft labels",
            gradient(jsoftmax.cross_entropy),
            gradient(peers.softmax_cross_entropy),
            "logits targets",
            everywhere,
            both,
        ),
        Case(
            "cross_entropy, every option",
            gradient(every_option),
            None,
            "logits labels where class_weights log_prior number",
            everywhere,
            both,
            # The compiler prefers keeping tanh(logits) to computing it again for the gradient.
            max_temp=1.1,
        ),
        Case(
            "cross_entropy, axis_name",
            gradient(local_classes(mesh)),
            gradient(peers.softmax_cross_entropy_with_integer_labels),
            "logits labels",
            ("classes over 4",),
            both,
        ),
        Case(
            "weighted_mean of cross_entropy",
            gradient(mean_loss),
            gradient(mean_loss_of_optax),
            "logits labels row_weights",
            everywhere,
        ),
        Case("row_stats", gradient(every_statistic), None, "logits labels", everywhere, both),
    ]
    with_peer = [
        Case(
            f"losses.{name}",
            gradient(getattr(losses, name)),
            gradient(getattr(peers, name)),
            arguments,
        )
        for name, arguments in [
            ("softmax_cross_entropy", "logits targets"),
            ("softmax_cross_entropy_with_integer_labels", "logits labels"),
            ("safe_softmax_cross_entropy", "logits targets"),
            ("sigmoid_binary_cross_entropy", "logits targets"),
            ("sigmoid_focal_loss", "logits targets"),
            ("poly_loss_cross_entropy", "logits targets"),
            ("kl_divergence", "logits targets"),
            ("kl_divergence_with_log_targets", "logits targets"),
            ("generalized_kl_divergence", "logits targets"),
            ("smooth_labels", "targets number"),
        ]
    ]
    without_peer = [
        Case(f"losses.{name}", gradient(getattr(losses, name)), None, arguments)
        for name, arguments in [
            ("softmax_focal_loss", "logits labels"),
            ("generalized_cross_entropy", "logits labels"),
            ("multilabel_cross_entropy", "logits targets"),
        ]
    ]
    # The threshold is searched for in a loop over gaps that are held, in float32, and so are the
    # probabilities for the gradient: four arrays of bfloat16.
    sparsemax_loss = losses.multiclass_sparsemax_loss
    sparse = [
        Case(name, program, None, arguments, max_temp=MAX_TEMP_SPARSE, quick=quick)
        for name, program, arguments, quick in [
            ("sparsemax", pullback(jsoftmax.sparsemax), "logits cotangent", 1),
            ("entmax", pullback(jsoftmax.entmax), "logits cotangent", 1),
            ("losses.entmax_loss", gradient(losses.entmax_loss), "logits labels", 0),
            ("losses.fenchel_young_loss", gradient(losses.fenchel_young_loss), "logits targets", 1),
            ("losses.multiclass_sparsemax_loss", gradient(sparsemax_loss), "logits labels", 1),
            ("losses.entmax_stats", gradient(margin_and_loss), "logits labels", 0),
        ]
    ]
    sparse[0] = replace(sparse[0], layouts=("one chip", "rows over 4"))
    # The compiler takes a minute for one program of a root search at a general power.
    sparse.append(
        Case(
            "losses.bi_tempered_logistic_loss",
            gradient(bi_tempered),
            None,
            "logits labels",
            max_temp=MAX_TEMP_SPARSE,
            quick=0,
        )
    )
    binary = Case("losses.sparsemax_loss", gradient(losses.sparsemax_loss), None, "logits targets")
    linear = [
        Case(name, of_both(function), None, "hidden kernel labels", max_temp=MAX_TEMP_LINEAR)
        for name, function in [
            ("linear_cross_entropy", jsoftmax.linear_cross_entropy),
            ("linear_row_stats", normalizer_of_rows),
        ]
    ]
    draws = [
        Case(
            f"sampling.{name}",
            program,
            None,
            arguments,
            max_temp=MAX_TEMP_SAMPLING[name],
            quick=quick,
        )
        for name, program, arguments, quick in [
            ("categorical", drawn(sampling.categorical), "logits", 1),
            ("sample", drawn(sampling.sample, temperature=0.8, top_k=50, top_p=0.95), "logits", 0),
            ("gumbel_top_k", drawn(sampling.gumbel_top_k, k=8), "logits", 0),
            *(
                (name, through_a_sample(getattr(sampling, name)), "logits cotangent", quick)
                for name, quick in [
                    ("gumbel_softmax", 1),
                    ("straight_through", 0),
                    ("rao_blackwell_gumbel_softmax", 0),
                    ("reinmax", 0),
                ]
            ),
        ]
    ]
    return [*maps, *core, *with_peer, *without_peer, *sparse, binary, *linear, *draws]
