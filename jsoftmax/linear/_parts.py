"""The numbers of rows of which only some classes are seen at a time, and their union.

`statistics.reduce` has all classes of a row before it. A walk over blocks has some, and so has a
device that holds a shard: their numbers are relative to the largest score among them. In the union
the smaller side is scaled down to the larger one's maximum, whose own 1 is never added to the rest and
taken away again. What each addition rounds away is summed beside the sums, in "low": over thousands of
blocks it would come to hundreds of units in the last place. So no digit is lost.

Imports `statistics`, `_labels`, `_walks`, `_numerics`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jsoftmax._labels import are_indices, at_label, first_largest
from jsoftmax._numerics import (
    exponentials,
    gap_at,
    nan_unless,
    row,
    scaled,
    shift,
    two_sum,
    unit,
    warmed,
)
from jsoftmax._typing import Array
from jsoftmax._walks import defined, maximum, rest_of, total
from jsoftmax.statistics import Reduction, allowed_weights, cost_sum

# Arrays `[*batch]`, but for "low".
Part = dict[str, Any]

# What is relative to the maximum is the cost of shares, which move with it.
_SHARES = {"nll": "mass", "uniform": "weight", "mean": "count"}
_TOTALS = ("label", "mass", "weight", "count")
_FIRSTS = {"first": "maximum", "truth": "most"}


def part_of(
    reduction: Reduction,
    v: Array,
    labels: Array,
    where: Array | None,
    temperature: Array | None,
    weights: Array | None,
) -> Part:
    """The numbers of some classes, relative to the largest among them.

    A cost is `Σ share · (−g)` of the gaps `g`, beside it the sum of the shares: of soft labels in
    "nll" and "mass", of class weights in "uniform" and "weight", of the classes in "mean" and "count".
    """
    wanted, m = reduction.statistics, maximum(v)
    dead = m == -jnp.inf
    c = shift(m, v.shape[-1], temperature)
    rest, m = rest_of(lambda: v, m, c, temperature, dead)
    made = {"maximum": m, "rest": rest}

    def cost(share: Array, t: Array | None = temperature) -> Array:
        return cost_sum(v, m, rest, t, 0.0, lambda: share)

    if are_indices(labels):
        made["label"] = at_label(v, labels)
    else:
        made |= {"nll": cost(labels), "mass": total(labels)}
    if "uniform" in wanted:
        w = allowed_weights(v, where, weights)
        made |= {"uniform": cost(w), "weight": total(w)}
    if wanted & {"uniform", "mean"}:
        made["count"] = total(allowed_weights(v, where, None))
    if "mean" in wanted:
        warm = None if temperature is None else warmed(temperature)
        made["mean"] = cost(allowed_weights(v, where, None), warm)
    if "entropy" in wanted:
        made["entropy"] = cost(exponentials(v, c, temperature)) / unit(m, c, temperature)
    if "correct" in wanted:
        made["first"] = first_largest(v, None)
        if not are_indices(labels):
            made |= {"most": maximum(labels), "truth": first_largest(labels, None)}
    sums = [name for name in ("rest", "entropy", *_SHARES, *_TOTALS) if name in made]
    return made | {"low": {name: jnp.zeros_like(made[name]) for name in sums}}


def _relative(part: Part, m: Array, t: Array | None) -> Part:
    """The sums of a part, relative to a larger maximum; as "rest" those of all its exponentials."""
    d = gap_at(part["maximum"], m, t)
    of_mean = d if t is None else gap_at(part["maximum"], m, warmed(t))
    e, s = jnp.exp(d), 1 + part["rest"]
    made = {name: part[name] for name in _TOTALS if name in part} | {"rest": e * s}
    for cost, share in _SHARES.items():
        if cost in part:
            made[cost] = part[cost] + scaled(part[share], -(of_mean if cost == "mean" else d))
    if "entropy" in part:
        made["entropy"] = scaled(e, part["entropy"] + scaled(s, -d))
    scale = {"rest": e, "entropy": e}
    low = {name: scaled(scale[name], x) if name in scale else x for name, x in part["low"].items()}
    return made | {"low": jax.lax.stop_gradient(low)}


def nothing(like: Part) -> Part:
    """The numbers of no class, of the types of others."""
    none = jax.tree.map(jnp.zeros_like, like)
    tops = {name: jnp.full_like(none[name], -jnp.inf) for name in _FIRSTS.values() if name in none}
    return none | tops


def moved(part: Part, start: Array) -> Part:
    """The numbers of classes that are counted from `start`."""
    return part | {name: part[name] + start for name in _FIRSTS if name in part}


def union(a: Part, b: Part, t: Array | None) -> Part:
    """The numbers of the classes of both; `a`'s come first."""
    m = jnp.maximum(a["maximum"], b["maximum"])
    left, right = _relative(a, m, t), _relative(b, m, t)
    # The maximum's own 1 is nowhere added, so that it need not be taken away.
    leads = a["maximum"] == m
    left["rest"] = jnp.where(leads, a["rest"], left["rest"])
    right["rest"] = jnp.where(leads, right["rest"], b["rest"])
    made: Part = {"low": {}}
    for name in a["low"]:
        made[name], lost = two_sum(left[name], right[name])
        made["low"][name] = left["low"][name] + right["low"][name] + lost
    for first, by in _FIRSTS.items():
        if first in a:
            made[first] = jnp.where(b[by] > a[by], b[first], a[first])
            made[by] = jnp.maximum(a[by], b[by])
    return made | {"maximum": m}


