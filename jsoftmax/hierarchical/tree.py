"""The tree over the classes: what it holds, how its nodes are numbered, and what can be read off it.

Users number the nodes as they like. Inside, a node is its position in breadth-first order: 0 is the
root, the children of a node stand side by side, those of the first node first. So the top of the tree
is the front of every array, and two things need no array at all: in a binary tree the children of the
`i`-th inner node are `2i + 1` and `2i + 2`, and a child's row of `node_kernel` follows from its
position.

Imports `_drawing`, `_pytrees`.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax._pytrees import register
from jsoftmax._typing import Array
from jsoftmax.hierarchical._drawing import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_DRAWN = 200

# The ways to all nodes are kept if they are so many numbers: 16 MB.
_MOST_KEPT = 1 << 22


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Tree:
    """A tree with the classes for leaves: an immutable pytree, made by the functions beside it.

    Attributes:
        parents: [nodes], int32: the node above each node, −1 for the root.
        leaves: [classes], int32: the node of each class.
        position: [nodes], int32: where each node is in breadth-first order.
        order: [nodes], int32: the node at each position.
        above: [nodes], int32: the position of the parent of the node at each position; 0 for the root.
        offsets: [nodes + 1], int32: the children of position `i` are `offsets[i]` up to
            `offsets[i + 1]`.
        class_at: [nodes], int32: the class of the leaf at each position, −1 for inner nodes.
        families: [inner nodes], int32: the positions of the inner nodes, those of few children first.
        paths: [nodes, depth], int32: the positions on the way to the node at each position, below the
            root, 0 behind its end. None for a tree of more than 4 million such numbers.
        slots: [nodes − 1], int32: where each child is when all families stand in that order, each
            padded to the width of its group.
        level_ends: Where each level ends in breadth-first order; static.
        widths: The most children that a node of each level but the last has; static.
        groups: How many families have up to how many children, as (families, width); static.
        binary: Whether every inner node has two children; static.
    """

    parents: Array
    leaves: Array
    position: Array
    order: Array
    above: Array
    offsets: Array
    class_at: Array
    families: Array
    paths: Array | None
    slots: Array
    level_ends: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    groups: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    binary: bool = dataclasses.field(metadata={"static": True})

    @property
    def num_classes(self) -> int:
        """The number of leaves."""
        return self.num_nodes - sum(families for families, _ in self.groups)

    @property
    def num_nodes(self) -> int:
        """The number of nodes, leaves and root among them."""
        return self.level_ends[-1]

    @property
    def num_rows(self) -> int:
        """The rows of `node_kernel`: one per inner node of a binary tree, else one per child."""
        return (self.num_nodes - 1) // 2 if self.binary else self.num_nodes - 1

    @property
    def depth(self) -> int:
        """The number of edges from the root to the lowest leaf."""
        return len(self.level_ends) - 1

    def __repr__(self) -> str:
        facts = [
            f"{self.num_classes} classes",
            "binary" if self.binary else f"up to {max(self.widths)} children",
            f"{self.num_rows} rows",
            f"depth {self.depth}",
        ]
        classes = _on_host(self.class_at)
        if classes is not None and classes.shape[-1:] == (self.num_nodes,):
            sizes = np.diff([0, *self.level_ends])
            depths = np.repeat(np.arange(len(sizes)), sizes)
            leaves = np.sum(classes >= 0, axis=tuple(range(classes.ndim - 1)))
            facts.append(f"mean depth {np.average(depths, weights=leaves):.1f}")
            if classes.ndim > 1:
                facts.insert(0, f"stack of {list(classes.shape[:-1])}")
        return f"Tree({', '.join(facts)})"

    def plot(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """Draws the tree with matplotlib, its root at the left; for trees of up to 200 nodes.

        Args:
            ax: Where to draw; a new figure by default.
            names: One per class, or one per node as `tree_from_names` gives them; the numbers of the
                classes by default.

        Returns:
            The `Axes`.

        Raises:
            ValueError: If the tree has more nodes, is a stack of trees or traced, or `names` are
                neither one per class nor one per node.

        Examples:
            >>> from jsoftmax import hierarchical
            >>> tree = hierarchical.huffman_tree([8, 4, 2, 1, 1])
            >>> axes = tree.plot(names=["the", "of", "tree", "leaf", "root"])
        """
        above, classes, order = (_on_host(x) for x in (self.above, self.class_at, self.order))
        if above is None or classes is None or order is None or above.ndim != 1:
            raise ValueError(
                "Tree.plot: tree must be a single one outside of jit and vmap, got a traced or stacked "
                "tree; take one with jax.tree.map(lambda x: x[0], tree)."
            )
        if self.num_nodes > _MOST_DRAWN:
            raise ValueError(
                f"Tree.plot: tree must have at most {_MOST_DRAWN} nodes to be drawn, got "
                f"{self.num_nodes}; make one of fewer classes."
            )
        if names is not None and len(names) not in (self.num_classes, self.num_nodes):
            raise ValueError(
                f"Tree.plot: names must be one per class, [classes] = [{self.num_classes}], or one per "
                f"node, [nodes] = [{self.num_nodes}], got {len(names)}; name all of them."
            )
        if names is not None and len(names) == self.num_nodes:
            return draw(above, [str(names[node]) for node in order], ax)
        known = range(self.num_classes) if names is None else names
        return draw(above, [str(known[k]) if k >= 0 else "" for k in classes], ax)


register(Tree)


def _on_host(x: Any) -> np.ndarray | None:
    """The array, where there is one to look at: tracers, deleted arrays and shapes have none."""
    try:
        return np.asarray(x) if isinstance(x, jax.Array | np.ndarray) else None
    except (jax.errors.TracerArrayConversionError, RuntimeError):
        return None


def check_tree(function: str, tree: Any) -> None:
    """Refuses what is no tree."""
    if not isinstance(tree, Tree):
        raise TypeError(
            f"{function}: tree must be a Tree, got {type(tree).__name__}; make one with huffman_tree, "
            "balanced_tree, two_level_tree or tree_from_parents."
        )


def in_breadth_first_order(above: np.ndarray, class_at: np.ndarray, order: np.ndarray) -> Tree:
    """The tree of which every position's parent, class (−1 for none) and node are known."""
    nodes = len(above)
    many = np.bincount(above[1:], minlength=nodes)
    offsets = np.concatenate([[1], 1 + np.cumsum(many)])
    ends = [1]
    while ends[-1] < nodes:
        ends.append(int(offsets[ends[-1]]))
    is_leaf = class_at >= 0
    parents, position = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    parents[order] = np.where(np.arange(nodes) == 0, -1, order[above])
    position[order] = np.arange(nodes)
    leaves = np.empty(int(np.sum(is_leaf)), np.int64)
    leaves[class_at[is_leaf]] = order[is_leaf]
    families, slots, groups = _by_width(many, offsets)
    arrays = {
        "parents": parents,
        "leaves": leaves,
        "position": position,
        "order": order,
        "above": above,
        "offsets": offsets,
        "class_at": class_at,
        "families": families,
        "slots": slots,
    }
    paths = _paths(above, ends)
    return Tree(
        **{name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()},
        paths=None if paths is None else jnp.asarray(paths),
        level_ends=tuple(ends),
        widths=tuple(int(many[a:b].max()) for a, b in itertools.pairwise([0, *ends[:-1]])),
        groups=groups,
        binary=bool(np.all((many == 0) | (many == 2))),
    )


