"""The softmax over a tree: its loss, and the log-probabilities of all classes and nodes.

Imports `_edges`, `tree`, `_labels`, `_pytrees`, `_numerics`, `_checks`.
"""

import jax.numpy as jnp

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import are_indices, at_label, comparable, settle
from jsoftmax._numerics import accumulator, aligned, by_rows, row, scaled, widened, without_tiny_dtypes
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.hierarchical._edges import all_scores, along, descend, everywhere, some_scores
from jsoftmax.hierarchical.tree import Tree, check_tree


@takes_arrays
def hierarchical_cross_entropy(
    hidden: ArrayLike,
    node_kernel: ArrayLike,
    labels: ArrayLike,
    tree: Tree,
    *,
    node_bias: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    nodes: bool = False,
) -> Array:
    r"""Cross-entropy of a softmax over a tree: O(depth) work for a label, not O(classes).

    .. math:: \ell = -\sum_{e \in \mathrm{path}(y)} \log p_e, \qquad p_e = \sigma(\pm h \cdot k_r)
        \;\text{or}\; \mathrm{softmax}(K h)_e \text{ over the siblings}

    A class has the probability of the way to it from the root: at a node with two children a
    sigmoid, at a wider one a softmax. With `huffman_tree` the expected way is as short as the
    entropy of the classes. The gradient of `node_kernel` is dense here; `row_gradients` gives the
    touched rows alone.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating: one row per inner node of a binary tree,
            else one per child.
        labels: Class indices `[*batch]`, or distributions over the classes `[*batch, classes]`,
            which take O(nodes).
        tree: The tree; an argument of `jit` and `vmap` like any array.
        node_bias: `[tree.num_rows]`, added to the scores.
        class_weights: `[classes]`: the loss of a class is multiplied with its weight.
        ignore_index: Rows with this label cost 0 and have no gradient.
        nodes: Whether labels are nodes of the tree, as in `tree.parents`: what is known of the row is
            that its class is below that node.

    Returns:
        The losses `[*batch]` in nats, float32 or wider. NaN, value and gradient, for a label that is
        no class; 0 for the root as a node.

    Gradient: `p_e − [e taken]` times the row's hidden vector for the scores on the path, in `hidden`,
    `node_kernel`, `node_bias`, `class_weights` and distributions. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other, and for options that do not go
            together.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> print(hierarchical.hierarchical_cross_entropy(jnp.ones(5), kernel, 0, tree))
        0.6931472

    References:
        Morin and Bengio, Hierarchical probabilistic neural network language model, 2005; Mikolov et
        al., Distributed representations of words and phrases, 2013.
    """
    name = "hierarchical_cross_entropy"
    labels, ignore_index = comparable(name, labels, ignore_index)
    h, kernel, y = checked(name, hidden, node_kernel, labels, tree, node_bias, class_weights, nodes)
    if ignore_index is not None:
        remedy = (
            "ignore_index is for class indices, leave rows out with weighted_mean(losses, weights)."
        )
        _checks.indices_only(name, "labels", y, remedy)
    return _loss(h, kernel, y, tree, node_bias, class_weights, ignore_index, nodes=nodes)


@takes_arrays
def hierarchical_log_softmax(
    hidden: ArrayLike, node_kernel: ArrayLike, tree: Tree, *, node_bias: ArrayLike | None = None
) -> Array:
    r"""Log-probabilities of all classes of a tree, in one pass over its nodes.

    .. math:: \log p_k = \sum_{e \in \mathrm{path}(k)} \log p_e

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating.
        tree: The tree.
        node_bias: `[tree.num_rows]`.

    Returns:
        `[*batch, classes]`, in nats, float32 or wider; their exponentials sum to 1.

    Gradient: in `hidden`, `node_kernel` and `node_bias`. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> print(jnp.exp(hierarchical.hierarchical_log_softmax(jnp.ones(5), kernel, tree)))
        [0.5   0.25  0.125 0.125]

    References:
        Morin and Bengio, Hierarchical probabilistic neural network language model, 2005.
    """
    h, kernel, _ = checked("hierarchical_log_softmax", hidden, node_kernel, None, tree, node_bias)
    return _log_probs(h, kernel, tree, node_bias, leaves=True)


@takes_arrays
def node_log_probs(
    hidden: ArrayLike, node_kernel: ArrayLike, tree: Tree, *, node_bias: ArrayLike | None = None
) -> Array:
    r"""Log-probabilities of all nodes of a tree: of a class being somewhere below each.

    .. math:: \log p_v = \sum_{e \in \mathrm{path}(v)} \log p_e = \log \sum_{k \text{ below } v} p_k

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider.
        node_kernel: `[tree.num_rows, features]`, floating.
        tree: The tree.
        node_bias: `[tree.num_rows]`.

    Returns:
        `[*batch, nodes]`, in nats, float32 or wider, in the order of `tree.parents`: 0 for the root.

    Gradient: in `hidden`, `node_kernel` and `node_bias`. Every AD mode and order.

    Raises:
        TypeError: For a dtype that does not fit.
        ValueError: For shapes that do not fit the tree or each other.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.tree_from_parents([-1, 0, 0, 1, 1])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> print(jnp.exp(hierarchical.node_log_probs(jnp.ones(5), kernel, tree)))
        [1.   0.5  0.5  0.25 0.25]

    References:
        Redmon and Farhadi, YOLO9000, 2017, section 4, for such a tree over WordNet.
    """
    h, kernel, _ = checked("node_log_probs", hidden, node_kernel, None, tree, node_bias)
    return _log_probs(h, kernel, tree, node_bias, leaves=False)


