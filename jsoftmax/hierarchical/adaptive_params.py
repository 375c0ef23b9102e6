"""The parameters of an adaptive softmax, and how the classes are cut into head and clusters.

Imports `_checks`, `_pytrees`.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._pytrees import register, takes_arrays
from jsoftmax._typing import Array, ArrayLike

# Of the cost model: what one logit costs beside its product, in multiply-adds; and the rows below
# which a product gets no cheaper.
_LOGIT, _LEAST_ROWS = 48, 64


class Ranking:
    """The order of the classes by frequency: static, equal and hashed by content, read once.

    Integers among the leaves of `params` would make `jax.grad` refuse them; so the order is part of
    the tree's structure, where `jit` compares it by a digest of 32 bytes.

    Attributes:
        places: `[classes]`, int32: the place of each class, 0 for the most frequent.
    """

    def __init__(self, places: np.ndarray):
        self.places = np.array(places, np.int32)
        self.places.flags.writeable = False
        self._digest = hashlib.sha256(self.places.tobytes()).digest()

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """`[classes]`, int32: the class at each place."""
        return np.argsort(self.places).astype(np.int32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranking) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Ranking of {len(self.places)} classes, {self._digest.hex()[:8]}"


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveParams:
    """The parameters of an adaptive softmax: a pytree of floating arrays, made by `adaptive_init`.

    Its arrays are those of torch's `AdaptiveLogSoftmaxWithLoss`, transposed. Any optax optimizer
    trains it, and `jax.grad` gives the gradients in one more of its kind.

    Attributes:
        head_kernel: `[features, shortlist + clusters]`: the frequent classes, then the clusters.
        head_bias: `[shortlist + clusters]`, or none.
        projections: Per cluster `[features, width]`.
        tail_kernels: Per cluster `[width, classes in it]`.
        cutoffs: Where the clusters start in the order of frequency; static.
        num_classes: The number of classes; static.
        ranking: The order of the classes by frequency, or none if that is their order; static.
    """

    head_kernel: Array
    head_bias: Array | None
    projections: tuple[Array, ...]
    tail_kernels: tuple[Array, ...]
    cutoffs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_classes: int = dataclasses.field(metadata={"static": True})
    ranking: Ranking | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where the head and each cluster end in the order of frequency."""
        return (*self.cutoffs, self.num_classes)

    def places(self, labels: Array) -> Array:
        """The place of each class in the order of frequency."""
        return labels if self.ranking is None else jnp.take(self.ranking.places, labels, mode="clip")

    def classes(self, places: Array) -> Array:
        """The class at each place."""
        return places if self.ranking is None else jnp.take(self.ranking.classes, places, mode="clip")


register(AdaptiveParams)


