"""Row statistics: the one place that reduces the class axis, and its one backward rule.

Every softmax-type loss is a formula over a few numbers per row. `reduce` returns them relative to
the row's maximum, where they keep their digits; `RowStats` holds what users read.

Imports `transforms`, `autodiff`, `_labels`, `_rows`, `_walks`, `_pytrees`, `_numerics`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._labels import are_indices, at_label, is_label, num_classes
from jsoftmax._numerics import (
    accumulator,
    behind,
    deleted,
    dominant,
    exponentials,
    finite_gaps,
    gap_at,
    is_cold,
    nan_unless,
    others_share,
    over_temperature,
    per_degree,
    row,
    sharded_like,
    share_of,
    shift,
    warmed,
    wide,
)
from jsoftmax._pytrees import register
from jsoftmax._rows import masked
from jsoftmax._typing import Array
from jsoftmax._walks import careful_if, maximum, rest_around, rest_of, total, total_of
from jsoftmax.autodiff import custom_vjp
from jsoftmax.transforms import LogitTransform


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What to reduce, known before tracing.

    Attributes:
        statistics: Those to compute beside `maximum` and `rest`.
        axis_name: The mesh axis that shards the classes.
        drop_masked_mass: Whether soft label mass on a masked class is dropped, not infinite.
        kept: Whether the exponentials of class indices are to be kept for the backward pass.
    """

    statistics: frozenset[str]
    axis_name: str | None = None
    drop_masked_mass: bool = False
    kept: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class RowStats:
    """A few numbers per row `[*batch]`, of the scores `u = mask(softcap(transform(logits)) / T)`.

    Attributes:
        nll: `−Σ target_k log p_k`, the negative log-likelihood.
        log_normalizer: `log Z = log Σ exp u_k`.
        target_log_prob: `Σ target_k log p_k`.
        mean_logit: The mean of `u` over the classes that are not masked.
        expected_logit: `Σ p_k u_k`.
        entropy: `−Σ p_k log p_k`, in nats.
        correct: Whether the first of the largest scores is the label's, or for a distribution the
            first of its largest entries'.
    """

    nll: Array | None = None
    log_normalizer: Array | None = None
    target_log_prob: Array | None = None
    mean_logit: Array | None = None
    expected_logit: Array | None = None
    entropy: Array | None = None
    correct: Array | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all statistics."""
        return tuple(field.name for field in dataclasses.fields(cls))


register(RowStats)

NEEDS = {
    "nll": "nll",
    "log_normalizer": "log_normalizer",
    "target_log_prob": "nll",
    "mean_logit": "mean",
    "expected_logit": "entropy",
    "entropy": "entropy",
}


def _scaled_maximum(raw: Mapping[str, Array], temperature: Array | None) -> Array:
    m = raw["maximum"]
    return m if temperature is None else over_temperature(m, temperature[..., 0])


def log_normalizer(raw: Mapping[str, Array], temperature: Array | None) -> Array:
    """`log Σ exp` of the scores over `T`; ±inf where the maximum is."""
    m = _scaled_maximum(raw, temperature)
    finite = jnp.abs(m) < jnp.inf
    return jnp.where(finite, m + jnp.where(finite, jnp.log1p(raw["rest"]), 0), m)


def finish(
    raw: Mapping[str, Array], temperature: Array | None, empty: Array | None, wanted: frozenset[str]
) -> RowStats:
    """Makes the statistics that users read of those that `reduce` returns, all but `correct`."""
    m, none = _scaled_maximum(raw, temperature), False if empty is None else empty
    made: dict[str, Array] = {}
    if "nll" in wanted:
        made["nll"] = raw["nll"]
    if "target_log_prob" in wanted:
        made["target_log_prob"] = -raw["nll"]
    if "log_normalizer" in wanted:
        made["log_normalizer"] = log_normalizer(raw, temperature)
    if "mean_logit" in wanted:
        mean = jnp.where(m == jnp.inf, jnp.inf, m + raw["mean"])
        if temperature is not None:
            t = temperature[..., 0]
            # At a temperature of 0 the maximum and the gaps may be infinite on either side of 0.
            whole = raw["maximum"] + raw["mean"] * warmed(t)
            top = raw["maximum"] == jnp.inf
            mean = jnp.where(is_cold(t) & ~top, over_temperature(whole, t), mean)
        made["mean_logit"] = jnp.where(none, 0, mean)
    if "expected_logit" in wanted:
        expected = jnp.log1p(raw["rest"]) - raw["entropy"]
        made["expected_logit"] = jnp.where(none, 0, m + expected)
    if "entropy" in wanted:
        made["entropy"] = raw["entropy"]
    return RowStats(**made)


def scores(
    logits: Array,
    labels: Array,
    where: Array | None,
    transform: LogitTransform | None,
    axis_name: str | None,
) -> Array:
    """The scores the softmax is taken of: `mask(transform(logits))`, impossible ones untouched."""
    v = masked(logits, where)
    if transform is None:
        return v
    v, target = wide(v), None
    if transform.needs_target:
        target = is_label(v, labels, axis_name) if are_indices(labels) else labels
        target = target.astype(v.dtype)
    impossible = v == -jnp.inf
    return jnp.where(impossible, -jnp.inf, transform(jnp.where(impossible, 0, v), target))


def _reduce_rows(
    reduction: Reduction,
    logits: Array,
    labels: Array,
    where: Array | None,
    empty: Array | None,
    transform: LogitTransform | None,
    temperature: Array | None,
    weights: Array | None,
) -> dict[str, Array]:
    """Reduces rows `[*batch, classes]` to numbers `[*batch]`; `temperature` is `[*batch, 1]`.

    With the gaps `g = (v − m)/T` of the scores `v`: `maximum` is `m`, `shift` that of the
    exponentials, both constants; `rest` is `Σ e^g − 1`; `nll` is `Σ q (log Σ e^g − g)`; `uniform` is
    `Σ w (log Σ e^g − g)` over the classes that are not masked, `mean` the mean of `g` over them;
    `entropy` is `log Σ e^g − Σ p g`. That `rest` will be read as a log-normalizer is said by the name
    "log_normalizer", which adds no number.
    """
    axis, wanted = reduction.axis_name, reduction.statistics
    none = False if empty is None else empty

    def recompute() -> Array:
        return scores(logits, labels, where, transform, axis)

    v = recompute()
    m = maximum(v, axis)
    c = shift(m, num_classes(v, axis), temperature)
    indices = are_indices(labels)
    v_y = wide(at_label(v, labels, axis)) if indices else m
    t = None if temperature is None else temperature[..., 0]
    weighted = "uniform" in wanted and weights is not None
    if not indices or weighted or wanted & {"log_normalizer", "entropy"}:
        rest, m = rest_of(recompute, m, c, temperature, none, axis)
    elif reduction.kept:
        valid = (labels >= 0) & (labels < num_classes(v, axis))
        others = _others(v, labels, c, temperature, axis)
        out_of = jnp.where(valid, v_y, -jnp.inf)
        rest, m = rest_around(others, out_of, m, c, temperature, none, axis)
    else:
        # A loss is as large as the label's gap; the last digits of the rest show where that is 0, or
        # a rounding error of the transform.
        rest, m = rest_of(recompute, m, c, temperature, none, axis, matters=gap_at(v_y, m, t) > -0.6)
    log_sum = jnp.log1p(rest)

    def costs(over: Array | float, share: Callable[[], Array], t: Array | None = temperature) -> Array:
        return cost_sum(v, m, rest, t, over, share, axis)

    out = {"maximum": m, "shift": c[..., 0], "rest": rest}
    log_sums = row(behind(log_sum))
    if "nll" in wanted and indices:
        out["nll"] = jnp.where(none, 0, log_sum - gap_at(v_y, m, t))
    elif "nll" in wanted:
        out["nll"] = jnp.where(none, 0, costs(log_sums, lambda: _kept(labels, where, reduction)))
    if "uniform" in wanted:
        out["uniform"] = costs(log_sums, lambda: allowed_weights(v, where, weights))
    if "mean" in wanted:
        count = jnp.maximum(total(allowed_weights(v, where, None), axis), 1)
        warm = None if temperature is None else warmed(temperature)
        out["mean"] = -costs(0.0, lambda: allowed_weights(v, where, None), warm) / count
    if "entropy" in wanted:
        cost = costs(0.0, lambda: exponentials(v, c, temperature))
        out["entropy"] = log_sum + cost * share_of(m, c, rest, temperature)
    defined = nan_unless(~jnp.isnan(rest), rest.dtype)
    return {name: x if name in ("maximum", "shift") else x * defined for name, x in out.items()}


def cost_sum(
    v: Array,
    m: Array,
    rest: Array,
    temperature: Array | None,
    over: Array | float,
    share: Callable[[], Array],
    axis_name: str | None = None,
) -> Array:
    """`Σ share · (over − g)`, inf where a class without a chance has a share."""

    def plain() -> Array:
        top = row(behind(m))
        return total_of(lambda v, q: q * (over - (wide(v) - top)), axis_name, v, share())

    def careful() -> Array:
        g, hopeless = finite_gaps(v, m, temperature)
        lost = total(jnp.where(hopeless, jnp.abs(share()), 0), axis_name) > 0
        sum_of_live = total(_live(share(), hopeless) * (over - g), axis_name)
        return jnp.where(lost & ~jnp.isnan(rest), jnp.inf, sum_of_live)

    if temperature is not None:
        return careful()
    return careful_if(odd(v, m), careful, plain, axis_name)


reduce = custom_vjp(_reduce_rows, nondiff_argnums=(0,))


def _reduce_fwd(reduction: Reduction, *operands: Any) -> tuple[Any, Any]:
    out = reduce(dataclasses.replace(reduction, kept=True), *operands)
    return out, (operands, out)


def _reduce_bwd(reduction: Reduction, residuals: Any, cts: Mapping[str, Array]) -> tuple[Any, ...]:
    (logits, labels, where, _, transform, temperature, weights), out = residuals
    d_logits, d_labels, *others = gradient(
        reduction, logits, labels, where, transform, temperature, weights, out, cts
    )
    # Without the barrier XLA:CPU repeats all of the above for each consumer of the gradient.
    return behind(d_logits), d_labels, None, None, *others


reduce.defvjp(_reduce_fwd, _reduce_bwd)


def gradient(
    reduction: Reduction,
    logits: Array,
    labels: Array,
    where: Array | None,
    transform: LogitTransform | None,
    temperature: Array | None,
    weights: Array | None,
    out: Mapping[str, Array],
    cts: Mapping[str, Array],
) -> tuple[Any, ...]:
    """The cotangents of logits, labels, transform, temperature and weights.

    `out` are the numbers of whole rows. Where the logits are only some of the classes, it has their
    totals too: "mass" of soft labels, "weight", "count"; else they are made here.
    """
    axis = reduction.axis_name
    soft = not are_indices(labels)
    q = labels if soft else None

    def prepare(logits: Array, transform: Any, q: Array | None) -> Array:
        return scores(logits, labels if q is None else q, where, transform, axis)

    v, pull = jax.vjp(prepare, logits, transform, q)
    m, rest = out["maximum"], out["rest"]
    g, hopeless = finite_gaps(v, m, temperature)
    # The forward pass's own: of the same array a compiler makes the exponentials once.
    c = row(out["shift"])
    share = row(share_of(m, c, rest, temperature))
    p = exponentials(v, c, temperature) * share
    cost = row(jnp.log1p(rest)) - g
    hopeless &= row(~jnp.isnan(rest))

    # The gradient in the gaps. What is a row's number times p is gathered in `scale` first, and
    # vanishes with p; the other terms, in `direct`, are to be masked.
    scale = row(cts["rest"] * (1 + rest))
    direct, d_q, d_weights = [], None, None
    if "uniform" in cts:
        w, ct = allowed_weights(v, where, weights), row(cts["uniform"])
        scale += ct * row(out["weight"] if "weight" in out else total(w, axis))
        direct.append(-ct * w)
        if weights is not None:
            d_w = jnp.where(hopeless, 0, ct * cost * allowed_weights(v, where, None))
            if "weight" in cts:
                d_w += row(cts["weight"]) * allowed_weights(v, where, None)
            d_weights = jnp.sum(d_w, axis=range(d_w.ndim - 1))
    if "mean" in cts:
        allowed = allowed_weights(v, where, None)
        count = out["count"] if "count" in out else jnp.maximum(total(allowed, axis), 1)
        direct.append(row(cts["mean"] / count) * allowed)
    # The label's p − 1 is minus the others' share: no cancellation where the label dominates.
    if "nll" in cts and soft:
        ct, all_q = row(cts["nll"]), _kept(labels, where, reduction)

        def mass_of_live() -> Array:
            # Not of `hopeless`: what a branch takes from outside is stored.
            return total(_live(all_q, finite_gaps(v, m, temperature)[1]), axis)

        if "mass" in out:
            mass = out["mass"]
        else:
            mass = careful_if(odd(v, m), mass_of_live, lambda: total(all_q, axis), axis)
        # A selection, for else XLA:CPU stores the sum for each of the classes.
        mass, q = row(jnp.where(jnp.isnan(rest), jnp.nan, mass)), _live(all_q, hopeless)
        near = dominant(v, m, rest, temperature) & (2 * q >= mass)
        others = others_share(p, row(rest))
        direct.append(ct * jnp.where(near, (mass - q) - mass * others, mass * p - q))
        d_mass = row(cts["mass"]) if "mass" in cts else 0
        d_q = jnp.where(hopeless, 0, ct * cost + d_mass)
    if "nll" in cts and not soft:
        ct = row(cts["nll"])
        v_y = row(wide(at_label(v, labels, axis)))
        p_y = exponentials(v_y, c, temperature) * share
        winner = dominant(v_y, m, rest, temperature)
        others = jnp.where(winner, others_share(p_y, row(rest)), 1 - p_y)
        gone = deleted(v_y, m) & row(~jnp.isnan(rest))
        d_label = jnp.where(gone, 0, scale * p_y - ct * others)
        dg = (ct + scale) * (_others(v, labels, c, temperature, axis) * share)
        dg = jnp.where(is_label(v, labels, axis), d_label, dg)
    else:
        dg = scale * p
    if "entropy" in cts:
        dg += row(cts["entropy"]) * p * (row(jnp.log1p(rest) - out["entropy"]) - g)
    if direct:
        gone = deleted(v, m) & row(~jnp.isnan(rest))
        dg += jnp.where(gone, 0, sum(direct[1:], direct[0]))
    d_temperature = None
    if temperature is not None:
        dg = per_degree(dg, temperature)
        d_temperature = -jnp.sum(dg * g, axis=-1, keepdims=True)
    d_logits, d_transform, d_target = pull(dg.astype(v.dtype))
    d_labels = None if d_q is None else d_q + d_target
    return d_logits, d_labels, d_transform, d_temperature, d_weights


def _others(
    v: Array, labels: Array, c: Array, temperature: Array | None, axis_name: str | None
) -> Array:
    """The exponentials of all classes but the label: the one array that both passes share."""
    return jnp.where(is_label(v, labels, axis_name), 0, exponentials(v, c, temperature))


def odd(v: Array, m: Array) -> Array:
    """Which rows have a class without a chance, or no other."""
    lowest = wide(jnp.min(jax.lax.stop_gradient(v), axis=-1, initial=jnp.inf))
    return (lowest - m == -jnp.inf) | (jnp.abs(m) == jnp.inf)


def _live(share: Array, hopeless: Array) -> Array:
    """The shares; those of classes without a chance are constants, as if deleted."""
    return jnp.where(hopeless, jax.lax.stop_gradient(share), share)


def _kept(q: Array, where: Array | None, reduction: Reduction) -> Array:
    """The label's shares, without those of masked classes if they are to be dropped."""
    return jnp.where(where, q, 0) if reduction.drop_masked_mass and where is not None else q


def allowed_weights(v: Array, where: Array | None, weights: Array | None) -> Array:
    """The weights of the classes of each row, 1 for none, 0 where masked."""
    one = jnp.ones((), accumulator(v.dtype))
    w = sharded_like(jnp.broadcast_to(one if weights is None else weights, v.shape), v)
    return w if where is None else jnp.where(where, w, 0)
