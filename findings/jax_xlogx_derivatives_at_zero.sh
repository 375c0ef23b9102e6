#!/usr/bin/env bash
# Three functions for p log p, three derivatives at p = 0: infinity, 0 and -1.
#
# Library:  jax 0.10.2, jax.scipy.special.entr, rel_entr, kl_div.
# Expected: d/dp of p log(p / q) is log(p / q) + 1, minus infinity at p = 0, from each of them (kl_div only
#           adds q - p, so that its derivative is one less, minus infinity as well).
# Seen:     entr (with a minus sign) gives +inf, as it should; rel_entr gives 0 and kl_div gives -1, though
#           at p = 1e-30 both give about -68. The values are right in all three.
# Matters:  a probability that has reached exactly 0 (sparsemax, a hard label that is learned, an underflow)
#           is pushed up by an entropy bonus and left alone by the same term written as a KL divergence.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from jax.scipy.special import entr, kl_div, rel_entr

q = 0.5
terms = {
    "-entr(p)": lambda p: -entr(p),
    "rel_entr(p, 0.5)": lambda p: rel_entr(p, q),
    "kl_div(p, 0.5)": lambda p: kl_div(p, q),
}
at_zero = {name: float(jax.grad(f)(0.0)) for name, f in terms.items()}
near_zero = {name: float(jax.grad(f)(1e-30)) for name, f in terms.items()}
for name in terms:
    print(f"{name:18} derivative at 0: {at_zero[name]:5}, at 1e-30: {near_zero[name]:.2f}")
assert all(slope < -65 for slope in near_zero.values())
assert list(at_zero.values()) == [-jnp.inf, 0.0, -1.0]
PY
