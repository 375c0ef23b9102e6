"""Every search ends, whatever the bits of the floats, and a NaN is one whatever its sign."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses, sampling
from jsoftmax._numerics import repeated
from tests.truth import x64

pytestmark = pytest.mark.thin(4)

KEY = jax.random.key(0)
DTYPES = ["float32", "bfloat16", "float16"]


def numbers(dtype: Any) -> np.ndarray:
    """A float of each kind, without NaN: both signs of 0, subnormal, 1, the largest, infinite."""
    info = jnp.finfo(dtype)
    kinds = [0.0, float(info.smallest_subnormal), float(info.tiny), 1.0, float(info.max), np.inf]
    return np.array([sign * x for x in kinds for sign in (1, -1)]).astype(dtype)


def nans(dtype: Any) -> np.ndarray:
    """NaN of either sign, the quiet one and those of the first and the last bits."""
    bits = 8 * jnp.dtype(dtype).itemsize
    unsigned = np.dtype(f"uint{bits}")
    sign, infinite = 1 << (bits - 1), int(np.array(np.inf, dtype).view(unsigned))
    quiet = int(np.array(np.nan, dtype).view(unsigned)) & (sign - 1)
    found = [flag | pattern for flag in (0, sign) for pattern in (quiet, infinite + 1, sign - 1)]
    return np.array(found, unsigned).view(dtype)


def rows(dtype: Any, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of every kind of number beside every other, which of them hold a NaN, and in 64 bits.

    There 0 stands for a NaN, since NumPy warns of one that signals.
    """

    def paired(kinds: np.ndarray) -> np.ndarray:
        made = np.zeros((len(kinds) ** 2, classes), kinds.dtype)
        made[:, 0], made[:, -1] = np.repeat(kinds, len(kinds)), np.tile(kinds, len(kinds))
        return made

    known, unknown = numbers(dtype), nans(dtype)
    is_nan = np.arange(len(known) + len(unknown)) >= len(known)
    values = np.concatenate([known.astype(np.float64), np.zeros(len(unknown))])
    return paired(np.concatenate([known, unknown])), np.any(paired(is_nan), 1), paired(values)


SAMPLERS: dict[str, Callable[[Any], jax.Array]] = {
    "top_k": lambda z: sampling.sample(KEY, z, top_k=2),
    "top_p": lambda z: sampling.sample(KEY, z, top_p=0.5),
    "all": lambda z: sampling.sample(KEY, z, top_k=2, top_p=0.9, min_p=0.1, temperature=0.5),
    "min_p": lambda z: sampling.sample(KEY, z, min_p=0.1),
    "categorical": lambda z: sampling.categorical(KEY, z),
    "gumbel_top_k": lambda z: sampling.gumbel_top_k(KEY, z, 2).max(axis=-1),
}


# In one block of classes, and in several.
@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_gives_none_for_any_nan(name: str, dtype: str, classes: int):
    z, spoiled, wide = rows(jnp.dtype(dtype), classes)
    ids = np.asarray(SAMPLERS[name](jnp.asarray(z)))
    assert (ids[spoiled] == -1).all()
    # Of numbers, only two infinities have no distribution.
    defined = ~spoiled & (np.sum(wide == np.inf, axis=1) < 2)
    assert (ids[defined] >= 0).all()
    at = np.take_along_axis(wide, np.maximum(ids, 0)[:, None], axis=1)[:, 0]
    assert (at[defined] > -np.inf).all()
    certain = defined & (wide == np.inf).any(axis=1)
    assert (at[certain] == np.inf).all()


def test_the_largest_class_is_kept_whatever_the_bits():
    z, spoiled, wide = rows(jnp.dtype("float32"), 4)
    draws = jax.vmap(lambda key: sampling.sample(key, z, top_k=1))(jax.random.split(KEY, 20))
    # XLA takes a subnormal number for 0.
    wide = np.where(np.abs(wide) < float(jnp.finfo("float32").tiny), 0, wide)
    kept = np.take_along_axis(wide, np.maximum(draws, 0).T, axis=1) == wide.max(axis=1)[:, None]
    defined = ~spoiled & (np.sum(wide == np.inf, axis=1) < 2)
    assert kept[defined].all()