def _paths(above: np.ndarray, ends: list[int]) -> np.ndarray | None:
    """The way to every position, made level by level, unless all of them are too many."""
    if len(above) * (len(ends) - 1) > _MOST_KEPT:
        return None
    paths = np.zeros((len(above), len(ends) - 1), np.int32)
    for level, (start, end) in enumerate(itertools.pairwise(ends)):
        paths[start:end] = paths[above[start:end]]
        paths[start:end, level] = np.arange(start, end)
    return paths


def _by_width(
    many: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, int], ...]]:
    """`families`, `slots` and `groups`: those within a power of two of each other are one group.

    So no more than half of the slots are padding, and there are no more than 31 groups.
    """
    families = np.flatnonzero(many)
    power = np.frexp(many[families])[1]
    families = families[np.argsort(power, kind="stable")]
    slots, groups, filled = np.empty(len(many) - 1, np.int64), [], 0
    for alike in np.split(families, np.cumsum(np.bincount(power))[:-1]):
        if len(alike):
            width = int(many[alike].max())
            start = np.repeat(filled + width * np.arange(len(alike)), many[alike])
            first = np.repeat(np.cumsum(many[alike]) - many[alike], many[alike])
            within = np.arange(len(start)) - first
            slots[np.repeat(offsets[alike], many[alike]) + within - 1] = start + within
            groups.append((len(alike), width))
            filled += width * len(alike)
    return families, slots, tuple(groups)
