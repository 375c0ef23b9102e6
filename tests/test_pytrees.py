"""Transforms in models: whatever JAX, optax or a checkpoint puts in the place of their numbers."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import jsoftmax
from jsoftmax import LogitAdjustment, LogitTransform, Margin, Softcap, Temperature, chain, hierarchical


@dataclasses.dataclass(frozen=True)
class Shift(LogitTransform):
    """A user's own, which checks what it is given."""

    by: Any

    def __post_init__(self) -> None:
        if isinstance(self.by, bool) or np.shape(self.by) != ():
            raise ValueError("by must be a scalar")

    def __call__(self, logits: jax.Array, target: jax.Array | None = None) -> jax.Array:
        return logits + self.by


LOGITS, LABELS = jnp.array([[1.0, 0.0, -1.0], [0.5, 0.2, 0.0]]), jnp.array([0, 2])
TRANSFORMS: dict[str, Any] = {
    "Temperature": Temperature(2.0),
    "Softcap": Softcap(jnp.asarray(3.0)),
    "LogitAdjustment": LogitAdjustment(jnp.zeros(3), 0.5),
    "Margin": Margin(0.1, kind="angular"),
    "Shift": Shift(1.0),
    "chain": chain(Softcap(3.0), chain(Temperature(jnp.array([1.0, 2.0]))), Shift(0.5)),
}
OTHERS: dict[str, Any] = {
    "false": False,
    "zero": 0,
    "negative": -1.0,
    "text": "decay",
    "object": object(),
    "array": np.ones((7, 7)),
    "shape": jax.ShapeDtypeStruct((), jnp.float32),
    "nothing": None,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_any_leaf_may_stand_in_a_transform(name: str, other: str):
    model = {"transform": TRANSFORMS[name], "kernel": jnp.zeros(3)}
    leaf = OTHERS[other]
    replaced = jax.tree.map(lambda _: leaf, model)
    assert type(replaced["transform"]) is type(model["transform"])
    if leaf is not None:
        assert all(x is leaf for x in jax.tree.leaves(replaced, is_leaf=lambda x: x is leaf))
        assert jax.tree.structure(replaced) == jax.tree.structure(model)


@pytest.mark.parametrize(
    "other",
    [
        hierarchical.huffman_tree([4, 2, 1]),
        hierarchical.unigram_proposal([4, 2, 1]),
        hierarchical.adaptive_init(jax.random.key(0), 4, 9, (3,)),
        hierarchical.draw_negatives(jax.random.key(0), hierarchical.Uniform(5), 2),
        jsoftmax.row_stats(LOGITS, LABELS),
    ],
    ids=lambda x: type(x).__name__,
)
def test_any_leaf_may_stand_in_the_other_pytrees(other: Any):
    for leaf in OTHERS.values():
        replaced = jax.tree.map(lambda _, leaf=leaf: leaf, other)
        assert type(replaced) is type(other)
        repr(replaced)


@pytest.mark.parametrize("leaf", ["false", "text", "object", "nothing"])
@pytest.mark.parametrize("name", ["Temperature", "Softcap", "LogitAdjustment", "Margin"])
def test_what_is_no_number_is_refused_where_it_is_used(name: str, leaf: str):
    broken = jax.tree.map(lambda _: OTHERS[leaf], TRANSFORMS[name])
    for use in (
        lambda: broken(LOGITS, jax.nn.one_hot(LABELS, 3)),
        lambda: jsoftmax.cross_entropy(LOGITS, LABELS, transform=broken),
        lambda: jsoftmax.row_stats(LOGITS, LABELS, transform=chain(broken)),
        lambda: jsoftmax.linear_cross_entropy(LOGITS, jnp.eye(3), LABELS, transform=broken),
    ):
        with pytest.raises(
            TypeError, match=rf"^{name}: \w+ must be a (real )?number( or an array)?, got"
        ):
            use()


def test_a_number_out_of_range_is_refused_where_it_is_used():
    broken = jax.tree.map(lambda _: -1.0, Temperature(2.0))
    with pytest.raises(ValueError, match=r"^Temperature: value must be at least 0, got -1.0"):
        broken(LOGITS)
    with pytest.raises(ValueError, match=r"^Temperature: value must be at least 0, got -1.0"):
        jsoftmax.cross_entropy(LOGITS, LABELS, transform=broken)


def test_a_leaf_of_a_users_transform_must_be_a_number_where_it_is_used():
    broken = jax.tree.map(lambda _: object(), Shift(1.0))
    with pytest.raises(TypeError, match=r"^Shift: every leaf must be a number or an array"):
        jsoftmax.cross_entropy(LOGITS, LABELS, transform=broken)


def test_transforms_compare_without_asking_arrays():
    ones = jnp.ones(3)
    assert Temperature(2.0) == Temperature(2.0)
    assert Temperature(2.0) != Temperature(3.0)
    assert Temperature(2.0) != Softcap(2.0)
    assert Margin(0.1) != Margin(0.1, kind="angular")
    assert Temperature(ones) == Temperature(ones)
    assert Temperature(ones) != Temperature(jnp.ones(3))
    assert chain(Temperature(ones)) == chain(Temperature(ones))
    assert LogitAdjustment(np.zeros(3)) != LogitAdjustment(np.zeros(3))
    assert Shift(ones[0]) != Shift(ones[1])
    assert hash(Temperature(2.0)) == hash(Temperature(2.0))
    assert len({Temperature(ones), Temperature(ones), Temperature(jnp.ones(3))}) == 2


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_copied_and_pickled(name: str):
    transform = TRANSFORMS[name]
    for made in (
        copy.copy(transform),
        copy.deepcopy(transform),
        pickle.loads(pickle.dumps(transform)),
        dataclasses.replace(transform),
    ):
        assert jax.tree.structure(made) == jax.tree.structure(transform)
        jax.tree.map(np.testing.assert_array_equal, made, transform)


def test_leaves_are_named():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(TRANSFORMS["chain"])]
    expected = [".transforms[0].cap", ".transforms[1].transforms[0].value", ".transforms[2].by"]
    assert paths == expected


