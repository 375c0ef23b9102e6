"""A variational autoencoder with discrete latents, of scikit-learn's handwritten digits.

    python examples/discrete_vae.py                       # Gumbel-softmax, about half a minute
    python examples/discrete_vae.py --estimator reinmax   # other gradients through the draws

A digit becomes 16 latents of 8 classes each, and is drawn again from them. A draw of a class has no
gradient: the estimators of `jsoftmax.sampling` put one in its place. The temperature falls from step
to step, as a traced number: the training step is compiled once. The output folder then holds
`metrics.json` and `digits.png`: digits, their reconstructions, and digits that never were.
"""

import argparse
import functools
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jsoftmax
from jsoftmax import losses, sampling

LATENTS, CLASSES, HIDDEN, PIXELS = 16, 8, 256, 64
BATCH, RATE, SCORED = 128, 2e-3, 300
WARM, COLD = 1.0, 0.3  # temperatures of the first and the last step
SCORES = 10  # how often a run is scored on held-out digits
ESTIMATORS = {
    "gumbel": sampling.gumbel_softmax,
    "hard": functools.partial(sampling.gumbel_softmax, hard=True),
    "straight_through": sampling.straight_through,
    "rao_blackwell": sampling.rao_blackwell_gumbel_softmax,
    "reinmax": sampling.reinmax,
}

Params = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What determines a run, on one machine."""

    steps: int
    seed: int
    estimator: str


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels from 0 to 1, `[images, 64]`, for training and held out."""
    from sklearn.datasets import load_digits

    images = load_digits().data.astype(np.float32) / 16
    images = np.random.default_rng(0).permutation(images)
    return images[SCORED:], images[:SCORED]


def init_params(seed: int, mean: np.ndarray) -> Params:
    keys = iter(jax.random.split(jax.random.key(seed), 4))

    def layer(features: int, outputs: int) -> Params:
        kernel = jax.random.normal(next(keys), (features, outputs)) / math.sqrt(features)
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    params = {
        "encoder": [layer(PIXELS, HIDDEN), layer(HIDDEN, LATENTS * CLASSES)],
        "decoder": [layer(LATENTS * CLASSES, HIDDEN), layer(HIDDEN, PIXELS)],
    }
    # Before it learns anything else, the decoder knows the mean image.
    held = np.clip(mean, 0.01, 0.99)
    params["decoder"][1]["bias"] = jnp.asarray(np.log(held / (1 - held)))
    return params


def network(layers: list[Params], x: jax.Array) -> jax.Array:
    first, last = layers
    hidden = jax.nn.gelu(x @ first["kernel"] + first["bias"])
    return hidden @ last["kernel"] + last["bias"]


def encode(params: Params, images: jax.Array) -> jax.Array:
    """Logits of the latents, `[batch, latents, classes]`."""
    return network(params["encoder"], 2 * images - 1).reshape(-1, LATENTS, CLASSES)


def decode(params: Params, latents: jax.Array) -> jax.Array:
    """Logits of the pixels, `[batch, pixels]`."""
    return network(params["decoder"], latents.reshape(-1, LATENTS * CLASSES))


def parts(params: Params, images: jax.Array, logits: jax.Array, latents: jax.Array) -> Any:
    """The negative ELBO's two parts in nats per image: of the pixels, and of the latents."""
    pixels = losses.sigmoid_binary_cross_entropy(decode(params, latents), images)
    log_q = jsoftmax.log_softmax(logits)
    # In closed form, from the uniform prior: log classes minus the entropy.
    kl = jnp.sum(jnp.exp(log_q) * log_q, axis=-1) + math.log(CLASSES)
    return jnp.mean(jnp.sum(pixels, axis=-1)), jnp.mean(jnp.sum(kl, axis=-1))


@jax.jit
def held_out_parts(params: Params, images: jax.Array) -> Any:
    """With latents that are drawn, not relaxed: what the model is worth."""
    logits = encode(params, images)
    drawn = sampling.categorical(jax.random.key(0), logits)
    return parts(params, images, logits, jax.nn.one_hot(drawn, CLASSES))


class Training:
    """A compiled step; `traces` counts how often it was compiled."""

    def __init__(self, run: Run):
        self.run, self.traces = run, 0
        self.optimizer = optax.adam(optax.cosine_decay_schedule(RATE, run.steps))
        self.step = jax.jit(self._step)

    def _step(
        self, params: Params, state: Any, key: jax.Array, temperature: jax.Array, images: jax.Array
    ) -> Any:
        self.traces += 1

        def loss(params: Params) -> jax.Array:
            logits = encode(params, images)
            latents = ESTIMATORS[self.run.estimator](key, logits, temperature)
            return sum(parts(params, images, logits, latents))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = self.optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value


def score(params: Params, images: np.ndarray) -> dict[str, float]:
    pixels, kl = (float(part) for part in held_out_parts(params, images))
    return {"elbo": -pixels - kl, "reconstruction": pixels, "kl": kl}


