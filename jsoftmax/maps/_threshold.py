"""The threshold `σ` of the entmax family: where the probabilities of a row sum to 1.

With the gaps `g = (v − max v) / T`, `a = α − 1` and `u = a (g − σ)`, a class has
`p = u₊^(1/a)`: what is below the threshold has exactly 0. `σ` is found by Newton's method on the norm
`(Σ p)^a = ‖u₊‖_(1/a) = 1`, which is convex in `σ` for α ≤ 2: from the left, every step stays there, and
steps are few. A maximum for each column of a folded row bounds `σ` from below, for next to nothing.

`Whole` has the powers that are products (α = 2, 3/2, 4/3, 5/4, …); `Traced` any α as an array.

The last steps are differentiable, in a `σ` that is held constant: so the derivatives are right without
the map's rule too (to first order after one step, to third after two; for α = 2 to any).

Imports `_steep`, `autodiff`, `_pytrees`, `_numerics`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsoftmax._numerics import behind, nan_unless, own, repeated, row
from jsoftmax._pytrees import register
from jsoftmax._typing import Array
from jsoftmax.autodiff import with_derivatives_of
from jsoftmax.maps._steep import steep_distribution, steep_levels

# Columns of a folded row: fewer for short ones; a row is folded at least so often, or not at all.
_COLUMNS, _SHORT, _FOLDS = (128, 512), 4096, 4
_MAX_STEPS = 60


def _exact(dtype: jnp.dtype) -> float:
    """How far from 1 a sum may be that is only rounded."""
    return 10 * float(jnp.finfo(dtype).eps)


def _near(dtype: jnp.dtype) -> float:
    """How far from 1 a sum may be that two steps more bring home, each squaring the error."""
    return float(jnp.finfo(dtype).eps) ** 0.25


@dataclasses.dataclass(frozen=True)
class Whole:
    """`1/(α − 1)` is a whole number `n`: powers are products, and α is known before tracing."""

    n: int = dataclasses.field(metadata={"static": True})

    @property
    def steps(self) -> int:
        """How many differentiable steps end the search."""
        return 1 if self.n == 1 else 2

    def start(self) -> float:
        """`σ` on the left."""
        return -float(self.n)

    def probabilities(self, y: Array) -> Array:
        """`(y₊ / n)^n`."""
        zero, share = own(y, 0.0, 1 / self.n)
        # With a 0 added: XLA:CPU sums what ends as a product as a dot product, with fewer digits. The 0
        # first: of a NaN and a number its sum takes the second.
        return (jnp.maximum(zero, y) * share) ** self.n + zero

    def log_probabilities(self, y: Array) -> Array:
        """`n log (y₊ / n)`."""
        inside = y > 0
        return jnp.where(inside, self.n * jnp.log(jnp.where(inside, y, 1) / self.n), -jnp.inf)

    def above(self, y: Array) -> Array:
        """`y` itself."""
        return y

    def deformed(self, y: Array) -> Array:
        """`y − n`."""
        return y - self.n

    def slopes(self, y: Array) -> Array:
        """`(y₊ / n)^(n − 1)`, for n = 1 the support."""
        zero, one, steep, share = own(y, 0.0, 1.0, 1e30, 1 / self.n)
        if self.n == 1:
            # Plain arithmetic: XLA:CPU would store a comparison before it sums it.
            return jnp.minimum(one, jnp.maximum(zero, y * steep))
        return (jnp.maximum(zero, y) * share) ** (self.n - 1)

    def step(self, excess: Array, slope: Array) -> Array:
        """Newton's step for a sum of `s = 1 + excess`: `n (s^(1/n) − 1) s^(1 − 1/n) / slope`."""
        if self.n == 1:
            return excess / slope
        root = jnp.sqrt(1 + excess) if self.n == 2 else (1 + excess) ** (1 / self.n)
        # `s^(1/n) − 1` without cancellation.
        beyond = excess / sum((root**j for j in range(1, self.n)), jnp.ones_like(root))
        return self.n * beyond * ((1 + excess) / root) / slope

    def done(self, excess: Array, slope: Array, before: Array) -> Array:
        """For n = 1 a step is exact that leaves the support as it is; for others it squares the error.

        `before`: the slope ahead of the last step.
        """
        if self.n == 1:
            return ((excess >= 0) & (excess <= _exact(excess.dtype))) | (slope == before)
        return excess <= _near(excess.dtype)


