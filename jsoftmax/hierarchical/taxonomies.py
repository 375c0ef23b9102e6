"""Trees made of a user's taxonomy: of the node above each node, or of names.

Runs once, on the host, in NumPy.

Imports `tree`, `_pytrees`, `_checks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._pytrees import takes_arrays
from jsoftmax._typing import ArrayLike
from jsoftmax.hierarchical.tree import Tree, in_breadth_first_order

Nested: TypeAlias = "Mapping[str, Nested] | Sequence[Nested] | str | None"


@takes_arrays
def tree_from_parents(parents: ArrayLike | Sequence[int]) -> Tree:
    r"""The tree of a taxonomy of your own, given by the node above each node.

    .. math:: \log p_k = \sum_{v \in \mathrm{path}(k)} \log p_{v \mid \mathrm{parents}_v}

    The nodes without children are the classes, in the order of their index. A node with one child
    is legal; that step is certain.

    Args:
        parents: `[nodes]`, integer, an array or a list, known before tracing: the node above each,
            −1 for the root.

    Returns:
        A `Tree` with your numbers for its nodes; `tree.leaves` has the node of each class.

    Gradient: none, a tree is made of integers.

    Raises:
        TypeError: If parents are not integers, or traced.
        ValueError: If they are not `[nodes]`, not one tree, or leave fewer than two classes.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> tree = hierarchical.tree_from_parents([-1, 0, 0, 1, 1, 1])
        >>> tree
        Tree(4 classes, up to 3 children, 5 rows, depth 2, mean depth 1.8)
        >>> print(tree.leaves)
        [2 3 4 5]

    References:
        Redmon and Farhadi, YOLO9000, 2017, section 4, for such a tree over WordNet.
    """
    name = "tree_from_parents"
    array = _checked(name, parents)
    nodes = len(array)
    order = _from_the_root(array)
    if len(order) < nodes:
        left = np.setdiff1d(np.arange(nodes), order)
        raise ValueError(
            f"{name}: parents must lead from every node to the root {order[0]}, got a cycle at or "
            f"above node {left[0]}; give one node of the cycle another parent."
        )
    is_leaf = np.bincount(array + 1, minlength=nodes + 1)[1:] == 0
    if np.sum(is_leaf) < 2:
        raise ValueError(
            f"{name}: parents must leave two or more nodes without children, got {np.sum(is_leaf)}; "
            "those are the classes."
        )
    position = np.empty(nodes, np.int64)
    position[order] = np.arange(nodes)
    above = np.where(array[order] < 0, 0, position[array[order]])
    classes = np.where(is_leaf, np.cumsum(is_leaf) - 1, -1)
    return in_breadth_first_order(above, classes[order], order)


class NamedTree(NamedTuple):
    """A tree and what its classes and nodes are called.

    Attributes:
        tree: The tree, which alone goes into `jit`.
        classes: The name of each class.
        nodes: The name of each node; that of the root is empty.
    """

    tree: Tree
    classes: tuple[str, ...]
    nodes: tuple[str, ...]


@takes_arrays
def tree_from_names(nested: Nested) -> NamedTree:
    r"""The tree of a taxonomy written down in names.

    .. math:: \log p_k = \sum_{v \in \mathrm{path}(k)} \log p_{v \mid \mathrm{parents}_v}

    Args:
        nested: A dict of names: its keys are nodes, and what a key leads to is below it: another dict,
            a list or tuple of names and dicts, one name, or `None` for a leaf. Each name once.

    Returns:
        `(tree, classes, nodes)`: the tree, the name of each class and of each node, all in the order
        in which they are written; node 0 is the root, with an empty name.

    Gradient: none, a tree is made of integers.

    Raises:
        TypeError: If a name is no string.
        ValueError: If a name is empty or comes twice, a dict or list is empty, or fewer than two
            names are leaves.

    Examples:
        >>> from jsoftmax import hierarchical
        >>> animals = {"dog": ["poodle", "beagle"], "cat": None}
        >>> tree, classes, nodes = hierarchical.tree_from_names({"animal": animals, "plant": ["oak"]})
        >>> tree
        Tree(4 classes, up to 2 children, 7 rows, depth 3, mean depth 2.5)
        >>> classes
        ('poodle', 'beagle', 'cat', 'oak')
        >>> nodes.index("dog")
        2

    References:
        Redmon and Farhadi, YOLO9000, 2017, section 4, for such a tree over WordNet.
    """
    name = "tree_from_names"
    names, parents = [""], [-1]
    seen = set(names)

    def grow(below: Nested, node: int) -> None:
        for key, value in _entries(name, below, names[node]):
            if not isinstance(key, str):
                raise TypeError(
                    f"{name}: nested must hold names that are strings, got {key!r}{_under(names[node])}"
                    "; convert with str."
                )
            if key in seen:
                raise ValueError(
                    f"{name}: nested must hold every name once and none that is empty, got {key!r}"
                    f"{_under(names[node])}{' again' if key else ''}; a longer name tells nodes apart."
                )
            seen.add(key)
            names.append(key)
            parents.append(node)
            if value is not None:
                grow(value, len(names) - 1)

    grow(nested, 0)
    is_leaf = np.bincount(np.array(parents) + 1, minlength=len(parents) + 1)[1:] == 0
    if np.sum(is_leaf) < 2:
        raise ValueError(
            f"{name}: nested must hold two or more leaves, got {np.sum(is_leaf)}; those are the "
            "classes."
        )
    tree = tree_from_parents(np.array(parents))
    return NamedTree(tree, tuple(names[node] for node in np.flatnonzero(is_leaf)), tuple(names))


def _entries(function: str, below: Any, above: str) -> Iterator[tuple[Any, Any]]:
    """The names right below a node, each with what is below it."""
    if isinstance(below, Mapping | list | tuple) and not below:
        raise ValueError(
            f"{function}: nested must hold no empty dict or list, got {below!r}{_under(above)}; a "
            "leaf is None."
        )
    if isinstance(below, Mapping):
        yield from below.items()
    elif isinstance(below, list | tuple):
        for entry in below:
            if isinstance(entry, Mapping):
                yield from _entries(function, entry, above)
            else:
                yield entry, None
    else:
        yield below, None


def _under(name: str) -> str:
    return f" under {name!r}" if name else ""


def _from_the_root(parents: np.ndarray) -> np.ndarray:
    """The nodes that the root leads to, in breadth-first order, siblings by their index."""
    children = np.argsort(parents, kind="stable")[1:]
    many = np.bincount(parents[children], minlength=len(parents))
    starts = np.cumsum(many) - many
    levels = [np.flatnonzero(parents < 0)]
    while (here := many[levels[-1]]).any():
        i = np.arange(here.sum()) - np.repeat(np.cumsum(here) - here, here)
        levels.append(children[np.repeat(starts[levels[-1]], here) + i])
    return np.concatenate(levels)


def _checked(function: str, parents: Any) -> np.ndarray:
    array = _checks.known_vector(function, "parents", parents, "node", "nodes")
    if not len(array):
        raise ValueError(
            f"{function}: parents must have shape [nodes] of three or more, got [0]; a root and two "
            "classes are the smallest tree."
        )
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{function}: parents must have an integer dtype, got {array.dtype}; number the nodes "
            "from 0."
        )
    outside = (array < -1) | (array >= len(array))
    if outside.any():
        node = int(np.argmax(outside))
        raise ValueError(
            f"{function}: parents must be in [-1, nodes) = [-1, {len(array)}), got {array[node]} for "
            f"node {node}; number the nodes from 0."
        )
    roots = np.flatnonzero(array == -1)
    if len(roots) != 1:
        raise ValueError(
            f"{function}: parents must be -1 for one node, the root, got {len(roots)} of them; "
            + ("put one node above them." if len(roots) else "every tree has a root.")
        )
    return array.astype(np.int64)
