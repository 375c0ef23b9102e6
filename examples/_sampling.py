"""Text from a trained model, one word after the other, at a temperature."""

import functools
from typing import Any

import _corpus
import _network
import jax
import jax.numpy as jnp
import numpy as np
from _heads import Head

import jsoftmax

PROMPT = "class Reader:\n    def read(self, path):\n        pass\n"
LENGTH = 120  # words


@functools.partial(jax.jit, static_argnames=("head", "length"))
def generate(
    head: Head,
    params: Any,
    prompt: jax.Array,
    *,
    allowed: jax.Array,
    temperature: float | jax.Array,
    key: jax.Array,
    length: int,
) -> jax.Array:
    """Continues `prompt` [words] by `length` words, each drawn among the `allowed` [classes]."""

    def extend(words, position):
        hidden = _network.apply(params["network"], words)[position - 1]
        logits = head.logits(params["head"], hidden)
        log_p = jsoftmax.log_softmax(logits, where=allowed, temperature=temperature)
        word = jax.random.categorical(jax.random.fold_in(key, position), log_p)
        return words.at[position].set(word.astype(words.dtype)), None

    words = jnp.pad(prompt, (0, length))
    return jax.lax.scan(extend, words, jnp.arange(len(prompt), len(words)))[0]


def continue_prompt(
    head: Head, params: Any, corpus: _corpus.Corpus, *, temperature: float, seed: int
) -> str:
    """`PROMPT` continued by `LENGTH` words, laid out as source code."""
    words = list(_corpus.words_of_source(PROMPT))
    ids = generate(
        head,
        params,
        corpus.encode(words[: words.index("pass")]),
        allowed=np.array([word != _corpus.FILE for word in corpus.words]),
        temperature=temperature,
        key=jax.random.key(seed),
        length=LENGTH,
    )
    return _corpus.to_text(corpus.words[i] for i in np.asarray(ids))