MAPS: dict[str, Callable[[Any], jax.Array]] = {
    "softmax": jsoftmax.softmax,
    "log_softmax": jsoftmax.log_softmax,
    "logsumexp": lambda z: jsoftmax.logsumexp(z, keepdims=True),
    "sparsemax": jsoftmax.sparsemax,
    "entmax": jsoftmax.entmax,
    "entmax traced": lambda z: jsoftmax.entmax(z, jnp.float32(1.3)),
    "entmax steep": lambda z: jsoftmax.entmax(z, jnp.float32(3.0)),
    "bi-tempered": lambda z: losses.bi_tempered_logistic_loss(
        z, jnp.zeros(len(z), jnp.int32), 0.8, 1.2
    )[:, None],
    "straight_through": lambda z: sampling.straight_through(KEY, z),
    "reinmax": lambda z: sampling.reinmax(KEY, z),
    "rao_blackwell": lambda z: sampling.rao_blackwell_gumbel_softmax(KEY, z, num_samples=2),
    "gumbel_softmax": lambda z: sampling.gumbel_softmax(KEY, z, hard=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_a_map_gives_nan_for_any_nan(name: str, dtype: str):
    z, spoiled, wide = rows(jnp.dtype(dtype), 4)
    out = np.asarray(MAPS[name](jnp.asarray(z)))
    assert np.isnan(out[spoiled]).all()
    infinite = np.sum(wide == np.inf, axis=1)
    assert not np.isnan(out[~spoiled & (infinite < 2)]).any()


@pytest.mark.parametrize("name", ["sparsemax", "entmax"])
def test_a_map_of_a_long_row_gives_nan_for_any_nan(name: str):
    z, spoiled, _ = rows(jnp.dtype("float32"), 5000)
    out = np.asarray(MAPS[name](jnp.asarray(z)))
    assert np.isnan(out[spoiled]).all()


def test_in_64_bits():
    z, spoiled, _ = rows(jnp.dtype("float64"), 4)
    with x64():
        for name in ("all", "top_k"):
            assert ((np.asarray(SAMPLERS[name](jnp.asarray(z))) == -1)[spoiled]).all()
        for name in ("sparsemax", "entmax traced"):
            assert np.isnan(np.asarray(MAPS[name](jnp.asarray(z)))[spoiled]).all()


def loops(jaxpr: Any) -> Iterator[Any]:
    """Every loop with a condition in a program, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from loops(getattr(inner, "jaxpr", inner))


def is_program(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


TREE = hierarchical.balanced_tree(300)
SEARCHES: dict[str, Callable[[Any], Any]] = {
    **{name: run for name, run in SAMPLERS.items() if name in ("top_k", "top_p", "all")},
    **{name: run for name, run in MAPS.items() if "max" in name and "soft" not in name},
    "tree": lambda z: hierarchical.top_k(z, jnp.ones((TREE.num_rows, 4)), TREE, 2, beam=2, exact=True),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_counts_its_steps(name: str):
    found = list(loops(jax.make_jaxpr(SEARCHES[name])(jnp.zeros((3, 4))).jaxpr))
    assert found or name == "reinmax"
    for loop in found:
        counted = [e for e in loop.params["cond_jaxpr"].jaxpr.eqns if e.primitive.name == "lt"]
        assert any(np.issubdtype(e.invars[0].aval.dtype, np.integer) for e in counted)


def test_a_loop_without_an_end_ends():
    assert repeated(lambda x: x == x, lambda x: x + 1, jnp.zeros(()), 7) == 7
    assert repeated(lambda x: x < 3, lambda x: x + 1, jnp.zeros(()), 7) == 3
