"""The options of a loss, told apart by whether they have rows: a chunk gets its own of those.

Imports `_walk`, `dense`, `transforms`, `_labels`, `_rows`, `_walks`, `_numerics`, `_checks`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._labels import are_indices, comparable, num_classes
from jsoftmax._numerics import exponentials, row, shift, widened, without_tiny_dtypes
from jsoftmax._rows import masked
from jsoftmax._typing import Array, ArrayLike, Shape
from jsoftmax._walks import maximum, total
from jsoftmax.linear._walk import logits_of
from jsoftmax.transforms import LogitTransform, joined_transforms

# What is one number per row in the transforms of this package, where it is an array.
_ROW_FIELDS = ("value", "cap", "scale", "margin")


class Teacher(NamedTuple):
    """Soft labels that come as a product too: the softmax of `hidden @ kernel`."""

    hidden: Array
    kernel: Array

    def distribution(self, where: Array | None, axis_name: str | None) -> Array:
        """The probabilities of some rows, over the classes that are not masked."""
        z = masked(logits_of(self.hidden, self.kernel, None), where)
        m = maximum(z, axis_name)
        e = exponentials(z, shift(m, num_classes(z, axis_name)))
        s = total(e, axis_name)
        return e / row(jnp.where(s == 0, 1, s))


class Dealt:
    """The options of a loss: what has rows, what all rows share, and the way back."""

    def __init__(self, hidden: Array, *options: Any):
        batch = hidden.shape[:-1]
        labels, where, temperature, transform = options
        where_rows = None
        if where is not None and math.prod(where.shape[:-1]) == 1:
            where = jnp.reshape(where, where.shape[-1:])
        elif where is not None:
            where_rows, where = jnp.broadcast_to(where, (*batch, where.shape[-1])), None
        per_row = temperature is not None and np.ndim(temperature) > 0
        leaves, self.treedef = jax.tree.flatten_with_path(transform)
        self.leaves = [leaf for _, leaf in leaves]
        self.per_row = rows = [_is_per_row(path, leaf, batch) for path, leaf in leaves]
        # Of a teacher, only the hidden vectors have rows.
        own, kernel = labels if isinstance(labels, Teacher) else (labels, None)
        self.rowwise = (
            own,
            where_rows,
            temperature if per_row else None,
            [leaf if here else None for (_, leaf), here in zip(leaves, rows, strict=True)],
        )
        self.shared = (
            where,
            None if per_row else temperature,
            [None if here else leaf for (_, leaf), here in zip(leaves, rows, strict=True)],
            kernel,
        )

    def per_class(self, classes: int) -> tuple[bool, ...]:
        """Which leaves of the transform have one number per class."""
        shapes = [np.shape(leaf)[-1:] for leaf in self.leaves]
        both = zip(shapes, self.per_row, strict=True)
        return tuple(last == (classes,) and not per_row for last, per_row in both)


def put_together(transforms: Any, rowwise: Any, shared: Any, axis_name: str | None) -> tuple[Any, ...]:
    """The labels, mask, temperature and transform of some rows, that of the given tree structure.

    Not a method: the loss of a chunk is static to a rule, where an object with arrays would be a leak.
    """
    labels, where_rows, temperatures, leaves = rowwise
    where, temperature, shared_leaves, teacher = shared
    where = where if where_rows is None else where_rows
    if teacher is not None:
        labels = Teacher(labels, teacher).distribution(where, axis_name)
    both = zip(leaves, shared_leaves, strict=True)
    transform = jax.tree.unflatten(transforms, [b if a is None else a for a, b in both])
    return labels, where, temperature if temperatures is None else temperatures, transform


def counting(hidden: Array, labels: Any, ignore_index: Any) -> tuple[Array, Any, Array | None]:
    """Hidden vectors that are 0 in rows that do not count, labels that cannot wrap, and those rows."""
    if isinstance(labels, Teacher) or not are_indices(labels):
        return hidden, labels, None
    labels = widened(labels)
    if ignore_index is None:
        return hidden, labels, None
    ignored = labels == ignore_index
    # Not only the loss: 0 · NaN would reach the kernel's gradient.
    return jnp.where(row(ignored), 0, hidden), labels, ignored


def _is_per_row(path: Any, leaf: Any, batch: Shape) -> bool:
    """Whether a number of a transform is one for each row; a class prior never is."""
    prior = bool(path) and getattr(path[-1], "name", None) == "log_prior"
    return bool(batch) and np.shape(leaf) == batch and not prior


def checked_labels(
    name: str,
    hidden: Array,
    kernel: Array,
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    where: Any,
    ignore_index: Any,
) -> tuple[Array | Teacher, Any]:
    """Labels that fit the product, and so the mask, and the one to ignore; refuses others."""
    batch, classes = hidden.shape[:-1], kernel.shape[1]
    match = f"hidden {list(hidden.shape)} and kernel {list(kernel.shape)}"
    _checks.mask(name, (*batch, classes), where, "hidden @ kernel")
    if isinstance(labels, tuple):
        _checks.ignored(name, ignore_index, indices=False)
        return _checked_teacher(name, labels, batch, classes, match), None
    if isinstance(labels, list) and any(getattr(x, "ndim", 0) > 1 for x in labels):
        raise TypeError(
            f"{name}: labels must be one array or a teacher's (hidden, kernel), got a list; make it a "
            "tuple."
        )
    y, ignore_index = comparable(name, labels, ignore_index)
    indices = _checks.labels(name, (*batch, classes), batch, y, match)
    _checks.ignored(name, ignore_index, indices)
    return y, ignore_index


def _checked_teacher(name: str, labels: Any, batch: Shape, classes: int, match: str) -> Teacher:
    if len(labels) != 2:
        raise ValueError(
            f"{name}: labels must be one array or a teacher's (hidden, kernel), got {len(labels)} "
            "values; leave out the bias, or add it as a column of the kernel."
        )
    given = Teacher(*(_checks.array(name, f"labels[{i}]", x) for i, x in enumerate(labels)))
    for i, array in enumerate(given):
        _checks.floating(name, f"labels[{i}]", array)
    features = list(given.hidden.shape[-1:])
    if given.hidden.shape[:-1] != batch or given.kernel.shape != (*features, classes):
        raise ValueError(
            f"{name}: labels must have shapes [*batch, features] = {[*batch, *features]} and "
            f"[features, classes] = {[*features, classes]} to match {match}, got "
            f"{list(given.hidden.shape)} and {list(given.kernel.shape)}; teacher and student share "
            "rows and classes."
        )
    return Teacher(*map(without_tiny_dtypes, given))


def checked_transform(
    name: str, transform: Any, softcap: ArrayLike | None, batch: Shape, classes: int
) -> LogitTransform | None:
    """The transform and softcap as one; refuses arrays that could be of rows or of classes."""
    joined = joined_transforms(name, transform, softcap, (*batch, classes))
    for path, leaf in jax.tree.leaves_with_path(joined):
        field = getattr(path[-1], "name", None)
        if batch == (classes,) and _is_per_row(path, leaf, batch) and field not in _ROW_FIELDS:
            raise ValueError(
                f"{name}: transform must say of {field} {list(batch)} whether it has rows or classes, "
                "got as many rows as classes; add an axis of 1 to hidden and labels."
            )
    return joined
