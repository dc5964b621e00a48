"""Fused kernels for a GPU, behind the functions that they stand for.

`XLA` runs everywhere; `FUSED` keeps on the chip what XLA writes to memory: the
scores of attention, and the rows of a threshold search. Both pass the same
tests: AbsTopK's kernel interpreted on CPU, attention's by JAX's plain attention
in cuDNN's place. docs/decisions.md says what has run where.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_jax import config as config_lib
from sparse_jax.model import attention, top_k
from sparse_jax.utils import errors

_ENTRIES_A_BLOCK = 4096  # 32 a thread, with Triton's 128 threads.


class Kernels(NamedTuple):
  """What a model computes attention and the AbsTopK of the last axis with."""

  attend: Callable[..., jax.Array]
  top_k_mask: Callable[[jax.Array, int], jax.Array]


def row_top_k_mask(
  x: jax.Array, k: int, interpret: bool | None = None
) -> jax.Array:
  """As `top_k.top_k_mask` along the last axis, by one kernel.

  A block of rows stays on chip while the threshold is found bit by bit and ties
  are settled by index; XLA reads the rows a dozen times and waits for the host
  in between. `interpret` runs without a GPU, slowly; None is on CPU only.
  """
  # Imported here: only GPUs need it, and JAX plans to drop Triton.
  from jax.experimental import pallas as pl  # noqa: PLC0415
  from jax.experimental.pallas import triton as pl_triton  # noqa: PLC0415

  top_k.check_dtype(x)
  if interpret is None:
    interpret = jax.default_backend() == "cpu"
  width = x.shape[-1]
  padded = pl.next_power_of_2(width)  # As Triton wants.
  rows = jnp.pad(x.reshape(-1, width), ((0, 0), (0, padded - width)))
  height = math.gcd(len(rows), max(1, _ENTRIES_A_BLOCK // padded))
  block = pl.BlockSpec((height, padded), lambda i: (i, 0))
  mask = pl.pallas_call(
    functools.partial(_row_kernel, k=k, width=width),
    out_shape=jax.ShapeDtypeStruct(rows.shape, jnp.int8),
    grid=(len(rows) // height,),
    in_specs=[block],
    out_specs=block,
    # On a GPU these choose Triton; the interpreter takes no notice.
    compiler_params=pl_triton.CompilerParams(),
    interpret=interpret,
  )(rows)
  return mask[:, :width].astype(bool).reshape(x.shape)


def _row_kernel(x_ref, mask_ref, *, k, width):
  x = x_ref[...]
  index = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  bits = top_k.magnitude_bits(x.astype(jnp.float32))
  bits = jnp.where(index < width, bits, -1)
  count = lambda found: jnp.sum(found.astype(jnp.int32), 1, keepdims=True)

  def raise_threshold(i, threshold):
    candidate = threshold | (1 << (30 - i))
    return jnp.where(count(bits >= candidate) >= k, candidate, threshold)

  # Bits that widening to float32 leaves zero are zero in the threshold too.
  widened = jnp.finfo(jnp.float32).nmant - jnp.finfo(x.dtype).nmant
  zeros = jnp.zeros((x.shape[0], 1), jnp.int32)
  threshold = jax.lax.fori_loop(0, 31 - widened, raise_threshold, zeros)
  is_tied = bits == threshold
  missing = k - count(bits > threshold)

  def raise_end(i, end):
    candidate = end | (x.shape[1] >> i)
    before = count(is_tied & (index < candidate))
    return jnp.where(before <= missing, candidate, end)

  end = jax.lax.fori_loop(0, x.shape[1].bit_length(), raise_end, zeros)
  mask = (bits > threshold) | (is_tied & (index < end))
  mask_ref[...] = mask.astype(mask_ref.dtype)


XLA = Kernels(attention.attend, top_k.row_mask)
FUSED = Kernels(attention.fused_attend, row_top_k_mask)


def choose(
  config: config_lib.Config, dtype: jnp.dtype, num_devices: int = 1
) -> Kernels:
  """Returns the kernels of `config.train.kernels`; fused ones want one GPU."""
  if config.train.kernels == "xla":
    return XLA
  backend = jax.default_backend()
  if backend != "gpu" or num_devices > 1:
    raise errors.bad_value(
      "train.kernels",
      config.train.kernels,
      f"xla for {num_devices} {backend} device(s): the fused kernels need one"
      " GPU",
    )
  return check_fused(config.model, dtype)


def check_fused(model: config_lib.ModelConfig, dtype: jnp.dtype) -> Kernels:
  """Returns the fused kernels if they take a model's heads and dtype."""
  widths = attention.FUSED_WIDTHS
  if model.d_head not in widths:
    multiple = f"a multiple of {widths.step}, at most {widths[-1]}"
    need = f"{multiple}, for fused kernels"
    raise errors.bad_value("model.d_head", model.d_head, need)
  if dtype != jnp.bfloat16:
    need = "bfloat16 for fused kernels"
    raise errors.bad_value("train.compute_dtype", dtype.name, need)
  return FUSED
