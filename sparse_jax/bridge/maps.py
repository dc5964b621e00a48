"""The bridges themselves: linear maps with AbsTopK one way, without it back.

Axes: N tokens of a batch in any shape, D dense residual, S sparse residual.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_jax.model import top_k

Maps = Any  # {"encoder" | "decoder": {"kernel": [points, …], "bias": …}}


def init(
  rng: jax.Array, num_points: int, dense_width: int, sparse_width: int
) -> Maps:
  """Returns fresh bridges: as near to a rotation and its inverse as they fit.

  Without AbsTopK a decoder then undoes its encoder if the sparse model is at
  least as wide.
  """
  shape = num_points, dense_width, sparse_width
  kernel = jax.nn.initializers.orthogonal()(rng, shape)
  zeros = lambda width: jnp.zeros((num_points, width))
  return {
    "encoder": {"kernel": kernel, "bias": zeros(sparse_width)},
    "decoder": {
      "kernel": jnp.swapaxes(kernel, 1, 2),
      "bias": zeros(dense_width),
    },
  }


def identity(num_points: int, width: int) -> Maps:
  """Returns bridges between models of one width that change nothing."""
  one = {
    "kernel": jnp.tile(jnp.eye(width), (num_points, 1, 1)),
    "bias": jnp.zeros((num_points, width)),
  }
  return {"encoder": one, "decoder": one}


def encode(
  maps: Maps, index: int, dense_NxD: jax.Array, num_active: int
) -> jax.Array:
  """Returns a dense state as a sparse one at a bridge, `[…, S]`."""
  sparse_NxS = _linear(maps["encoder"], index, dense_NxD)
  return top_k.abs_top_k(sparse_NxS, num_active)


def decode(maps: Maps, index: int, sparse_NxS: jax.Array) -> jax.Array:
  """Returns a sparse state as a dense one at a bridge, `[…, D]`."""
  return _linear(maps["decoder"], index, sparse_NxS)


def decode_difference(
  maps: Maps, index: int, difference_NxS: jax.Array
) -> jax.Array:
  """Returns what a difference of sparse states is in the dense model."""
  return difference_NxS @ maps["decoder"]["kernel"][index]


def _linear(p, index, x_NxI):
  flat = x_NxI.reshape(-1, x_NxI.shape[-1])  # Two axes: as in transformer.py.
  kernel_IxO = p["kernel"][index].astype(x_NxI.dtype)
  y = flat @ kernel_IxO + p["bias"][index].astype(x_NxI.dtype)
  return y.reshape(*x_NxI.shape[:-1], kernel_IxO.shape[-1])
