"""Which classes of a long row can be in its support: those of a few blocks.

A class has a positive probability only if its gap is above the threshold, and the threshold of some
classes is never above that of all. So the largest scores of blocks of classes, one pass over memory,
say which blocks matter; where those are few, nothing else of the row is read again.

Imports `_threshold`, `_walks`, `_numerics`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._numerics import aligned, gaps, is_sharded, row
from jsoftmax._typing import Array
from jsoftmax._walks import maximum
from jsoftmax.maps._threshold import Whole, lower_bound

# From so many classes on; the classes of a block at most.
_LONG, _BLOCK = 4096, 128


def of_candidates(solve: Callable[..., Any], family: Whole, v: Array, temperature: Array | None) -> Any:
    """`solve(v, temperature, bound, m)`: numbers per row that depend on the support alone.

    `bound` is a threshold that is not too high, `m` the largest score, or both are none. On a CPU,
    where the support of every row is in a few blocks, `v` are the scores in those.
    """
    classes = v.shape[-1]
    known = all(isinstance(n, int) for n in v.shape) and classes >= _LONG
    # Before jax 0.10, XLA:CPU sums rows inside a branch with fewer digits.
    known &= jax.__version_info__ >= (0, 10)
    # Rows that lie on several devices stay there.
    if not known or is_sharded(v):
        return solve(v, temperature, None, None)
    size = next((b for b in range(_BLOCK, _BLOCK // 8, -1) if classes % b == 0), _BLOCK)
    # Few classes are in a sparsemax's support, more the nearer α is to 1.
    most = min(classes // size, 16 if family.n == 1 else 64)

    def of_blocks(v: Array, temperature: Array | None) -> Any:
        tops = _block_maxima(jax.lax.stop_gradient(v), size)
        m = maximum(tops)
        g = gaps(tops, m, jax.lax.stop_gradient(temperature))
        bound = lower_bound(family, g)
        # What is no number must not be left out.
        matters = ~(g <= row(bound))
        few = jnp.all(jnp.sum(matters, axis=-1) <= most)

        def some(v: Array, temperature: Array | None, bound: Array, m: Array) -> Any:
            blocks = row(jax.lax.top_k(matters.astype(g.dtype), most)[1])
            at = (blocks * size + aligned(jnp.arange(size, dtype=blocks.dtype), blocks)).reshape(
                *v.shape[:-1], most * size
            )
            scores = jnp.take_along_axis(v, at, axis=-1, mode="fill", fill_value=-jnp.inf)
            return solve(scores, temperature, bound, m)

        return jax.lax.cond(few, some, solve, v, temperature, bound, m)

    def of_all(v: Array, temperature: Array | None) -> Any:
        return solve(v, temperature, None, None)

    return jax.lax.platform_dependent(v, temperature, cpu=of_blocks, default=of_all)


def _block_maxima(v: Array, size: int) -> Array:
    """The maxima of blocks of so many classes, NaN where one is."""

    def larger(a: Array, b: Array) -> Array:
        return jax.lax.select((a > b) | (a != a), a, b)

    def largest(x: Array) -> Array:
        # XLA:CPU's own maximum drops a NaN in 32 bits; in 16 it does not, and would store wide copies.
        if x.dtype.itemsize == 2:
            return jnp.max(x, axis=-1)
        return jax.lax.reduce(x, jnp.array(-jnp.inf, x.dtype), larger, (x.ndim - 1,))

    count, left = divmod(v.shape[-1], size)
    whole = largest(v[..., : count * size].reshape(*v.shape[:-1], count, size))
    return jnp.concatenate([whole, row(largest(v[..., count * size :]))], -1) if left else whole
