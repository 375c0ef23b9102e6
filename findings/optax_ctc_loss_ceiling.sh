#!/usr/bin/env bash
# A CTC loss of 118,094 nats is reported as 99,999, with a gradient that is zero everywhere.
#
# Library:  optax 0.2.8 on jax 0.10.2, optax.ctc_loss.
# Expected: the negative log-likelihood of a feasible alignment, however unlikely, and a gradient of order
#           1 in each frame. log_epsilon = -1e5 in the signature reads as "nearly log 0", not as a ceiling.
# Seen:     no path may score below log_epsilon: a confident, wrong start (blank at logit 60, 2000 labels in
#           3000 frames; feasible) costs 99,999.3 in place of 118,094.6 and its gradient is below 1e-20.
# Matters:  a long utterance with a badly initialised or diverged model is a plateau: it never trains out.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import optax

frames, count = 3000, 2000
row = np.array([60.0, 0.0, 0.0])  # class 0 is the blank
labels = np.tile([1, 2], count // 2)

# The forward recursion over [blank, y1, blank, y2, ..., blank], float64.
log_p = row - np.logaddexp.reduce(row)
states = np.zeros(2 * count + 1, int)
states[1::2] = labels
may_skip = (np.arange(states.size) % 2 == 1) & (np.arange(states.size) > 1)  # neighbours differ here
alpha = np.full(states.size, -np.inf)
alpha[:2] = log_p[states[:2]]
for _ in range(frames - 1):
    step, skip = np.r_[-np.inf, alpha[:-1]], np.r_[-np.inf, -np.inf, alpha[:-2]]
    alpha = np.logaddexp(np.logaddexp(alpha, step), np.where(may_skip, skip, -np.inf)) + log_p[states]
true_loss = -np.logaddexp(alpha[-1], alpha[-2])


def loss(logits):
    return optax.ctc_loss(logits, jnp.zeros((1, frames)), jnp.asarray(labels)[None], jnp.zeros((1, count)))[0]


seen, gradient = jax.value_and_grad(loss)(jnp.tile(jnp.float32(row), (1, frames, 1)))
print(f"true {true_loss:.1f}, optax {seen:.1f}, largest gradient {jnp.abs(gradient).max():.1e}")
assert 118_000 < true_loss < 118_200
assert 99_990 < seen < 100_010
assert jnp.abs(gradient).max() < 1e-20
PY
