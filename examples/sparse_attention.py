# %% [markdown]
# # Attention that looks at few places
#
# One layer of attention reads handwritten digits, patch by patch. Its weights are a softmax, an entmax
# with α = 1.5, a sparsemax, or an entmax whose α each head learns. Softmax gives every patch a weight
# above 0; the others give most of them exactly 0, and one sees what a head looks at.
#
# A notebook (jupytext) and a script: `python examples/sparse_attention.py --out FOLDER`.

# %%
import argparse
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jsoftmax

parser = argparse.ArgumentParser(description="Trains sparse attention on handwritten digits.")
parser.add_argument("--steps", type=int, default=80)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("outputs/sparse_attention"), metavar="DIR")
# In a notebook the command line is the kernel's.
options = parser.parse_args(None if "__file__" in globals() else [])
HEADS, FEATURES, PATCHES, HELD_OUT = 4, 16, 16, 300

# %% [markdown]
# An image of 8 × 8 pixels is 16 patches of 2 × 2. A patch without ink is padding. A patch sees those
# up to itself that have ink; before the first ink there are none, and the row of weights is all zeros.

# %%
images = np.random.default_rng(0).permutation(len(load_digits().target))
data = load_digits()
pixels, labels = data.images[images].astype(np.float32) / 16, data.target[images]
patches = pixels.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, PATCHES, 4)
ink = patches.max(axis=-1) > 0.2
causal = np.tril(np.ones((PATCHES, PATCHES), bool))
allowed = causal & ink[:, None, :]  # [images, query, key]
print(f"{np.mean(~allowed.any(-1)):.0%} of the rows are masked altogether")

# %% [markdown]
# The weights of one image and one head, under `jax.checkpoint`: they are computed again in the backward
# pass, not kept. `jax.vmap` makes them `[batch, heads, query, key]`.

# %%
MAPS = {
    "softmax": lambda scores, where, alpha: jsoftmax.softmax(scores, where=where),
    "entmax 1.5": lambda scores, where, alpha: jsoftmax.entmax(scores, 1.5, where=where),
    "sparsemax": lambda scores, where, alpha: jsoftmax.sparsemax(scores, where=where),
    "learned α": lambda scores, where, alpha: jsoftmax.entmax(scores, alpha, where=where),
}


def alphas(params):
    """One per head, between 1 and 2; the factor lets it move in few steps."""
    return 1 + jax.nn.sigmoid(8 * params["alpha"])


def weights(name, params, patches, allowed):
    x = patches @ params["embed"] + params["place"]
    query, key = (jnp.einsum("bpf,fhd->bhpd", x, params[n]) for n in ("query", "key"))

    @jax.checkpoint
    def one(query, key, where, alpha):
        return MAPS[name](query @ key.T / math.sqrt(FEATURES), where, alpha)

    by_head = jax.vmap(one, in_axes=(0, 0, None, 0))
    by_image = jax.vmap(by_head, in_axes=(0, 0, 0, None))
    return by_image(query, key, allowed, alphas(params)), x


def logits(name, params, patches, allowed):
    attention, x = weights(name, params, patches, allowed)
    values = jnp.einsum("bpf,fhd->bhpd", x, params["value"])
    mixed = jnp.einsum("bhqk,bhkd->bqhd", attention, values)
    return jnp.mean(jax.nn.gelu(mixed.reshape(*mixed.shape[:2], -1)), axis=1) @ params["out"]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(name, params, patches, allowed):
    attention, _ = weights(name, params, patches, allowed)
    return attention, jnp.argmax(logits(name, params, patches, allowed), axis=-1)


def init(seed):
    width = HEADS * FEATURES
    shapes = {"embed": (4, width), "place": (PATCHES, width), "out": (width, 10)}
    shapes |= dict.fromkeys(("query", "key", "value"), (width, HEADS, FEATURES))
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {
        name: jax.random.normal(key, shape) / math.sqrt(shape[0])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params | {"alpha": jnp.zeros(HEADS)}


# %%
optimizer = optax.adam(3e-3)


@functools.partial(jax.jit, static_argnums=0)
def train_step(name, params, state, patches, allowed, labels):
    def loss(params):
        return jnp.mean(jsoftmax.cross_entropy(logits(name, params, patches, allowed), labels))

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


held = slice(0, HELD_OUT)
trained, metrics = {}, {}
for name in MAPS:
    params, random = init(options.seed), np.random.default_rng(options.seed)
    state, losses = optimizer.init(params), []
    for _ in range(options.steps):
        batch = random.integers(HELD_OUT, len(labels), 64)
        arguments = patches[batch], allowed[batch], labels[batch]
        params, state, loss = train_step(name, params, state, *arguments)
        losses.append(float(loss))
    attention, found = map(np.asarray, evaluate(name, params, patches[held], allowed[held]))
    some = np.broadcast_to(allowed[held][:, None], attention.shape)
    full = some.any(axis=-1)
    assert np.allclose(attention.sum(-1), full, atol=1e-5)
    assert not attention[~some].any()
    trained[name] = params, attention
    metrics[name] = {
        "loss": losses,
        "accuracy": float(np.mean(found == labels[held])),
        "share_of_zeros": float(np.mean(attention[some] == 0)),
        "alpha": [float(a) for a in alphas(params)] if name == "learned α" else None,
    }
    zeros = metrics[name]["share_of_zeros"]
    print(f"{name:>10}: {metrics[name]['accuracy']:.1%} right, {zeros:.0%} of the weights are 0")
print("learned α by head:", np.round(metrics["learned α"]["alpha"], 2))

# %% [markdown]
# Rows: the maps; columns: the heads. Each square has a query per line and a key per column, for one
# held-out digit. Grey is masked; white is a weight of exactly 0.

# %%
shown = int(np.argmax(ink[held].sum(axis=1)))
figure, axes = plt.subplots(len(MAPS), HEADS + 1, figsize=(8.6, 7), layout="constrained")
for line, (name, (params, attention)) in zip(axes, trained.items(), strict=True):
    line[0].imshow(1 - pixels[shown], cmap="gray", vmin=0, vmax=1)
    line[0].set_ylabel(name, fontsize=11)
    for head, place in enumerate(line[1:]):
        drawn = np.ma.masked_where(
            ~allowed[shown] | (attention[shown, head] == 0), attention[shown, head]
        )
        place.imshow(np.where(allowed[shown], 1.0, 0.88), cmap="gray", vmin=0, vmax=1)
        place.imshow(drawn, cmap="viridis_r", vmin=0, vmax=1)
        learned = f", α = {alphas(params)[head]:.2f}" if name == "learned α" else ""
        place.set_title(f"head {head + 1}{learned}", fontsize=9)
for place in axes.flat:
    place.set_xticks([])
    place.set_yticks([])
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "attention.png", dpi=150)
(options.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
print(f"metrics.json and attention.png are in {options.out}")