@dataclasses.dataclass(frozen=True)
class Traced:
    """Any `a = α − 1` up to 1 `[*batch, 1]`, in logarithms.

    Near α = 1 all of `u` is near 1: there `σ` counts from that, `u = 1 + a (g − σ)`, and at a = 0 this
    is the softmax with `σ` its log-normalizer.
    """

    a: Array

    @property
    def steps(self) -> int:
        """How many differentiable steps end the search."""
        return 2

    def _near_one(self) -> Array:
        return self.a < 0.25

    def start(self) -> Array:
        """`σ` on the left."""
        near = self._near_one()
        return jnp.where(near, 0, -1 / jnp.where(near, 1, self.a))[..., 0]

    def log_probabilities(self, y: Array) -> Array:
        """`log u / a`, −inf below the threshold."""
        near = self._near_one()
        w = self.a * jnp.where(y == -jnp.inf, 0, y)
        inside = (y > -jnp.inf) & jnp.where(near, w > -1, w > 0)
        low, high = jnp.where(near & inside, w, 0), jnp.where(near | ~inside, 1, w)
        tiny = jnp.abs(low) < 1e-3
        series = 1 - low * (1 / 2 - low * (1 / 3 - low / 4))
        ratio = jnp.where(tiny, series, jnp.log1p(low) / jnp.where(tiny, 1, low))
        a = jnp.where(near, 1, self.a)
        found = jnp.where(near, jnp.where(inside, y, 0) * ratio, jnp.log(high) / a)
        return jnp.where(inside, found, -jnp.inf)

    def probabilities(self, y: Array) -> Array:
        """`u₊^(1/a)`."""
        return jnp.exp(self.log_probabilities(y))

    def slopes(self, y: Array) -> Array:
        """`p^(1 − a)` on the support."""
        log_p = self.log_probabilities(y)
        inside = log_p > -jnp.inf
        return jnp.where(inside, jnp.exp((1 - self.a) * jnp.where(inside, log_p, 0)), 0)

    def above(self, y: Array) -> Array:
        """`u / a`, infinite for the softmax."""
        far = jnp.where(self.a > 0, y + 1 / jnp.where(self.a > 0, self.a, 1), jnp.inf)
        return jnp.where(y == -jnp.inf, y, jnp.where(self._near_one(), far, y))

    def deformed(self, y: Array) -> Array:
        """`(u − 1) / a`."""
        near = self._near_one()
        return jnp.where(near, y, y - 1 / jnp.where(near, 1, self.a))

    def step(self, excess: Array, slope: Array) -> Array:
        """For `s = 1 + excess`, `(s^a − 1)/a · s^(1 − a) / slope`; at a = 0 `log s`."""
        a, log_s = self.a[..., 0], jnp.log1p(excess)
        w = a * log_s
        tiny = jnp.abs(w) < 1e-3
        ratio = jnp.where(tiny, 1 + w / 2 + w * w / 6, jnp.expm1(w) / jnp.where(tiny, 1, w))
        return log_s * ratio * jnp.exp((1 - a) * log_s) / slope

    def done(self, excess: Array, slope: Array, before: Array) -> Array:
        """At α = 2 as `Whole(1)`, near it by the same measure."""
        a = self.a[..., 0]
        near = excess <= jnp.where(a > 0.75, _exact(excess.dtype), _near(excess.dtype))
        return jnp.where(a == 1, Whole(1).done(excess, slope, before), near)


register(Whole)
register(Traced)

# What the solver knows of α; both take `y = g − σ`.
Family = Whole | Traced


