"""Optimizers over rows: what a step does to the rows that a batch touched, and to no others.

Imports `_pytrees`, `_numerics`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax._numerics import accumulator, unwrapped
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike

LearningRate = ArrayLike | Callable[[Array], ArrayLike]


class RowOptimizer(NamedTuple):
    """An optimizer over rows, in the manner of optax.

    Attributes:
        init: `node_kernel -> state`.
        update: `(values, state, rows) -> (updates, state)`, for `apply_row_updates`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Array], tuple[Any, Any]]


def row_sgd(learning_rate: LearningRate) -> RowOptimizer:
    r"""Stochastic gradient descent over rows.

    .. math:: k_r \leftarrow k_r - \eta \, g_r

    Args:
        learning_rate: A number, or a schedule from the number of steps done to one.

    Returns:
        `(init, update)`; the state is the number of steps done.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> init, update = hierarchical.row_sgd(0.1)
        >>> updates, state = update(jnp.ones((1, 2)), init(jnp.zeros((3, 2))), jnp.array([1]))
        >>> print(updates)
        [[-0.1 -0.1]]

    References:
        Robbins and Monro, A stochastic approximation method, 1951.
    """

    @takes_arrays
    def init(node_kernel: Any) -> Array:
        del node_kernel
        return jnp.zeros((), jnp.int32)

    @takes_arrays
    def update(values: Any, state: Array, rows: Array) -> tuple[Any, Array]:
        del rows
        rate = _rate(learning_rate, state)
        return jax.tree.map(lambda g: -rate * g, values), state + 1

    return RowOptimizer(init, update)