@takes_arrays
def adaptive_init(
    key: ArrayLike,
    num_features: int,
    num_classes: int,
    cutoffs: Sequence[int] | None = None,
    *,
    counts: ArrayLike | Sequence[float] | None = None,
    division: float = 4.0,
    head_bias: bool = False,
    dtype: Any = jnp.float32,
) -> AdaptiveParams:
    r"""Parameters of an adaptive softmax, drawn as torch draws those of its linear layers.

    .. math:: W \sim U(-n^{-1/2}, n^{-1/2}), \quad n = \text{the features going in}

    Args:
        key: A key of `jax.random`.
        num_features: The features of `hidden`.
        num_classes: The number of classes.
        cutoffs: Where the clusters start in the order of frequency, increasing, in (0, classes), as
            torch's; an empty one makes a plain softmax. By default `adaptive_cutoffs` chooses, of
            `counts`, or without those for Zipf's law.
        counts: `[classes]`, how often each class occurs, not negative. The classes are then ranked
            inside, and labels stay the user's. Without: class 0 is taken for the most frequent, and
            so on.
        division: The `i`-th cluster has `features // division ** i` features, `i` from 1; at least 1.
        head_bias: Whether the head has a bias, which starts as the kernels do.
        dtype: The floating dtype of the arrays.

    Returns:
        The parameters; all their leaves are floating.

    Gradient: none; initialization.

    Raises:
        TypeError: If `key` is no key, a size or cutoff not an integer, `dtype` not floating, or
            counts are not real.
        ValueError: If cutoffs, counts or division are out of range, or a cluster is left without
            features.

    Examples:
        >>> import jax
        >>> from jsoftmax.hierarchical import adaptive_init
        >>> params = adaptive_init(jax.random.key(0), 64, 1000, (100, 400))
        >>> print(params.head_kernel.shape, [kernel.shape for kernel in params.tail_kernels])
        (64, 102) [(16, 300), (4, 600)]

    References:
        Grave et al., Efficient softmax approximation for GPUs, 2017.
    """
    name = "adaptive_init"
    _positive(name, "num_features", num_features)
    _positive(name, "num_classes", num_classes)
    _checks.number(name, "division", division, lambda d: 1 <= d < math.inf, "at least 1")
    _checks.flag(name, "head_bias", head_bias)
    _checks.floating_dtype(name, "dtype", dtype, "choose jnp.float32 or another.")
    key = _checks.key(name, key)
    ranking = None
    if counts is not None:
        counts = _counts(name, counts, num_classes)
        order = np.argsort(-counts, kind="stable")
        ranking = Ranking(np.argsort(order)) if np.any(np.diff(order) != 1) else None
    if cutoffs is None:
        zipf = 1 / np.arange(1, num_classes + 1)
        given = zipf if counts is None or not counts.any() else counts
        cutoffs = adaptive_cutoffs(given, num_features=num_features, division=division)
    cutoffs = _cutoffs(name, cutoffs, num_classes)
    widths = [int(num_features // division ** (i + 1)) for i in range(len(cutoffs))]
    if widths and widths[-1] < 1:
        raise ValueError(
            f"{name}: division must leave each of {len(cutoffs)} clusters a feature of "
            f"{num_features}, got {division}; take a smaller one or fewer cutoffs."
        )
    sizes = [end - start for start, end in itertools.pairwise((*cutoffs, num_classes))]
    keys = iter(jax.random.split(key, 2 + 2 * len(cutoffs)))

    def draw(features: int, *shape: int) -> Array:
        bound = features**-0.5
        return jax.random.uniform(next(keys), shape, dtype, -bound, bound)

    head = (cutoffs[0] if cutoffs else num_classes) + len(cutoffs)
    return AdaptiveParams(
        head_kernel=draw(num_features, num_features, head),
        head_bias=draw(num_features, head) if head_bias else None,
        projections=tuple(draw(num_features, num_features, width) for width in widths),
        tail_kernels=tuple(draw(w, w, size) for w, size in zip(widths, sizes, strict=True)),
        cutoffs=cutoffs,
        num_classes=num_classes,
        ranking=ranking,
    )


@takes_arrays
def adaptive_cutoffs(
    counts: ArrayLike | Sequence[float],
    *,
    num_features: int = 512,
    batch_size: int = 1024,
    division: float = 4.0,
    max_clusters: int = 4,
) -> tuple[int, ...]:
    r"""The cutoffs that make a training step of an adaptive softmax cheapest, by a model of its cost.

    .. math:: c = B \, h \, (d + e) + \sum_i \left( \max(B p_i, r) \, n_i \, (w_i + e) + w_i n_i
        + B \, d \, w_i \right)

    with `B` rows of `d` features, a head of `h` entries, and clusters of `n_i` classes, `w_i` features
    and probability `p_i`. Costs are in multiply-adds: a logit costs `e = 48` beside its product, for
    its exponential and the passes over it; a product of fewer than `r = 64` rows costs what 64 do; a
    kernel's gradient is written once. It is a model of time alone: a larger head is better where
    quality counts.

    Args:
        counts: `[classes]`, how often each class occurs, in any order; not negative, not all 0.
        num_features: `d`.
        batch_size: `B`, the rows of a step: batch times length for a language model.
        division: As in `adaptive_init`.
        max_clusters: At most so many clusters.

    Returns:
        The cutoffs, increasing, as `adaptive_init` takes them; none where a plain softmax is cheapest.
        The best of all on a grid of 100 places, evenly spaced in the logarithm.

    Gradient: none; made once, with NumPy.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If counts or a size are out of range.

    Examples:
        >>> import numpy as np
        >>> from jsoftmax.hierarchical import adaptive_cutoffs
        >>> print(adaptive_cutoffs(1 / np.arange(1, 100_001), num_features=128))
        (298, 6893, 35112)

    References:
        Grave et al., Efficient softmax approximation for GPUs, 2017, section 4.2.
    """
    name = "adaptive_cutoffs"
    counts = _counts(name, counts, None)
    for option, size in (("num_features", num_features), ("batch_size", batch_size)):
        _positive(name, option, size)
    _positive(name, "max_clusters", max_clusters)
    _checks.number(name, "division", division, lambda d: 1 <= d < math.inf, "at least 1")
    if not counts.any():
        raise ValueError(f"{name}: counts must not all be 0, got no occurrence; count the labels.")
    mass = np.concatenate([[0], np.cumsum(np.sort(counts)[::-1])])
    mass = mass / mass[-1]
    classes = counts.size
    grid = np.unique(np.geomspace(1, classes, 100).round().astype(int))
    sizes = grid[None, :] - grid[:, None]
    rows = np.maximum(batch_size * (mass[grid][None, :] - mass[grid][:, None]), _LEAST_ROWS)

    # From the last cluster to the first: what the classes from each place on cost at least, if the
    # cluster that starts there is the i-th, and where it ends.
    per_entry = batch_size * (num_features + _LOGIT)
    cheapest = np.where(grid == classes, 0.0, np.inf)
    ends: list[np.ndarray] = []
    for i in reversed(range(max_clusters)):
        width = int(num_features // division ** (i + 1))
        if width < 1:
            continue
        cost = rows * sizes * (width + _LOGIT) + width * sizes + batch_size * num_features * width
        cost = np.where(sizes > 0, cost + per_entry, np.inf) + cheapest[None, :]
        ends.append(np.argmin(cost, axis=1))
        cheapest = np.where(grid == classes, 0.0, np.min(cost, axis=1))
    place = int(np.argmin(grid * per_entry + cheapest))
    found: list[int] = []
    for end in reversed(ends):
        if grid[place] == classes:
            break
        found.append(int(grid[place]))
        place = int(end[place])
    return tuple(found)


def _positive(name: str, option: str, x: Any) -> None:
    _checks.integer(name, option, x)
    _checks.number(name, option, x, lambda n: n >= 1, "at least 1")


def _counts(name: str, counts: Any, classes: int | None) -> np.ndarray:
    found = _checks.known_vector(name, "counts", counts, "class", "classes", "parameters")
    _checks.number_like(name, "counts", found)
    found = found.astype(np.float64)
    classes = found.size if classes is None else classes
    if found.shape != (classes,) or not classes:
        raise ValueError(
            f"{name}: counts must have shape [classes] = [{classes}], got {list(found.shape)}; "
            "one number per class."
        )
    if not np.all((found >= 0) & np.isfinite(found)):
        worst = found[~((found >= 0) & np.isfinite(found))][0]
        raise ValueError(
            f"{name}: counts must be finite and at least 0, got {worst}; count the labels."
        )
    return found


def _cutoffs(name: str, cutoffs: Sequence[int], classes: int) -> tuple[int, ...]:
    if not isinstance(cutoffs, Sequence | np.ndarray) or isinstance(cutoffs, str):
        raise TypeError(
            f"{name}: cutoffs must be a sequence of integers, got {cutoffs!r}; pass a tuple of them."
        )
    for cutoff in cutoffs:
        _checks.integer(name, "cutoffs", cutoff)
    found = tuple(int(cutoff) for cutoff in cutoffs)
    if any(a >= b for a, b in itertools.pairwise((0, *found, classes))):
        raise ValueError(
            f"{name}: cutoffs must increase within (0, classes) = (0, {classes}), got {found}; "
            "sort them, and leave out the number of classes itself."
        )
    return found
