"""The k largest magnitudes, exactly, by threshold: never a sort.

The bits of a non-negative float, read as an integer, order as the float does.
So the k-th largest magnitude is found by fixing bits from the top: a bit stays
set if at least k entries reach the candidate. That needs only counts: one
elementwise pass and one sum a bit, no gather and no sort, so a sharded array
costs one scalar sum a bit. Ties go to the lower index, by the same search over
indices; exactly k entries survive.

Along the last axis this is AbsTopK (`abs_top_k`; `inference/gpt.py` of
openai/circuit_sparsity), over a whole matrix the weight mask of its `train.py`,
with protected entries raised above every other for min-alive.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Signed: CPUs compare signed integers in vectors, unsigned ones they do not.
_INT = {2: jnp.int16, 4: jnp.int32}


def _magnitude_bits(x: jax.Array) -> jax.Array:
  """Returns integers that order as |x| does; NaN is above infinity."""
  if x.dtype.itemsize not in _INT or not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"need a 16- or 32-bit float array, got {x.dtype}")
  bits = jax.lax.bitcast_convert_type(x, _INT[x.dtype.itemsize])
  return bits & jnp.iinfo(bits.dtype).max


def _axes(ndim: int, axis: int | Sequence[int]) -> tuple[int, ...]:
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  return tuple(sorted(a % ndim for a in axes))


def _count(condition: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Returns how many are true over `axes`, each kept as size one.

  XLA's CPU compiler cuts a sum over more than 32 entries off from the
  comparison that feeds it, and writes the comparison to memory. Summed in
  groups of at most 32, both stay one loop: 2 to 3 times faster.
  """
  shape: list[int] = []
  grouped = []
  for axis, size in enumerate(condition.shape):
    factors = _small_factors(size) if axis in axes else [size]
    if axis in axes:
      grouped += range(len(shape), len(shape) + len(factors))
    shape += factors
  count = jnp.sum(condition.reshape(shape), tuple(grouped), dtype=jnp.int32)
  return jnp.expand_dims(count, axes)


def _small_factors(size: int, limit: int = 32) -> list[int]:
  """Returns factors of `size`, each at most `limit` where one divides it."""
  factors = []
  while size > limit:
    factor = next((f for f in range(limit, 1, -1) if size % f == 0), size)
    factors.append(factor)
    size //= factor
  return [size, *reversed(factors)]


def _threshold(
  bits: jax.Array, k: jax.Array, axes: tuple[int, ...], exact: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns (threshold, number of entries that reach it), axes of size one.

  At least k entries of `bits` reach it. Unless `exact` asks for the k-th
  largest itself, the search ends as soon as every vector has exactly k: about
  two thirds of the passes on activations.
  """
  num_bits = 8 * bits.dtype.itemsize - 1
  shape = [1 if a in axes else n for a, n in enumerate(bits.shape)]
  size = math.prod(bits.shape[a] for a in axes)

  def unsettled(state):
    i, _, count = state
    return (i < num_bits) & (exact | jnp.any(count != k))

  def fix_bit(state):
    i, threshold, count = state
    one = jnp.ones_like(threshold)
    candidate = threshold | (one << (num_bits - 1 - i).astype(bits.dtype))
    reaching = _count(bits >= candidate, axes)
    holds = reaching >= k
    return (
      i + 1,
      jnp.where(holds, candidate, threshold),
      jnp.where(holds, reaching, count),
    )

  start = (
    jnp.zeros([], jnp.int32),
    jnp.zeros(shape, bits.dtype),
    jnp.full(shape, size, jnp.int32),
  )
  _, threshold, count = jax.lax.while_loop(unsettled, fix_bit, start)
  return threshold, count


def kth_magnitude(
  x: jax.Array, k: int | jax.Array, axis: int | Sequence[int] = -1
) -> jax.Array:
  """Returns the k-th largest magnitude.

  Args:
    x: float array of 16 or 32 bits.
    k: how many entries reach the result, from 1 to the number of entries;
      an array broadcasts against `x` with `axis` reduced to size one.
    axis: axis or axes that are searched together.

  Returns:
    The magnitude, of x's dtype, without `axis`.
  """
  axes = _axes(x.ndim, axis)
  bits, _ = _threshold(_magnitude_bits(x), jnp.asarray(k), axes, exact=True)
  return jnp.squeeze(jax.lax.bitcast_convert_type(bits, x.dtype), axes)


@functools.partial(jax.jit, static_argnames="axis")
def top_k_mask(
  x: jax.Array,
  k: int | jax.Array,
  axis: int | tuple[int, ...] = -1,
  protected: jax.Array | None = None,
) -> jax.Array:
  """Returns a boolean mask of the k entries of largest magnitude.

  Args:
    x: float array of 16 or 32 bits.
    k: how many entries to keep, from 0 to the number of entries; may be traced,
      and an array broadcasts against `x` with `axis` reduced to size one.
    axis: axis or axes over which entries compete.
    protected: boolean mask, shaped as x, of entries that rank above all others.

  Returns:
    A mask shaped as x with exactly k true entries along `axis`; among equal
    magnitudes the lower (row-major) index wins.
  """
  axes = _axes(x.ndim, axis)
  k = jnp.asarray(k, jnp.int32)
  bits = _magnitude_bits(x)
  if protected is not None:
    bits = jnp.where(protected, jnp.iinfo(bits.dtype).max, bits)
  threshold, count = _threshold(bits, k, axes, exact=False)
  above = bits > threshold
  tied = bits == threshold
  missing = k - _count(above, axes)
  index = _row_major_index(bits.shape, axes)
  has_surplus = jnp.any(count > k)
  # Ties are rare: where every one survives, no pass is spent on them.
  index_bits = math.prod(bits.shape[a] for a in axes).bit_length()

  def raise_end(i, end):
    candidate = end | (jnp.ones_like(end) << (index_bits - 1 - i))
    before = _count(tied & (index < candidate), axes)
    return jnp.where(before <= missing, candidate, end)

  end = jax.lax.fori_loop(
    0,
    jnp.where(has_surplus, index_bits, 0),
    raise_end,
    jnp.zeros(threshold.shape, jnp.int32),
  )
  return above | (tied & ((index < end) | ~has_surplus))


def _row_major_index(shape: Sequence[int], axes: tuple[int, ...]) -> jax.Array:
  """Returns each entry's row-major index within `axes`."""
  index = jnp.zeros([1] * len(shape), jnp.int32)
  for axis in axes:
    size = [shape[axis] if a == axis else 1 for a in range(len(shape))]
    index = index * shape[axis] + jnp.arange(shape[axis]).reshape(size)
  return index


def abs_top_k(x: jax.Array, k: int) -> jax.Array:
  """AbsTopK: keeps the k largest magnitudes of the last axis, zeroes the rest.

  Paper section 2 ("activation sparsity"). The gradient is that of the mask: it
  passes unchanged through kept entries and is zero elsewhere.

  Args:
    x: float array `[..., width]`.
    k: entries kept per vector; `width` returns x itself.
  """
  if k == x.shape[-1]:
    return x
  return jnp.where(top_k_mask(jax.lax.stop_gradient(x), k), x, 0)
