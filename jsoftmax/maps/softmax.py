"""softmax, log_softmax, logsumexp, over any axes, under a mask, at a temperature.

Each has its own backward rule on rows with the classes last; the public functions bring an array
into that form, and back.

Imports `autodiff`, `_rows`, `_walks`, `_pytrees`, `_numerics`, `_checks`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import (
    deleted,
    dominant,
    exponentials,
    finite_gaps,
    gaps,
    has_whole_rows,
    others_share,
    per_degree,
    row,
    share_of,
    shift,
    wide,
)
from jsoftmax._pytrees import takes_arrays
from jsoftmax._rows import (
    all_masked,
    batch_of,
    checked,
    checked_temperature,
    classes_back,
    row_temperature,
    rows_of,
)
from jsoftmax._typing import Array, ArrayLike, Axis
from jsoftmax._walks import apart, defined, maximum, rest_of, total
from jsoftmax.autodiff import custom_vjp

# A softmax of at least so many numbers, in rows no longer than this, is one pass on a CPU.
_SMALL, _LONG = 1 << 14, 128


def _probabilities(v: Array, m: Array, rest: Array, temperature: Array | None) -> Array:
    c = shift(m, v.shape[-1], temperature)
    return exponentials(v, c, temperature) * row(share_of(m, c, rest, temperature))


@custom_vjp
def _softmax(v: Array, temperature: Array | None, empty: Array | None) -> Array:
    def careful(v: Array) -> Array:
        m = maximum(v)
        c = shift(m, v.shape[-1], temperature)
        e = exponentials(v, c, temperature)
        return e / row(defined(total(e), m, False if empty is None else empty))

    def fused(v: Array) -> Array:
        e = jnp.exp(wide(v) - shift(maximum(v), v.shape[-1]))
        p = e * row(1 / total(e))
        return jax.lax.cond(jnp.any(jnp.isnan(p[..., 0])), careful, lambda _: p, v)

    if temperature is not None or empty is not None or not _fusible(v):
        return careful(v)
    return jax.lax.platform_dependent(v, cpu=fused, default=careful)


def _fusible(v: Array) -> bool:
    """Whether XLA:CPU should make the softmax of these rows in one pass over memory.

    It does so in plain arithmetic, which gives NaN beside +inf; then all is done again, with care.
    The branch costs more than it saves where there is little to do, or rows are long.
    """
    return isinstance(v.size, int) and v.size >= _SMALL and v.shape[-1] <= _LONG and has_whole_rows(v)


def _softmax_fwd(v: Array, temperature: Array | None, empty: Array | None) -> tuple[Array, Any]:
    p = _softmax(v, temperature, empty)
    return p, (jnp.zeros((), v.dtype) if temperature is None else v, temperature, p)


def _softmax_bwd(residuals: Any, ct: Array) -> tuple[Array, Array | None, None]:
    v, temperature, p = residuals
    # The cotangent is the map's, of its dtype; each reader widens it for itself.
    ct = ct.astype(v.dtype)
    # Σp = 1, so that the family's rule needs no second sum here.
    dg = p * (wide(ct) - row(jnp.sum(p * wide(apart(ct)), axis=-1)))
    if temperature is None:
        return dg, None, None
    return *through_temperature(dg, v, temperature), None


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


@custom_vjp
def _log_softmax(
    v: Array, temperature: Array | None, empty: Array | None
) -> tuple[Array, Array, Array]:
    m = maximum(v)
    c = shift(m, v.shape[-1], temperature)
    rest, m = rest_of(lambda: v, m, c, temperature, False if empty is None else empty)
    return gaps(v, m, temperature) - row(jnp.log1p(rest)), m, rest


def _log_softmax_fwd(v: Array, temperature: Array | None, empty: Array | None) -> tuple[Any, Any]:
    out = _log_softmax(v, temperature, empty)
    return out, (v, temperature, out[1], out[2])


def _log_softmax_bwd(residuals: Any, cts: Any) -> tuple[Array, Array | None, None]:
    v, temperature, m, rest = residuals
    p = _probabilities(v, m, rest, temperature)
    gone = deleted(v, m) & row(~jnp.isnan(rest))
    ct = jnp.where(gone, 0, cts[0])
    sum_ct = row(jnp.sum(ct, axis=-1))
    winner = dominant(v, m, rest, temperature)
    others = others_share(p, row(rest))
    dg = jnp.where(winner, (ct - sum_ct) + sum_ct * others, ct - sum_ct * p)
    dg = jnp.where(gone, 0, dg) + row(cts[2] * (1 + rest)) * p
    if temperature is None:
        return dg, None, None
    return *through_temperature(dg, v, temperature), None


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)


@functools.partial(custom_vjp, nondiff_argnums=(2,))
def _logsumexp(v: Array, empty: Array | None, kept: bool = False) -> tuple[Array, Array, Array]:
    m = maximum(v)
    c = shift(m, v.shape[-1])
    # Beside a maximum of 1 or more, the last digits of the rest do not show.
    none = False if empty is None else empty
    rest, top = rest_of(lambda: v, m, c, None, none, kept=kept, matters=jnp.abs(m) < 1)
    finite = jnp.abs(top) < jnp.inf
    return jnp.where(finite, top + jnp.log1p(jnp.where(finite, rest, 0)), top), m, rest


def _logsumexp_fwd(v: Array, empty: Array | None, kept: bool) -> tuple[Any, Any]:
    del kept
    out = _logsumexp(v, empty, True)
    return out, (v, out[1], jnp.where(out[0] == -jnp.inf, 0, out[2]))


def _logsumexp_bwd(kept: bool, residuals: Any, cts: Any) -> tuple[Array, None]:
    del kept
    v, m, rest = residuals
    return _probabilities(v, m, rest, None) * row(cts[0] + cts[2] * (1 + rest)), None


_logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


def through_temperature(dg: Array, v: Array, temperature: Array) -> tuple[Array, Array]:
    """Cotangents of the scores and `T` from that of the gaps `g = (v − m)/T`."""
    g, _ = finite_gaps(v, maximum(v), temperature)
    dv = per_degree(dg, temperature)
    return dv, -jnp.sum(dv * g, axis=-1, keepdims=True)


@compiled("axis", "log")
def _map(x: Array, where: Array | None, temperature: ArrayLike | None, axis: Any, log: bool) -> Array:
    rows, allowed = rows_of(x, where, axis)
    empty = all_masked(allowed, rows)
    t = row_temperature(temperature, rows)
    if log:
        out = _log_softmax(rows, t, empty)[0]
    else:
        out = _softmax(rows, t, None if allowed is None else empty)
    out = out if allowed is None else jnp.where(allowed, out, -jnp.inf if log else 0)
    return classes_back(out, axis, x.shape).astype(x.dtype)


@compiled("axis", "keepdims")
def _reduced(x: Array, where: Array | None, axis: Any, keepdims: bool) -> Array:
    rows, allowed = rows_of(x, where, axis)
    out = _logsumexp(rows, all_masked(allowed, rows))[0].astype(x.dtype)
    return jnp.expand_dims(out, axis) if keepdims else out


@takes_arrays
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Softmax: a distribution proportional to `exp(x / T)`.

    .. math:: p_k = \frac{e^{x_k / T}}{\sum_j e^{x_j / T}}

    Args:
        x: Logits of a floating dtype, any shape.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `x`. The others get exactly 0,
            whatever they hold.
        temperature: `T ≥ 0`, a number or one per row (the shape of `x` without `axis`). 0 gives its
            limit, equal shares for the maxima; inf a uniform distribution over the classes that
            take part. A negative traced one gives NaN.

    Returns:
        The probabilities, in the shape and dtype of `x`; float32 or wider inside. −inf gives 0; one
        +inf gives 1; NaN, two +inf or nothing but −inf give a row of NaN; every class masked, 0.

    Gradient: `s ⊙ (ḡ − Σ s ḡ) / T` in `x`, and in `temperature`; exactly 0 where masked. Every AD
    mode and order.

    Raises:
        TypeError: If `x` is not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `x`, or `temperature` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import softmax
        >>> print(softmax(jnp.array([1.0, 2.0, 3.0])).round(3))
        [0.09  0.245 0.665]

    References:
        Bridle, Training Stochastic Model Recognition Algorithms as Networks, 1990. The error-free
        shift of the logits: Knuth, TAOCP 2, theorem 4.2.2B.
    """
    array, axes = checked("softmax", x, axis, where)
    t = checked_temperature("softmax", temperature, batch_of(array.shape, axes))
    return _map(array, where, t, axes, False)