def loss_of(model: Any) -> jax.Array:
    return jnp.mean(jsoftmax.cross_entropy(LOGITS @ model["w"], LABELS, transform=model["transform"]))


def start() -> Any:
    return {
        "w": jnp.eye(3),
        "transform": chain(Softcap(jnp.asarray(4.0)), Temperature(jnp.asarray(2.0))),
    }


def test_an_optimizer_is_masked_by_a_tree_like_the_model():
    model = start()
    masks = {"w": True, "transform": jax.tree.map(lambda _: False, model["transform"])}
    labels = {"w": "fast", "transform": jax.tree.map(lambda _: "still", model["transform"])}
    optimizers = (
        optax.chain(
            optax.masked(optax.sgd(0.1), masks),
            optax.masked(optax.set_to_zero(), jax.tree.map(lambda x: not x, masks)),
        ),
        optax.masked(
            optax.masked(optax.sgd(0.1, momentum=0.9), masks), jax.tree.map(lambda _: True, model)
        ),
        optax.multi_transform({"fast": optax.sgd(0.1), "still": optax.set_to_zero()}, labels),
    )
    for optimizer in optimizers:
        updates, _ = optimizer.update(jax.grad(loss_of)(model), optimizer.init(model), model)
        moved = optax.apply_updates(model, updates)
        assert jax.tree.structure(moved) == jax.tree.structure(model)
    moved_by: Any = optimizers[2].update(jax.grad(loss_of)(model), optimizers[2].init(model), model)[0]
    assert all(x == 0 for x in jax.tree.leaves(moved_by["transform"]))


def test_a_checkpoint_holds_a_model_with_transforms(tmp_path: Path):
    model = start()
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", model)
        checkpointer.wait_until_finished()
        like = jax.tree.map(jnp.zeros_like, model)
        restored = checkpointer.restore(tmp_path / "model", like)
    assert jax.tree.structure(restored) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, restored, model)


def test_transforms_are_mapped_over():
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), start())
    losses = jax.vmap(loss_of)(many)
    axes = jax.tree.map(lambda _: 0, many)
    np.testing.assert_array_equal(jax.vmap(loss_of, in_axes=(axes,))(many), losses)