@compiled("nodes")
@by_rows
def _loss(
    hidden: Array,
    kernel: Array,
    labels: Array,
    tree: Tree,
    bias: Array | None,
    weights: Array | None,
    ignore_index: ArrayLike | None,
    *,
    nodes: bool,
) -> Array:
    if not are_indices(labels):
        dtype = accumulator(hidden.dtype)
        q = labels.astype(dtype)
        q = q if weights is None else q * aligned(weights.astype(dtype), q)
        return jnp.sum(scaled(q, -_log_probs(hidden, kernel, tree, bias, leaves=True)), axis=-1)
    y = widened(labels)
    ignored = y == ignore_index if ignore_index is not None else None
    hidden, position = rows_and_positions(hidden, y, tree, ignored, nodes)
    rows, front, cost = along(tree, position)
    scores = some_scores(hidden[:, None], kernel, bias, rows, front)[:, 0]
    loss = cost(counted(scores, ignored)).reshape(y.shape)
    return settled(loss, y, tree, weights, ignored, nodes)


@compiled("leaves")
@by_rows
def _log_probs(hidden: Array, kernel: Array, tree: Tree, bias: Array | None, *, leaves: bool) -> Array:
    by_position = descend(everywhere(all_scores(hidden, kernel, bias), tree), tree)
    return by_position[..., tree.position[tree.leaves] if leaves else tree.position]


def rows_and_positions(
    hidden: Array, labels: Array, tree: Tree, ignored: Array | None, nodes: bool
) -> tuple[Array, Array]:
    """Hidden vectors `[n, …, features]`, 0 where ignored, and where their labels are in the tree."""
    if ignored is not None:
        # The whole row, not only its loss: 0 · NaN would reach the gradient.
        hidden = without(ignored, hidden)
    ids = labels.reshape(-1) if nodes else tree.leaves.at[labels.reshape(-1)].get(mode="clip")
    vectors = hidden.reshape(labels.size, *hidden.shape[labels.ndim :])
    return vectors, tree.position.at[ids].get(mode="clip")


def without(ignored: Array, x: Array) -> Array:
    """`x` `[*batch, …]`, 0 where ignored `[*batch]`."""
    return jnp.where(ignored.reshape(*ignored.shape, *(1 for _ in x.shape[ignored.ndim :])), 0, x)


def counted(scores: Array, ignored: Array | None) -> Array:
    """Scores `[n, some]`, 0 where ignored: 0 · NaN of a kernel or a bias would reach the gradients."""
    return scores if ignored is None else jnp.where(row(ignored.reshape(-1)), 0, scores)


def settled(
    loss: Array, labels: Array, tree: Tree, weights: Array | None, ignored: Array | None, nodes: bool
) -> Array:
    """The loss with its weight and the label policy."""
    if weights is not None:
        loss = scaled(at_label(weights.astype(loss.dtype), labels), loss)
    return settle(loss, labels, tree.num_nodes if nodes else tree.num_classes, ignored)


def checked(
    name: str,
    hidden: ArrayLike,
    node_kernel: ArrayLike,
    labels: ArrayLike | None,
    tree: Tree,
    node_bias: ArrayLike | None,
    class_weights: ArrayLike | None = None,
    nodes: bool = False,
    grouped: bool = False,
) -> tuple[Array, Array, Array]:
    """The arguments as arrays, once all that is static about them fits."""
    h = _checks.array(name, "hidden", hidden)
    kernel = _checks.array(name, "node_kernel", node_kernel)
    check_tree(name, tree)
    _checks.rows_of(
        name, "hidden", h, "node_kernel", kernel, "[tree.num_rows, features]", tree.num_rows
    )
    h, kernel = without_tiny_dtypes(h), without_tiny_dtypes(kernel)
    if node_bias is not None:
        _checks.vector(name, "node_bias", node_bias, "tree.num_rows", tree.num_rows)
    if class_weights is not None:
        _checks.vector(name, "class_weights", class_weights, "classes", tree.num_classes)
    if labels is None:
        return h, kernel, h
    _checks.flag(name, "nodes", nodes)
    _checks.flag(name, "grouped", grouped)
    if grouped and h.ndim < 2:
        raise ValueError(
            f"{name}: hidden must have shape [*batch, group, features] if grouped, got "
            f"{list(h.shape)}; give each label a group of vectors."
        )
    y, batch = _checks.array(name, "labels", labels), h.shape[: -2 if grouped else -1]
    soft = (*batch, tree.num_nodes if nodes else tree.num_classes)
    indices = _checks.labels(name, soft, batch, y, f"hidden {list(h.shape)}")
    if nodes and (class_weights is not None or not indices):
        raise ValueError(
            f"{name}: nodes must be False with class_weights or labels that are distributions, got "
            "True; both are over the classes."
        )
    return h, kernel, y
