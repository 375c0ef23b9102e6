"""The functions of each library whose digits are counted, as `tests.sweep` asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sweep import Library


def _numpy(function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    compiled = jax.jit(function)
    return lambda *arguments: np.asarray(compiled(*arguments))


def _vjp(function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    return _numpy(lambda x, ct: jax.vjp(function, x)[1](ct)[0])


def _gradient(loss: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    # A cotangent of ones instead of a sum: a bfloat16 sum of the losses could overflow.
    def gradient(z: jax.Array, y: jax.Array) -> jax.Array:
        value, pull = jax.vjp(lambda z: loss(z, y), z)
        return pull(jnp.ones_like(value))[0]

    return _numpy(gradient)


def library(
    softmax: Callable[..., jax.Array] | None,
    log_softmax: Callable[..., jax.Array] | None,
    logsumexp: Callable[..., jax.Array] | None,
    loss: Callable[..., jax.Array] | None,
) -> Library:
    functions: dict[str, Callable[..., np.ndarray]] = {}
    if softmax is not None:
        functions |= {"softmax": _numpy(softmax), "softmax_vjp": _vjp(softmax)}
    if log_softmax is not None:
        functions |= {"log_softmax": _numpy(log_softmax), "log_softmax_vjp": _vjp(log_softmax)}
    if logsumexp is not None:
        functions |= {"logsumexp": _numpy(logsumexp)}
    if loss is not None:
        functions |= {"cross_entropy": _numpy(loss), "cross_entropy_gradient": _gradient(loss)}
    return functions


def ours() -> Library:
    return library(jsoftmax.softmax, jsoftmax.log_softmax, jsoftmax.logsumexp, jsoftmax.cross_entropy)


def jax_nn() -> Library:
    return library(jax.nn.softmax, jax.nn.log_softmax, lambda x: jax.nn.logsumexp(x, axis=-1), None)


def optax_losses() -> Library:
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return library(None, None, None, loss)


def torch_functions() -> Library | None:
    try:
        import torch
    except ImportError:
        return None

    def tensor(x: np.ndarray) -> torch.Tensor:
        # torch reads no ml_dtypes: bfloat16 travels as its bits.
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(x.copy())

    def array(x: torch.Tensor) -> np.ndarray:
        x = x.detach()
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(jnp.bfloat16)
        return x.numpy()

    def apply(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
        return lambda x: array(function(tensor(x), -1))

    def vjp(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
        def pull(x: np.ndarray, ct: np.ndarray) -> np.ndarray:
            z = tensor(x).requires_grad_()
            return array(torch.autograd.grad(function(z, -1), z, tensor(ct))[0])

        return pull

    def loss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        labels = torch.from_numpy(y.astype(np.int64))
        return array(torch.nn.functional.cross_entropy(tensor(x), labels, reduction="none"))

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z, labels = tensor(x).requires_grad_(), torch.from_numpy(y.astype(np.int64))
        value = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        return array(torch.autograd.grad(value, z, torch.ones_like(value))[0])

    return {
        "softmax": apply(torch.softmax),
        "log_softmax": apply(torch.log_softmax),
        "logsumexp": apply(torch.logsumexp),
        "softmax_vjp": vjp(torch.softmax),
        "log_softmax_vjp": vjp(torch.log_softmax),
        "cross_entropy": loss,
        "cross_entropy_gradient": gradient,
    }


def libraries() -> dict[str, Library]:
    found = {"jsoftmax": ours(), "jax.nn": jax_nn(), "optax": optax_losses()}
    torch_library = torch_functions()
    return found if torch_library is None else {**found, "torch": torch_library}
