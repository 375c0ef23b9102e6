"""sparsemax and entmax: maps that give exactly 0 to what is far from the maximum.

One rule for the whole family, softmax included: `J = diag(s) − s sᵀ/Σs`, `s = p^(2−α)`.

Imports `softmax`, `_candidates`, `_threshold`, `autodiff`, `_rows`, `_walks`, `_pytrees`, `_numerics`,
`_checks`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import accumulator, behind, gaps, has_whole_rows, nan_unless, row, wide
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import (
    all_masked,
    batch_of,
    checked,
    checked_temperature,
    classes_back,
    for_rows,
    row_temperature,
    rows_of,
)
from jsoftmax._typing import Array, ArrayLike, Axis, Shape
from jsoftmax._walks import apart, by_chunks, careful_if, maximum, total
from jsoftmax.autodiff import custom_vjp
from jsoftmax.maps._candidates import of_candidates
from jsoftmax.maps._threshold import Family, Levels, Traced, Whole, distribution, levels
from jsoftmax.maps.softmax import softmax, through_temperature

# The largest 1/(α − 1) for which powers are products.
_PRODUCTS = 8


class Solved(NamedTuple):
    """The numbers of each row, `[*batch]`, that its distribution is made of."""

    maximum: Array
    levels: Levels


def solved(
    n: int,
    dominated: bool,
    v: Array,
    temperature: Array | None,
    alpha: Array | None,
    bound: Array | None = None,
    m: Array | None = None,
) -> Solved:
    """For `α = 1 + 1/n`, or for `alpha` `[*batch, 1]`; `dominated` and `bound` as in `levels`.

    `m`: the maxima, where they are known.
    """
    fold = has_whole_rows(v) and isinstance(v.shape[-1], int)
    m = maximum(v) if m is None else m
    g = gaps(v, m, temperature)
    found = levels(_family(n, alpha), g, jnp.zeros_like(m), fold, dominated, bound)
    # Only beside +inf may several classes share a gap of 0 without sharing the row.
    several = careful_if(
        m == jnp.inf, lambda: total((g == 0).astype(g.dtype)), lambda: jnp.ones_like(m), None
    )
    return Solved(m, found.refused(nan_unless((m < jnp.inf) | (several < 2), g.dtype)))


def distribution_of(
    n: int,
    v: Array,
    temperature: Array | None,
    alpha: Array | None,
    empty: Array | None,
    found: Solved,
) -> tuple[Family, Array, Array]:
    """The family, the entmax of rows, and how far each gap is above the threshold."""
    family = _family(n, alpha)
    p, y = distribution(family, gaps(v, found.maximum, temperature), found.levels)
    return family, p if empty is None else jnp.where(row(empty), 0, p), y


def _family(n: int, alpha: Array | None) -> Family:
    return Whole(n) if alpha is None else Traced(alpha - 1)


@functools.partial(custom_vjp, nondiff_argnums=(0, 1))
def _entmax(
    n: int,
    narrow: bool,
    v: Array,
    temperature: Array | None,
    alpha: Array | None,
    empty: Array | None,
) -> Array:
    """The map of rows; `narrow`: in the dtype of `v`."""

    def made(v: Array, *options: Any) -> Array:
        return distribution_of(n, v, *options)[1]

    def whole(v: Array, temperature: Array | None, alpha: Array | None, empty: Array | None) -> Array:
        return made(v, temperature, alpha, empty, solved(n, False, v, temperature, alpha))

    if alpha is None:
        # Products are quick to make again: of chunks come numbers per row alone.
        def numbers(v: Array, temperature: Array | None, *known: Array | None) -> Solved:
            return by_chunks(functools.partial(solved, n, False), v, temperature, None, *known)

        found = of_candidates(numbers, Whole(n), v, temperature)
        p = made(v, temperature, alpha, empty, found)
    else:
        p = by_chunks(whole, v, temperature, alpha, empty)
    return p.astype(v.dtype) if narrow else p


def _entmax_fwd(n: int, narrow: bool, v: Array, *options: Array | None) -> tuple[Array, Any]:
    p = _entmax(n, False, v, *options)
    temperature, alpha, _ = options
    out = p.astype(v.dtype) if narrow else p
    # Of a sparsemax only the support is read again: bfloat16 keeps it too, float16 does not.
    kept = out if alpha is None and n == 1 and float(jnp.finfo(out.dtype).tiny) < 1e-30 else p
    return out, (jnp.zeros((), v.dtype) if temperature is None else v, temperature, alpha, kept)


def _entmax_bwd(n: int, narrow: bool, residuals: Any, ct: Array) -> tuple[Any, ...]:
    del narrow
    v, temperature, alpha, p = residuals
    d_alpha = None
    if alpha is None and n == 1:
        dg = _in_support(p, ct)
    else:
        s = slopes(p, n, alpha)
        from_mean = wide(ct) - row(_weighted(s, wide(apart(ct))))
        dg = s * from_mean if alpha is None else balanced(s, s * from_mean)
        if alpha is not None:
            d_alpha = jnp.sum(by_alpha(p, s, alpha) * from_mean, -1, keepdims=True)
    if temperature is None:
        return dg.astype(v.dtype), None, d_alpha, None
    return *through_temperature(dg, v, temperature), d_alpha, None


_entmax.defvjp(_entmax_fwd, _entmax_bwd)


def _in_support(p: Array, ct: Array) -> Array:
    """`ct` less its mean over the support of a sparsemax, 0 outside; NaN in a row of NaN."""

    def support(steep: float) -> Array:
        # In plain arithmetic, as in `Whole.slopes`, with numbers that no other reader has.
        zero, one, factor = (jax.lax.full_like(p, x, accumulator(p.dtype), ()) for x in (0, 1, steep))
        held, zero, one, factor = behind((jax.lax.stop_gradient(p), zero, one, factor))
        return jnp.minimum(one, jnp.maximum(zero, wide(held) * factor))

    size = jnp.sum(support(1e30), axis=-1)
    mean = jnp.sum(support(2e30) * wide(apart(ct)), axis=-1) / jnp.where(size == 0, 1, size)
    return support(3e30) * (wide(ct) - row(mean))


def slopes(p: Array, n: int, alpha: Array | None) -> Array:
    """`s = p^(2−α)` on the support, 0 elsewhere."""
    if alpha is None and n == 1:
        return jnp.where(p > 0, jnp.ones_like(p), jnp.where(jnp.isnan(p), p, 0))
    inside = ~(p <= 0)
    # Finite, so that a slope that belongs to no other class stays out of their derivatives.
    largest = float(jnp.finfo(p.dtype).max)
    power = 1 - 1 / n if alpha is None else jnp.maximum(2 - alpha, -largest / 1e4)
    held = jnp.where(inside, p, 1)
    if alpha is None and n == 2:
        s = jnp.sqrt(held)
    else:
        s = jnp.exp(jnp.minimum(power * jnp.log(held), math.log(largest) / 2))
    return jnp.where(inside, s, 0)


def balanced(s: Array, dg: Array) -> Array:
    """`J x`, of which the steepest class has minus the others': rows of `J` sum to 0.

    For α > 2 its slope may be beyond all digits, times a difference that has none.
    """
    if s.shape[-1] == 0:
        return dg
    ids = jax.lax.broadcasted_iota(jnp.int32, s.shape, s.ndim - 1)
    steepest = (ids == row(jax.lax.argmax(s, s.ndim - 1, jnp.int32))) & (s > 2)
    others = jnp.where(steepest, 0, dg)
    return jnp.where(steepest, -row(jnp.sum(others, axis=-1)), dg)


def _weighted(s: Array, x: Array) -> Array:
    """The mean of `x` with the weights `s`; 0 for a row of none."""
    sums = jnp.sum(s, axis=-1)
    return jnp.sum(s * x, axis=-1) / jnp.where(sums == 0, 1, sums)


def by_alpha(p: Array, s: Array, alpha: Array) -> Array:
    """`∂p/∂α` at a fixed threshold, `a = α − 1`: `(p − s − p log p^a) / a²`, at 0 `−p log² p / 2`."""
    a = alpha - 1
    inside = ~(p <= 0)
    log_p = jnp.where(inside, jnp.log(jnp.where(inside, p, 1)), 0)
    x = -a * log_p
    small = jnp.abs(x) < 0.3
    held = jnp.where(small, x, 0)
    series = 1 + held / 8 * (1 + held / 9)
    for k in (7, 6, 5, 4, 3):
        series = 1 + held / k * series
    squared = jnp.where(a == 0, 1, a * a)
    return jnp.where(small, -p * log_p * log_p * series / 2, (p - s + p * x) / squared)


def checked_alpha(function: str, alpha: ArrayLike, batch: Shape) -> tuple[int, ArrayLike | None]:
    """`n` and nothing where α is known to be 1 + 1/n of a small `n`; otherwise 0 and α."""
    _checks.number(function, "alpha", alpha, lambda a: a >= 1, "at least 1")
    _checks.per_row(function, "alpha", alpha, batch)
    if isinstance(alpha, int | float | np.number) and 1 < alpha <= 2:
        n = 1 / (float(alpha) - 1)
        if n < _PRODUCTS + 0.5 and abs(n - round(n)) < 1e-6:
            return round(n), None
    return 0, alpha


def row_alpha(alpha: ArrayLike, v: Array) -> Array:
    """One α per row, `[*batch, 1]`, NaN where it is below 1."""
    per_row = for_rows(alpha, v)
    return row(per_row * nan_unless(per_row >= 1, per_row.dtype))


def empty_rows(where: Array | None, v: Array) -> Array | None:
    """Which rows have no class, `[*batch]`; nothing if all have."""
    empty = all_masked(where, v)
    return None if empty is None else jnp.broadcast_to(empty, v.shape[:-1])


def entmax_of_rows(
    n: int, v: Array, temperature: Array | None, alpha: Array | None, empty: Array | None
) -> Array:
    """The map of rows `[*batch, classes]`, in float32 or wider."""
    return _entmax(n, False, v, temperature, alpha, empty)


@compiled("axis", "n")
def _map(
    x: Array,
    where: Array | None,
    temperature: ArrayLike | None,
    alpha: ArrayLike | None,
    axis: Any,
    n: int,
) -> Array:
    rows, allowed = rows_of(x, where, axis)
    empty = empty_rows(allowed, rows)
    a = None if alpha is None else row_alpha(alpha, rows)
    p = _entmax(n, True, rows, row_temperature(temperature, rows), a, empty)
    return classes_back(p, axis, x.shape).astype(x.dtype)


@takes_arrays
def entmax(
    x: ArrayLike,
    alpha: ArrayLike = 1.5,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""α-entmax: between softmax (α = 1) and argmax (α → ∞), with probabilities of exactly 0.

    .. math:: p = \left[(\alpha - 1) x / T - \tau\right]_+^{1 / (\alpha - 1)}, \quad \sum_k p_k = 1

    A class is in the support only if its score is within `T / (α − 1)` of the maximum. α = 1.5 is the
    usual choice in attention; α may be learned.

    Args:
        x: Scores of a floating dtype, any shape.
        alpha: `α ≥ 1`: a number, or one per row (the shape of `x` without `axis`), traced or not. 1 is
            `softmax`, 2 `sparsemax`; of Python numbers, 1.5, 4/3, 1.25 and so on are the quickest;
            traced, below 1: NaN.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `x`. The others get exactly 0,
            whatever they hold.
        temperature: `T ≥ 0`, a number or one per row. 0 gives equal shares for the maxima, inf a
            uniform distribution over the classes that take part; a negative traced one NaN.

    Returns:
        The probabilities, in the shape and dtype of `x`; float32 or wider inside; within 2.5e-7 at any
        offset of the scores (nearer to α = 1 than 1.1, 3e-6 beside gaps of tens). −inf gives 0; one
        +inf gives 1; NaN, two +inf or nothing but −inf give a row of NaN; every class masked, 0.

    Gradient: `J = diag(s) − s sᵀ / Σs` with `s = p^(2−α)` on the support, 0 outside, in `x`; and in
    `alpha` and `temperature`. For α ≥ 2 the map has kinks, where a class enters the support: there the
    derivative is the one-sided one of a class that stays outside. Every AD mode and order.

    Raises:
        TypeError: If `x` is not floating or `where` not bool.
        ValueError: If `alpha` is below 1 or has another shape, or `axis`, `where` or `temperature` do
            not fit `x`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import entmax
        >>> print(entmax(jnp.array([1.0, 2.0, 3.0, -1.0])).round(3))
        [0.    0.169 0.831 0.   ]

    References:
        Peters, Niculae, Martins, Sparse Sequence-to-Sequence Models, 2019. Correia, Niculae, Martins,
        Adaptively Sparse Transformers, 2019 (the gradient in α).
    """
    name = "entmax"
    array, axes = checked(name, x, axis, where)
    batch = batch_of(array.shape, axes)
    n, traced = checked_alpha(name, alpha, batch)
    t = checked_temperature(name, temperature, batch)
    if isinstance(traced, int | float) and traced == 1:
        return softmax(array, axis, where, temperature=temperature)
    return _map(array, where, t, traced, axes, n)


