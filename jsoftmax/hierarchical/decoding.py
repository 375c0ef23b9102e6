"""Decoding: the most probable classes of a tree, and draws from it, without looking at all of them.

Imports `_search`, `loss`, `tree`, `_pytrees`, `_checks`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._numerics import by_rows, row
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.hierarchical._search import beam_search, completed, of_paths, walk
from jsoftmax.hierarchical.loss import checked
from jsoftmax.hierarchical.tree import Tree

# So many children are looked at on a level by default.
_CANDIDATES = 128


class TopK(NamedTuple):
    """The most probable classes.

    Attributes:
        log_probs: `[*batch, k]`, in nats, descending.
        ids: `[*batch, k]`, int32: their classes.
        certified: `[*batch]`: whether no other class is more probable, provably.
    """

    log_probs: Array
    ids: Array
    certified: Array


class Greedy(NamedTuple):
    """Where the most probable steps lead.

    Attributes:
        log_probs: `[*batch]`, in nats.
        ids: `[*batch]`, int32.
    """

    log_probs: Array
    ids: Array


@takes_arrays
def top_k(
    hidden: ArrayLike,
    node_kernel: ArrayLike,
    tree: Tree,
    k: int,
    *,
    node_bias: ArrayLike | None = None,
    beam: int | None = None,
    exact: bool = False,
) -> TopK:
    r"""The most probable classes of a tree by beam search, with a proof where there is one.

    .. math:: \log p_{v} = \log \sum_{c \text{ below } v} p_c \ge \max_{c \text{ below } v} \log p_c

    The search keeps the best open nodes of each level and the best `k` leaves it met. As no class is
    more probable than a node above it, the answer is certified where no node that was dropped is more
    probable than the last of the `k`. A level has fewer than `1 / p` nodes more probable than `p`: so a
    beam of `1 / p` certifies every row whose `k`-th class has that probability. The work for a row is
    O(beam · depth · children), whatever the number of classes.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating.
        tree: The tree.
        k: How many classes, static; 1 to classes.
        node_bias: `[tree.num_rows]`.
        beam: How many nodes of a level are kept open, static; `max(k, 128 // children)` by default, so
            that up to 128 children are looked at. A wider beam certifies more rows; one narrower than
            `k` may find fewer than `k` classes.
        exact: Whether to go on until every row is certified. A row that the beam leaves open is
            answered from the log-probabilities of all classes, 8 rows at a time: O(nodes) work.

    Returns:
        `(log_probs, ids, certified)`: `[*batch, k]` float32 or wider, descending, `[*batch, k]` int32
        and `[*batch]` bool. Certified is meant to the rounding of the log-probabilities; among equal
        ones any may be returned. A row in which a NaN is met has NaN `log_probs` and class −1, and is
        never certified. Where fewer than `k` were found, −inf and class −1 at the end.

    Gradient: of `log_probs` in `hidden`, `node_kernel` and `node_bias`, as that of
        `hierarchical_cross_entropy` at `ids`, which are constant. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other; for `k` or `beam` out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> log_probs, ids, certified = hierarchical.top_k(jnp.ones(5), kernel, tree, 2)
        >>> print(jnp.exp(log_probs), ids, certified)
        [0.5  0.25] [0 1] True

    References:
        Lowerre, The Harpy speech recognition system, 1976, for the beam; Land and Doig, An automatic
        method of solving discrete programming problems, 1960, for the bound.
    """
    name = "top_k"
    h, kernel, _ = checked(name, hidden, node_kernel, None, tree, node_bias)
    _checks.integer(name, "k", k)
    if not 1 <= k <= tree.num_classes:
        raise ValueError(
            f"{name}: k must be in [1, classes] = [1, {tree.num_classes}], got {k}; a tree has no more "
            "classes than leaves."
        )
    if beam is not None:
        _checks.integer(name, "beam", beam)
        if beam < 1:
            raise ValueError(
                f"{name}: beam must be at least 1, got {beam}; leave it out for a default."
            )
    _checks.flag(name, "exact", exact)
    width = max(k, _CANDIDATES // max(tree.widths)) if beam is None else beam
    return _top_k(h, kernel, tree, node_bias, k=int(k), width=int(width), exact=bool(exact))


@takes_arrays
def greedy(
    hidden: ArrayLike, node_kernel: ArrayLike, tree: Tree, *, node_bias: ArrayLike | None = None
) -> Greedy:
    r"""The class at the end of the most probable step at every node.

    .. math:: v_{i+1} = \arg\max_{c \text{ child of } v_i} p_{c \mid v_i}

    The cheapest guess, O(depth) work. It need not be the most probable class, nor near it: a probable
    group may have no probable class. `top_k` finds that.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating.
        tree: The tree.
        node_bias: `[tree.num_rows]`.

    Returns:
        `(log_probs, ids)`: the class's log-probability, `[*batch]` float32 or wider, and the class,
        `[*batch]` int32. NaN and −1 in a row in which a NaN is met. Of equal steps, the first.

    Gradient: of `log_probs` in `hidden`, `node_kernel` and `node_bias`, `ids` being constant. Every AD
        mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> log_probs, ids = hierarchical.greedy(jnp.ones(5), kernel, tree)
        >>> print(jnp.exp(log_probs), ids)
        0.5 0

    References:
        Joulin et al., Bag of tricks for efficient text classification, 2017, section 2.1, which goes on
        from there to all paths.
    """
    h, kernel, _ = checked("greedy", hidden, node_kernel, None, tree, node_bias)
    return _greedy(h, kernel, tree, node_bias)


@takes_arrays
def sample(
    key: ArrayLike,
    hidden: ArrayLike,
    node_kernel: ArrayLike,
    tree: Tree,
    *,
    node_bias: ArrayLike | None = None,
    num_samples: int | None = None,
) -> Array:
    r"""Draws classes from a softmax over a tree: a step at each node, O(depth) work for a draw.

    .. math:: P(k) = p_k = \prod_{e \in \mathrm{path}(k)} p_e

    There is no temperature: one at every node is not that of the softmax over the classes.

    Args:
        key: A key of `jax.random`, typed or raw.
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating.
        tree: The tree.
        node_bias: `[tree.num_rows]`.
        num_samples: How many independent draws for each row, static; one without an axis by default.

    Returns:
        Classes, `[*batch]` or `[num_samples, *batch]`, int32; independent of each other. −1 in a row in
        which a NaN is met. An edge's probability is met to 2⁻³² beside its rounding, whatever the
        dtypes, so rare classes are as rare as they should be.

    Gradient: none, classes are integers.

    Raises:
        TypeError: For a key that is none and for a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other; for a negative number of draws.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> ids = hierarchical.sample(jax.random.key(0), jnp.ones(5), kernel, tree, num_samples=1000)
        >>> print(ids.shape, ids.min(), ids.max())
        (1000,) 0 3

    References:
        Morin and Bengio, Hierarchical probabilistic neural network language model, 2005.
    """
    name = "sample"
    h, kernel, _ = checked(name, hidden, node_kernel, None, tree, node_bias)
    keys = _checks.key(name, key)
    if num_samples is not None:
        _checks.integer(name, "num_samples", num_samples)
        if num_samples < 0:
            raise ValueError(
                f"{name}: num_samples must be at least 0, got {num_samples}; leave it out for one draw "
                "per row."
            )
    drawn = _sample(
        h, keys, kernel, tree, node_bias, draws=1 if num_samples is None else int(num_samples)
    )
    return drawn[..., 0] if num_samples is None else jnp.moveaxis(drawn, -1, 0)


@compiled("k", "width", "exact")
@by_rows
def _top_k(
    hidden: Array,
    kernel: Array,
    tree: Tree,
    bias: Array | None,
    *,
    k: int,
    width: int,
    exact: bool,
) -> TopK:
    batch, hidden = hidden.shape[:-1], hidden.reshape(-1, hidden.shape[-1])
    still = jax.lax.stop_gradient((hidden, kernel, bias))
    beam = beam_search(*still, tree, k, width)
    if exact:
        beam = completed(beam, *still, tree)
    certified = beam.bound <= beam.found[:, -1]
    missing, spoiled = beam.found == -jnp.inf, row(jnp.isnan(beam.bound))

    log_p = of_paths(hidden, kernel, bias, tree, beam.leaves)
    log_p = jnp.where(spoiled, jnp.nan, jnp.where(missing, -jnp.inf, log_p))
    ids = jnp.where(missing | spoiled, -1, tree.class_at[beam.leaves])
    # Summed along the path they may differ in the last digit, and in order, from the search's.
    order = jax.lax.top_k(jax.lax.stop_gradient(log_p), k)[1]
    log_p, ids = jnp.take_along_axis(log_p, order, axis=1), jnp.take_along_axis(ids, order, axis=1)
    return TopK(log_p.reshape(*batch, k), ids.reshape(*batch, k), certified.reshape(batch))


@compiled()
@by_rows
def _greedy(hidden: Array, kernel: Array, tree: Tree, bias: Array | None) -> Greedy:
    batch, hidden = hidden.shape[:-1], hidden.reshape(-1, hidden.shape[-1])
    still = jax.lax.stop_gradient((hidden, kernel, bias))
    at, met = walk(*still, tree, None, lambda edges, _: jnp.argmax(edges, axis=-1))
    log_p = jnp.where(met, jnp.nan, of_paths(hidden, kernel, bias, tree, row(at))[:, 0])
    ids = jnp.where(met, -1, tree.class_at[at])
    return Greedy(log_p.reshape(batch), ids.reshape(batch))


@compiled("draws")
@by_rows
def _sample(
    hidden: Array, key: Array, kernel: Array, tree: Tree, bias: Array | None, *, draws: int
) -> Array:
    shape = (*hidden.shape[:-1], draws)
    rows = jnp.broadcast_to(hidden[..., None, :], (*shape, hidden.shape[-1]))
    rows = rows.reshape(-1, hidden.shape[-1])
    bits = jax.random.bits(key, (tree.depth, rows.shape[0]), jnp.uint32)
    at, met = walk(rows, kernel, bias, tree, bits, _drawn)
    return jnp.where(met, -1, tree.class_at[at]).reshape(shape)


def _drawn(log_p: Array, bits: Array) -> Array:
    """The child that random bits `[n]` choose by log-probabilities `[n, width]`.

    By inverse CDF, the most probable child last, so that the sums near which a rare one is chosen are
    small, where float32 is fine: 32 bits then tell probabilities of 2⁻³² apart, 23 of them do not.
    """
    u = row(bits.astype(log_p.dtype) * 2.0**-32)
    top = jnp.argmax(log_p, axis=-1)
    others = jnp.where(jnp.arange(log_p.shape[-1])[None] == row(top), 0, jnp.exp(log_p))
    below = jnp.cumsum(others, axis=-1)
    return jnp.where(u[:, 0] < below[:, -1], jnp.argmax(u < below, axis=-1), top)
