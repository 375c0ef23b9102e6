"""Training without a dense gradient: the rows that a batch touches, and updates of those rows alone.

A dense gradient of a million rows costs a hundred times the step itself. Here a batch gives the rows
that it read and a share of the gradient for each; a row that several examples read comes several
times, and the shares add up.

Imports `loss`, `_edges`, `tree`, `_labels`, `_pytrees`, `_numerics`, `_checks`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jsoftmax import _checks
from jsoftmax._compiled import compiled
from jsoftmax._labels import comparable
from jsoftmax._numerics import by_rows, unwrapped, widened
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import Array, ArrayLike
from jsoftmax.hierarchical._edges import along, hidden_gradient, some_scores, touched
from jsoftmax.hierarchical.loss import checked, counted, rows_and_positions, settled, without
from jsoftmax.hierarchical.tree import Tree


class RowGradients(NamedTuple):
    """What a batch says of the tree's rows.

    Attributes:
        loss: `[*batch]`, in nats; of groups `[*batch, group]`.
        d_hidden: `[*batch, features]`, in the shape and dtype of `hidden`.
        rows: `[touched]`, int32: rows of `node_kernel`, a row as often as it was read.
        values: `[touched, features]`, float32 or wider: summed by row, the gradient of
            `node_kernel`. With a bias, a pair: this, and `[touched]` for `node_bias`.
    """

    loss: Any
    d_hidden: Any
    rows: Any
    values: Any


@takes_arrays
def row_gradients(
    hidden: ArrayLike,
    node_kernel: ArrayLike,
    labels: ArrayLike,
    tree: Tree,
    *,
    node_bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    nodes: bool = False,
    grouped: bool = False,
) -> RowGradients:
    r"""The loss of `hierarchical_cross_entropy` and its gradient, of `node_kernel` by touched rows.

    .. math:: \nabla_K \sum_i w_i \ell_i = \sum_{j} e_{\mathrm{rows}_j} \mathrm{values}_j^\top

    Use it in a step that donates the kernel, with `row_sgd`, `row_adagrad` or `row_adam` and
    `apply_row_updates`: the work is O(batch · depth), whatever the number of classes. For some
    thousand classes, or where optax should see the gradient, differentiate the loss instead.

    Where several vectors predict one class, as the words around a word do in skip-gram, `grouped` reads
    and updates the rows of a class once for all of them: about twice as quick for groups of ten.

    Args:
        hidden: `[*batch, features]`, floating; computed in float32 or wider. If `grouped`, `[*batch,
            group, features]`.
        node_kernel: `[tree.num_rows, features]`, floating.
        labels: Class indices `[*batch]`.
        tree: The tree.
        node_bias: `[tree.num_rows]`, added to the scores.
        weights: `[*batch]` or a scalar, `w`, 1 by default: `1 / rows` gives the gradient of a mean, and
            minus a learning rate the updates of plain gradient descent. If `grouped`, `[*batch,
            group]`, with 0 for the padding of groups that are not full.
        class_weights: `[classes]`: the loss of a class is multiplied with its weight.
        ignore_index: Rows with this label cost 0 and have no gradient.
        nodes: Whether labels are nodes of the tree, as in `tree.parents`.
        grouped: Whether each label is that of a group of vectors.

    Returns:
        `(loss, d_hidden, rows, values)`, the losses without `weights`; NaN, value and gradients, for
        a label that is no class. If `grouped`, `loss` is `[*batch, group]`, and `values` are sums over
        the groups.

    Gradient: it is one; it can be differentiated again in `hidden`, `node_kernel` and `node_bias`.

    Raises:
        TypeError: For a dtype that does not fit, distributions among them.
        ValueError: For shapes that do not fit the tree or each other.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.huffman_tree([8, 4, 2, 2])
        >>> kernel = jnp.zeros((tree.num_rows, 5))
        >>> got = hierarchical.row_gradients(jnp.ones((1, 5)), kernel, jnp.array([0]), tree)
        >>> print(hierarchical.apply_row_updates(kernel, got.rows, -got.values)[:, 0])
        [0.5 0.  0. ]

    References:
        Mikolov et al., Distributed representations of words and phrases, 2013.
    """
    name = "row_gradients"
    labels, ignore_index = comparable(name, labels, ignore_index)
    h, kernel, y = checked(
        name, hidden, node_kernel, labels, tree, node_bias, class_weights, nodes, grouped
    )
    _checks.indices_only(name, "labels", y, "give every row one class.")
    if weights is not None:
        axes = "[*batch, group]" if grouped else "[*batch]"
        _checks.per_row(name, "weights", weights, h.shape[:-1], axes)
    return _row_gradients(
        h, kernel, y, tree, node_bias, weights, class_weights, ignore_index, nodes=nodes
    )


def gradients_layout(rows: PartitionSpec) -> RowGradients:
    """How the gradients of sharded rows lie on a mesh with explicit axes."""
    return RowGradients(rows, rows, PartitionSpec(), PartitionSpec())


@compiled("nodes")
@functools.partial(by_rows, results=gradients_layout)
def _row_gradients(
    hidden: Array,
    kernel: Array,
    labels: Array,
    tree: Tree,
    bias: Array | None,
    weights: ArrayLike | None,
    class_weights: Array | None,
    ignore_index: ArrayLike | None,
    *,
    nodes: bool,
) -> RowGradients:
    y = widened(labels)
    ignored = y == ignore_index if ignore_index is not None else None
    vectors, position = rows_and_positions(hidden, y, tree, ignored, nodes)
    # One vector is a group too.
    vectors = vectors if vectors.ndim == 3 else vectors[:, None]
    group = vectors.shape[1]
    rows, front, cost = along(tree, position, group)

    ys = jnp.repeat(y.reshape(-1), group)
    left_out = None if ignored is None else jnp.repeat(ignored.reshape(-1), group)

    def losses_of(scores: Array) -> Array:
        loss = cost(counted(scores.reshape(-1, scores.shape[-1]), left_out))
        return settled(loss, ys, tree, class_weights, left_out, nodes).reshape(hidden.shape[:-1])

    scores = some_scores(vectors, kernel, bias, rows, front)
    loss, pull = jax.vjp(losses_of, scores)
    ct = jnp.broadcast_to(jnp.asarray(1 if weights is None else weights, loss.dtype), loss.shape)
    (ct,) = pull(ct)
    d_hidden = hidden_gradient(ct, kernel, rows, front).astype(hidden.dtype).reshape(hidden.shape)
    d_hidden = d_hidden if ignored is None else without(ignored, d_hidden)
    at, values = touched(ct, vectors, rows, front)
    if bias is not None:
        values = values, touched(ct, jnp.ones_like(vectors[..., :1]), rows, front)[1][:, 0]
    return RowGradients(loss, d_hidden, at, values)


@takes_arrays
def apply_row_updates(node_kernel: Any, rows: ArrayLike, updates: Any) -> Any:
    """Adds updates to rows of an array, in place where it is donated.

    Args:
        node_kernel: `[rows, features]`, or a pytree of arrays with as many rows, `(kernel, bias)` say.
        rows: `[touched]`, integer; a row may come several times, and one outside of [0, rows), −1 for
            padding say, is left out, as `row_adagrad` and `row_adam` leave it out.
        updates: `[touched, features]`, or a pytree as `node_kernel`.

    Returns:
        What `node_kernel` was, with the updates added, in its dtype. Without donation
        (`jax.jit(step, donate_argnums=…)`) it is a copy.

    Gradient: that of an addition. Every AD mode.

    Raises:
        TypeError: If `rows` is not of an integer dtype.
        ValueError: If an update has another shape than its rows.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> rows, updates = jnp.array([2, 0, 2]), jnp.array([[1.0], [2.0], [3.0]])
        >>> print(hierarchical.apply_row_updates(jnp.zeros((3, 1)), rows, updates)[:, 0])
        [2. 0. 4.]

    References:
        The sparse updates of Mikolov et al., 2013, as a pure function.
    """
    name = "apply_row_updates"
    at = _checks.array(name, "rows", rows)
    if not jnp.issubdtype(at.dtype, jnp.integer) or at.ndim != 1:
        raise TypeError(
            f"apply_row_updates: rows must be integers [touched], got {at.dtype}{list(at.shape)}; "
            "pass those that row_gradients returned."
        )

    trees = jax.tree.structure(node_kernel), jax.tree.structure(updates)
    if trees[0] != trees[1]:
        raise ValueError(
            f"{name}: updates must be a pytree like node_kernel, {trees[0]}, got {trees[1]}; give each "
            "array of node_kernel its updates."
        )

    def add(x: Any, update: Any) -> Array:
        x, update = _checks.array(name, "node_kernel", x), _checks.array(name, "updates", update)
        if update.shape != (*at.shape, *x.shape[1:]):
            raise ValueError(
                f"apply_row_updates: updates must have shape [touched, features] = "
                f"{[*at.shape, *x.shape[1:]]} to match rows and node_kernel {list(x.shape)}, got "
                f"{list(update.shape)}; one update per row given."
            )
        return _added(x, at, update)

    return jax.tree.map(add, node_kernel, updates)


@compiled()
def _added(x: Array, rows: Array, updates: Array) -> Array:
    rows = unwrapped(rows, x.shape[0])
    # As windows of one row, which XLA:CPU scatters as they are: rows without that axis it copies first.
    windows = jax.lax.ScatterDimensionNumbers(tuple(range(1, x.ndim + 1)), (), (0,))
    updates = updates[:, None].astype(x.dtype)
    return jax.lax.scatter_add(x, rows[:, None], updates, windows, mode="drop")
