"""Causal attention with a sink (paper section 2; inference/gpt.py).

The sink is a dummy key of logit `sink` and value 0: the usual attention scaled
by sigmoid(logsumexp(scores) - sink). `attend` is exact and runs everywhere,
`fused_attend` is the same function by a fused kernel of JAX's.

Axes: B batch, L query position, M key position, H head, K head width; T and C:
L and K with what the sink adds.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

_SINK_CHANNELS = 8  # Fused kernels want multiples of 8; two are used.
# Head widths that cuDNN takes with the sink's channels (on every card).
FUSED_WIDTHS = range(8, 128 - _SINK_CHANNELS + 1, 8)
_NO_SINK = -1e30  # A logit; infinity times the queries' zeros is NaN.
_LEAST_QUERIES, _MOST_BLOCKS = 64, 4


def attend(
  q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, sink_H=None, position_BxL=None, window=None
) -> jax.Array:
  """Causal attention with an optional sink, float32 `[B, L, H, K]`.

  A query sees the keys up to its own position: `position_BxL`, or its index;
  with a window, an int or an array of no axes, only so many. The sink's logits
  are float32; None is no sink.
  """
  # Heads first: one batched product of contiguous matrices.
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxK, k_BxMxHxK, v_BxMxHxK))
  H, L, M = *q.shape[1:3], k.shape[2]
  if sink_H is None:
    sink_H = jnp.full(H, -jnp.inf)
  sink_H = sink_H.astype(jnp.float32)
  if position_BxL is not None:
    age_Bx1xLxM = position_BxL[:, None, :, None] - jnp.arange(M)
    visible_Bx1xLxM = age_Bx1xLxM >= 0
    if window is not None:
      visible_Bx1xLxM &= age_Bx1xLxM < window
    y_BxHxLxK = _attend(q, k, v, sink_H, visible_Bx1xLxM)
  else:
    blocks = []
    for start, stop in _blocks(L):
      visible = jnp.tri(stop - start, stop, start, dtype=bool)[None, None]
      if window is not None:
        age_LxM = jnp.arange(start, stop)[:, None] - jnp.arange(stop)
        visible &= age_LxM < window
      parts = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
      blocks.append(_attend(*parts, sink_H, visible))
    y_BxHxLxK = jnp.concatenate(blocks, 2)
  return jnp.swapaxes(y_BxHxLxK, 1, 2)


def fused_attend(
  q_BxLxHxK,
  k_BxLxHxK,
  v_BxLxHxK,
  sink_H=None,
  position_BxL=None,
  window=None,
  *,
  implementation: str = "cudnn",
) -> jax.Array:
  """As `attend`, by a fused kernel that never writes the scores to memory.

  The kernel knows no sink, and JAX drops the gradient of its log-sum-exp. So
  the sink is a key of its own at position 0, where every query sees it: zero in
  all channels but two that no other key uses. Two, since a bfloat16 alone holds
  a logit to 1 part in 256: the second holds what the first leaves over. cuDNN
  wants bfloat16 and K of `FUSED_WIDTHS`. Queries elsewhere than at the keys and
  windows are left to `attend`.
  """
  if position_BxL is not None or window is not None:
    return attend(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, sink_H, position_BxL, window)
  length, num_heads, width = q_BxLxHxK.shape[1:]
  if sink_H is None:
    sink_H = jnp.full(num_heads, _NO_SINK)
  logit_H = sink_H.astype(jnp.float32) * width**0.5
  # Not two casts: XLA may leave them out.
  held = jnp.finfo(q_BxLxHxK.dtype)
  coarse_H = jax.lax.reduce_precision(logit_H, held.nexp, held.nmant)
  ones, zeros = jnp.ones((num_heads, 2)), jnp.zeros((num_heads, 2))
  both_Hx2 = jnp.stack([coarse_H, logit_H - coarse_H], -1)
  y_BxTxHxC = jax.nn.dot_product_attention(
    _widen(q_BxLxHxK, first_Hx2=zeros, others_Hx2=ones),
    _widen(k_BxLxHxK, first_Hx2=both_Hx2, others_Hx2=zeros),
    _widen(v_BxLxHxK, first_Hx2=zeros, others_Hx2=zeros),
    scale=width**-0.5,
    is_causal=True,
    implementation=implementation,
  )
  return y_BxTxHxC[:, 1 : length + 1, :, :width].astype(jnp.float32)


def _widen(x_BxLxHxK, first_Hx2, others_Hx2) -> jax.Array:
  """Returns x with a new first position and two new channels, `[B, T, H, C]`.

  The two hold `first_Hx2` at the new position, whose others are zero, and
  `others_Hx2` elsewhere. Zeros fill up to an even length and a width that
  kernels take; no query but its own sees a position at the end.
  """
  batch, length = x_BxLxHxK.shape[:2]
  x_BxTxHxK = jnp.pad(x_BxLxHxK, ((0, 0), (1, 1 - length % 2), (0, 0), (0, 0)))
  is_first_Tx1x1 = (jnp.arange(x_BxTxHxK.shape[1]) == 0)[:, None, None]
  two_TxHx2 = jnp.where(is_first_Tx1x1, first_Hx2, others_Hx2)
  more_TxHxS = jnp.pad(two_TxHx2, ((0, 0), (0, 0), (0, _SINK_CHANNELS - 2)))
  more_BxTxHxS = jnp.broadcast_to(more_TxHxS, (batch, *more_TxHxS.shape))
  return jnp.concatenate([x_BxTxHxK, more_BxTxHxS.astype(x_BxLxHxK.dtype)], -1)


def _blocks(length: int) -> list[tuple[int, int]]:
  """Returns (start, stop) of blocks of queries.

  None of a block sees a key past its end: up to 37% fewer scores.
  """
  size = max(_LEAST_QUERIES, -(-length // _MOST_BLOCKS))
  return list(itertools.pairwise((*range(0, length, size), length)))


@jax.custom_vjp
def _attend(q_BxHxLxK, k_BxHxMxK, v_BxHxMxK, sink_H, visible_Bx1xLxM):
  """Attention with heads first; the gradient is written out below."""
  return _attend_forward(
    q_BxHxLxK, k_BxHxMxK, v_BxHxMxK, sink_H, visible_Bx1xLxM
  )[0]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _attend_forward(q_BxHxLxK, k_BxHxMxK, v_BxHxMxK, sink_H, visible_Bx1xLxM):
  scale = q_BxHxLxK.shape[-1] ** -0.5
  sink_Hx1x1 = sink_H[:, None, None]
  score_BxHxLxM = _product("BHLK,BHMK->BHLM", q_BxHxLxK, k_BxHxMxK)
  score_BxHxLxM = jnp.where(visible_Bx1xLxM, score_BxHxLxM * scale, -jnp.inf)
  top_BxHxLx1 = jnp.max(score_BxHxLxM, -1, keepdims=True)
  top_BxHxLx1 = jnp.maximum(top_BxHxLx1, sink_Hx1x1)
  weight_BxHxLxM = jnp.exp(score_BxHxLxM - top_BxHxLx1)
  sink_BxHxLx1 = jnp.exp(sink_Hx1x1 - top_BxHxLx1)
  total_BxHxLx1 = jnp.sum(weight_BxHxLxM, -1, keepdims=True) + sink_BxHxLx1
  weight_BxHxLxM = weight_BxHxLxM.astype(v_BxHxMxK.dtype)
  y_BxHxLxK = _product("BHLM,BHMK->BHLK", weight_BxHxLxM, v_BxHxMxK)
  y_BxHxLxK /= total_BxHxLx1
  kept = (weight_BxHxLxM, sink_BxHxLx1, total_BxHxLx1, y_BxHxLxK)
  return y_BxHxLxK, (q_BxHxLxK, k_BxHxMxK, v_BxHxMxK, *kept)


def _attend_backward(residuals, dy_BxHxLxK):
  """The softmax's gradient, as in FlashAttention (Dao et al., 2022, B.2).

  Left to autodiff, the gradients of keys and values transpose the large factor
  of a product, which is three times slower on CPU: here the small one is.
  """
  q, k, v, weight_BxHxLxM, sink_BxHxLx1, total_BxHxLx1, y_BxHxLxK = residuals
  scale = q.shape[-1] ** -0.5
  dy_BxHxLxK = dy_BxHxLxK / total_BxHxLx1
  mean_BxHxLx1 = jnp.sum(dy_BxHxLxK * y_BxHxLxK, -1, keepdims=True)
  dsink_H = -jnp.sum(sink_BxHxLx1 * mean_BxHxLx1, (0, 2, 3))
  dy = dy_BxHxLxK.astype(v.dtype)
  dscore_BxHxLxM = _product("BHLK,BHMK->BHLM", dy, v) - mean_BxHxLx1
  dscore_BxHxLxM = (weight_BxHxLxM * dscore_BxHxLxM).astype(q.dtype)
  dq_BxHxLxK = _product("BHLM,BHMK->BHLK", dscore_BxHxLxM, k) * scale
  q, dy = (jnp.swapaxes(x, 2, 3) for x in (q, dy))
  dk_BxHxKxM = _product("BHKL,BHLM->BHKM", q, dscore_BxHxLxM) * scale
  dv_BxHxKxM = _product("BHKL,BHLM->BHKM", dy, weight_BxHxLxM)
  dk, dv = (jnp.swapaxes(x, 2, 3) for x in (dk_BxHxKxM, dv_BxHxKxM))
  as_input = lambda gradient, x: gradient.astype(x.dtype)
  return (*map(as_input, (dq_BxHxLxK, dk, dv), (q, k, v)), dsink_H, None)


_attend.defvjp(_attend_forward, _attend_backward)
