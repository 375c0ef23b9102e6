"""The walk over blocks of classes: one number per row, in the memory of a block of the logits.

A gradient that is one value per row cannot be made before its cotangents are known, so the logits are
made twice. Block by block, `hidden` stays, and each column of the kernel is read once for the value
and once for the gradient, which is written in place, once; in 16 bits on a CPU a group of blocks at a
time.

Forward, the numbers of a block (`statistics` of it alone) are joined with those of the blocks before:
relative to the larger maximum, no digit is lost. Backward, a block's gradient is `statistics.gradient`
of it with the numbers of the whole row, as on a device that holds a shard of the classes.

Imports `_walk`, `_parts`, `_options`, `statistics`, `transforms`, `autodiff`, `_labels`, `_rows`,
`_walks`, `_numerics`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax._labels import are_indices
from jsoftmax._numerics import accumulator, aligned, is_sharded, upright
from jsoftmax._rows import row_temperature
from jsoftmax._typing import Array
from jsoftmax._walks import total
from jsoftmax.autodiff import custom_vjp, scan_forgetting
from jsoftmax.linear._options import Dealt, Teacher, put_together
from jsoftmax.linear._parts import Part, finished, moved, nothing, part_of, union, union_of_shards
from jsoftmax.linear._walk import common, logits_of, narrowed, product, without
from jsoftmax.statistics import Reduction, gradient, scores
from jsoftmax.transforms import LogitTransform

# A block is such a part of the classes, but no fewer columns than that, or than make so many logits.
_PARTS, _COLUMNS, _LOGITS = 128, 256, 1 << 18

# Groups of blocks there are so many, where XLA:CPU writes 16 bits, and their columns come in runs of
# such a length: at least, and where there is a choice at most.
_GROUPS, _RUN = range(7, 11), (16, 128)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What is known of a walk over blocks before tracing.

    Attributes:
        reduction: What to reduce.
        classes: The number of classes here.
        size: The number of columns of a block.
        span: That of a group of blocks, which are gathered before they are written.
        per_class: Which leaves of the transform have one number per class.
    """

    reduction: Reduction
    classes: int
    size: int
    span: int
    per_class: tuple[bool, ...] = ()

    @property
    def steps(self) -> int:
        """The number of blocks of a group; where they come out uneven the last one starts early."""
        return -(-self.span // self.size)

    @property
    def groups(self) -> int:
        """The number of groups; where they come out uneven the last one starts early."""
        return -(-self.classes // self.span)

    @property
    def even(self) -> bool:
        """Whether no class is in two blocks."""
        return self.classes % self.span == self.span % self.size == 0

    @property
    def run(self) -> int:
        """The columns of a run: all groups start at one."""
        return math.gcd(self.span, self.classes)

    def first(self, group: Any) -> Array:
        """The first column of a group."""
        return jnp.minimum(group * self.span, self.classes - self.span)

    def last(self, group: Any) -> Array:
        """Where the next group starts."""
        return jnp.where(group == self.groups - 1, self.classes, self.first(group + 1))

    def start(self, i: Array) -> Array:
        """The first column of block `i`."""
        return self.first(i // self.steps) + jnp.minimum(
            i % self.steps * self.size, self.span - self.size
        )

    def end(self, i: Array) -> Array:
        """Where the next block starts."""
        group, is_last = i // self.steps, i % self.steps == self.steps - 1
        end = self.last(group)
        return jnp.where(is_last, end, jnp.minimum(end, self.start(i + 1)))

    def grouped(self) -> "Blocks":
        """The same classes, where writing a gradient of 16 bits into its array is to cost little.

        XLA:CPU goes over the whole array for that, and over runs of columns in a quarter of the time.
        """
        lengths = [n for n in range(_RUN[0], self.classes + 1) if self.classes % n == 0]
        run = max((n for n in lengths if n <= _RUN[1]), default=min(lengths, default=self.classes))
        runs = self.classes // run
        groups = min(_GROUPS, key=lambda groups: -runs % groups)
        span = run * -(-runs // groups)
        size = -(-span // -(-span // self.size))
        return dataclasses.replace(self, size=size, span=span)

    def cut(self, tree: Any, i: Array) -> Any:
        """The block's columns of arrays `[…, classes]`; what all classes share, whole."""

        def part(x: Array) -> Array:
            if x.shape[-1] != self.classes:
                return x
            # Tied to the loop's index, 16 bits cannot be widened as a whole ahead of the loop.
            x, at = jax.lax.optimization_barrier((x, i)) if x.dtype.itemsize == 2 else (x, i)
            return jax.lax.dynamic_slice_in_dim(x, self.start(at), self.size, axis=-1)

        return jax.tree.map(part, tree)

    def put(self, whole: Array, made: Array, at: Array) -> Array:
        """A block's columns written; what it shares with the next one is written again there."""
        return jax.lax.dynamic_update_slice_in_dim(
            whole, made.astype(whole.dtype), at, axis=whole.ndim - 1
        )

    def runs(self, x: Array) -> Array:
        """`[…, columns]` as `[…, runs, columns of a run]`."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.run, self.run)

    def fill(self, whole: Array, made: Array, group: Array) -> Array:
        """A group's columns written into an array of runs, where it is 0 yet.

        What it shares with the next group is 0 too: those columns are masked in all blocks but one.
        """
        at, axis = self.first(group) // self.run, whole.ndim - 2
        put = jax.lax.dynamic_update_slice_in_dim
        if whole.dtype.itemsize > 2:
            return put(whole, self.runs(made), at, axis)
        # Added: the transpose of the transpose of a write would go over the whole array twice.
        return whole + put(jnp.zeros_like(whole), self.runs(made.astype(whole.dtype)), at, axis)

    def own(self, i: Array, labels: Array, where: Array | None) -> tuple[Array, Array | None]:
        """Labels and mask of a block: without the classes that it shares with the next one."""
        ids = self.start(i) + jnp.arange(self.size, dtype=jnp.int32)
        mine = None if self.even else (ids < self.end(i))[None]
        if are_indices(labels):
            labels = jnp.where(labels < self.end(i), labels - self.start(i), -1)
        elif mine is not None:
            labels = jnp.where(mine, labels, 0)
        if mine is not None:
            where = mine if where is None else where & mine
        return labels, where


def block_size(rows: Any, classes: int, wanted: int | None) -> int:
    """How many columns a block has; see `linear_cross_entropy` for the rule."""
    if wanted is None:
        part = -(-classes // (_PARTS * 128)) * 128
        wanted = max(_COLUMNS, part, _LOGITS // max(rows, 1) if isinstance(rows, int) else 0)
    return min(classes, wanted)


def _parted(blocks: Blocks, transform: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of a transform or of its cotangent: per class, and others; `None` for the rest."""
    leaves = [
        None if getattr(x, "dtype", None) == jax.dtypes.float0 else x
        for x in jax.tree.leaves(transform)
    ]
    flags = blocks.per_class
    return (
        [x if here else None for x, here in zip(leaves, flags, strict=True)],
        [None if here else x for x, here in zip(leaves, flags, strict=True)],
    )


def _joined(blocks: Blocks, per_class: list[Any], others: list[Any], like: Any) -> Any:
    both = zip(per_class, others, blocks.per_class, strict=True)
    return jax.tree.unflatten(jax.tree.structure(like), [a if here else b for a, b, here in both])


def _cutter(
    blocks: Blocks, kernel: Array, bias: Any, labels: Array, where: Any, transform: Any, weights: Any
) -> Callable[[Array], tuple[Any, ...]]:
    """Makes of a block's number what the block has of each."""
    per_class, others = _parted(blocks, transform)
    soft = None if are_indices(labels) else labels

    def cut(i: Array) -> tuple[Any, ...]:
        parts = blocks.cut((kernel, bias, soft, where, per_class, weights), i)
        kernel_, bias_, soft_, where_, per_class_, weights_ = parts
        if where_ is not None and where_.shape[0] == 1:
            kernel_ = without(where_[0], kernel_)
        labels_, where_ = blocks.own(i, labels if soft is None else soft_, where_)
        return kernel_, bias_, labels_, where_, _joined(blocks, per_class_, others, transform), weights_

    return cut


def _weighted(labels: Array, weights: Array | None) -> Array:
    """Soft labels, each class counted with its weight."""
    if are_indices(labels) or weights is None:
        return labels
    return labels * aligned(weights, labels)


def _local(blocks: Blocks, labels: Array) -> Array:
    """Class indices counted from the first class here."""
    axis = blocks.reduction.axis_name
    if axis is None or not are_indices(labels):
        return labels
    return labels - jax.lax.axis_index(axis) * blocks.classes


def _numbers(
    blocks: Blocks,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    where: Array | None,
    empty: Array,
    transform: LogitTransform | None,
    temperature: Array | None,
    weights: Array | None,
) -> Part:
    """The numbers of rows of `hidden @ kernel + bias`, `hidden [n, features]`."""
    t = None if temperature is None else temperature[..., 0]
    cut = _cutter(blocks, kernel, bias, _local(blocks, labels), where, transform, weights)

    def one(i: Array) -> Part:
        kernel, bias, labels, where, transform, weights = cut(i)
        z = logits_of(hidden, kernel, bias)
        labels = _weighted(labels, weights)
        v = scores(z, labels, where, transform, None)
        made = part_of(blocks.reduction, v, labels, where, temperature, weights)
        return moved(made, blocks.start(i))

    # Of the first block only the types are read here: over which mesh axes they vary, among others.
    none = nothing(one(jnp.zeros((), jnp.int32)))

    def step(joined: Part, i: Array, _: None) -> tuple[Part, None]:
        return union(joined, one(i), t), None

    part = scan_forgetting(step, none, blocks.groups)[0]
    axis = blocks.reduction.axis_name
    shards = 1
    if axis is not None:
        part, shards = union_of_shards(part, t, blocks.classes, axis), jax.lax.axis_size(axis)
    return finished(part, labels, empty, t, blocks.classes * shards)


reduce_product = custom_vjp(_numbers, nondiff_argnums=(0,))


def _numbers_fwd(blocks: Blocks, *operands: Any) -> tuple[Part, Any]:
    out = reduce_product(blocks, *operands)
    return out, (operands, out)


def _numbers_bwd(blocks: Blocks, residuals: Any, cts: Mapping[str, Array]) -> tuple[Any, ...]:
    (hidden, kernel, bias, labels, where, _, transform, temperature, weights), out = residuals
    local = _local(blocks, labels)
    here = dataclasses.replace(blocks.reduction, axis_name=None)
    across = upright(hidden)

    def written(blocks: Blocks) -> Any:
        cut = _cutter(blocks, kernel, bias, local, where, transform, weights)

        def one(i: Array, cts: Mapping[str, Array]) -> tuple[Any, Any]:
            kernel, bias, labels, where, transform, weights = cut(i)
            z = logits_of(hidden, kernel, bias)
            q = _weighted(labels, weights)
            d_z, d_q, d_transform, d_temperature, d_weights = gradient(
                here, z, q, where, transform, temperature, weights, out, cts
            )
            d_labels = None
            if not are_indices(labels):
                d_labels = _weighted(d_q, weights)
                if weights is not None:
                    # Not by autodiff, which sums over the devices that share the weights at once: what
                    # it is added to, and so the sum, is still told apart.
                    by_mass = jnp.sum(d_q * labels, axis=0)
                    d_weights = by_mass if d_weights is None else d_weights + by_mass
            narrow = narrowed(d_z, kernel)
            d_kernel, d_hidden = product(across, narrow, (1, 0)), product(narrow, kernel, (1, 1))
            per_class, others = _parted(blocks, d_transform)
            # Written once, so in the dtype that they are returned in.
            d_kernel = d_kernel.astype(kernel.dtype)
            d_bias = None if bias is None else jnp.sum(d_z, axis=0).astype(bias.dtype)
            return (d_hidden, others, d_temperature), (d_kernel, d_bias, d_labels, per_class, d_weights)

        sums, columns = one(jnp.zeros((), jnp.int32), cts)

        def zeros(size: int, widened: bool) -> Any:
            def whole(x: Array) -> Array:
                dtype = accumulator(x.dtype) if widened else x.dtype
                return jax.lax.full_like(x, 0, dtype, shape=(*x.shape[:-1], size))

            return jax.tree.map(whole, columns)

        def walked(so_far: Any, first: Any, steps: int, at: Any, cts: Mapping[str, Array]) -> Any:
            """So many blocks from block `first` on, written into arrays that start at column `at`."""

            def step(so_far: Any, j: Array, cts: Mapping[str, Array]) -> tuple[Any, None]:
                (summed, wholes), (made, columns) = so_far, one(first + j, cts)
                summed = jax.tree.map(lambda a, b: a + b.astype(a.dtype), summed, made)
                at_ = blocks.start(first + j) - at
                put = jax.tree.map(lambda whole, x: blocks.put(whole, x, at_), wholes, columns)
                return (summed, put), None

            return scan_forgetting(step, so_far, steps, cts)[0]

        def group(so_far: Any, g: Array, cts: Mapping[str, Array]) -> tuple[Any, None]:
            summed, wholes = so_far
            start = (summed, zeros(blocks.span, widened=True))
            summed, made = walked(start, g * blocks.steps, blocks.steps, blocks.first(g), cts)
            return (summed, jax.tree.map(lambda whole, x: blocks.fill(whole, x, g), wholes, made)), None

        summed, wholes = jax.tree.map(jnp.zeros_like, sums), zeros(blocks.classes, widened=False)
        if blocks.steps == 1:
            return walked((summed, wholes), 0, blocks.groups, 0, dict(cts))
        start = (summed, jax.tree.map(blocks.runs, wholes))
        summed, wholes = scan_forgetting(group, start, blocks.groups, dict(cts))[0]
        return summed, jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), wholes)

    if kernel.dtype.itemsize > 2 or blocks.groups == 1:
        sums, columns = written(blocks)
    else:
        sums, columns = jax.lax.platform_dependent(
            cpu=lambda: written(blocks.grouped()), default=lambda: written(blocks)
        )
    d_hidden, d_shared, d_temperature = sums
    d_kernel, d_bias, d_labels, d_per_class, d_weights = columns
    d_transform = _joined(blocks, d_per_class, d_shared, transform)
    return d_hidden, d_kernel, d_bias, d_labels, None, None, d_transform, d_temperature, d_weights


reduce_product.defvjp(_numbers_fwd, _numbers_bwd)


def in_blocks(hidden: Array, kernel: Array, labels: Any) -> bool:
    """Whether the classes can be walked in blocks; if not, chunks of rows are.

    Not on a mesh that is left to the compiler, or sharded explicitly: there, they may lie on several
    devices, and a block of them would be gathered. Not with a teacher either, whose distribution is
    known only after all of its classes are.
    """
    mesh = jax.typeof(kernel).sharding.mesh
    manual = all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)
    alone = (manual or mesh.size == 1) and not is_sharded(hidden, kernel)
    known = alone and not isinstance(labels, Teacher)
    return known and kernel.shape[1] > 0 and not (isinstance(hidden.size, int) and hidden.size == 0)


def row_numbers(
    reduction: Reduction,
    options: Dealt,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    weights: Array | None,
    size: int | None,
) -> tuple[Part, Array, Array | None]:
    """The numbers of rows `[*batch]`, which of them have no class, and temperatures `[*batch, 1]`."""
    classes, batch = kernel.shape[1], hidden.shape[:-1]
    h = hidden.reshape(-1, hidden.shape[-1])
    dtype = accumulator(common(h.dtype, kernel.dtype))
    rowwise = jax.tree.map(
        lambda x: jnp.reshape(x, h.shape[:1] + np.shape(x)[len(batch) :]), options.rowwise
    )
    labels, where, temperature, transform = put_together(
        options.treedef, rowwise, options.shared, reduction.axis_name
    )
    transform = jax.tree.map(jnp.asarray, transform)
    labels = labels if are_indices(labels) else labels.astype(dtype)
    empty = jnp.zeros(h.shape[:1], bool)
    if where is not None:
        where = where if where.ndim == 2 else where[None]
        none = total(where.astype(jnp.int32), reduction.axis_name) == 0
        empty = jnp.broadcast_to(none, h.shape[:1])
    t = None if temperature is None else row_temperature(temperature, h.astype(dtype))
    size = block_size(h.shape[0], classes, size)
    blocks = Blocks(reduction, classes, size, size, options.per_class(classes))
    operands = (h, kernel, bias, labels, where, empty, transform, t, weights)
    out = (reduce_product(blocks, *operands), empty, t)
    return jax.tree.map(lambda x: jnp.reshape(x, batch + np.shape(x)[1:]), out)
