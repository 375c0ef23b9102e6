"""Fenchel–Young losses of the entmax family: one solve for value and gradient, one formula.

    ℓ(z; q) = Ω*(z) + Ω(q) − ⟨z, q⟩ = Σ_k D(q_k, p_k) + Σ_k q_k (σ − z_k)₊,   p = entmax(z)

with `Ω(p) = Σ (p^α − p) / (α (α − 1))`, its Bregman divergence `D`, and the threshold `σ` that labels
outside the support are short of. Every term is 0 or more: nothing cancels where the loss is near 0.

Imports `maps`, `autodiff`, `_labels`, `_walks`, `_numerics`.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from jsoftmax._labels import are_indices, is_label
from jsoftmax._numerics import deleted, gaps, row, scaled
from jsoftmax._typing import Array
from jsoftmax._walks import by_chunks, maximum
from jsoftmax.autodiff import custom_vjp
from jsoftmax.maps.entmax import balanced, by_alpha, distribution_of, slopes, solved
from jsoftmax.maps.softmax import through_temperature


class Form(NamedTuple):
    """What is known before tracing: `n = 1/(α − 1)`, 0 for a traced α; whether all of a row is kept."""

    n: int
    kept: bool = False


class Row(NamedTuple):
    """The loss of each row, and what its gradient is made of."""

    loss: Array  # [*batch]
    p: Array | None = None  # [*batch, classes]
    # [*batch], for soft labels: the largest (p^a − 1)/a; the other classes' follow from their gaps.
    level: Array | None = None


@functools.partial(custom_vjp, nondiff_argnums=(0,))
def loss_of_rows(
    form: Form,
    v: Array,
    labels: Array,
    temperature: Array | None,
    alpha: Array | None,
    empty: Array | None,
) -> Row:
    """Rows of scores with distributions or indices; an empty row has loss 0, a wrong index any."""

    def chunk(v: Array, labels: Array, *options: Array | None) -> Row:
        temperature, alpha, empty = options
        found = solved(form.n, True, v, temperature, alpha)
        family, p, y = distribution_of(form.n, v, temperature, alpha, empty, found)
        q, missing = targets(v, labels, p)
        if alpha is None:
            terms = _whole_divergence(form.n, q, p, missing)
        else:
            terms = divergence(alpha - 1, q, p, missing, family.log_probabilities(y))
        terms = terms + scaled(q, jnp.maximum(-family.above(y), 0))
        loss = jnp.sum(terms, axis=-1)
        loss = loss if empty is None else jnp.where(empty, 0, loss)
        if not form.kept:
            return Row(loss)
        level = None if are_indices(labels) else _level(family.deformed(y), v, temperature)
        return Row(loss, p, level)

    return by_chunks(chunk, v, labels, temperature, alpha, empty)


def _fwd(form: Form, v: Array, labels: Array, *options: Any) -> tuple[Row, Any]:
    out = loss_of_rows(Form(form.n, kept=True), v, labels, *options)
    return (out if form.kept else Row(out.loss)), (v, labels, *options, out.p, out.level)


def _bwd(form: Form, residuals: Any, cts: Row) -> tuple[Any, ...]:
    v, labels, temperature, alpha, empty, p, level = residuals
    a = 1 / form.n if alpha is None else alpha - 1
    q, missing = targets(v, labels, p)
    s = slopes(p, form.n, alpha)
    sums = jnp.sum(s, axis=-1)
    sums = row(jnp.where(sums == 0, 1, sums))
    share = s / sums
    m = maximum(v)
    gone = deleted(v, m) & ~jnp.isnan(p)
    ct = row(cts.loss if empty is None else jnp.where(empty, 0, cts.loss))
    dg, d_labels = -ct * missing, None
    # At a fixed threshold.
    moved, slope = jnp.zeros((), p.dtype), jnp.zeros((), p.dtype)
    if alpha is not None:
        moved = by_alpha(p, s, alpha)
        slope = ct * (_negentropy_by_alpha(a, q) - _negentropy_by_alpha(a, p))
    if not are_indices(labels):
        # Labels that do not sum to 1 count the threshold as often as they are off.
        excess = row(jnp.sum(q, axis=-1) - 1)
        by_level = ct * excess if cts.level is None else ct * excess - row(cts.level)
        dg += by_level * share
        if alpha is not None:
            # The threshold moves by `Σ moved / Σ s`.
            slope += ct * excess * share / alpha**2 + by_level * moved / sums
        low = gaps(v, m, temperature) + row(level)
        # Beside those, what is below the maximum at a temperature of 0.
        gone |= low == -jnp.inf
        d_labels = ct * jnp.where(gone, 0, _deformed_of(a, q) - jnp.where(gone, 0, low))
    dg = jnp.where(gone, 0, dg)
    if cts.p is not None:
        ct_p = cts.p - row(jnp.sum(share * cts.p, axis=-1))
        dg += s * ct_p if alpha is None else balanced(s, s * ct_p)
        slope = slope + moved * ct_p
    d_alpha = None if alpha is None else jnp.sum(slope, axis=-1, keepdims=True)
    if temperature is None:
        return dg.astype(v.dtype), d_labels, None, d_alpha, None
    dv, d_temperature = through_temperature(dg, v, temperature)
    return dv, d_labels, d_temperature, d_alpha, None


loss_of_rows.defvjp(_fwd, _bwd)


def _level(deformed: Array, v: Array, temperature: Array | None) -> Array:
    """The largest `(p^a − 1)/a`. What is 0 there is subtracted for its derivative.

    `low` in `_bwd` is its gap plus this; where jax differentiates the rule's body instead of the rule
    (inside a scan, in forward mode over forward mode) the sum's derivative must be that of every class.
    """
    top = jnp.max(gaps(v, maximum(v), temperature), axis=-1, initial=-jnp.inf)
    return jnp.max(deformed, axis=-1, initial=-jnp.inf) - jnp.where(jnp.isfinite(top), top, 0)


def targets(v: Array, labels: Array, p: Array) -> tuple[Array, Array]:
    """The labels as distributions `q`, and `q − p`, which at an index is the sum of all others."""
    if not are_indices(labels):
        return labels, labels - p
    hit = is_label(v, labels, None)
    others = jnp.sum(jnp.where(hit, 0, p), axis=-1)
    return hit.astype(p.dtype), jnp.where(hit, row(others), -p)


def _whole_divergence(n: int, q: Array, p: Array, difference: Array) -> Array:
    """`D(q, p)` for α = 1 + 1/n, of the n-th roots: `(c − b)² Σ (n − j) c^(n−1−j) b^j · n/(n + 1)`."""
    if n == 1:
        return difference * difference / 2
    c, b = _root(n, q), _root(n, p)
    powers = [c ** (n - 1 - j) * b**j for j in range(n)]
    slope = sum(powers[1:], powers[0])
    # `q − p = (c − b) · slope`, and both are 0 where q and p are.
    apart = difference / jnp.where(slope == 0, 1, slope)
    weighted = sum(((n - j) * x for j, x in enumerate(powers[1:], 1)), n * powers[0])
    return apart * apart * weighted * (n / (n + 1))


def _root(n: int, x: Array) -> Array:
    """The n-th root, with a derivative of 0 where it is 0."""
    held = jnp.where(x > 0, x, 1)
    root = jnp.sqrt(held) if n == 2 else jnp.exp(jnp.log(held) / n)
    return jnp.where(x > 0, root, jnp.where(jnp.isnan(x), x, 0))


def divergence(a: Array, q: Array, p: Array, difference: Array, log_p: Array) -> Array:
    """`D(q, p)` for any `a = α − 1`: `(q (q^a − p^a)/a − (q − p) p^a) / α`, near q a series.

    At a = 0 it is `q log(q/p) − q + p`.
    """
    inside = log_p > -jnp.inf
    log_p = jnp.where(inside, log_p, 0)
    p_a = jnp.where(inside, jnp.exp(a * log_p), 0)
    low = jnp.where(inside, _deformed(a, log_p), -1 / jnp.where(a > 0, a, 1))
    by_q = jnp.where(q > 0, q * (_deformed_of(a, q) - low), 0)
    plain = (by_q - difference * p_a) / (1 + a)
    r = difference / jnp.where(p > 0, p, 1)
    near = (p > 0) & (jnp.abs(r) < 0.1)
    r = jnp.where(near, r, 0)
    # p^α ∫₀ʳ (r − t) (1 + t)^(α − 2) dt, term by term.
    term, series = r * r / 2, jnp.zeros_like(p)
    for j in range(8):
        series = series + term
        term = term * r * (a - 1 - j) / (j + 3)
    return jnp.where(near, p * p_a * series, plain)


def _deformed(a: Any, log_x: Array) -> Array:
    """`(x^a − 1)/a` of a logarithm; at a = 0 the logarithm itself."""
    w = a * log_x
    small = jnp.abs(w) < 1e-3
    series = 1 + w / 2 * (1 + w / 3)
    return log_x * jnp.where(small, series, jnp.expm1(w) / jnp.where(small, 1, w))


def _deformed_of(a: Any, x: Array) -> Array:
    """The same of a number of 0 or more: `−1/a` for 0."""
    lowest = -1 / jnp.where(jnp.asarray(a) > 0, a, 0)
    return jnp.where(x > 0, _deformed(a, jnp.log(jnp.where(x > 0, x, 1))), lowest)


def negentropy(a: Any, q: Array) -> Array:
    """The terms of `Ω`: `(q^α − q) / (α (α − 1))`, 0 for 0."""
    deformed = _deformed(a, jnp.log(jnp.where(q > 0, q, 1)))
    return jnp.where(jnp.isnan(q), q, q * deformed / (1 + a))


def _negentropy_by_alpha(a: Any, p: Array) -> Array:
    """`∂/∂α (p^α − p) / (α (α − 1))`, 0 for 0."""
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    w = a * log_p
    small = jnp.abs(w) < 0.1
    held = jnp.where(small, 1, w)
    # (w eʷ − eʷ + 1) / w²
    series = 1 / 2 + w * (1 / 3 + w * (1 / 8 + w * (1 / 30 + w / 144)))
    bend = jnp.where(small, series, (held * jnp.exp(held) - jnp.expm1(held)) / (held * held))
    slope = log_p * log_p * bend / (1 + a) - _deformed(a, log_p) / (1 + a) ** 2
    return jnp.where(jnp.isnan(p), p, p * slope)
