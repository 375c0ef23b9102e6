"""What acts on single logits before the class axis is reduced: values, not closures.

A transform is a frozen dataclass and a pytree: its numbers are leaves, so they may be traced,
differentiated, mapped and annealed without retracing. It never sees the class axis as a whole,
which lets it run inside a walk over blocks of classes.

Imports `_pytrees`, `_numerics` and `_checks`.
"""

import abc
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax import _checks
from jsoftmax._numerics import aligned, nan_unless, row, safe_temperature
from jsoftmax._pytrees import as_arrays, register
from jsoftmax._typing import Array, ArrayLike, Shape


class LogitTransform(abc.ABC):
    """A map of single logits; subclass it as a frozen dataclass.

    A subclass is a pytree from the start, its fields the leaves (those with `metadata={"static": True}`
    excepted): do not register it with JAX again. JAX puts masks, names and other objects in the place
    of its leaves, past `__init__`: what a field must be is to be asked where it is used. Two transforms
    are equal if their arrays are the same objects and all else is equal.

    The caller takes care of impossible classes: a logit of −inf reaches no transform and stays −inf.
    """

    def __init_subclass__(cls) -> None:
        register(cls)
        # Ahead of the decorator, which leaves them as they are: a comparison of arrays is an array.
        for name in ("__eq__", "__hash__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(LogitTransform, name))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        (mine, tree), (others, like) = jax.tree.flatten(self), jax.tree.flatten(other)
        return tree == like and [_identity(x) for x in mine] == [_identity(x) for x in others]

    def __hash__(self) -> int:
        leaves, tree = jax.tree.flatten(self)
        return hash((type(self), tree, *map(_identity, leaves)))

    @abc.abstractmethod
    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        """Maps `logits [*batch, classes]`, of float32 or wider.

        Args:
            logits: Finite or +inf, or NaN.
            target: The share of the row's label in each class, `[*batch, classes]` in [0, 1]: given
                where `needs_target` is true.
        """

    @property
    def needs_target(self) -> bool:
        """Whether the label's class is treated apart."""
        return False


@dataclasses.dataclass(frozen=True)
class Temperature(LogitTransform):
    """Divides the logits by a temperature: `z / T`.

    Args:
        value: `T`, a number or one per row `[*batch]`; 0 acts as its limit. NaN comes back for a
            negative traced one. The `temperature=` options of the functions subtract the maximum
            first and so cannot overflow; this one divides where it stands in a `chain`.

    Gradient: in the logits and in `value`, every AD mode.

    Raises:
        ValueError: If `value` is a negative Python number.

    Examples:
        >>> from jsoftmax import Temperature, cross_entropy
        >>> import jax.numpy as jnp
        >>> loss = cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]), transform=Temperature(2.0))
        >>> print(loss)
        [0.3133]

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """

    value: ArrayLike

    def __post_init__(self) -> None:
        _checks.number("Temperature", "value", self.value, lambda t: t >= 0, "at least 0")

    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        self.__post_init__()
        return logits / safe_temperature(_per_row("Temperature", "value", self.value, logits))


@dataclasses.dataclass(frozen=True)
class Softcap(LogitTransform):
    """Bounds the logits smoothly: `c · tanh(z / c)`.

    Args:
        cap: `c > 0`, a number or one per row `[*batch]`. NaN comes back for a traced one that is
            not positive.

    Gradient: in the logits, `1 − tanh²(z / c)`, and in `cap`; every AD mode.

    Raises:
        ValueError: If `cap` is a Python number that is not positive and finite.

    Examples:
        >>> from jsoftmax import Softcap, cross_entropy
        >>> import jax.numpy as jnp
        >>> loss = cross_entropy(jnp.array([[90.0, 0.0]]), jnp.array([1]), transform=Softcap(30.0))
        >>> print(loss)
        [29.852]

    References:
        Gemma 2, 2024, section 2.
    """

    cap: ArrayLike

    def __post_init__(self) -> None:
        _checks.number("Softcap", "cap", self.cap, lambda c: 0 < c < math.inf, "positive and finite")

    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        self.__post_init__()
        cap = _per_row("Softcap", "cap", self.cap, logits)
        cap = cap * nan_unless(cap > 0, cap.dtype)
        # Beyond these bounds tanh is ±1; at ±inf its derivative 0 would meet an infinite quotient.
        return cap * jnp.tanh(jnp.clip(logits, -50 * cap, 50 * cap) / cap)


@dataclasses.dataclass(frozen=True)
class LogitAdjustment(LogitTransform):
    """Adds a scaled log-prior of the classes: `z_k + τ · log π_k`, for imbalanced labels.

    Args:
        log_prior: `log π [classes]` (the local shard where the classes are sharded). −inf makes a
            class impossible.
        scale: `τ`, a number or one per row `[*batch]`.

    Gradient: in the logits, `log_prior` and `scale`; every AD mode.

    Raises:
        ValueError: When used, if `log_prior` is not `[classes]`.

    Examples:
        >>> from jsoftmax import LogitAdjustment, cross_entropy
        >>> import jax.numpy as jnp
        >>> rare = LogitAdjustment(jnp.log(jnp.array([0.9, 0.1])))
        >>> print(cross_entropy(jnp.zeros((1, 2)), jnp.array([1]), transform=rare))
        [2.3026]

    References:
        Menon et al., Long-tail learning via logit adjustment, 2021.
    """

    log_prior: ArrayLike
    scale: ArrayLike = 1.0

    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        log_prior = as_arrays(self.log_prior)
        _checks.class_vector("LogitAdjustment", "log_prior", log_prior, logits.shape)
        prior = aligned(jnp.asarray(log_prior, logits.dtype), logits)
        possible = ~(prior == -jnp.inf)
        scale = _per_row("LogitAdjustment", "scale", self.scale, logits)
        adjusted = logits + scale * jnp.where(possible, prior, 0)
        return jnp.where(possible, adjusted, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Margin(LogitTransform):
    """Makes the label's logit harder to win by a margin, then scales all: `s · margin(z)`.

    `kind="additive"`: `z_y − m` (CosFace on cosine logits, large-margin softmax on plain ones).
    `kind="angular"`: `cos(θ_y + m)` with `z_y = cos θ_y` (ArcFace), continued as `z_y − m·sin m`
    beyond `θ_y = π − m`, so that it keeps falling. Soft labels interpolate.

    Args:
        margin: `m`, a number or one per row `[*batch]`; radians for the angular kind.
        scale: `s`, a number or one per row `[*batch]`.
        kind: "additive" or "angular". The angular kind takes cosines: a logit more than 0.01
            outside [−1, 1] gives NaN, rounding beyond the ends is cut off.

    Gradient: in the logits, `margin` and `scale`, every AD mode; 0 through the angle at ±1.

    Raises:
        ValueError: If `kind` is unknown.

    Examples:
        >>> from jsoftmax import Margin, cross_entropy
        >>> import jax.numpy as jnp
        >>> cosface = Margin(0.35, scale=64.0)
        >>> print(cross_entropy(jnp.array([[0.5, 0.2]]), jnp.array([0]), transform=cosface))
        [3.24]

    References:
        Wang et al., CosFace, 2018; Deng et al., ArcFace, 2019.
    """

    margin: ArrayLike
    scale: ArrayLike = 1.0
    kind: Literal["additive", "angular"] = dataclasses.field(
        default="additive", metadata={"static": True}
    )

    def __post_init__(self) -> None:
        _checks.one_of("Margin", "kind", self.kind, ("additive", "angular"))

    @property
    def needs_target(self) -> bool:
        return True

    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        if target is None:
            raise ValueError("Margin: needs labels, use it in cross_entropy or row_stats.")
        margin = _per_row("Margin", "margin", self.margin, logits)
        if self.kind == "additive":
            turn = -margin
        else:
            cosine = jnp.where(jnp.abs(logits) <= 1.01, jnp.clip(logits, -1, 1), jnp.nan)
            inner = jnp.abs(cosine) < 1
            sine = jnp.where(inner, jnp.sqrt(1 - jnp.square(jnp.where(inner, cosine, 0))), 0)
            turned = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
            continued = cosine - margin * jnp.sin(margin)
            turn = jnp.where(cosine > -jnp.cos(margin), turned, continued) - logits
        # Not the difference of two scores that may be infinite.
        chosen = jnp.where(target > 0, logits + target * turn, logits)
        return _per_row("Margin", "scale", self.scale, logits) * chosen


@dataclasses.dataclass(frozen=True)
class Chain(LogitTransform):
    """Transforms applied one after the other, the first one first; made by `chain`."""

    transforms: tuple[LogitTransform, ...]

    @property
    def needs_target(self) -> bool:
        return any(transform.needs_target for transform in self.transforms)

    def __call__(self, logits: Array, target: Array | None = None) -> Array:
        for transform in self.transforms:
            logits = transform(logits, target)
        return logits


def chain(*transforms: LogitTransform) -> Chain:
    """Composes transforms, the first one first.

    Args:
        *transforms: Any of this module, or subclasses of `LogitTransform`.

    Returns:
        A transform whose leaves are theirs.

    Raises:
        TypeError: If one is not a transform.

    Examples:
        >>> from jsoftmax import Softcap, Temperature, chain
        >>> import jax.numpy as jnp
        >>> chain(Softcap(30.0), Temperature(0.5))(jnp.array([1.0])).round(3)
        Array([1.999], dtype=float32)
    """
    for transform in transforms:
        check_transform("chain", transform)
    return Chain(transforms)


def check_transform(function: str, transform: Any) -> None:
    """Refuses what is not a transform, such as a bare function, which would retrace every step."""
    if not isinstance(transform, LogitTransform):
        raise TypeError(
            f"{function}: transform must be a LogitTransform such as Temperature, Softcap, "
            f"LogitAdjustment, Margin or chain(...), got {type(transform).__name__}; a function of "
            "your own becomes one as a frozen dataclass that subclasses LogitTransform."
        )


def check_numbers(transform: LogitTransform | None, logits: Shape) -> None:
    """Refuses arrays of these transforms that do not fit logits `[*batch, classes]`.

    Before tracing: what is no number has no place in `jit`, a chunk of a few rows cannot tell whose
    they are, and what was checked by `__init__` may have been replaced since.
    """
    if isinstance(transform, Temperature | Softcap | Margin):
        transform.__post_init__()
    if isinstance(transform, Chain):
        for part in transform.transforms:
            check_numbers(part, logits)
    for kind, fields in _ROW_FIELDS.items():
        for field in fields if isinstance(transform, kind) else ():
            _checks.per_row(kind.__name__, field, getattr(transform, field), logits[:-1])
    if isinstance(transform, LogitAdjustment):
        _checks.class_vector("LogitAdjustment", "log_prior", transform.log_prior, logits)
    for leaf in jax.tree.leaves(transform):
        _checks.dtype_of(type(transform).__name__, "every leaf", leaf)


def _identity(x: Any) -> Any:
    """What tells a leaf from another, whatever it is."""
    plain = isinstance(x, bool | int | float | complex | str | np.generic)
    return x if plain else id(x)


# What is one number for all rows, or one for each.
_ROW_FIELDS: dict[type[LogitTransform], tuple[str, ...]] = {
    Temperature: ("value",),
    Softcap: ("cap",),
    LogitAdjustment: ("scale",),
    Margin: ("margin", "scale"),
}


def _per_row(kind: str, field: str, value: ArrayLike, logits: Array) -> Array:
    value = as_arrays(value)
    _checks.per_row(kind, field, value, logits.shape[:-1])
    value = jnp.asarray(value, logits.dtype)
    return row(value) if value.ndim else value


def joined_transforms(
    name: str, transform: LogitTransform | None, softcap: ArrayLike | None, shape: Shape
) -> LogitTransform | None:
    """The transform and the softcap after it, as one transform that fits logits of the shape."""
    if transform is not None:
        check_transform(name, transform)
        check_numbers(transform, shape)
    if softcap is None:
        return transform
    _checks.number(name, "softcap", softcap, lambda c: 0 < c < math.inf, "positive and finite")
    _checks.scalar(name, "softcap", softcap)
    cap = Softcap(softcap)
    return cap if transform is None else chain(transform, cap)
