"""The best classes and random classes under an adaptive softmax, without looking at all of them.

A class is no likelier than its cluster: a cluster is looked into only where one of a tile's rows may
find something there. Under `vmap` nothing is skipped.

Imports `adaptive`, `adaptive_params`, `maps`, `_walks`, `_pytrees`, `_numerics`, `_checks`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import by_rows, exponentials, row, shift
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax._walks import defined, maximum
from jsoftmax.hierarchical.adaptive import (
    checked,
    head_logits,
    in_one_dtype,
    projected,
    tail_log_softmax,
)
from jsoftmax.hierarchical.adaptive_params import AdaptiveParams
from jsoftmax.maps import log_softmax

# So many logits, or one row's, are held at a time; of at most so many rows, since one that needs a
# cluster makes the whole tile look into it.
_HELD, _ROWS = 1 << 22, 64


@takes_arrays
def adaptive_top_k(hidden: ArrayLike, params: AdaptiveParams, k: int) -> tuple[Array, Array]:
    r"""The `k` likeliest classes under an adaptive softmax; exact.

    .. math:: \log p_k \le \log p(\text{cluster of } k)

    so a cluster that is no likelier than the `k`-th best class found so far is left alone.

    Args:
        hidden: `[*batch, features]`, floating; float32 or wider inside.
        params: What `adaptive_init` makes.
        k: How many, static; at most the number of classes.

    Returns:
        The log-probabilities `[*batch, k]`, float32 or wider, the largest first, and the user's class
        ids `[*batch, k]`, int32. Of equals the one ranked more frequent comes first. A row without a
        distribution in the head or in a cluster that it looks into (NaN, two +inf, nothing but −inf)
        has NaN `log_probs` and class −1. Where a cluster is impossible there may be fewer than `k`:
        −inf and class −1 at the end.

    Gradient: of the log-probabilities, in `hidden` and the arrays of `params`, as of
        `adaptive_log_softmax` at those classes. Every AD mode.

    Raises:
        TypeError: If `hidden` is not floating or `k` not an integer.
        ValueError: If the features do not fit, or `k` is not in [1, classes].

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax.hierarchical import adaptive_init, adaptive_top_k
        >>> params = adaptive_init(jax.random.key(0), 16, 100, (10, 30))
        >>> log_probs, ids = adaptive_top_k(jnp.ones((2, 16)), params, 3)
        >>> print(ids.shape, bool(jnp.all(log_probs[:, 0] >= log_probs[:, 1])))
        (2, 3) True

    References:
        Grave et al., Efficient softmax approximation for GPUs, 2017.
    """
    name = "adaptive_top_k"
    hidden, _ = checked(name, hidden, params)
    _checks.integer(name, "k", k)
    classes = params.num_classes
    _checks.number(name, "k", k, lambda k: 1 <= k <= classes, f"in [1, classes] = [1, {classes}]")
    return _top_k(hidden, params, k=int(k))


@compiled("k")
@by_rows
def _top_k(hidden: Array, params: AdaptiveParams, *, k: int) -> tuple[Array, Array]:
    shortlist = params.bounds[0]

    def tile(x: Array) -> tuple[Array, Array]:
        head = log_softmax(head_logits(x, params))
        log_probs, places = jax.lax.top_k(head[:, :shortlist], min(k, shortlist))
        spare = ((0, 0), (0, k - places.shape[1]))
        log_probs = jnp.pad(log_probs, spare, constant_values=-jnp.inf)
        places = jnp.pad(places.astype(jnp.int32), spare, constant_values=-1)
        found = log_probs, places, jnp.any(jnp.isnan(head), axis=-1)
        for i, start in enumerate(params.cutoffs):
            cluster = head[:, shortlist + i]
            wanted = cluster > found[0][:, -1]

            def merged(
                found: Found, x: Array, cluster: Array, wanted: Array, i: int = i, start: int = start
            ) -> Found:
                inside = tail_log_softmax(x, params, i) + row(cluster)
                # Not of a row that is here for its neighbours' sake: those are not to matter to it.
                spoiled = found[2] | (wanted & jnp.any(jnp.isnan(inside), axis=-1))
                inside = jnp.where(row(wanted), inside, -jnp.inf)
                best, local = jax.lax.top_k(inside, min(k, inside.shape[1]))
                both = jnp.concatenate([found[0], best], axis=1)
                places = jnp.concatenate([found[1], local.astype(jnp.int32) + start], axis=1)
                best, which = jax.lax.top_k(both, k)
                return best, jnp.take_along_axis(places, which, axis=1, mode="clip"), spoiled

            operands = found, x, cluster, wanted
            found = jax.lax.cond(jnp.any(wanted), merged, lambda found, *_: found, *operands)
        log_probs, places, spoiled = found
        return jnp.where(row(spoiled), jnp.nan, log_probs), jnp.where(row(spoiled), -1, places)

    log_probs, places = _tile_by_tile(tile, in_one_dtype(hidden, params), params)
    shape = (*hidden.shape[:-1], k)
    return log_probs.reshape(shape), _classes(params, places).reshape(shape)


Found = tuple[Array, Array, Array]


def _classes(params: AdaptiveParams, places: Array) -> Array:
    """The user's class ids at the places of the ranking; −1 for none."""
    return jnp.where(places < 0, -1, params.classes(jnp.maximum(places, 0)))