@takes_arrays
def sparsemax(
    x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
) -> Array:
    r"""Sparsemax: the Euclidean projection of the scores onto the distributions; `entmax` with α = 2.

    .. math:: p = \left[x / T - \tau\right]_+, \quad \sum_k p_k = 1

    Args:
        x: Scores of a floating dtype, any shape.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `x`. The others get exactly 0,
            whatever they hold.
        temperature: `T ≥ 0`, a number or one per row (the shape of `x` without `axis`).

    Returns:
        The probabilities, in the shape and dtype of `x`; float32 or wider inside; within 2.5e-7 at any
        offset of the scores. −inf gives 0; one +inf gives 1; NaN, two +inf or nothing but −inf give a
        row of NaN; every class masked, 0.

    Gradient: `ḡ − mean ḡ` over the support, 0 outside, divided by `T`; where a class just enters the
    support, that of a class outside. Every AD mode and order.

    Raises:
        TypeError: If `x` is not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `x`, or `temperature` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import sparsemax
        >>> print(sparsemax(jnp.array([1.0, 1.5, 0.2])))
        [0.25 0.75 0.  ]

    References:
        Martins, Astudillo, From Softmax to Sparsemax, 2016.
    """
    array, axes = checked("sparsemax", x, axis, where)
    t = checked_temperature("sparsemax", temperature, batch_of(array.shape, axes))
    return _map(array, where, t, None, axes, 1)
