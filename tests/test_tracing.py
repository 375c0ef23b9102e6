"""What changes between steps never retraces, and a second eager call compiles nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax
from jsoftmax import losses
from tests.conformance import CASES, Case

COMPILATION = "/jax/core/compile/backend_compile_duration"
compilations: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _listen() -> None:
    """JAX has no public way to take one listener back: it stays, and records."""
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: compilations.append(event)
    )


@pytest.fixture(autouse=True)
def _forget_trace_counts() -> None:
    chex.clear_trace_counter()


def compiled_by(f: Callable[[], Any]) -> int:
    before = compilations.count(COMPILATION)
    jax.block_until_ready(f())
    return compilations.count(COMPILATION) - before


def test_the_counter_counts():
    fresh = jax.jit(lambda x: x * 2.5 + jnp.sin(x))
    assert compiled_by(lambda: fresh(jnp.ones(3))) > 0
    assert compiled_by(lambda: fresh(jnp.ones(3))) == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_second_eager_call_compiles_nothing(case: Case):
    first, second = (jax.tree.map(jnp.asarray, case.inputs(seed)) for seed in (0, 1))
    case.call(**first)
    assert compiled_by(lambda: case.call(**second)) == 0


def value_and_grad(z: Any, temperature: Any, smoothing: Any) -> Any:
    labels = np.array([0, 2], np.int32)

    def loss(z: Any) -> Any:
        row = jsoftmax.cross_entropy(z, labels, temperature=temperature, label_smoothing=smoothing)
        return jsoftmax.weighted_mean(row)

    return jax.value_and_grad(loss)(z)


def test_second_eager_gradient_compiles_nothing():
    """As in a notebook: no jit around, Python numbers that change from call to call."""
    z, other = jnp.zeros((2, 3)), jnp.ones((2, 3))
    value_and_grad(z, 0.5, 0.1)
    assert compiled_by(lambda: value_and_grad(other, 0.75, 0.2)) == 0
    jax.hessian(lambda z: jsoftmax.logsumexp(z))(z[0])
    assert compiled_by(lambda: jax.hessian(lambda z: jsoftmax.logsumexp(z))(z[0])) == 0


HEAD = (np.ones((4, 3), np.float32), np.eye(3, 5, dtype=np.float32))
HEADS: dict[str, Callable[[Any, Any], Any]] = {
    "linear_cross_entropy": lambda h, k: jsoftmax.linear_cross_entropy(h, k, np.array([0, 1, 2, 4])),
    "per row": lambda h, k: jnp.sum(
        jsoftmax.linear_cross_entropy(h, k, np.array([0, 1, 2, 4]), reduction="none")
    ),
    "linear_row_stats": lambda h, k: jnp.sum(
        jnp.asarray(jsoftmax.linear_row_stats(h, k, np.array([0, 1, 2, 4])).entropy)
    ),
}


@pytest.mark.parametrize("differentiate", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("name", HEADS)
def test_what_replaces_operations_while_a_model_is_traced(
    name: str, differentiate: bool, monkeypatch: pytest.MonkeyPatch
):
    """As quantisers do: seen by a head that was traced before, and gone when it is."""

    def traced() -> Any:
        loss = HEADS[name]
        return jax.jit(lambda h, k: (jax.grad(loss) if differentiate else loss)(h, k))(*HEAD)

    before, dot_general = traced(), jax.lax.dot_general
    with monkeypatch.context() as patched:
        patched.setattr(
            jax.lax, "dot_general", lambda *args, **kwargs: 2 * dot_general(*args, **kwargs)
        )
        assert not np.allclose(traced(), before)
    np.testing.assert_array_equal(traced(), before)


def test_a_function_called_in_a_trace_is_traced_there():
    """No program of its own inside, and nothing left behind by asking whether one is traced."""
    inside = str(jax.make_jaxpr(jsoftmax.logsumexp)(jnp.ones(3)))
    assert "_reduced" not in inside


NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "temperature": lambda z, x: jsoftmax.cross_entropy(z, np.array([0, 2]), temperature=x),
    "softcap": lambda z, x: jsoftmax.cross_entropy(z, np.array([0, 2]), softcap=x),
    "label_smoothing": lambda z, x: jsoftmax.cross_entropy(z, np.array([0, 2]), label_smoothing=x),
    "z_loss": lambda z, x: jsoftmax.cross_entropy(z, np.array([0, 2]), z_loss=x),
    "softmax": lambda z, x: jsoftmax.softmax(z, temperature=x),
    "log_softmax": lambda z, x: jsoftmax.log_softmax(z, temperature=x),
    "row_stats": lambda z, x: jsoftmax.row_stats(z, np.array([0, 2]), temperature=x).nll,
    "Margin": lambda z, x: jsoftmax.cross_entropy(
        z, np.array([0, 2]), transform=jsoftmax.Margin(x, scale=2 * x)
    ),
    "chain": lambda z, x: jsoftmax.cross_entropy(
        z,
        np.array([0, 2]),
        transform=jsoftmax.chain(jsoftmax.Softcap(10 * x), jsoftmax.Temperature(x)),
    ),
    "denominator": lambda z, x: jsoftmax.weighted_mean(z, denominator=x),
    "epsilon": lambda z, x: losses.poly_loss_cross_entropy(z, jnp.ones_like(z), epsilon=x),
    "gamma": lambda z, x: losses.softmax_focal_loss(z, np.array([0, 2]), gamma=x),
    "gamma of sigmoid": lambda z, x: losses.sigmoid_focal_loss(z, jnp.ones_like(z), gamma=x),
    "q": lambda z, x: losses.generalized_cross_entropy(z, np.array([0, 2]), q=x),
    "alpha": lambda z, x: losses.smooth_labels(z, x),
}


DRAWS = ["gumbel_softmax", "straight_through", "rao_blackwell_gumbel_softmax", "reinmax"]


@pytest.mark.parametrize("name", DRAWS)
def test_a_temperature_of_1_does_not_recompile(name: str):
    """A schedule ends at 1, the default, which is no number of its own."""
    draw, key, z = getattr(jsoftmax.sampling, name), jax.random.key(0), jnp.zeros((2, 3))
    draw(key, z, 0.5)
    assert compiled_by(lambda: draw(key, z, 1.0)) == 0
    assert compiled_by(lambda: draw(key, z)) == 0


@pytest.mark.parametrize("name", NUMBERS)
def test_python_numbers_do_not_recompile(name: str):
    """A number that a schedule makes in Python, passed to the eager function."""
    z = jnp.zeros((2, 3))
    NUMBERS[name](z, 0.3)
    assert compiled_by(lambda: NUMBERS[name](z, 0.4)) == 0


def test_transforms_are_annealed_without_a_trace():
    """Their numbers are leaves: one trace for all values, another for another structure."""
    labels = np.array([0, 2], np.int32)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def step(z: Any, transform: jsoftmax.LogitTransform) -> Any:
        return jax.grad(lambda z: jnp.sum(jsoftmax.cross_entropy(z, labels, transform=transform)))(z)

    z = jnp.ones((2, 3))
    for x in np.linspace(0.1, 0.9, 4, dtype=np.float32):
        step(z, jsoftmax.chain(jsoftmax.Margin(x, scale=x), jsoftmax.Temperature(x)))
    for x in np.linspace(0.1, 0.9, 4, dtype=np.float32):
        step(z, jsoftmax.chain(jsoftmax.Margin(x, scale=x, kind="angular"), jsoftmax.Temperature(x)))
    with pytest.raises(AssertionError):
        step(z, jsoftmax.Temperature(np.float32(1.0)))


@dataclasses.dataclass(frozen=True)
class Shift(jsoftmax.LogitTransform):
    by: Any

    def __call__(self, logits: Any, target: Any = None) -> Any:
        return logits + self.by


def test_transforms_of_one_number_are_not_mistaken_for_each_other():
    """Their structures differ, or `jit` would now and then run what it compiled for another."""
    singles = [jsoftmax.Temperature(2.0), jsoftmax.Softcap(2.0), Shift(2.0), jsoftmax.chain(Shift(2.0))]
    for one, other in itertools.combinations(singles, 2):
        assert jax.tree.structure(one) != jax.tree.structure(other)
        assert jax.tree.structure((one, 1)) != jax.tree.structure((other, 1))
    z, labels = jnp.arange(6.0).reshape(2, 3), np.array([0, 2])
    moved = jsoftmax.cross_entropy(z, labels, transform=Shift(5.0))
    np.testing.assert_allclose(moved, jsoftmax.cross_entropy(z, labels), rtol=1e-6)
    assert jax.tree_util.keystr(jax.tree_util.tree_flatten_with_path(Shift(2.0))[0][0][0]) == ".by"


def test_transforms_are_pytrees():
    adjustment = jsoftmax.LogitAdjustment(jnp.zeros(3), scale=2.0)
    whole = jsoftmax.chain(jsoftmax.Temperature(1.0), jsoftmax.Softcap(3.0), adjustment)
    assert len(jax.tree.leaves(whole)) == 4
    assert jax.tree.leaves(jsoftmax.Margin(0.5, kind="angular")) == [0.5, 1.0]
    doubled = jax.tree.map(lambda x: 2 * x, whole)
    assert doubled.transforms[1].cap == 6.0
    kinds = [jax.tree.structure(jsoftmax.Margin(0.5, kind=kind)) for kind in ("additive", "angular")]
    assert kinds[0] != kinds[1]
    gradient: Any = jax.grad(
        lambda t: jsoftmax.cross_entropy(jnp.arange(3.0), jnp.array(0), transform=t)
    )(jsoftmax.Temperature(2.0))
    assert isinstance(gradient, jsoftmax.Temperature)
    assert np.asarray(gradient.value) < 0
    stats = jax.jit(jsoftmax.row_stats)(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))
    assert isinstance(stats, jsoftmax.RowStats)
    several = jax.vmap(lambda t: jsoftmax.cross_entropy(jnp.arange(3.0), 0, transform=t))(
        jsoftmax.Temperature(jnp.array([0.5, 1.0, 2.0]))
    )
    alone = [jsoftmax.cross_entropy(jnp.arange(3.0), 0, temperature=t) for t in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(several, np.stack(alone), rtol=1e-6)


def test_statistics_that_are_not_asked_for_are_not_computed():
    """Neither by name, nor under jit where a field is not used."""
    z, y = jnp.zeros((64, 1000)), jnp.zeros(64, jnp.int32)

    def flops(f: Callable[..., Any]) -> float:
        costs: Any = jax.jit(f).lower(z, y).compile().cost_analysis()
        return costs["flops"]

    nll = flops(lambda z, y: jsoftmax.row_stats(z, y, statistics=("nll",)).nll)
    unused = flops(lambda z, y: jsoftmax.row_stats(z, y).nll)
    both = flops(lambda z, y: (s := jsoftmax.row_stats(z, y)) and (s.nll, s.entropy, s.mean_logit))
    assert unused == pytest.approx(nll, rel=0.02)
    assert both > 1.2 * nll
    assert jsoftmax.row_stats(z, y, statistics=("nll",)).entropy is None
