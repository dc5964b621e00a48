"""Next-token cross-entropy, with the softmax gradient written by hand."""

import jax
import jax.numpy as jnp

from sparse_jax import model as model_lib


@jax.custom_vjp
def cross_entropy(logits_NxV: jax.Array, targets_N: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy in nats, float32.

  Autodiff would pass over `[N, V]` several times; this gradient is one pass.

  Args:
    logits_NxV: float32 logits.
    targets_N: int, the right tokens.
  """
  return _forward(logits_NxV, targets_N)[0]


def _forward(logits_NxV, targets_N):
  lse_N = jax.nn.logsumexp(logits_NxV, -1)
  right_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], -1)[:, 0]
  return jnp.mean(lse_N - right_N), (logits_NxV, lse_N, targets_N)


def _backward(residuals, grad):
  logits_NxV, lse_N, targets_N = residuals
  n, v = logits_NxV.shape
  is_right_NxV = targets_N[:, None] == jnp.arange(v)[None, :]
  probability_NxV = jnp.exp(logits_NxV - lse_N[:, None])
  return (probability_NxV - is_right_NxV) * (grad / n), None


cross_entropy.defvjp(_forward, _backward)


def next_token_loss(
  model: model_lib.Model, params: model_lib.Params, windows_BxW: jax.Array
) -> jax.Array:
  """Returns the mean next-token cross-entropy, in nats.

  Args:
    model: the model.
    params: its parameters.
    windows_BxW: int `[B, L + 1]`; every token but the first is predicted.
  """
  tokens_BxL, targets_BxL = windows_BxW[:, :-1], windows_BxW[:, 1:]
  x_BxLxD = model.residual(params, tokens_BxL)
  # Flat, as everything on CPU: products of two axes are the fast ones.
  x_NxD = x_BxLxD.reshape(-1, x_BxLxD.shape[-1])
  logits_NxV = model.unembed(params, x_NxD, tokens_BxL.reshape(-1))
  return cross_entropy(logits_NxV, targets_BxL.reshape(-1))