class Levels(NamedTuple):
    """The numbers of each row, `[*batch]`, that its probabilities are made of."""

    # To subtract from the gaps one after the other, not their sum: where many small probabilities stand
    # beside a large one, the sum of those shows more digits than `σ` has.
    steps: tuple[Array, ...]
    # What to divide the probabilities by: their sum, or 1 where that is exact. NaN for a row of none.
    total: Array
    # Those of rows with α > 2, where there may be some, as `steep_levels` returns them.
    steep: tuple[Array, Array, Array, Array] | None = None

    def refused(self, factor: Array) -> "Levels":
        """NaN for the rows of which the factor is, else the same: it is 1 there."""
        steep = None if self.steep is None else (*self.steep[:3], self.steep[3] * factor)
        return self._replace(total=self.total * factor, steep=steep)


def levels(
    family: Family,
    gaps: Array,
    zero: Array,
    fold: bool,
    dominated: bool,
    bound: Array | None = None,
) -> Levels:
    """Where the probabilities of rows of gaps `[*batch, classes]` begin.

    A row with a NaN, or without a class, is NaN.

    Args:
        family: What is known of α.
        gaps: Of each class to the largest score, in units of the temperature.
        zero: 0 for each row, laid out over devices as they are.
        fold: Whether the class axis may be folded: not where a mesh axis shards it.
        dominated: Whether the digits of the small probabilities beside a large one are wanted, for an
            α that is known: a loss is made of those.
        bound: For each row a `σ` that is not too high, if one is known.
    """
    held, g = jax.lax.stop_gradient((family, gaps))
    sigma = zero + jnp.asarray(held.start(), g.dtype) if bound is None else bound
    columns = _COLUMNS[fold and g.shape[-1] >= _SHORT]
    if bound is None and fold and g.shape[-1] >= _FOLDS * columns:
        sigma = _bound(held, _column_maxima(g, columns), sigma, lambda excess, *_: excess < 0.01)
    sigma, step = _last_step(family, gaps, sigma)
    careful = family.n if dominated and isinstance(family, Whole) else 0
    more = family.steps - (careful == 0)
    steps = [sigma + step] if more and isinstance(family, Whole) else [sigma, step]
    for _ in range(more):
        excess, slope = _sums(family, *behind((gaps, *steps)))
        if careful:
            excess = _excess(careful, _above(gaps, *steps), excess)
        steps.append(family.step(excess, slope))
    if isinstance(family, Whole) and family.n == 1:
        # A step that is exact once the support is leaves nothing to divide by.
        return Levels(tuple(steps), jnp.ones_like(zero))
    # Made again where they are used, rather than stored.
    total = jnp.sum(family.probabilities(_above(*behind((gaps, *steps)))), axis=-1)
    if isinstance(family, Whole):
        return Levels(tuple(steps), total)
    steeper = family.a > 1
    steep = jax.lax.cond(
        jnp.any(steeper),
        lambda: steep_levels(jnp.where(steeper, family.a, 1), gaps, zero),
        lambda: (zero, zero, zero, zero + 1),
    )
    whole = ~jnp.any(jnp.isnan(gaps), axis=-1)
    return Levels(tuple(steps), total, steep).refused(nan_unless(whole, gaps.dtype))


def lower_bound(family: Whole, gaps: Array) -> Array:
    """The threshold of some classes, `[*batch]`: that of more classes is not below it."""
    start = jnp.full_like(gaps[..., 0], family.start())
    return _bound(family, gaps, start, family.done)


def distribution(family: Family, gaps: Array, found: Levels) -> tuple[Array, Array]:
    """The probabilities of rows of gaps, and how far each gap is above `σ`."""
    y = _above(gaps, *found.steps)
    p = family.probabilities(y) / row(found.total)
    if isinstance(family, Whole) or found.steep is None:
        return p, y
    steeper, steep = family.a > 1, found.steep
    made = jax.lax.cond(
        jnp.any(steeper),
        lambda: steep_distribution(jnp.where(steeper, family.a, 1), gaps, steep),
        lambda: (p, y),
    )
    return jax.tree.map(functools.partial(jnp.where, steeper), made, (p, y))