@takes_arrays
def adaptive_sample(key: ArrayLike, hidden: ArrayLike, params: AdaptiveParams) -> Array:
    r"""Draws one class per row from an adaptive softmax: an entry of the head, then a class of it.

    .. math:: p_k = p(\text{cluster of } k) \, p(k \mid \text{cluster of } k)

    Only the clusters that were drawn are looked into. Within head and cluster, a block of classes is
    drawn by its mass, and a class of that block, each by a uniform number of its own: so no class is
    too improbable for the 24 bits of one.

    Args:
        key: A key of `jax.random`.
        hidden: `[*batch, features]`, floating; float32 or wider inside.
        params: What `adaptive_init` makes.

    Returns:
        `[*batch]`, int32: the user's class ids. −1 for a row without a distribution (NaN, two +inf,
        nothing but −inf) in the head, or in the cluster that was drawn.

    Gradient: none; the ids are integers.

    Raises:
        TypeError: If `key` is no key or `hidden` not floating.
        ValueError: If its features are not those of `params`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jsoftmax.hierarchical import adaptive_init, adaptive_sample
        >>> params = adaptive_init(jax.random.key(0), 16, 100, (10, 30))
        >>> print(adaptive_sample(jax.random.key(1), jnp.ones((2, 16)), params).shape)
        (2,)

    References:
        Devroye, Non-Uniform Random Variate Generation, 1986, section III.2 (inversion).
    """
    keys = _checks.key("adaptive_sample", key)
    hidden, _ = checked("adaptive_sample", hidden, params)
    return _sample(hidden, keys, params)


@compiled()
@by_rows
def _sample(hidden: Array, key: Array, params: AdaptiveParams) -> Array:
    shortlist = params.bounds[0]
    x = in_one_dtype(hidden, params)
    uniforms = jax.random.uniform(key, (*x.shape[:-1], 4), x.dtype)

    def tile(x_and_u: Array) -> Array:
        x, u = x_and_u[:, :-4], x_and_u[:, -4:]
        entry = _drawn(head_logits(x, params), u[:, 0], u[:, 1])
        place = entry
        for i, start in enumerate(params.cutoffs):

            def inside(
                place: Array, chosen: Array, x: Array, u: Array, i: int = i, start: int = start
            ) -> Array:
                logits = projected(x, params, i) @ params.tail_kernels[i].astype(x.dtype)
                local = _drawn(logits, u[:, 2], u[:, 3])
                return jnp.where(chosen, jnp.where(local < 0, -1, local + start), place)

            chosen = entry == shortlist + i
            place = jax.lax.cond(jnp.any(chosen), inside, lambda p, *_: p, place, chosen, x, u)
        return place

    places = _tile_by_tile(tile, jnp.concatenate([x, uniforms], axis=-1), params)
    return _classes(params, places).reshape(hidden.shape[:-1])


def _drawn(logits: Array, u_block: Array, u_class: Array) -> Array:
    """A column of each row, by two numbers uniform in [0, 1); −1 where there is no distribution."""
    rows, classes = logits.shape
    size = math.isqrt(classes - 1) + 1
    count = -(-classes // size)
    m = maximum(logits)
    weights = exponentials(logits, shift(m, classes))
    weights = jnp.pad(weights, ((0, 0), (0, count * size - classes))).reshape(rows, count, size)
    masses = jnp.sum(weights, axis=-1)
    missing = jnp.isnan(defined(jnp.sum(masses, axis=-1), m, False))
    block = _inverted(masses, u_block)
    within = jnp.take_along_axis(weights, block[:, None, None], axis=1, mode="clip")[:, 0]
    found = jnp.minimum(block * size + _inverted(within, u_class), classes - 1)
    return jnp.where(missing, -1, found)


def _inverted(weights: Array, u: Array) -> Array:
    """The first entry of each row at which the cumulative weight exceeds `u` of the whole."""
    cumulative = jnp.cumsum(weights, axis=-1)
    return jnp.argmax(cumulative > row(u) * cumulative[:, -1:], axis=-1).astype(jnp.int32)


def _tile_by_tile(tile: Callable[[Array], Any], x: Array, params: AdaptiveParams) -> Any:
    """Applies a function of rows `[rows, …]` to as many at a time as may be held."""
    widest = max(leaf.shape[-1] for leaf in (params.head_kernel, *params.tail_kernels))
    x = x.reshape(-1, x.shape[-1])
    size = max(1, min(_ROWS, _HELD // widest))
    if isinstance(x.shape[0], int):
        size = max(1, min(size, x.shape[0]))
    count = -(-x.shape[0] // size)
    padded = jnp.pad(x, ((0, count * size - x.shape[0]), (0, 0)))
    out = jax.lax.map(tile, padded.reshape(count, size, x.shape[1]))
    return jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:])[: x.shape[0]], out)