def union_of_shards(part: Part, t: Array | None, classes: int, axis_name: str) -> Part:
    """The same of all shards of the classes."""
    shard, last = jax.lax.axis_index(axis_name), jnp.iinfo(jnp.int32).max
    m = jax.lax.pmax(part["maximum"], axis_name)
    leader = jax.lax.pmin(jnp.where(part["maximum"] == m, shard, last), axis_name)
    made = _relative(part, m, t)
    made["rest"] = jnp.where(leader == shard, part["rest"], made["rest"])
    made = jax.lax.psum(made, axis_name)
    for first, by in _FIRSTS.items():
        if first in part:
            top = part[by] == jax.lax.pmax(part[by], axis_name)
            ids = jnp.where(top, part[first] + shard * classes, last)
            made[first] = jax.lax.pmin(ids, axis_name)
    return made | {"maximum": m}


def finished(part: Part, labels: Array, empty: Array, t: Array | None, classes: int) -> Part:
    """What `statistics.reduce` returns, and the totals that a block's gradient asks for."""
    part = part | {name: part[name] + low for name, low in part["low"].items()}
    m = part["maximum"]
    s = defined(jnp.where(empty, 1, 1 + part["rest"]), m, empty)
    lost = jnp.isnan(s) | ((m == -jnp.inf) & ~empty)
    rest = jnp.where(empty, 0, part["rest"])
    log_sum = jnp.log1p(rest)
    temperature = None if t is None else row(t)
    m = jnp.where(lost, jnp.nan, m)
    made = {"rest": rest}
    if are_indices(labels):
        made["nll"] = jnp.where(empty, 0, log_sum - gap_at(part["label"], m, t))
    else:
        made["nll"] = jnp.where(empty, 0, part["nll"] + scaled(part["mass"], log_sum))
        made["mass"] = part["mass"]
    if "uniform" in part:
        made["uniform"] = part["uniform"] + scaled(part["weight"], log_sum)
        made["weight"] = part["weight"]
    if "count" in part:
        made["count"] = jnp.maximum(part["count"], 1)
    if "mean" in part:
        made["mean"] = -part["mean"] / made["count"]
    if "entropy" in part:
        made["entropy"] = log_sum + part["entropy"] / (1 + rest)
    if "first" in part:
        truth = labels if are_indices(labels) else part["truth"]
        made["correct"] = ((part["first"] == truth) & ~empty).astype(rest.dtype)
    whole = nan_unless(~lost, rest.dtype)
    made = {name: x * whole for name, x in made.items()}
    return made | {"maximum": m, "shift": shift(m, classes, temperature)[..., 0]}
