"""The bridges themselves: linear maps with AbsTopK one way, without it back.

They are trained in units: the two models' states differ by orders of magnitude,
from bridge to bridge and over the training, and a rate that suits a kernel from
one to the other does not suit the kernel back.

Axes: N tokens of a batch in any shape, D dense residual, S sparse residual, P
bridge points, W either residual.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Units(NamedTuple):
  """Where a model's states lie: mean `[P, W]`, spread `[P]`.

  The spread is the root of the variance, as a mean over channels. One bridge's
  units, `P = 1`, hold for all.
  """

  mean_PxW: jax.Array
  spread_P: jax.Array


def units_of(states: Sequence[jax.Array]) -> Units:
  """Returns the units of a batch. They pass gradients: what is measured in its
  own units wins nothing by growing, nor by shrinking."""
  x_PxNxW = jnp.stack([x.reshape(-1, x.shape[-1]) for x in states])
  x_PxNxW = x_PxNxW.astype(jnp.float32)
  spread_P = jnp.sqrt(jnp.mean(jnp.var(x_PxNxW, 1), -1))
  return Units(jnp.mean(x_PxNxW, 1), jnp.maximum(spread_P, 1e-6))


def out_of_units(maps: Maps, dense: Units, sparse: Units) -> Maps:
  """Returns maps of states that do what `maps` do of states in their units.

  y = mean + spread (x' W + b), where x' is x less its mean, over its spread.
  """

  def plain(p, source, target):
    ratio_P = target.spread_P / source.spread_P
    kernel = p["kernel"] * ratio_P[:, None, None]
    bias = target.mean_PxW + target.spread_P[:, None] * p["bias"]
    bias -= jnp.squeeze(source.mean_PxW[:, None] @ kernel, 1)
    return {"kernel": kernel, "bias": bias}

  return {
    "encoder": plain(maps["encoder"], dense, sparse),
    "decoder": plain(maps["decoder"], sparse, dense),
  }


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
