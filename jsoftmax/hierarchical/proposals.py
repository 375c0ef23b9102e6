"""Where negative classes come from: distributions over the classes that are cheap to draw from.

A proposal knows its `num_classes`, draws ids, and says how probable each is; any pytree that does is
one, see `Proposal`. Every `log_prob` here is that of what is drawn, to float32: importance weights
made of it have no bias that a finer uniform would remove.

Imports `_pytrees`, `_checks`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._numerics import widened
from jsoftmax._pytrees import register, takes_arrays
from jsoftmax._typing import Array, ArrayLike, Shape

_BITS = 2.0**32


class Proposal(Protocol):
    """What a proposal of your own needs: this, and to be a pytree, for `jit` to take it.

    `jax.tree_util.register_static` makes one of a class without arrays,
    `jax.tree_util.register_pytree_node_class` of one with them.
    """

    @property
    def num_classes(self) -> int:
        """The number of classes; static."""
        ...

    def sample(self, key: Array, shape: Shape) -> Array:
        """Independent ids in [0, num_classes), of an integer dtype and the shape."""
        ...

    def log_prob(self, ids: Array) -> Array:
        """The log-probability of each id, floating: −inf for a class that is never drawn."""
        ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    r"""All classes alike, `q_k = 1 / classes`.

    Attributes:
        num_classes: The number of classes; static.

    Raises:
        TypeError: If `num_classes` is no integer.
        ValueError: If it is not in [1, 2³¹).

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> print(jnp.exp(hierarchical.Uniform(4).log_prob(jnp.array([0, 3, 4]))))
        [0.25 0.25 0.  ]
    """

    num_classes: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        _check_classes("Uniform", self.num_classes)

    def sample(self, key: Array, shape: Shape) -> Array:
        """Ids of the shape, int32."""
        return jax.random.randint(key, shape, 0, self.num_classes, jnp.int32)

    def log_prob(self, ids: ArrayLike) -> Array:
        """Log-probabilities, float32 (float64 in x64 mode); −inf for what is no class."""
        known, ids = _known(ids, self.num_classes)
        log_q = jnp.asarray(-math.log(self.num_classes), jnp.result_type(float))
        return jnp.where(known, log_q, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class LogUniform:
    r"""Zipf's law, for classes in the order of their frequency, the most frequent first.

    .. math:: q_k = \frac{\log (k + 2) - \log (k + 1)}{\log (\mathrm{classes} + 1)}

    TensorFlow's `log_uniform_candidate_sampler`. Rounding `exp` of one uniform, as it is usually
    drawn, misses classes beyond some 10⁵ in float32; here the classes are halved, with one uniform
    for each half, log2(classes) of them for an id.

    Attributes:
        num_classes: The number of classes; static.

    Raises:
        TypeError: If `num_classes` is no integer.
        ValueError: If it is not in [1, 2³¹).

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> print(jnp.exp(hierarchical.LogUniform(3).log_prob(jnp.arange(4))))
        [0.5    0.2925 0.2075 0.    ]
    """

    num_classes: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        _check_classes("LogUniform", self.num_classes)

    def sample(self, key: Array, shape: Shape) -> Array:
        """Ids of the shape, int32."""
        halvings = (self.num_classes - 1).bit_length()
        uniforms = jax.random.uniform(key, (halvings, *shape))
        # A range of ranks `[low, low + size)` has the mass log(1 + size / low).
        low, size = jnp.ones(shape, jnp.int32), jnp.full(shape, self.num_classes, jnp.int32)
        for u in uniforms:
            half, start = size // 2, low.astype(u.dtype)
            left = jnp.log1p(half.astype(u.dtype) / start) / jnp.log1p(size.astype(u.dtype) / start)
            right = u >= left
            low = jnp.where(right, low + half, low)
            size = jnp.where(right, size - half, half)
        return low - 1

    def log_prob(self, ids: ArrayLike) -> Array:
        """Log-probabilities, float32 (float64 in x64 mode); −inf for what is no class."""
        known, ids = _known(ids, self.num_classes)
        mass = jnp.log1p(1 / (ids.astype(jnp.result_type(float)) + 1))
        return jnp.where(known, jnp.log(mass) - math.log(math.log1p(self.num_classes)), -jnp.inf)


@dataclasses.dataclass(frozen=True, eq=False)
class AliasTable:
    """Any distribution over the classes, drawn from in O(1); made by `unigram_proposal`.

    Attributes:
        log_probs: `[classes]`, float32.
        thresholds: `[classes]`, uint32: how many of 2³² draws of a column are its own class.
        aliases: `[classes]`, int32: the class that the others are.
    """

    log_probs: Array
    thresholds: Array
    aliases: Array

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.log_probs.shape[-1]

    def sample(self, key: Array, shape: Shape) -> Array:
        """Ids of the shape, int32."""
        of_column, of_threshold = jax.random.split(key)
        column = jax.random.randint(of_column, shape, 0, self.num_classes, jnp.int32)
        own = jax.random.bits(of_threshold, shape, jnp.uint32) < self.thresholds[column]
        return jnp.where(own, column, self.aliases[column])

    def log_prob(self, ids: ArrayLike) -> Array:
        """Log-probabilities, float32; −inf for what is no class."""
        known, ids = _known(ids, self.num_classes)
        return jnp.where(known, self.log_probs[ids], -jnp.inf)


@takes_arrays
def unigram_proposal(counts: ArrayLike | Sequence[float], *, power: float = 0.75) -> AliasTable:
    r"""Classes as often as they were counted, flattened by a power; or any weights, with a power of 1.

    .. math:: q_k = \frac{c_k^{\,\mathrm{power}}}{\sum_j c_j^{\,\mathrm{power}}}

    A table of Walker's is built on the host, a million classes in a fraction of a second; a draw
    takes two random numbers and two look-ups, whatever the number of classes.

    Args:
        counts: `[classes]`, at least 0 and finite, not all 0, known before tracing. A class with a
            count of 0 is never drawn; estimates made of such draws leave it out.
        power: 0 or more: 0.75 as in word2vec, 1 for the counts themselves, 0 for all that occur
            alike.

    Returns:
        A proposal, whose `log_prob` is that of the table, within 2⁻³² / classes of the formula.

    Gradient: none in the counts, which are known before tracing; `log_probs` is a leaf of the table.

    Raises:
        TypeError: If counts are traced or not real numbers, or `power` is no number.
        ValueError: If counts are not `[classes]`, negative, not finite or all 0, or `power` is
            negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jsoftmax import hierarchical
        >>> proposal = hierarchical.unigram_proposal([16, 1, 0], power=0.75)
        >>> print(jnp.exp(proposal.log_prob(jnp.arange(3))).round(3))
        [0.889 0.111 0.   ]

    References:
        Walker, An efficient method for generating discrete random variables with general
        distributions, 1977; Mikolov et al., Distributed representations of words and phrases, 2013.
    """
    name = "unigram_proposal"
    _checks.number(name, "power", power, lambda p: 0 <= p < math.inf, "at least 0 and finite")
    c = _checks.known_vector(name, "counts", counts, "class", "classes", "proposal")
    _checks.number_like(name, "counts", c)
    if not len(c):
        raise ValueError(
            f"{name}: counts must have shape [classes], got [0]; pass one number per class."
        )
    c = c.astype(np.float64)
    wrong = np.flatnonzero(~((c >= 0) & (c < np.inf)))
    if len(wrong) or not np.any(c):
        got = f"{c[wrong[0]]} for class {wrong[0]}" if len(wrong) else "nothing but 0"
        raise ValueError(
            f"{name}: counts must be at least 0, finite and not all 0, got {got}; leave out what was "
            "never seen by a count of 0."
        )
    weights = np.where(c > 0, (c / c.max()) ** power, 0)
    own, aliases = _alias_table(weights * (len(c) / weights.sum()))
    thresholds = np.minimum(np.ceil(own * _BITS), _BITS - 1)
    share = thresholds / _BITS
    q = (share + np.bincount(aliases, 1 - share, len(c))) / len(c)
    log_probs = np.log(q, where=q > 0, out=np.full(len(c), -np.inf))
    return AliasTable(
        jnp.array(log_probs, jnp.float32),
        jnp.array(thresholds, jnp.uint32),
        jnp.array(aliases, jnp.int32),
    )


register(Uniform)
register(LogUniform)
register(AliasTable)


def _alias_table(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each column of height 1 is its own class, and which class is the rest.

    `p` has mean 1. What the small ones lack, one after the other, is a line; what the large ones have
    too much, another of the same length. A small one takes all it lacks from the large one beside its
    start; a large one that has then given too much takes that from the next large one.
    """
    is_large = p >= min(1.0, p.max())
    small, large = np.flatnonzero(~is_large), np.flatnonzero(is_large)
    lacking, spare = np.cumsum(1 - p[small]), np.cumsum(p[large] - 1)
    own, aliases = np.minimum(p, 1), np.arange(len(p))
    start = np.concatenate([[0.0], lacking[:-1]])[: len(small)]
    giver = np.searchsorted(spare, start, side="right")
    aliases[small] = large[np.minimum(giver, len(large) - 1)]
    # The end of the small one in which each large one's part of the line ends.
    end = np.append(lacking, np.inf)[np.searchsorted(lacking, spare, side="left")]
    given = np.where(np.isfinite(end), end, spare) - spare
    given[-1] = 0
    own[large] = np.clip(1 - given, 0, 1)
    aliases[large[:-1]] = large[1:]
    return own, aliases


def _known(ids: ArrayLike, classes: int) -> tuple[Array, Array]:
    ids = widened(_checks.array("log_prob", "ids", ids))
    known = (ids >= 0) & (ids < classes)
    return known, jnp.where(known, ids, 0)


def _check_classes(name: str, classes: Any) -> None:
    _checks.integer(name, "num_classes", classes)
    if not 1 <= classes < 2**31:
        raise ValueError(
            f"{name}: num_classes must be in [1, 2^31), got {classes}; pass the number of classes."
        )
