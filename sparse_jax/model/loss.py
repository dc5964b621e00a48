"""Next-token cross-entropy, with the softmax gradient written by hand.

Axes: B batch, L position, P positions of a part, N positions of all windows, D
residual, V vocabulary.
"""

import jax
import jax.numpy as jnp

from sparse_jax.model import transformer

MOST_LOGITS = 2**26  # 256 MiB in float32.


@jax.custom_vjp
def cross_entropy(logits_NxV: jax.Array, targets_N: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy in nats, float32.

  Autodiff would pass over `[N, V]` several times; this gradient is one pass.
  """
  return _forward(logits_NxV, targets_N)[0]


def _forward(logits_NxV, targets_N):
  lse_N = jax.nn.logsumexp(logits_NxV, -1)
  correct_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], -1)[:, 0]
  return jnp.mean(lse_N - correct_N), (logits_NxV, lse_N, targets_N)


def _backward(residuals, grad):
  logits_NxV, lse_N, targets_N = residuals
  n, v = logits_NxV.shape
  is_correct_NxV = targets_N[:, None] == jnp.arange(v)[None, :]
  probability_NxV = jnp.exp(logits_NxV - lse_N[:, None])
  return (probability_NxV - is_correct_NxV) * (grad / n), None


cross_entropy.defvjp(_forward, _backward)


def next_token_loss(
  model: transformer.Model,
  params: transformer.Params,
  windows_BxW: jax.Array,
  most_logits: int = MOST_LOGITS,
  hook: transformer.Hook | None = None,
) -> jax.Array:
  """Returns the mean cross-entropy of all tokens but the first, in nats.

  At most `most_logits` exist at a time over all devices, and as many gradients:
  more are computed in equal parts of the positions, and again in the backward
  pass. The parts are few only if L has many divisors.
  """
  tokens_BxL, targets_BxL = windows_BxW[:, :-1], windows_BxW[:, 1:]
  x_BxLxD = model.residual(params, tokens_BxL, hook)

  def part_loss(x_BxPxD, tokens_BxP, targets_BxP):
    # Flat, as everything on CPU: products of two axes are the fast ones.
    x_NxD = x_BxPxD.reshape(-1, x_BxPxD.shape[-1])
    logits_NxV = model.unembed(params, x_NxD, tokens_BxP.reshape(-1))
    return cross_entropy(logits_NxV, targets_BxP.reshape(-1))

  length = targets_BxL.shape[1]
  num_logits = targets_BxL.size * model.config.vocab_size
  num_parts = next(
    n
    for n in range(1, length + 1)
    if length % n == 0 and (num_logits <= n * most_logits or n == length)
  )
  if num_parts == 1:
    return part_loss(x_BxLxD, tokens_BxL, targets_BxL)

  def cut(x_BxLx):
    """Cuts positions, not windows, which devices share out between them."""
    parts = x_BxLx.reshape(x_BxLx.shape[0], num_parts, -1, *x_BxLx.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  losses = jax.lax.map(
    # A loop already keeps the two computations apart.
    lambda part: jax.checkpoint(part_loss, prevent_cse=False)(*part),
    jax.tree.map(cut, (x_BxLxD, tokens_BxL, targets_BxL)),
  )
  return jnp.mean(losses)
