"""Ways down a tree, from the root to its leaves, for all examples side by side: a beam of them, or one.

A beam holds the open nodes of a level, the best leaves so far, and a bound: the log-probability of the
best node that was dropped. A node is as probable as all leaves below it together, so no leaf that was
not looked at is above the bound. NaN in the bound says that one was met.

Levels whose nodes are about as wide share one loop, so that a deep tree compiles as fast as others.
Nothing here is differentiated but `of_paths`.

Imports `_edges`, `tree`, `_numerics`, `maps`, `losses.logistic`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsoftmax._numerics import accumulator, aligned, repeated
from jsoftmax._typing import Array
from jsoftmax.hierarchical._edges import all_scores, along, descend, everywhere, some_scores
from jsoftmax.hierarchical.tree import Tree
from jsoftmax.losses.logistic import logistic_cost
from jsoftmax.maps import log_softmax

# So many rows are gathered for an example at once; more of them one node after the other.
_AT_ONCE = 512
# So many examples are answered at once from the log-probabilities of all nodes.
_TOGETHER = 8


class Beam(NamedTuple):
    """Where a search stands.

    Attributes:
        open: `[n, width]`: the positions of the nodes to be expanded.
        log_probs: `[n, width]`, −inf in a slot that holds no node.
        leaves: `[n, k]`: the positions of the best leaves so far, descending.
        found: `[n, k]`: their log-probabilities, −inf where there is none yet.
        bound: `[n]`: no other leaf is more probable than this or an open node; NaN where one was met.
    """

    open: Array
    log_probs: Array
    leaves: Array
    found: Array
    bound: Array


def beam_search(
    hidden: Array, kernel: Array, bias: Array | None, tree: Tree, k: int, width: int
) -> Beam:
    """The best `k` leaves that a beam of up to `width` open nodes a level comes by."""
    zero = _zero(hidden, kernel, bias)
    root, nothing = zero[:, None], jnp.full_like(zero, -jnp.inf)
    empty = jnp.broadcast_to(nothing[:, None], (zero.shape[0], k))
    none = jnp.zeros_like(empty, jnp.int32) + root.astype(jnp.int32)
    beam = Beam(root.astype(jnp.int32), root, none, empty, nothing)
    # No level has more open nodes than nodes, nor than the next has.
    sizes = [end - start for start, end in itertools.pairwise((0, *tree.level_ends))]
    kept = min(width, max(min(pair) for pair in itertools.pairwise(sizes)))
    for children, levels in _runs(tree):

        def step(beam: Beam, _: None, children: int = children) -> tuple[Beam, None]:
            return _lowered(beam, hidden, kernel, bias, tree, children, kept), None

        if beam.open.shape[1] < kept:
            beam, levels = step(beam, None)[0], levels - 1
        beam = jax.lax.scan(step, beam, None, levels)[0] if levels else beam
    return beam


def completed(beam: Beam, hidden: Array, kernel: Array, bias: Array | None, tree: Tree) -> Beam:
    """The beam with every example answered from all leaves that the search left open.

    Some examples at a time, so that what it takes is memory for the nodes of a few of them, and as
    little time as there are few.
    """
    n, k = beam.found.shape
    if n == 0:
        return beam
    # The number of examples may be a symbol.
    some = min(n, _TOGETHER) if isinstance(n, int) else _TOGETHER
    leaves = tree.position[tree.leaves]

    def unfinished(beam: Beam) -> Array:
        return beam.bound > beam.found[:, -1]

    def answer(beam: Beam) -> Beam:
        at = jnp.nonzero(unfinished(beam), size=some, fill_value=n)[0]
        vectors = hidden.at[at].get(mode="fill", fill_value=0)
        edges = everywhere(all_scores(vectors, kernel, bias), tree)
        log_p = descend(edges, tree)[:, leaves]
        met = jnp.any(jnp.isnan(log_p), axis=-1)
        found, classes = jax.lax.top_k(log_p, k)
        return beam._replace(
            leaves=beam.leaves.at[at].set(leaves[classes], mode="drop"),
            found=beam.found.at[at].set(found, mode="drop"),
            bound=beam.bound.at[at].set(jnp.where(met, jnp.nan, -jnp.inf), mode="drop"),
        )

    return repeated(lambda beam: jnp.any(unfinished(beam)), answer, beam, -(-n // some))


def walk(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    tree: Tree,
    noise: Array | None,
    pick: Callable[[Array, Any], Array],
) -> tuple[Array, Array]:
    """One way down: the position `[n]` of a leaf, and whether a NaN was met on the way.

    `pick` says which child to go to, by the log-probabilities of the children `[n, width]`, −inf where
    there is none, and what `noise`, `[depth, …]`, has for the level.
    """
    at = _zero(hidden, kernel, bias).astype(jnp.int32)
    state, level = (at, at > 0), 0
    for children, levels in _runs(tree):

        def step(state: Any, noise: Any, children: int = children) -> tuple[Any, None]:
            at, met = state
            below, edges, real = _children(hidden, kernel, bias, tree, at[:, None], children)
            below, edges, real = below[:, 0], edges[:, 0], real[:, 0]
            choice = pick(edges, noise)[:, None]
            chosen = jnp.take_along_axis(below, choice, axis=1, mode="clip")[:, 0]
            met |= jnp.any(jnp.isnan(edges), axis=-1)
            return (jnp.where(real[:, 0], chosen, at), met), None

        here = None if noise is None else noise[level : level + levels]
        state, level = jax.lax.scan(step, state, here, levels)[0], level + levels
    return state


def of_paths(hidden: Array, kernel: Array, bias: Array | None, tree: Tree, positions: Array) -> Array:
    """The log-probabilities of nodes `[n, k]`, with their gradients."""
    n, k = positions.shape
    rows, front, cost = along(tree, positions.reshape(-1))
    some = rows.shape[-1]
    own = _scores(hidden, kernel, bias, rows.reshape(n, k, some))
    shared = all_scores(hidden, kernel[:front], None if bias is None else bias[:front])
    shared = jnp.broadcast_to(shared[:, None], (n, k, front))
    return -cost(jnp.concatenate([shared, own], axis=-1).reshape(n * k, front + some)).reshape(n, k)


def _lowered(
    beam: Beam, hidden: Array, kernel: Array, bias: Array | None, tree: Tree, children: int, kept: int
) -> Beam:
    """The beam a level further down, with up to `kept` open nodes."""
    below, edges, real = _children(hidden, kernel, bias, tree, beam.open, children)
    real &= beam.log_probs[..., None] > -jnp.inf
    # Not above the node's own: rounding must not lift a leaf over the bound of what is above it. And
    # finite: an impossible leaf is a leaf, which −inf says there is not.
    log_p = beam.log_probs[..., None] + jnp.minimum(edges, 0)
    log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
    met = jnp.any(real & jnp.isnan(log_p), axis=(1, 2))
    log_p = jnp.where(real & ~jnp.isnan(log_p), log_p, -jnp.inf)
    n, m, width = below.shape
    below, log_p = below.reshape(n, m * width), log_p.reshape(n, m * width)
    is_leaf = tree.class_at[below] >= 0

    found = jnp.concatenate([beam.found, jnp.where(is_leaf, log_p, -jnp.inf)], axis=1)
    leaves = jnp.concatenate([beam.leaves, below], axis=1)
    found, at = jax.lax.top_k(found, beam.found.shape[1])
    leaves = jnp.take_along_axis(leaves, at, axis=1)

    log_p, bound = jnp.where(is_leaf, -jnp.inf, log_p), beam.bound
    if kept < below.shape[1]:
        log_p, at = jax.lax.top_k(log_p, kept + 1)
        bound = jnp.maximum(bound, log_p[:, kept])
        below, log_p = jnp.take_along_axis(below, at[:, :kept], axis=1), log_p[:, :kept]
    else:
        spare = ((0, 0), (0, kept - below.shape[1]))
        below, log_p = jnp.pad(below, spare), jnp.pad(log_p, spare, constant_values=-jnp.inf)
    return Beam(below, log_p, leaves, found, jnp.where(met, jnp.nan, bound))


def _children(
    hidden: Array, kernel: Array, bias: Array | None, tree: Tree, at: Array, width: int
) -> tuple[Array, Array, Array]:
    """The children of nodes `[n, m]`: positions, log-probabilities of their edges, and which there are.

    `[n, m, width]` each; −inf where there is no child.
    """
    first, end = tree.offsets[at][..., None], tree.offsets[at + 1][..., None]
    below = first + aligned(jnp.arange(width, dtype=jnp.int32), first)
    real = below < end
    below = jnp.where(real, below, 1)
    if tree.binary:
        score = _scores(hidden, kernel, bias, jnp.where(real[..., :1], (below[..., :1] - 1) // 2, 0))
        edges = -logistic_cost(
            jnp.concatenate([score, score], axis=-1),
            jnp.broadcast_to(jnp.array([1, 0], score.dtype), real.shape),
        )
        return below, jnp.where(real, edges, -jnp.inf), real
    edges = log_softmax(_scores(hidden, kernel, bias, below - 1), where=real)
    return below, edges, real


def _scores(hidden: Array, kernel: Array, bias: Array | None, rows: Array) -> Array:
    """The scores of rows `[n, m, some]`."""
    n, m, some = rows.shape

    def at(rows: Array) -> Array:
        return some_scores(hidden[:, None], kernel, bias, rows, 0)[:, 0]

    if m * some <= _AT_ONCE:
        return at(rows.reshape(n, m * some)).reshape(rows.shape)
    return jnp.moveaxis(jax.lax.map(at, jnp.moveaxis(rows, 1, 0)), 0, 1)


def _runs(tree: Tree) -> list[tuple[int, int]]:
    """Levels that share a loop, their nodes about as wide: the most children, how many levels."""
    runs = [list(run) for _, run in itertools.groupby(tree.widths, int.bit_length)]
    return [(max(run), len(run)) for run in runs]


def _zero(hidden: Array, kernel: Array, bias: Array | None) -> Array:
    """`[n]` zeros that vary over the mesh axes that the arguments vary over, as loops ask."""
    some = all_scores(hidden[:, :1], kernel[:1, :1], None if bias is None else bias[:1])[:, 0]
    return jnp.where(jnp.zeros_like(some, bool), some, jnp.zeros((), accumulator(hidden.dtype)))