def row_adagrad(
    learning_rate: LearningRate, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> RowOptimizer:
    r"""Adagrad over rows: a row's rate falls with what that row has seen.

    .. math:: a_r \leftarrow a_r + g_r^2, \quad
        k_r \leftarrow k_r - \eta\, g_r / \sqrt{a_r + \epsilon}

    A row that was not touched has no gradient, so this is what Adagrad does with the dense gradient.

    Args:
        learning_rate: A number, or a schedule from the number of steps done to one.
        initial_accumulator_value: Where the accumulators start.
        eps: What is added under the root.

    Returns:
        `(init, update)`; the state is the number of steps and the accumulators, of the kernel's shape,
        float32 or wider.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> init, update = hierarchical.row_adagrad(0.1, initial_accumulator_value=0.0)
        >>> updates, state = update(jnp.ones((2, 1)), init(jnp.zeros((3, 1))), jnp.array([1, 1]))
        >>> print(updates.sum(0))
        [-0.1]

    References:
        Duchi et al., Adaptive subgradient methods, 2011.
    """

    @takes_arrays
    def init(node_kernel: Any) -> Any:
        start = jax.tree.map(lambda x: jnp.full_like(_zeros(x), initial_accumulator_value), node_kernel)
        return jnp.zeros((), jnp.int32), start

    @takes_arrays
    def update(values: Any, state: Any, rows: Array) -> tuple[Any, Any]:
        count, sums = state
        rate, merged = _rate(learning_rate, count), _Merged(rows, sums)

        def one(g: Array, a: Array) -> tuple[Array, Array]:
            g = merged.total(g).astype(a.dtype)
            a = a.at[merged.firsts].add(g * g, mode="drop")
            return merged.once(-rate * g * jax.lax.rsqrt(merged.read(a) + eps)), a

        updates, sums = _mapped(one, values, sums)
        return updates, (count + 1, sums)

    return RowOptimizer(init, update)


def row_adam(
    learning_rate: LearningRate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> RowOptimizer:
    r"""Adam over rows, lazy: a row's moments stand still until it is touched again.

    .. math:: m_r \leftarrow \beta_1 m_r + (1 - \beta_1) g_r, \quad
        v_r \leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2, \quad
        k_r \leftarrow k_r - \eta\, \hat m_r / (\sqrt{\hat v_r} + \epsilon)

    Dense Adam goes on moving a row by its old moments; that is O(rows) a step.

    Args:
        learning_rate: A number, or a schedule from the number of steps done to one.
        b1: Decay of the first moment.
        b2: Decay of the second.
        eps: What is added to the root.

    Returns:
        `(init, update)`; the state is the number of steps and both moments, of the kernel's shape,
        float32 or wider. The bias correction counts all steps.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> init, update = hierarchical.row_adam(0.1)
        >>> updates, state = update(jnp.ones((2, 1)), init(jnp.zeros((3, 1))), jnp.array([1, 1]))
        >>> print(updates.sum(0).round(3))
        [-0.1]

    References:
        Kingma and Ba, Adam, 2015; the lazy form is that of TensorFlow and torch's SparseAdam.
    """

    @takes_arrays
    def init(node_kernel: Any) -> Any:
        zeros = jax.tree.map(_zeros, node_kernel)
        return jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros)

    @takes_arrays
    def update(values: Any, state: Any, rows: Array) -> tuple[Any, Any]:
        count, first, second = state
        rate, merged = _rate(learning_rate, count), _Merged(rows, first)
        steps = (count + 1).astype(jnp.float32)

        def one(g: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
            g = merged.total(g).astype(m.dtype)
            m_new = b1 * merged.read(m) + (1 - b1) * g
            v_new = b2 * merged.read(v) + (1 - b2) * g * g
            step = (m_new / (1 - b1**steps)) / (jnp.sqrt(v_new / (1 - b2**steps)) + eps)
            m = m.at[merged.firsts].set(m_new, mode="drop")
            v = v.at[merged.firsts].set(v_new, mode="drop")
            return merged.once(-rate * step), m, v

        updates, first, second = _mapped(one, values, first, second)
        return updates, (count + 1, first, second)

    return RowOptimizer(init, update)


def _zeros(x: ArrayLike) -> Array:
    return jnp.zeros(np.shape(x), accumulator(jnp.result_type(x)))


def _rate(learning_rate: LearningRate, count: Array) -> Array:
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    return jnp.asarray(rate, jnp.float32)


def _mapped(one: Callable[..., Any], *trees: Any) -> tuple[Any, ...]:
    """`jax.tree.map` of a function with several results, as several trees."""
    leaves, treedef = jax.tree.flatten(trees[0])
    results = zip(*map(one, leaves, *map(treedef.flatten_up_to, trees[1:])), strict=True)
    return tuple(map(treedef.unflatten, results))


class _Merged:
    """Rows that come several times, each by its first occurrence.

    Sorting them would take longer than the step. An integer for each row of the kernel, filled anew,
    takes a hundredth of what the kernel takes.
    """

    def __init__(self, rows: Array, like: Any):
        num_rows = jax.tree.leaves(like)[0].shape[0]
        ids, none = jnp.arange(rows.shape[0], dtype=jnp.int32), rows.shape[0]
        self.rows = unwrapped(rows, num_rows)
        owners = jnp.full(num_rows, none, jnp.int32).at[self.rows].min(ids, mode="drop")
        self.slots = owners.at[self.rows].get(mode="fill", fill_value=none)
        self.first = self.slots == ids
        # Out of range, and so dropped, for any but the first.
        self.firsts = jnp.where(self.first, self.rows, num_rows)

    def total(self, values: Array) -> Array:
        """The sum for each row at its first occurrence."""
        return jnp.zeros_like(values).at[self.slots].add(values, mode="drop")

    def once(self, updates: Array) -> Array:
        """The updates at the first occurrences, 0 at the others."""
        return jnp.where(self.first.reshape(-1, *[1] * (updates.ndim - 1)), updates, 0)

    def read(self, x: Array) -> Array:
        """The rows of `x`."""
        return x.at[self.rows].get(mode="clip")
