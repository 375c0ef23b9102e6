"""Scores of a tree's rows, and the log-probabilities of its edges made of them.

An edge is the step from a node into a child; a node's probability is the product over the edges on
its path. Two ways to walk: `path`, the few edges that a label needs, whose rows are gathered; and
`everywhere`, all edges at once from one matmul. Levels whose rows are few are scored for all examples
by a matmul on the path too: they are the front of `node_kernel`.

Positions are breadth-first, as `Tree` numbers them.

Imports `tree`, `losses.logistic`, `dense`, `maps`, `autodiff`, `_numerics`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._numerics import accumulator, aligned, upright
from jsoftmax._typing import Array
from jsoftmax.autodiff import custom_vjp
from jsoftmax.dense import cross_entropy
from jsoftmax.hierarchical.tree import Tree
from jsoftmax.losses.logistic import yes_cost
from jsoftmax.maps import log_softmax

# A row gathered, with its gradient, costs an example as much as so many rows of a matmul.
_GATHERED = 8


def all_scores(hidden: Array, kernel: Array, bias: Array | None) -> Array:
    """The scores of all rows, `[*batch, rows]`, of `accumulator` dtype."""
    dtype = accumulator(hidden.dtype)
    scores = jnp.matmul(hidden, kernel.T, preferred_element_type=dtype)
    return scores if bias is None else scores + aligned(bias.astype(dtype), scores)


@functools.partial(custom_vjp, nondiff_argnums=(4,))
def some_scores(hidden: Array, kernel: Array, bias: Array | None, rows: Array, front: int) -> Array:
    """The scores of the first `front` rows and of `rows` `[n, some]`: `[n, group, front + some]`.

    `hidden` `[n, group, features]`: those of a group are scored by the same rows, gathered once. The
    rule keeps the arguments alone, not the gathered rows.
    """
    dtype = accumulator(hidden.dtype)
    parts = []
    if front:
        head = None if bias is None else bias[:front]
        parts.append(all_scores(hidden, kernel[:front], head))
    if rows.shape[1] or not front:
        own = jnp.einsum("ngf,nrf->ngr", hidden, kernel[rows], preferred_element_type=dtype)
        parts.append(own if bias is None else own + bias[rows][:, None].astype(dtype))
    return jnp.concatenate(parts, axis=-1)


def hidden_gradient(ct: Array, kernel: Array, rows: Array, front: int) -> Array:
    """The gradient of the hidden vectors from that of `some_scores`, in its dtype."""
    own, shared = kernel[rows].astype(ct.dtype), kernel[:front].astype(ct.dtype)
    return ct[..., :front] @ shared + jnp.einsum("ngr,nrf->ngf", ct[..., front:], own)


def touched(ct: Array, hidden: Array, rows: Array, front: int) -> tuple[Array, Array]:
    """The rows that `some_scores` read, `[touched]`, some of them often, and a share for each."""
    wide = hidden.astype(ct.dtype)
    at, values = [], []
    if front:
        at.append(jnp.arange(front, dtype=rows.dtype))
        values.append(jnp.einsum("ngs,ngf->sf", ct[..., :front], wide))
    # No array without elements: before jax 0.8 one has no gradient inside `shard_map`.
    if rows.shape[1] or not front:
        at.append(rows.reshape(-1))
        own = jnp.einsum("nrg,ngf->nrf", upright(ct[..., front:]), wide)
        values.append(own.reshape(-1, wide.shape[-1]))
    return jnp.concatenate(at), jnp.concatenate(values)


def _some_scores_bwd(front: int, residuals: Any, ct: Array) -> tuple[Any, ...]:
    hidden, kernel, bias, rows = residuals
    at, values = touched(ct, hidden, rows, front)
    d_kernel = jnp.zeros(kernel.shape, ct.dtype).at[at].add(values)
    d_bias = None
    if bias is not None:
        _, numbers = touched(ct, jnp.ones_like(hidden[..., :1], ct.dtype), rows, front)
        d_bias = jnp.zeros(bias.shape, ct.dtype).at[at].add(numbers[:, 0])
    return hidden_gradient(ct, kernel, rows, front), d_kernel, d_bias, None


some_scores.defvjp(
    lambda hidden, kernel, bias, rows, front: (
        some_scores(hidden, kernel, bias, rows, front),
        (hidden, kernel, bias, rows),
    ),
    _some_scores_bwd,
)


def path(tree: Tree, position: Array) -> Array:
    """The positions on the way from the root to a node: `[*batch, depth]`, 0 behind its end."""
    if tree.paths is not None:
        return tree.paths[position]

    def step(at: Array, level_start: Array) -> tuple[Array, Array]:
        here = at >= level_start
        return jnp.where(here, tree.above[at], at), jnp.where(here, at, 0)

    starts = jnp.asarray(tree.level_ends[:-1], jnp.int32)
    return jnp.moveaxis(jax.lax.scan(step, position, starts, reverse=True)[1], 0, -1)


def along(tree: Tree, position: Array, group: int = 1) -> tuple[Array, int, Callable[[Array], Array]]:
    """How to score the ways from the root to some nodes, `[n]`, for a group of vectors each.

    Returns:
        The `rows` and the `front` for `some_scores`, and a function from those scores, `[n · group,
        …]`, to `−log p` of each node, `[n · group]`.
    """
    steps = path(tree, position)
    valid = steps > 0
    ends = [(end - 1) // (2 if tree.binary else 1) for end in tree.level_ends]
    gathered = [1 if tree.binary else width for width in tree.widths]
    shared = 0
    while shared < tree.depth and (
        (ends[shared + 1] - ends[shared]) * group <= _GATHERED * gathered[shared]
    ):
        shared += 1
    front = ends[shared]

    def each(*arrays: Array) -> list[Array]:
        return [jnp.repeat(x, group, axis=0) if group > 1 else x for x in arrays]

    if tree.binary:
        rows = jnp.where(valid, (steps - 1) // 2, 0)
        valid, first, seen = each(valid, steps % 2 == 1, rows[:, :shared])

        def cost(scores: Array) -> Array:
            known = jnp.take_along_axis(scores, seen, axis=1)
            known = jnp.concatenate([known, scores[:, front:]], axis=1)
            signed = jnp.where(first, known, -known)
            return jnp.sum(jnp.where(valid, yes_cost(signed), 0), axis=1)

        return rows[:, shared:], front, cost

    parents = jnp.concatenate([jnp.zeros_like(steps[:, :1]), steps[:, :-1]], axis=1)
    first, end = tree.offsets[parents], tree.offsets[parents + 1]
    # Levels about as wide go together: the widest of all would pad a deep tree to many times its size.
    runs, gather = [], [steps[:, :0]]
    for _, run in itertools.groupby(range(tree.depth), lambda level: tree.widths[level].bit_length()):
        levels = list(run)
        at = slice(levels[0], levels[-1] + 1)
        first_of = first[:, at, None]
        siblings = first_of + aligned(jnp.arange(max(tree.widths[at]), dtype=jnp.int32), first_of)
        # Behind the end of a way there are none: what stands there must not reach a gradient.
        real = (siblings < end[:, at, None]) & valid[:, at, None]
        rows = jnp.where(real, siblings - 1, 0)
        gather += [
            rows[:, i, : tree.widths[level]] for i, level in enumerate(levels) if level >= shared
        ]
        runs.append((levels, at, *each(rows, real)))
    chosen, valid = each(jnp.where(valid, steps - first, 0), valid)

    def cost(scores: Array) -> Array:
        start, total = front, jnp.zeros(scores.shape[:1], scores.dtype)
        for levels, at, rows, real in runs:
            known = []
            for i, level in enumerate(levels):
                if level < shared:
                    known.append(jnp.take_along_axis(scores[:, :front], rows[:, i], axis=1))
                else:
                    width = tree.widths[level]
                    own, start = scores[:, start : start + width], start + width
                    known.append(jnp.pad(own, ((0, 0), (0, rows.shape[2] - width))))
            edges = cross_entropy(jnp.stack(known, axis=1), chosen[:, at], where=real)
            total += jnp.sum(jnp.where(valid[:, at], edges, 0), axis=1)
        return total

    return jnp.concatenate(gather, axis=1), front, cost


def everywhere(scores: Array, tree: Tree) -> Array:
    """The log-probabilities of all edges, `[*batch, nodes − 1]`, from `all_scores`."""
    if tree.binary:
        both = -jnp.stack([yes_cost(scores), yes_cost(-scores)], axis=-1)
        return both.reshape(*scores.shape[:-1], tree.num_nodes - 1)
    start, edges = 0, []
    for families, width in tree.groups:
        parents = tree.families[start : start + families]
        start += families
        children = tree.offsets[parents, None] + jnp.arange(width, dtype=jnp.int32)[None]
        real = children < tree.offsets[parents + 1, None]
        known = scores[..., jnp.where(real, children, 1) - 1]
        logs = log_softmax(known, where=real)
        edges.append(logs.reshape(*scores.shape[:-1], families * width))
    return jnp.concatenate(edges, axis=-1)[..., tree.slots]


def descend(edges: Array, tree: Tree) -> Array:
    """The log-probabilities of all nodes by position, `[*batch, nodes]`, level by level."""
    levels = [jnp.zeros((*edges.shape[:-1], 1), edges.dtype)]
    before = 0
    for start, end in itertools.pairwise(tree.level_ends):
        parents = tree.above[start:end] - before
        levels.append(levels[-1][..., parents] + edges[..., start - 1 : end - 1])
        before = start
    return jnp.concatenate(levels, axis=-1)