@takes_arrays
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Logarithm of the softmax, accurate also where a probability is almost 1.

    .. math:: \log p_k = x_k / T - \log \sum_j e^{x_j / T}

    Args:
        x: Logits of a floating dtype, any shape.
        axis: The class axis, or a tuple of axes that hold the classes together.
        where: Which classes take part: bool, broadcastable to `x`. The others get −inf.
        temperature: `T ≥ 0`, a number or one per row (the shape of `x` without `axis`).

    Returns:
        The log-probabilities, in the shape and dtype of `x`; float32 or wider inside. −inf stays
        −inf; one +inf gives 0 and −inf beside it; NaN, two +inf or nothing but −inf give NaN; every
        class masked, −inf.

    Gradient: `(ḡ − p Σ ḡ) / T` in `x`, and in `temperature`; exactly 0, and deaf to `ḡ`, where the
    logit is masked or −inf. Every AD mode and order.

    Raises:
        TypeError: If `x` is not floating or `where` not bool.
        ValueError: If `axis`, `where` or `temperature` do not fit `x`, or `temperature` is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import log_softmax
        >>> print(log_softmax(jnp.array([20.0, 0.0])))
        [-2.0611537e-09 -2.0000000e+01]

    References:
        Blanchard et al., Accurately computing the log-sum-exp and softmax functions, 2021.
    """
    array, axes = checked("log_softmax", x, axis, where)
    t = checked_temperature("log_softmax", temperature, batch_of(array.shape, axes))
    return _map(array, where, t, axes, True)


@takes_arrays
def logsumexp(
    x: ArrayLike, axis: Axis | None = -1, where: ArrayLike | None = None, keepdims: bool = False
) -> Array:
    r"""Logarithm of the sum of exponentials.

    .. math:: \log \sum_k e^{x_k} = m + \log(1 + r), \quad m = \max_k x_k

    Args:
        x: A floating array of any shape.
        axis: The axes to sum over; `None` for all, `()` for none, which gives `x`.
        where: Which elements take part: bool, broadcastable to `x`.
        keepdims: Whether the reduced axes stay, with size 1.

    Returns:
        The reduced array in the dtype of `x`; float32 or wider inside. −inf where nothing takes part
        or all is −inf, +inf beside any +inf, NaN beside any NaN.

    Gradient: the softmax of `x`; exactly 0 where masked, and everywhere where the result is −inf.
    Every AD mode and order.

    Raises:
        TypeError: If `x` is not floating or `where` not bool.
        ValueError: If `axis` or `where` do not fit `x`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import logsumexp
        >>> print(logsumexp(jnp.array([0.0, -20.0])))
        2.0611537e-09

    References:
        Blanchard et al., Accurately computing the log-sum-exp and softmax functions, 2021.
    """
    array, axes = checked("logsumexp", x, axis, where, none=True)
    _checks.flag("logsumexp", "keepdims", keepdims)
    return _reduced(array, where, axes, keepdims)
