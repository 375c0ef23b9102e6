"""What cannot be meant is refused at the entry, in the form of `test_errors`, wherever it comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax as typed

# What is passed here is wrong on purpose.
js: Any = typed
losses: Any = typed.losses
sampling: Any = typed.sampling
hierarchical: Any = typed.hierarchical

KEY = jax.random.key(0)
Z, Y = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
H, K = np.zeros((4, 5), np.float32), np.zeros((5, 3), np.float32)
TREE = hierarchical.balanced_tree(3)
NODES = np.zeros((TREE.num_rows, 5), np.float32)
PARAMS = hierarchical.adaptive_init(KEY, 5, 3, ())
DRAWN = hierarchical.draw_negatives(KEY, hierarchical.Uniform(3), 2)

Call = Callable[[], Any]
EXACT: list[tuple[Call, type[Exception], str]] = [
    (
        lambda: js.entmax(Z, 1, temperature=-1.0),
        ValueError,
        "entmax: temperature must be at least 0, got -1.0; choose a value in range.",
    ),
    (
        lambda: js.cross_entropy(Z, Y, transform=js.Temperature(np.ones(3, np.float32))),
        ValueError,
        "Temperature: value must be a scalar or have shape [*batch] = [4], got [3]; one value per row.",
    ),
    (
        lambda: js.cross_entropy(Z, Y, transform=js.Temperature(None)),
        TypeError,
        "Temperature: value must be a real number, got None; pass a float.",
    ),
    (
        lambda: js.cross_entropy(Z, Y, class_weights=np.ones(3, np.complex64)),
        TypeError,
        "cross_entropy: class_weights must be a real number, got complex64[3]; pass a float.",
    ),
    (
        lambda: js.weighted_mean(Z[:, 0], np.ones(4, np.complex64)),
        TypeError,
        "weighted_mean: weights must have a real or bool dtype, got complex64; take the real part.",
    ),
    (
        lambda: js.cross_entropy(None, Y),
        TypeError,
        "cross_entropy: logits must be an array of numbers, got None; pass an array of JAX or NumPy.",
    ),
    (
        lambda: js.softmax(Z, where=[True, False, True]),
        TypeError,
        "softmax: where must be a number or an array, got a list; make it one with jnp.asarray.",
    ),
    (
        lambda: js.linear_cross_entropy(H, K, [H, K]),
        TypeError,
        "linear_cross_entropy: labels must be one array or a teacher's (hidden, kernel), got a list; "
        "make it a tuple.",
    ),
    (
        lambda: js.linear_cross_entropy(H, K, Y, accum_dtype="foo"),
        TypeError,
        "linear_cross_entropy: accum_dtype must be a floating dtype, got 'foo'; leave it out for "
        "float32.",
    ),
    (
        lambda: js.chunked(jnp.sum)(H, K),
        ValueError,
        "chunked: loss must return one value per row, [rows] = [4], got []; let the reduction add them "
        "up.",
    ),
    (
        lambda: hierarchical.adaptive_init(0, 8, 20),
        TypeError,
        "adaptive_init: key must be a key of jax.random, got int32[]; make one with "
        "jax.random.key(seed).",
    ),
    (
        lambda: hierarchical.adaptive_init(KEY, 8, 20, 4),
        TypeError,
        "adaptive_init: cutoffs must be a sequence of integers, got 4; pass a tuple of them.",
    ),
    (
        lambda: hierarchical.top_k(H, NODES, TREE, jnp.array(1)),
        TypeError,
        "top_k: k must be an integer, got int32[]; pass a Python int.",
    ),
    (
        lambda: sampling.categorical(KEY, Z, shape=(-1, 4)),
        ValueError,
        "categorical: shape must be of sizes of at least 0, got -1; choose a value in range.",
    ),
    (
        lambda: losses.make_fenchel_young_loss(3),
        TypeError,
        "make_fenchel_young_loss: max_fun must be a function of scores [classes], got 3; pass one.",
    ),
    (
        lambda: sampling.gumbel_softmax(KEY, Z, hard="yes"),
        TypeError,
        "gumbel_softmax: hard must be True or False, got 'yes'; pass a bool.",
    ),
    (
        lambda: hierarchical.apply_row_updates((NODES, NODES[:, 0]), Y, H),
        ValueError,
        "apply_row_updates: updates must be a pytree like node_kernel, PyTreeDef((*, *)), got "
        "PyTreeDef(*); give each array of node_kernel its updates.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), EXACT, ids=[text[:60] for _, _, text in EXACT])
def test_exact_text(call: Call, kind: type[Exception], text: str):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


COMPLEX = np.ones(3, np.complex64)
# The exception, and by "function argument" what is called.
NAMED: dict[type[Exception], dict[str, Call]] = {
    TypeError: {
        # numbers that are not real
        "softmax_focal_loss alpha": lambda: losses.softmax_focal_loss(Z, Y, alpha=COMPLEX),
        "multilabel_cross_entropy pos_weight": lambda: losses.multilabel_cross_entropy(
            Z, Z, pos_weight=COMPLEX
        ),
        "multilabel_cross_entropy pos_weight ": lambda: losses.multilabel_cross_entropy(
            Z, Z, pos_weight=1j
        ),
        "sigmoid_focal_loss alpha": lambda: losses.sigmoid_focal_loss(Z, Z, alpha=1j),
        "linear_cross_entropy weights": lambda: js.linear_cross_entropy(
            H, K, Y, weights=np.ones(4, np.complex64)
        ),
        "linear_cross_entropy class_weights": lambda: js.linear_cross_entropy(
            H, K, Y, class_weights=COMPLEX
        ),
        "linear_cross_entropy class_weights ": lambda: js.linear_cross_entropy(
            H, K, Y, class_weights=MASK
        ),
        "cross_entropy class_weights": lambda: js.cross_entropy(Z, Y, class_weights=MASK),
        "adaptive_cross_entropy class_weights": lambda: hierarchical.adaptive_cross_entropy(
            H, PARAMS, Y, class_weights=MASK
        ),
        "adaptive_cross_entropy weights": lambda: hierarchical.adaptive_cross_entropy(
            H, PARAMS, Y, weights=np.ones(4, np.complex64)
        ),
        "hierarchical_cross_entropy class_weights": lambda: hierarchical.hierarchical_cross_entropy(
            H, NODES, Y, TREE, class_weights=COMPLEX
        ),
        "adaptive_init counts": lambda: hierarchical.adaptive_init(KEY, 8, 3, counts=COMPLEX),
        "adaptive_cutoffs counts": lambda: hierarchical.adaptive_cutoffs(COMPLEX),
        "LogitAdjustment log_prior": lambda: js.cross_entropy(
            Z, Y, transform=js.LogitAdjustment(COMPLEX)
        ),
        "softmax temperature": lambda: js.softmax(Z, temperature=np.complex64(1)),
        "Temperature value": lambda: js.Temperature(1j),
        # what is known before tracing only
        "adaptive_init counts ": lambda: jax.eval_shape(
            lambda c: hierarchical.adaptive_init(KEY, 8, 3, counts=c), Z[0]
        ),
        "top_k beam": lambda: hierarchical.top_k(H, NODES, TREE, 1, beam=jnp.array(1)),
        "top_k exact": lambda: hierarchical.top_k(H, NODES, TREE, 1, exact="yes"),
        "gumbel_top_k k": lambda: sampling.gumbel_top_k(KEY, Z, jnp.array(1)),
        "adaptive_init cutoffs": lambda: hierarchical.adaptive_init(KEY, 8, 20, (4.0,)),
        "adaptive_init dtype": lambda: hierarchical.adaptive_init(KEY, 8, 20, dtype="foo"),
        "categorical shape": lambda: sampling.categorical(KEY, Z, shape=(1.5, 4)),
        "categorical shape ": lambda: sampling.categorical(KEY, Z, shape="many"),
        "hierarchical_cross_entropy nodes": lambda: hierarchical.hierarchical_cross_entropy(
            H, NODES, Y, TREE, nodes="yes"
        ),
        # what is no array
        "cross_entropy labels": lambda: js.cross_entropy(Z, None),
        "cross_entropy labels ": lambda: js.cross_entropy(Z, "first"),
        "cross_entropy labels  ": lambda: js.cross_entropy(Z, [[0], [0, 1]]),
        "cross_entropy logits": lambda: js.cross_entropy("logits", Y),
        "row_stats labels": lambda: js.row_stats(Z, None),
        "softmax x": lambda: js.softmax(None),
        "entmax_loss labels": lambda: losses.entmax_loss(Z, None),
        "softmax_cross_entropy labels": lambda: losses.softmax_cross_entropy(Z, None),
        "sigmoid_binary_cross_entropy logits": lambda: losses.sigmoid_binary_cross_entropy(None, Y),
        "kl_divergence_with_log_targets log_targets": lambda: losses.kl_divergence_with_log_targets(
            Z, "labels"
        ),
        "linear_cross_entropy labels": lambda: js.linear_cross_entropy(H, K, None),
        "linear_cross_entropy hidden": lambda: js.linear_cross_entropy(None, K, Y),
        "hierarchical_cross_entropy labels": lambda: hierarchical.hierarchical_cross_entropy(
            H, NODES, None, TREE
        ),
        "sampled_cross_entropy labels": lambda: hierarchical.sampled_cross_entropy(H, K.T, None, DRAWN),
        "adaptive_cross_entropy labels": lambda: hierarchical.adaptive_cross_entropy(H, PARAMS, "a"),
        "tree_distance a": lambda: hierarchical.tree_distance(None, Y, TREE),
        "categorical key": lambda: sampling.categorical(None, Z),
        "adaptive_sample key": lambda: hierarchical.adaptive_sample(0, H, PARAMS),
        # lists where an option is one array
        "cross_entropy where": lambda: js.cross_entropy(Z, Y, where=[True] * 3),
        "cross_entropy temperature": lambda: js.cross_entropy(Z, Y, temperature=[1.0] * 4),
        "entmax temperature": lambda: js.entmax(Z, temperature=[1.0] * 4),
        "softmax_cross_entropy where": lambda: losses.softmax_cross_entropy(Z, Z, where=[True] * 3),
        "linear_cross_entropy bias": lambda: js.linear_cross_entropy(H, K, Y, bias=[0.0] * 3),
        "linear_cross_entropy weights ": lambda: js.linear_cross_entropy(H, K, Y, weights=[1.0] * 4),
        "sampled_cross_entropy bias": lambda: hierarchical.sampled_cross_entropy(
            H, K.T, Y, DRAWN, bias=[0.0] * 3
        ),
        "weighted_mean weights": lambda: js.weighted_mean(Z[:, 0], [1.0] * 4),
        "categorical where": lambda: sampling.categorical(KEY, Z, where=[True] * 3),
        # others
        "cross_entropy ignore_index": lambda: js.cross_entropy(Z, Y, ignore_index="none"),
        "cross_entropy ignore_index ": lambda: js.cross_entropy(Z, Y, ignore_index=Y),
        "cross_entropy ignore_index  ": lambda: js.cross_entropy(Z, Y, ignore_index=jnp.zeros(())),
        "chunked loss": lambda: js.chunked(3),
        "draw_negatives replace": lambda: hierarchical.draw_negatives(
            KEY, hierarchical.Uniform(3), 2, replace="no"
        ),
        "noise_contrastive_loss log_q_correction": lambda: hierarchical.noise_contrastive_loss(
            H, K.T, Y, DRAWN, log_q_correction="no"
        ),
        "logsumexp keepdims": lambda: js.logsumexp(Z, keepdims="yes"),
        "softmax where": lambda: js.softmax(Z, where=np.array(["a"])),
    },
    ValueError: {
        "chunked loss": lambda: js.chunked(lambda z: z, reduction="sum")(H, K),
        "chunked loss ": lambda: js.chunked(lambda z: (z[:, 0], z[:1, 0]))(H, K),
        "apply_row_updates updates": lambda: hierarchical.apply_row_updates(
            {"a": NODES}, Y, {"b": H}
        ),
    },
}  # fmt: skip
MASK = np.ones(3, bool)
CALLS = [(kind, name, call) for kind, calls in NAMED.items() for name, call in calls.items()]


@pytest.mark.parametrize(("kind", "name", "call"), CALLS, ids=[name for _, name, _ in CALLS])
def test_names_function_and_argument(kind: type[Exception], name: str, call: Call):
    function, argument = name.split()
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert re.match(rf"{function}: {argument}\b", text), text
    assert re.search(r"[;,] [^;]+\.$", text), text


ONES = np.ones(4, np.float32)
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "Temperature value": js.Temperature,
    "Softcap cap": js.Softcap,
    "LogitAdjustment scale": lambda x: js.LogitAdjustment(np.zeros(3, np.float32), scale=x),
    "Margin margin": js.Margin,
    "Margin scale": lambda x: js.Margin(0.1, scale=x),
}
# For logits [4, 4, 3].
SHAPES = {"[4]": ONES, "[4, 1]": ONES[:, None], "[1]": ONES[:1], "[3]": ONES[:3], "[4, 4, 1]": None}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_refuse_numbers_that_would_broadcast(name: str, shape: str):
    """In memory, chained, called by hand, and in chunks of 4 rows, which [4] would fit."""
    x = SHAPES[shape] if SHAPES[shape] is not None else np.ones((4, 4, 1), np.float32)
    transform, text = TRANSFORMS[name](x), re.escape(f"{name.replace(' ', ': ')} must be a scalar")
    text += r".* \[\*batch\] = \[4, 4\], got " + re.escape(f"{list(x.shape)};")
    z, y, hidden = (np.zeros((4, 4, *n), t) for n, t in (((3,), "f"), ((), "i"), ((5,), "f")))
    calls: list[Call] = [
        lambda: js.cross_entropy(z, y, transform=transform),
        lambda: js.row_stats(np.moveaxis(z, -1, 0), y, axis=0, transform=transform),
        lambda: js.cross_entropy(z, y, transform=js.chain(js.Softcap(3.0), js.chain(transform))),
        lambda: transform(z, z),
    ]
    for options in ({"chunk_size": 4}, {"reduction": "none"}, {"reduction": "none", "chunk_size": 1}):
        calls.append(lambda o=options: js.linear_cross_entropy(hidden, K, y, transform=transform, **o))
    calls.append(lambda: js.linear_row_stats(hidden, K, y, transform=transform))
    for call in calls:
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_take_a_number_or_one_per_row(name: str):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 4, 3, 2)).astype(np.float32)
    y, x = rng.integers(0, 3, (4, 4, 2)), rng.uniform(0.5, 2, (4, 4, 2)).astype(np.float32)
    one = js.cross_entropy(z, y, axis=2, transform=TRANSFORMS[name](x))
    last = np.moveaxis(z, 2, -1)
    np.testing.assert_allclose(one, js.cross_entropy(last, y, transform=TRANSFORMS[name](x)), rtol=1e-6)
    alone = js.cross_entropy(last[1, 2, 0], y[1, 2, 0], transform=TRANSFORMS[name](x[1, 2, 0]))
    np.testing.assert_allclose(one[1, 2, 0], alone, rtol=1e-6)
    eye = np.eye(3, dtype=np.float32)
    for options in ({"chunk_size": 4}, {}):
        several = js.linear_cross_entropy(
            last, eye, y, transform=TRANSFORMS[name](x), reduction="none", **options
        )
        np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-6)
        whole = js.linear_cross_entropy(last, eye, y, transform=TRANSFORMS[name](x), **options)
        np.testing.assert_allclose(whole, np.mean(one), rtol=1e-5)


def test_transforms_over_joined_axes():
    z, y = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.zeros(3, np.int32)
    x = np.array([0.5, 1.0, 2.0], np.float32)
    got = js.cross_entropy(z, y, axis=(0, 2), transform=js.Temperature(x))
    np.testing.assert_allclose(got, js.cross_entropy(z, y, axis=(0, 2), temperature=x), rtol=1e-6)


def test_a_linear_loss_names_the_whole_shape_of_a_prior():
    text = r"LogitAdjustment: log_prior must have shape \[classes\] = \[3\] to match logits \[4, 3\]"
    with pytest.raises(ValueError, match=text):
        js.linear_cross_entropy(H, K, Y, transform=js.LogitAdjustment(ONES))
