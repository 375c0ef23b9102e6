"""The mesh that a `with` block runs on, under the name that this jax gives it."""

import jax

# jax 0.7.0 has it in `jax.sharding`, later releases at the top.
use_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else vars(jax.sharding)["use_mesh"]
