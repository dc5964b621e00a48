"""What heads compare: queries and keys, split, turned and scaled.

Sites hold queries and keys before this, so that a node stays one channel.

Axes: B batch, L query position, M key position, H head, K head width, R half of
the channels that rotary positions turn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib


def split(config: config_lib.ModelConfig, x_BxLxD: jax.Array) -> jax.Array:
  """Returns x by head, `[B, L, H, K]`."""
  return x_BxLxD.reshape(*x_BxLxD.shape[:-1], config.n_head, config.d_head)


def queries_and_keys(
  config: config_lib.ModelConfig,
  q_BxLxD: jax.Array,
  k_BxMxD: jax.Array,
  position_BxL: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns what attention compares, `[B, L, H, K]` and `[B, M, H, K]`.

  Keys are at positions 0 to M - 1, queries at `position_BxL` or at their index.
  """
  q_BxLxHxK, k_BxMxHxK = split(config, q_BxLxD), split(config, k_BxMxD)
  if config.positions == "rotary":
    turns_MxR = angles(
      k_BxMxD.shape[1], config.rotary_width, config.rotary_base
    )
    at = slice(q_BxLxD.shape[1]) if position_BxL is None else position_BxL
    q_BxLxHxK = rotate(q_BxLxHxK, jnp.asarray(turns_MxR)[at])
    k_BxMxHxK = rotate(k_BxMxHxK, jnp.asarray(turns_MxR))
  if not config.scale_scores:
    # Attention divides by this root.
    q_BxLxHxK *= config.d_head**0.5
  return q_BxLxHxK, k_BxMxHxK


def windows(config: config_lib.ModelConfig) -> jax.Array | None:
  """Returns how many keys a query sees, by layer; None is all everywhere."""
  if not config.windows:
    return None
  return jnp.array([w or config_lib.NO_WINDOW for w in config.windows])


def angles(length: int, width: int, base: float) -> np.ndarray:
  """Returns how far each pair of channels turns, radians `[length, width/2]`.

  `position * base^(-2 i / width)` for pair i (Su et al. 2021, section 3.2).
  """
  rate_R = float(base) ** (-np.arange(width // 2) / (width // 2))
  # Small in float64, since float32 holds an angle of 2,000 to 1e-4 only.
  return np.fmod(np.arange(length)[:, None] * rate_R, 2 * np.pi)


def rotate(x_BxLxHxK: jax.Array, angle_xLxR: jax.Array) -> jax.Array:
  """Returns x with channels i and i + R of each head turned by angle i.

  Angles are `[L, R]` or `[B, L, R]`; channels from 2 R on stay (GPT-NeoX).
  """
  half = angle_xLxR.shape[-1]
  angle_xLx1xR = angle_xLxR.astype(jnp.float32)[..., None, :]
  cos, sin = jnp.cos(angle_xLx1xR), jnp.sin(angle_xLx1xR)
  first, second = x_BxLxHxK[..., :half], x_BxLxHxK[..., half : 2 * half]
  parts = first * cos - second * sin, second * cos + first * sin
  parts = [part.astype(x_BxLxHxK.dtype) for part in parts]
  return jnp.concatenate([*parts, x_BxLxHxK[..., 2 * half :]], -1)
