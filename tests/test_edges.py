"""Options that NumPy holds, axes that are none, and rows without a class."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import hierarchical, losses, sampling

KEY = jax.random.key(0)
Z, Y = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
H, K = np.zeros((2, 4), np.float32), np.zeros((4, 3), np.float32)
TREE = hierarchical.balanced_tree(4)

RANGES: dict[str, tuple[Callable[[Any], Any], float]] = {
    "temperature": (lambda x: jsoftmax.cross_entropy(Z, Y, temperature=x), -1.0),
    "temperature of a map": (lambda x: jsoftmax.softmax(Z, temperature=x), -1.0),
    "temperature of a head": (lambda x: jsoftmax.linear_cross_entropy(H, K, Y, temperature=x), -1.0),
    "label_smoothing": (lambda x: jsoftmax.cross_entropy(Z, Y, label_smoothing=x), 2.0),
    "softcap": (lambda x: jsoftmax.cross_entropy(Z, Y, softcap=x), 0.0),
    "alpha": (lambda x: jsoftmax.entmax(Z, x), 0.5),
    "alpha of labels": (lambda x: losses.smooth_labels(Z, x), 2.0),
    "gamma": (lambda x: losses.softmax_focal_loss(Z, Y, gamma=x), -1.0),
    "gamma of a sigmoid": (lambda x: losses.sigmoid_focal_loss(Z, Z, gamma=x), -1.0),
    "q": (lambda x: losses.generalized_cross_entropy(Z, Y, q=x), 2.0),
    "t1": (lambda x: losses.bi_tempered_logistic_loss(Z, Y, x, 1.0), 2.0),
    "t2": (lambda x: losses.bi_tempered_logistic_loss(Z, Y, 0.5, x), 0.0),
    "top_p": (lambda x: sampling.sample(KEY, Z, top_p=x), 2.0),
    "top_k": (lambda x: sampling.sample(KEY, Z, top_k=x), 0),
    "decay": (lambda x: hierarchical.smooth_over_tree(Y, TREE, 0.1, decay=x), -1.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_of_numpy_is_checked_as_pythons(name: str):
    run, value = RANGES[name]
    for given in (value, np.array(value), np.asarray(value)[()]):
        with pytest.raises(ValueError, match=f"{name.split(maxsplit=1)[0]} must be"):
            run(given)


def test_a_neutral_number_of_numpy_changes_nothing():
    text = [
        str(jax.make_jaxpr(lambda z, t=t: jsoftmax.cross_entropy(z, Y, temperature=t))(Z))
        for t in (1.0, np.array(1.0), np.float32(1))
    ]
    assert text[0] == text[1] == text[2]


def test_a_sum_over_no_axis():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jsoftmax.logsumexp(x, axis=()), x)
    np.testing.assert_array_equal(jsoftmax.logsumexp(x, axis=(), keepdims=True), x)
    masked = jsoftmax.logsumexp(x, axis=(), where=x > 2)
    np.testing.assert_array_equal(masked, np.where(x > 2, x, -np.inf))
    for axis in ((), None):
        assert jsoftmax.logsumexp(jnp.float32(2.0), axis=axis) == 2
        assert jax.grad(lambda x, axis=axis: jsoftmax.logsumexp(x, axis=axis))(2.0) == 1
    # Of optax's names, as in optax.
    kl = losses.kl_divergence(x, x + 1, axis=())
    np.testing.assert_allclose(kl, (x + 1) * (jnp.log(x + 1) - x), 1e-6)
    np.testing.assert_array_equal(losses.softmax_cross_entropy(x, x, axis=()), np.zeros((2, 3)))


def test_all_axes_of_one_number():
    one, everything = jnp.float32(2.0), cast("Any", None)
    assert jsoftmax.softmax(one, axis=everything) == 1
    assert jsoftmax.log_softmax(one, axis=everything) == 0
    assert jsoftmax.sparsemax(one, axis=everything) == 1


def test_a_map_needs_an_axis():
    text = r"axis must name at least one class axis, got \(\); name those that hold the classes\."
    for function in (jsoftmax.softmax, jsoftmax.log_softmax, jsoftmax.sparsemax, jsoftmax.entmax):
        with pytest.raises(ValueError, match=f"{function.__name__}: {text}"):
            function(Z, axis=())
    with pytest.raises(ValueError, match=f"cross_entropy: {text}"):
        jsoftmax.cross_entropy(Z, Y, axis=())


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,)])
def test_rows_without_a_class(shape: tuple[int, ...]):
    z = jnp.zeros(shape)
    maps: list[Callable[[Any], Any]] = [
        lambda z: sampling.gumbel_softmax(KEY, z, hard=True),
        lambda z: jsoftmax.entmax(z, jnp.float32(1.3)),
        lambda z: jsoftmax.entmax(z, jnp.float32(3)),
        lambda z: losses.fenchel_young_loss(z, z, jnp.float32(1.3)),
        lambda z: losses.bi_tempered_logistic_loss(z, z, 0.8, 1.2),
    ]
    for run in maps:
        out, pull = jax.vjp(run, z)
        assert out.shape in (shape, shape[:-1])
        np.testing.assert_array_equal(out, np.zeros_like(out))
        assert pull(out)[0].shape == shape


def test_statistics_are_equal_by_identity():
    stats = jsoftmax.row_stats(Z, Y)
    assert stats == stats
    assert stats != jsoftmax.row_stats(Z, Y)
    assert len({stats, stats}) == 1


@pytest.mark.parametrize("value", [0.0, jnp.float32(0), jnp.zeros(2)], ids=["python", "traced", "rows"])
def test_a_temperature_of_0_as_a_transform(value: Any):
    z, y = jnp.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]]), jnp.array([0, 0])
    cold = jsoftmax.Temperature(value)
    for transform in (cold, jsoftmax.chain(jsoftmax.Softcap(30.0), cold)):
        loss, pull = jax.vjp(lambda z, t: jsoftmax.cross_entropy(z, y, transform=t), z, transform)
        np.testing.assert_array_equal(loss, [np.inf, 0])
        assert all(np.all(x == 0) for x in jax.tree.leaves(pull(jnp.ones(2))))
        head = jsoftmax.linear_cross_entropy(z, jnp.eye(3), y, transform=transform, reduction="none")
        np.testing.assert_array_equal(head, [np.inf, 0])
        stats = jsoftmax.row_stats(z, y, transform=transform)
        np.testing.assert_array_equal(stats.nll, [np.inf, 0])
