"""A small causal network from words to hidden vectors: pure functions of a dictionary of arrays.

One block: a gated convolution over the last words, attention over the context, a perceptron.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

import jsoftmax

FEATURES = 96
ATTENTION_HEADS = 4
REACH = 4  # words that the convolution sees, the current one included
CONTEXT = 64  # words that the attention sees, the current one included

Params = Mapping[str, jax.Array]


def init(key: jax.Array, vocab_size: int) -> Params:
    """Returns the network's parameters, float32."""
    keys = iter(jax.random.split(key, 7))
    d = FEATURES

    def dense(inputs: int, outputs: int, gain: float = 1.0) -> jax.Array:
        return jax.random.normal(next(keys), (inputs, outputs)) * (gain * inputs**-0.5)

    return {
        # Normalised before use: small at the start only means that they turn quickly.
        "embedding": jax.random.normal(next(keys), (vocab_size, d)) * 0.02,
        "convolution": dense(REACH * d, 2 * d),
        "convolution_out": dense(d, d, gain=0.5),
        "attention": dense(d, 3 * d),
        "attention_out": dense(d, d, gain=0.5),
        "widen": dense(d, 4 * d),
        "narrow": dense(4 * d, d, gain=0.5),
        "scales": jnp.ones((5, d)),
    }


def apply(params: Params, words: jax.Array) -> jax.Array:
    """Maps words, int32 [*batch, time], to hidden vectors, float32 [*batch, time, FEATURES]."""
    scales = params["scales"]
    hidden = _normalise(params["embedding"][words], scales[0])
    hidden += _convolution(params, _normalise(hidden, scales[1]))
    hidden += _attention(params, _normalise(hidden, scales[2]))
    hidden += jax.nn.gelu(_normalise(hidden, scales[3]) @ params["widen"]) @ params["narrow"]
    return _normalise(hidden, scales[4])


def _normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _convolution(params: Params, x: jax.Array) -> jax.Array:
    time = x.shape[-2]
    padding = [(0, 0)] * (x.ndim - 2) + [(REACH - 1, 0), (0, 0)]
    padded = jnp.pad(x, padding)
    recent = [padded[..., shift : shift + time, :] for shift in range(REACH)]
    values, gates = jnp.split(jnp.concatenate(recent, axis=-1) @ params["convolution"], 2, axis=-1)
    return (values * jax.nn.sigmoid(gates)) @ params["convolution_out"]


def _attention(params: Params, x: jax.Array) -> jax.Array:
    per_head = (*x.shape[:-1], 3, ATTENTION_HEADS, FEATURES // ATTENTION_HEADS)
    queries, keys, values = jnp.moveaxis((x @ params["attention"]).reshape(per_head), -3, 0)
    scores = jnp.einsum("...thd,...shd->...hts", queries, keys) * queries.shape[-1] ** -0.5
    age = jnp.arange(x.shape[-2])[:, None] - jnp.arange(x.shape[-2])
    weights = jsoftmax.softmax(scores, where=(age >= 0) & (age < CONTEXT))
    mixed = jnp.einsum("...hts,...shd->...thd", weights, values)
    return mixed.reshape(x.shape) @ params["attention_out"]