def train(run: Run, images: np.ndarray, held_out: np.ndarray) -> tuple[Params, dict[str, Any]]:
    """Trains to the end; returns the curves too."""
    training, random = Training(run), np.random.default_rng(run.seed)
    params = init_params(run.seed, images.mean(axis=0))
    state, key = training.optimizer.init(params), jax.random.key(run.seed + 1)
    scores = [{"step": 0, **score(params, held_out)}]
    losses_, temperatures = [], []
    with tqdm(total=run.steps, unit=" steps", mininterval=0.5) as progress:
        for step in range(1, run.steps + 1):
            temperature = WARM * (COLD / WARM) ** ((step - 1) / max(run.steps - 1, 1))
            batch = images[random.integers(0, len(images), BATCH)]
            params, state, loss = training.step(
                params, state, jax.random.fold_in(key, step), temperature, batch
            )
            losses_.append(loss)
            temperatures.append(temperature)
            if step * SCORES // run.steps > (step - 1) * SCORES // run.steps:
                scores.append({"step": step, **score(params, held_out)})
                progress.set_postfix(elbo=f"{scores[-1]['elbo']:.2f}", refresh=False)
            progress.update()
    assert training.traces == 1, "a falling temperature must not compile the step again"
    return params, {
        "loss": [float(loss) for loss in losses_],
        "temperature": temperatures,
        "held_out": scores,
        "traces": training.traces,
    }


def draw(path: Path, params: Params, held_out: np.ndarray, curves: dict[str, Any], seed: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    count = 16
    keys = jax.random.split(jax.random.key(seed + 2))
    shown = held_out[:count]
    again = jax.nn.one_hot(sampling.categorical(keys[0], encode(params, shown)), CLASSES)
    codes = jax.nn.one_hot(jax.random.randint(keys[1], (count, LATENTS), 0, CLASSES), CLASSES)
    rows = {
        "digits": shown,
        "reconstructions": jax.nn.sigmoid(decode(params, again)),
        "samples": jax.nn.sigmoid(decode(params, codes)),
    }
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 3.2), width_ratios=(2.6, 1), layout="constrained"
    )
    gap = 1
    sheet = np.ones((len(rows) * (8 + gap) - gap, count * (8 + gap) - gap))
    for i, images in enumerate(rows.values()):
        for j, image in enumerate(np.asarray(images).reshape(-1, 8, 8)):
            y, x = i * (8 + gap), j * (8 + gap)
            sheet[y : y + 8, x : x + 8] = 1 - image
    left.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_yticks([3.5 + i * (8 + gap) for i in range(len(rows))], list(rows))
    left.set_xticks([])
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_title(f"{LATENTS} latents of {CLASSES} classes", fontsize=11)
    steps = [s["step"] for s in curves["held_out"]]
    right.plot(steps, [-s["elbo"] for s in curves["held_out"]], "o-", color="#2b6ca3", label="−ELBO")
    right.plot(
        steps, [s["reconstruction"] for s in curves["held_out"]], color="#d99a2b", label="pixels"
    )
    right.plot(steps, [s["kl"] for s in curves["held_out"]], color="#b0413e", label="latents (KL)")
    right.set_xlabel("steps")
    right.set_title("nats per held-out digit", fontsize=11)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def demo(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    run = Run(arguments.steps, arguments.seed, arguments.estimator)
    images, held_out = digits()
    params, curves = train(run, images, held_out)
    before, after = curves["held_out"][0], curves["held_out"][-1]
    print(
        f"{run.estimator}: held-out ELBO {before['elbo']:.2f} -> {after['elbo']:.2f} nats per digit "
        f"(pixels {after['reconstruction']:.2f}, latents {after['kl']:.2f}); "
        f"temperature {curves['temperature'][0]:.2f} -> {curves['temperature'][-1]:.2f}, "
        f"compiled {curves['traces']} time"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(arguments.out / "digits.png", params, held_out, curves, run.seed)
    metrics = {
        "run": asdict(run),
        "versions": {"jax": version("jax")},
        "curves": curves,
        "before": before,
        "after": after,
        "seconds": time.perf_counter() - started,
    }
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"{metrics['seconds']:.0f} s in all; metrics.json and digits.png are in {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a variational autoencoder with discrete latents on handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="training steps")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides everything random")
    parser.add_argument("--estimator", choices=ESTIMATORS, default="gumbel", help="gradient of a draw")
    parser.add_argument("--out", type=Path, default=Path("outputs/discrete_vae"), metavar="DIR")
    arguments = parser.parse_args()
    for name, least in (("steps", 1), ("seed", 0)):
        given = getattr(arguments, name)
        if given < least:
            print(
                f"{parser.prog}: error: --{name} must be at least {least}, got {given}", file=sys.stderr
            )
            sys.exit(2)
    return arguments


def main() -> None:
    try:
        demo(parse_arguments())
    except KeyboardInterrupt:
        sys.exit("\nstopped")


if __name__ == "__main__":
    main()
