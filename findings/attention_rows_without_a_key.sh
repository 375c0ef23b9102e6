#!/usr/bin/env bash
# Attention with every key masked: the mean of the masked values, zeros or NaN, by library and by mode.
#
# Library:  jax 0.10.2 (jax.nn.dot_product_attention) and torch 2.13.0 (scaled_dot_product_attention,
#           MultiheadAttention), all on CPU.
# Expected: one convention, zeros or NaN; and no effect of need_weights or torch.no_grad on the output.
# Seen:     jax returns the mean of the values that the mask hides. torch's function returns zeros. torch's
#           module returns NaN with need_weights=True (the default), zeros with need_weights=False, and NaN
#           again with need_weights=False in eval() under torch.no_grad().
# Matters:  padded rows are in every batch. A port from torch to jax leaks hidden tokens into them, and a
#           torch model that trained without NaN gives NaN when it is evaluated.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

x = np.random.default_rng(0).normal(size=(1, 3, 1, 4)).astype(np.float32)  # batch, time, heads, features
seen = jax.nn.dot_product_attention(x, x, x, mask=jnp.zeros((1, 1, 3, 3), bool))
print("jax:            ", seen[0, 0, 0], "mean of the hidden values:", x[0, :, 0].mean(0))
assert np.allclose(seen[0, 0, 0], x[0, :, 0].mean(0), atol=1e-6)

t = torch.tensor(x).transpose(1, 2)
seen = torch.nn.functional.scaled_dot_product_attention(t, t, t, attn_mask=torch.zeros(3, 3, dtype=torch.bool))
print("torch function: ", seen[0, 0, 0].numpy())
assert not seen.any()

torch.manual_seed(0)
module = torch.nn.MultiheadAttention(4, 2, batch_first=True).eval()
tokens, padding = torch.tensor(x[:, :, 0]), torch.ones(1, 3, dtype=torch.bool)
for need_weights, grad, is_nan in ((True, True, True), (False, True, False), (False, False, True)):
    with torch.set_grad_enabled(grad):
        out = module(tokens, tokens, tokens, key_padding_mask=padding, need_weights=need_weights)[0]
    print(f"torch module, need_weights={need_weights}, grad={grad}:", out[0, 0].detach().numpy())
    assert bool(out.isnan().all()) == is_nan and (is_nan or not out.any())
PY