def _above(gaps: Array, *levels: Array) -> Array:
    """The gaps, less each of some numbers per row in turn."""
    return functools.reduce(lambda y, level: y - row(level), levels, gaps)


def _sums(family: Family, *y: Array) -> tuple[Array, Array]:
    """The sum of the probabilities less 1, and that of the slopes, at `_above(*y)`."""
    # Two readers of the same numbers, kept apart: XLA:CPU would store what they share.
    p, slopes = family.probabilities(_above(*y)), family.slopes(_above(*behind(y)))
    return jnp.sum(p, axis=-1) - 1, jnp.sum(slopes, axis=-1)


def _excess(n: int, y: Array, plain: Array) -> Array:
    """The sum of the probabilities less 1: where one has most of it, without cancellation."""
    family = Whole(n)
    top = jax.lax.stop_gradient(jnp.max(y, axis=-1, keepdims=True, initial=-jnp.inf))
    lead = jax.lax.stop_gradient(y) >= top
    most = jnp.sum(jnp.where(lead, y, 0), axis=-1)
    others = jnp.sum(jnp.where(lead, 0, family.probabilities(y)), axis=-1)
    # Below 2/3 the maximum may be one of several.
    large = family.probabilities(top[..., 0]) > 2 / 3
    lacks = jnp.expm1(n * jnp.log1p(jnp.where(large, most - n, 0) / n))
    return jnp.where(large, others + lacks, plain)


def _last_step(family: Family, gaps: Array, sigma: Array) -> tuple[Array, Array]:
    """A constant `σ` left of the threshold, and Newton's step from there: the search's own last one."""
    held = jax.lax.stop_gradient((family, gaps))
    sigma, step = _search(*held, sigma, family.done)
    return sigma, with_derivatives_of(lambda: family.step(*_sums(family, gaps, sigma)), step)


def _bound(family: Family, g: Array, sigma: Array, done: Callable[..., Array]) -> Array:
    """A threshold of rows that is too high by no more than rounding."""
    sigma, step = _search(family, g, sigma, done)
    return jnp.maximum(sigma, sigma + step)


def _search(family: Family, g: Array, sigma: Array, done: Callable[..., Array]) -> tuple[Array, Array]:
    """Newton's steps from the left, until all rows are done or cannot move; the last is not taken.

    Where rounding carries a row over its threshold, it goes back float by float, and stays there.
    """

    def going(carry: Any) -> Array:
        return jnp.any(carry[0])

    def step(carry: Any) -> Any:
        active, back, sigma, _, before = carry
        excess, slope = _sums(family, g, sigma)
        further = family.step(excess, slope)
        over = excess < 0
        moves = active & ~done(excess, slope, before)
        moves &= over | ((sigma + further > sigma) & ~back)
        # Less three quarters of the last digit: the float on the left.
        there = sigma + jnp.where(over, 0.75 * float(jnp.finfo(sigma.dtype).eps) * sigma, further)
        return moves, over, jnp.where(moves, there, sigma), further, slope

    zero = jnp.zeros_like(sigma)
    start = zero == 0, zero != 0, sigma, zero, zero
    return repeated(going, step, start, _MAX_STEPS)[2:4]


def _column_maxima(g: Array, columns: int) -> Array:
    """The maxima of the columns of rows folded to that width: some classes, the largest among them."""
    # A width that divides the row, if there is one, saves a copy.
    classes = g.shape[-1]
    columns = next((c for c in range(columns, columns // 2, -1) if classes % c == 0), columns)
    folds, left = divmod(classes, columns)
    whole = g[..., : folds * columns]
    top = jnp.max(whole.reshape(*g.shape[:-1], folds, columns), axis=-2)
    if left == 0:
        return top
    return jnp.concatenate(
        [jnp.maximum(top[..., :left], g[..., folds * columns :]), top[..., left:]], -1
    )
