"""What is timed, for each library: the same work on the same arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jsoftmax
from jsoftmax import losses

if TYPE_CHECKING:
    from collections.abc import Callable

    Thunk = Callable[[], object]

try:
    # torch's idle threads spin by default, and lose whole time slices where others have work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    from torch.nn import functional
except ImportError:
    torch = None

SHAPES = [
    (128, 10),
    (4096, 10),
    (4096, 1000),
    (128, 32000),
    (1024, 32000),
    (512, 50257),
    (256, 131072),
]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Operation:
    """`functions` are JAX functions of (logits, labels), by library."""

    name: str
    labels: str  # none, integer, soft, binary
    gradient: bool
    functions: dict[str, Callable[..., jax.Array]]


def _map(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda x, _: function(x, axis=-1)


def operations() -> list[Operation]:
    """The table's rows."""
    integer = {
        "jsoftmax": losses.softmax_cross_entropy_with_integer_labels,
        "optax": optax.losses.softmax_cross_entropy_with_integer_labels,
    }
    soft = {
        "jsoftmax": losses.softmax_cross_entropy,
        "optax": optax.losses.softmax_cross_entropy,
    }
    binary = {
        "jsoftmax": losses.sigmoid_binary_cross_entropy,
        "optax": optax.losses.sigmoid_binary_cross_entropy,
    }
    rows = [
        Operation(name, "none", False, {"jsoftmax": _map(ours), "jax.nn": _map(theirs)})
        for name, ours, theirs in [
            ("softmax", jsoftmax.softmax, jax.nn.softmax),
            ("log_softmax", jsoftmax.log_softmax, jax.nn.log_softmax),
            ("logsumexp", jsoftmax.logsumexp, jax.nn.logsumexp),
        ]
    ]
    return [
        *rows,
        Operation("integer CE", "integer", False, integer),
        Operation("integer CE value+grad", "integer", True, integer),
        Operation("soft CE value+grad", "soft", True, soft),
        Operation("sigmoid BCE value+grad", "binary", True, binary),
    ]


def inputs(shape: tuple[int, int], labels: str, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Logits and labels, made once per cell and shared by all libraries."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal(shape, np.float32)
    if labels == "soft":
        target = rng.random(shape, np.float32)
        target /= target.sum(-1, keepdims=True)
    elif labels == "binary":
        target = (rng.random(shape, np.float32) < 0.3).astype(np.float32)
    else:
        target = rng.integers(0, shape[1], shape[0], np.int32)
    kind = DTYPES[dtype]
    floating = labels in ("soft", "binary")
    return jnp.asarray(logits, kind), jnp.asarray(target, kind if floating else jnp.int32)


def jax_function(operation: Operation, library: str) -> Callable[..., object]:
    """Compiled; with a gradient, that of the mean loss, together with its value."""
    function = operation.functions[library]
    if not operation.gradient:
        return jax.jit(function)
    return jax.jit(jax.value_and_grad(lambda z, y: jnp.mean(function(z, y))))


def temp_bytes(function: Callable[..., object], z: jax.Array, y: jax.Array) -> int | None:
    """Memory that the compiled program takes besides its inputs and outputs."""
    analysis = jax.jit(function).lower(z, y).compile().memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def torch_thunk(operation: Operation, z: jax.Array, y: jax.Array) -> Thunk | None:
    """The same by torch, or None where torch is not installed."""
    if torch is None:
        return None
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return None
    kind = torch.bfloat16 if z.dtype == jnp.bfloat16 else torch.float32

    def tensor(x: jax.Array) -> torch.Tensor:
        wide = np.asarray(x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x)
        copied = torch.from_numpy(np.array(wide)).to(device)
        return copied.to(kind) if copied.is_floating_point() else copied.to(torch.int64)

    logits, labels = tensor(z), tensor(y)
    functions = {
        "softmax": lambda: torch.softmax(logits, -1),
        "log_softmax": lambda: torch.log_softmax(logits, -1),
        "logsumexp": lambda: torch.logsumexp(logits, -1),
        "integer CE": lambda: functional.cross_entropy(logits, labels, reduction="none"),
    }
    if operation.name in functions:
        forward = functions[operation.name]

        def run() -> None:
            with torch.no_grad():
                forward()
            if device == "cuda":
                torch.cuda.synchronize()

        return run
    binary = operation.labels == "binary"
    loss = functional.binary_cross_entropy_with_logits if binary else functional.cross_entropy
    logits.requires_grad_()

    def run_gradient() -> None:
        torch.autograd.grad(loss(logits, labels), logits)
        if device == "cuda":
            torch.cuda.synchronize()

    return run_gradient
