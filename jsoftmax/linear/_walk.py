"""The walk over chunks of rows: logits are made, reduced and forgotten, a chunk at a time.

Rows `i, i + chunks, i + 2·chunks, …` make chunk `i`: rows that lie on several devices stay there, and
every device has work in every chunk. A loss of logits comes in as a function of one chunk; two rules
are built on it. `row_values` gives what the loss gives for each row, and makes the logits again for
the gradient. `sum_of_rows` gives one number; where it is differentiated, the gradient is made on the
way, beside the loss, so that logits are made once: three matrix products in place of four.

Both rules share one function that makes a gradient, linear in the cotangents. Under a second
derivative that function is itself differentiated, each chunk behind a `jax.checkpoint`.

Imports `autodiff`, `_numerics`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._numerics import accumulator, aligned, is_sharded, layout, sharded_like, upright
from jsoftmax._recomputed import recomputed
from jsoftmax._typing import Array
from jsoftmax.autodiff import custom_vjp, scan_forgetting

# A chunk is a quarter of the rows (of 16 bits a fifth) up to that many, an eighth where they are more,
# but no fewer rows than the second, or than make so many logits: each chunk reads the kernel twice, and
# its gradient too, and fewer rows would spend more time on that than on the products.
_ROWS, _LEAST, _LOGITS = 512, 128, 1 << 22

# The first of so few chunks goes ahead of the loop and starts the sums: to write zeros and to add to
# them would take a part of the time. Of more, a TPU would spend the memory of one more chunk on it.
_AHEAD = 5

# The columns of a kernel's gradient that a CPU adds to at a time.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class Walk:
    """What is known of a walk before tracing.

    Attributes:
        loss: `loss(logits, rowwise, shared)`, a pytree of one value per row.
        chunks: The number of chunks.
        accum_dtype: The dtype that gradients of what all rows share are summed in; by default
            float32 or wider.
    """

    loss: Callable[..., Any]
    chunks: int
    accum_dtype: Any = None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How `n` rows are dealt to chunks; where they come out uneven, the last ones are there twice."""

    n: int
    chunks: int

    @property
    def size(self) -> int:
        return -(-self.n // self.chunks)

    def dealt(self, x: Array) -> Array:
        """`[n, …]` as `[size, chunks, …]`."""
        extra = self.size * self.chunks - self.n
        if extra:
            x = jnp.pad(x, ((0, extra),) + ((0, 0),) * (x.ndim - 1), mode="edge")
        return x.reshape(self.size, self.chunks, *x.shape[1:])

    def collected(self, x: Array) -> Array:
        """`[chunks, size, …]` as `[n, …]`."""
        return jnp.moveaxis(x, 0, 1).reshape(self.size * self.chunks, *x.shape[2:])[: self.n]

    def real(self, i: Array) -> Array:
        """Which rows of chunk `i` are there for the first time, `[size]`."""
        return jnp.arange(self.size, dtype=jnp.int32) * self.chunks + i < self.n


def _differentiable(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _parted(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves with a derivative, and the way back to the whole."""
    leaves, treedef = jax.tree.flatten(tree)

    def whole(moving: list[Any]) -> Any:
        given = iter(moving)
        return jax.tree.unflatten(treedef, [next(given) if _differentiable(x) else x for x in leaves])

    return [x for x in leaves if _differentiable(x)], whole


def _placed(tree: Any, found: list[Any]) -> Any:
    """`found`, one for each leaf with a derivative, in the form of the tree; `None` elsewhere."""
    leaves, treedef = jax.tree.flatten(tree)
    given = iter(found)
    return jax.tree.unflatten(treedef, [next(given) if _differentiable(x) else None for x in leaves])


def common(a: Any, b: Any) -> Any:
    """The dtype that holds the numbers of both."""
    return a if a == b else max(accumulator(a), accumulator(b), key=lambda dtype: dtype.itemsize)


def product(a: Array, b: Array, over: tuple[int, int], like: Array | None = None) -> Array:
    """A matrix product summed in float32 or wider, on a mesh with explicit axes laid out as `like`."""
    dtype = common(a.dtype, b.dtype)
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((over[0],), (over[1],)), ((), ())),
        preferred_element_type=accumulator(dtype),
        out_sharding=layout(like, a, b) if like is not None and is_sharded(a, b) else None,
    )


def _plus_product(so_far: Array, h: Array, d_z: Array, kernel: Array) -> Array:
    """`so_far + hᵀ · d_z`, laid out as the kernel.

    A CPU makes the product first and adds it then: it is made in blocks of classes, so that it takes
    little memory and is still in the cache.
    """
    blocks, rest = divmod(d_z.shape[-1], _BLOCK)

    def whole(so_far: Array, h: Array, d_z: Array) -> Array:
        return so_far + product(h, d_z, (0, 0), kernel).astype(so_far.dtype)

    def in_blocks(so_far: Array, h: Array, d_z: Array) -> Array:
        across = upright(h)

        def add(so_far: Array, at: Any, size: int) -> Array:
            old, d = (jax.lax.dynamic_slice_in_dim(x, at, size, axis=1) for x in (so_far, d_z))
            new = old + product(across, d, (1, 0)).astype(old.dtype)
            return jax.lax.dynamic_update_slice_in_dim(so_far, new, at, axis=1)

        starts = _BLOCK * jnp.arange(blocks, dtype=jnp.int32)
        so_far, _ = jax.lax.scan(lambda x, at: (add(x, at, _BLOCK), None), so_far, starts)
        # A start that is known before the program runs would have the whole array copied.
        end = jax.lax.optimization_barrier(jnp.asarray(blocks * _BLOCK, jnp.int32))
        return add(so_far, end, rest) if rest else so_far

    if blocks < 2 or is_sharded(h, d_z):
        return whole(so_far, h, d_z)
    return jax.lax.platform_dependent(so_far, h, d_z, cpu=in_blocks, default=whole)


def without(where: Array | None, kernel: Array) -> Array:
    """The kernel, 0 for masked classes `[classes]`: 0 · NaN would reach the gradient of `hidden`."""
    return kernel if where is None else jnp.where(where, kernel, 0)


def logits_of(hidden: Array, kernel: Array, bias: Array | None) -> Array:
    """`hidden @ kernel + bias`, in float32 or wider."""
    z = product(hidden, kernel, (1, 0))
    return z if bias is None else z + aligned(bias.astype(z.dtype), z)


def narrowed(d_z: Array, kernel: Array) -> Array:
    """The gradient in the logits as autodiff has it, where those are of the kernel's dtype.

    Not in float16, where it would underflow.
    """
    return d_z.astype(kernel.dtype) if kernel.dtype == jnp.bfloat16 else d_z


def _deal(rows: _Rows, tree: Any) -> Callable[[Array], Any]:
    dealt = jax.tree.map(rows.dealt, tree)
    return lambda i: _chunk_of(dealt, i)


def _chunk_of(dealt: Any, i: Array) -> Any:
    """Chunk `i` of what `rows.dealt` made."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), dealt)


def _row_values(
    walk: Walk, hidden: Array, kernel: Array, bias: Array | None, rowwise: Any, shared: Any
) -> Any:
    """The loss's values `[n]` of all rows: `hidden [n, features]`, `rowwise` of leaves `[n, …]`."""
    rows = _Rows(hidden.shape[0], walk.chunks)
    chunk = _deal(rows, (hidden, rowwise))

    def step(carry: None, i: Array, _: None) -> tuple[None, Any]:
        h, given = chunk(i)
        return carry, walk.loss(logits_of(h, kernel, bias), given, shared)

    return jax.tree.map(rows.collected, scan_forgetting(step, None, walk.chunks)[1])


def _pulled(walk: Walk, operands: tuple[Any, ...], cts: list[Array] | None) -> tuple[Any, Any]:
    """The loss's values, and the cotangents of the operands.

    Args:
        walk: The walk.
        operands: As `_row_values` takes them.
        cts: The cotangents `[n]` of the values with a derivative; 1 each by default.
    """
    hidden, kernel, bias, rowwise, shared = operands
    rows = _Rows(hidden.shape[0], walk.chunks)
    chunk = _deal(rows, (hidden, rowwise))
    dealt_cts = None if cts is None else jax.tree.map(rows.dealt, cts)
    start = jnp.zeros((), jnp.int32)
    h, given = chunk(start)
    likes = jax.tree.leaves(walk.loss(logits_of(h, kernel, bias), given, shared))

    def apart(x: Array) -> Array:
        """`x`, told apart from device to device as the values are, so that no gradient is summed yet.

        Their cotangents may differ there. Only the values' types are read.
        """
        return x + sum(jax.lax.full_like(y, 0, x.dtype, ()) for y in likes)

    shared_moving, whole_shared = _parted(shared)
    shared_moving = [apart(x) for x in shared_moving]

    def one(i: Array, dealt_cts: Any) -> tuple[Any, Any, Any]:
        h, given = chunk(i)
        moving, whole = _parted(given)
        h, moving = apart(h), [apart(x) for x in moving]

        def values(z: Array, moving: list[Array], shared: list[Array]) -> tuple[list[Array], Any]:
            out = walk.loss(z, whole(moving), whole_shared(shared))
            return _parted(out)[0], out

        z = logits_of(h, kernel, bias)
        made, pull, out = jax.vjp(values, z, moving, shared_moving, has_aux=True)
        given_cts = [jnp.ones_like(x) for x in made] if dealt_cts is None else _chunk_of(dealt_cts, i)
        given_cts = [
            jnp.where(sharded_like(rows.real(i), ct), ct, 0).astype(x.dtype)
            for ct, x in zip(given_cts, made, strict=True)
        ]
        d_z, d_rowwise, d_shared = pull(given_cts)
        narrow = narrowed(d_z, kernel)
        d_hidden = product(narrow, kernel, (1, 1), h)
        sums = [d_shared] if bias is None else [d_shared, jnp.sum(d_z, axis=0)]
        return (h, narrow), sums, (out, d_hidden, d_rowwise)

    def summed_in(x: Array) -> Array:
        return x.astype(accumulator(x.dtype) if walk.accum_dtype is None else walk.accum_dtype)

    def begun(i: Array, dealt_cts: Any) -> tuple[Any, Any]:
        (h, narrow), sums, per_row = one(i, dealt_cts)
        whole = product(upright(h), narrow, (1, 0), kernel)
        return jax.tree.map(summed_in, (whole, sums)), per_row

    def step(so_far: Any, i: Array, dealt_cts: Any) -> tuple[Any, Any]:
        (h, narrow), sums, per_row = one(i + ahead, dealt_cts)
        d_kernel, others = so_far
        added = jax.tree.map(lambda a, b: a + b.astype(a.dtype), others, sums)
        return (_plus_product(d_kernel, h, narrow, kernel), added), per_row

    ahead = int(walk.chunks <= _AHEAD)
    done, per_row = recomputed(begun)(start, dealt_cts)
    parts = [jax.tree.map(lambda x: x[None], per_row)] * ahead
    if not ahead:
        # Only the types of a first chunk are read, over which mesh axes it varies among them.
        done = jax.tree.map(jnp.zeros_like, done)
    if walk.chunks > ahead:
        done, others = scan_forgetting(step, done, walk.chunks - ahead, dealt_cts)
        parts.append(others)
    per_row = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    d_kernel, (d_shared, *d_bias) = done
    out, d_hidden, d_rowwise = jax.tree.map(rows.collected, per_row)
    return out, (
        d_hidden,
        d_kernel,
        d_bias[0] if d_bias else None,
        _placed(rowwise, d_rowwise),
        _placed(shared, d_shared),
    )


row_values = custom_vjp(_row_values, nondiff_argnums=(0,))


def _row_values_fwd(walk: Walk, *operands: Any) -> tuple[Any, Any]:
    return row_values(walk, *operands), operands


def _row_values_bwd(walk: Walk, operands: tuple[Any, ...], cts: Any) -> tuple[Any, ...]:
    moving = [ct for ct in jax.tree.leaves(cts) if ct.dtype != jax.dtypes.float0]
    return _pulled(walk, operands, moving)[1]


row_values.defvjp(_row_values_fwd, _row_values_bwd)


def _sum_and_gradient(walk: Walk, *operands: Any) -> tuple[Array, Any]:
    values, gradient = _pulled(walk, operands, None)
    return jnp.sum(values), gradient


# A rule of its own, though it says what autodiff would say: without it, the differentiation of
# `sum_of_rows` opens the walk and loses the `jax.checkpoint` of its steps: a gradient takes 2.5 times
# the memory then, and the gradient of a gradient keeps all logits.
sum_and_gradient = custom_vjp(_sum_and_gradient, nondiff_argnums=(0,))


def _sum_and_gradient_fwd(walk: Walk, *operands: Any) -> tuple[Any, Any]:
    return sum_and_gradient(walk, *operands), operands


def _sum_and_gradient_bwd(walk: Walk, operands: tuple[Any, ...], cts: Any) -> tuple[Any, ...]:
    return jax.vjp(functools.partial(_sum_and_gradient, walk), *operands)[1](cts)


sum_and_gradient.defvjp(_sum_and_gradient_fwd, _sum_and_gradient_bwd)


def _sum_of_rows(
    walk: Walk, hidden: Array, kernel: Array, bias: Array | None, rowwise: Any, shared: Any
) -> Array:
    """The sum of the loss's values, here one array, over all rows."""
    return jnp.sum(_row_values(walk, hidden, kernel, bias, rowwise, shared))


sum_of_rows = custom_vjp(_sum_of_rows, nondiff_argnums=(0,))


def _sum_of_rows_fwd(walk: Walk, *operands: Any) -> tuple[Array, Any]:
    return sum_and_gradient(walk, *operands)


def _sum_of_rows_bwd(walk: Walk, gradient: Any, ct: Array) -> tuple[Any, ...]:
    del walk
    return jax.tree.map(lambda g: ct.astype(g.dtype) * g, gradient)


sum_of_rows.defvjp(_sum_of_rows_fwd, _sum_of_rows_bwd)


def _divisor(n: int, at_most: int) -> int:
    """The largest divisor of `n` that is at most so large."""
    return next(d for d in range(max(1, min(n, at_most)), 0, -1) if n % d == 0)


def number_of_chunks(hidden: Array, classes: int, chunk_size: int | None) -> int:
    """How many chunks `hidden [n, features]` is walked in; see `chunked` for the rule."""
    n = hidden.shape[0]
    # A number of rows that is not known before the program runs is one chunk.
    if not isinstance(n, int) or n == 0:
        return 1
    shards = 1
    sharding = jax.typeof(hidden).sharding
    for axis in jax.tree.leaves(tuple(sharding.spec[:1])):
        shards *= sharding.mesh.shape[axis]
    size = chunk_size
    if size is None:
        # Of 16 bits, a chunk has its gradient beside its logits, which have 32.
        part = 4 if hidden.dtype.itemsize > 2 else 5
        size = max(min(_ROWS, -(-n // part)), -(-n // 8), _LEAST, _LOGITS // max(classes, 1))
    local, wanted = n // shards, -(-n // size)
    # Rows that lie on several devices are dealt evenly or not at all.
    return wanted if shards == 1 else local // _divisor(local, max(1, size // shards))
