"""The backward pass of sparsemax: the support it reads, and what it stores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsoftmax


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_support_in_sixteen_bits(dtype: Any):
    """A class of which 16 bits do not hold the probability is in the support all the same."""
    x, t = jnp.zeros(1025, dtype).at[0].set(-1 / 1024), np.float32(1 + 2**-23)

    def gradient(x: jax.Array) -> Any:
        return jax.grad(lambda x: 2 * jsoftmax.sparsemax(x, temperature=t)[0])(x)

    assert 0 < jsoftmax.sparsemax(x.astype(jnp.float32), temperature=t)[0] < 1e-9
    expected = np.full(1025, -2 / 1025).astype(np.float32)
    expected[0] += 2
    np.testing.assert_allclose(gradient(x.astype(jnp.float32)), expected, 1e-6)
    np.testing.assert_array_equal(gradient(x), expected.astype(x.dtype))


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="XLA:CPU before jax 0.10 sums otherwise")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_is_stored(dtype: Any):
    """Besides what comes out: passes that have all to themselves, and a search in chunks."""

    def both(x: jax.Array, ct: jax.Array) -> Any:
        p, pull = jax.vjp(jsoftmax.sparsemax, x)
        return p, pull(ct)

    x = jax.ShapeDtypeStruct((4096, 1000), dtype)
    memory = jax.jit(both).lower(x, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < x.size / 4
