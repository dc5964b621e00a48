"""The k largest magnitudes, exactly, by threshold: never a sort.

The bits of a non-negative float, read as an integer, order as the float does.
So the k-th largest magnitude is found by counting how many entries reach a
candidate: an interval shrinks around it, by halving it as values and, now and
then, as integers, which bounds the search where values span many exponents.
When at most two entries too many
reach its lower end, the least of them are dropped one by one: near ties would
need many more candidates. All of that is elementwise passes and sums, no gather
and no sort, so a sharded array costs one scalar a pass. Ties go to the lower
index, by a like search over indices; exactly k entries survive.

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

  XLA's CPU compiler cuts a long sum off from the comparison that feeds it, and
  writes the comparison to memory. Slices of the last axis are added first, in
  the comparison's own loop: twice as fast (docs/performance.md).
  """
  total = condition.astype(jnp.int32)
  if total.ndim - 1 in axes and total.shape[-1] % _NUM_SLICES == 0:
    total = functools.reduce(jnp.add, jnp.split(total, _NUM_SLICES, -1))
  return jnp.sum(total, axes, dtype=jnp.int32, keepdims=True)


_DROPPED_SINGLY = 2
_NUM_SLICES = 8  # With 16 the loop is cut in two: half as fast.


def _threshold(
  bits: jax.Array,
  k: jax.Array,
  axes: tuple[int, ...],
  dtype: jnp.dtype,
  has_protected: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Returns (threshold, number of entries that reach it), axes of size one.

  At least k entries of `bits` reach it; exactly k, or k and those equal to the
  threshold itself.

  Args:
    bits: of magnitudes; protected entries hold the largest integer.
    k: how many, broadcasting.
    axes: over which entries compete.
    dtype: of the magnitudes, for interpolation.
    has_protected: whether any entries are protected.
  """
  largest = jnp.iinfo(bits.dtype).max
  num_bits = 8 * bits.dtype.itemsize - 1
  shape = [1 if a in axes else n for a, n in enumerate(bits.shape)]
  k = jnp.broadcast_to(k, shape)
  value = lambda b: jax.lax.bitcast_convert_type(b, dtype).astype(jnp.float32)

  def halve_bits(low, high):
    return low + (high - low) // 2

  def halve_values(low, high):
    middle = (value(low) / 2 + value(high) / 2).astype(dtype)
    # Infinite ends give NaN, whose bits the clipping below brings back.
    return jax.lax.bitcast_convert_type(middle, bits.dtype)

  def is_open(low, high, count_low):
    return (count_low != k) & (high - low > 1)

  def is_wide(state):
    i, low, high, count_low = state
    wide = is_open(low, high, count_low) & (count_low - k > _DROPPED_SINGLY)
    return (i < 6 * num_bits) & jnp.any(wide)

  def narrow(state):
    i, low, high, count_low = state
    middle = halve_values(low, high)
    candidate = jnp.where(i % 6 == 5, halve_bits(low, high), middle)
    # Zeros are often many: the second smallest magnitude settles those first.
    candidate = jnp.where(i == 0, 1, candidate)
    candidate = jnp.clip(candidate, low + 1, jnp.maximum(high - 1, low + 1))
    candidate = candidate.astype(bits.dtype)
    reaching = _count(bits >= candidate, axes)
    holds = reaching >= k
    open_ = is_open(low, high, count_low)
    up, down = open_ & holds, open_ & ~holds
    return (
      i + 1,
      jnp.where(up, candidate, low),
      jnp.where(down, candidate, high),
      jnp.where(up, reaching, count_low),
    )

  unprotected = jnp.where(bits == largest, 0, bits) if has_protected else bits
  top = jnp.max(unprotected, axes, keepdims=True)
  high = jnp.where(top < largest, top + 1, top).astype(bits.dtype)
  count_high = (
    _count(bits == largest, axes)
    if has_protected
    else jnp.zeros(shape, jnp.int32)
  )
  size = math.prod(bits.shape[a] for a in axes)
  low = jnp.zeros(shape, bits.dtype)
  # Protected entries alone suffice, or none is wanted: the threshold is above.
  is_above = count_high >= k
  above = jnp.where(count_high > 0, largest, high).astype(bits.dtype)
  start = (
    jnp.zeros([], jnp.int32),
    jnp.where(is_above, above, low),
    jnp.where(is_above, above, high),
    jnp.where(is_above, count_high, size),
  )
  _, low, high, count_low = jax.lax.while_loop(is_wide, narrow, start)

  def drop_least(state):
    low, high, count_low = state
    least = jnp.min(jnp.where(bits >= low, bits, largest), axes, keepdims=True)
    left = _count(bits > least, axes)
    open_ = is_open(low, high, count_low)
    drops, ties = open_ & (left >= k), open_ & (left < k)
    return (
      jnp.where(drops, least + 1, jnp.where(ties, least, low)),
      jnp.where(ties, least + 1, high),
      jnp.where(drops, left, count_low),
    )

  low, _, count_low = jax.lax.while_loop(
    lambda state: jnp.any(is_open(*state)), drop_least, (low, high, count_low)
  )
  return low, count_low


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
  bits = _magnitude_bits(x)
  low, _ = _threshold(bits, jnp.asarray(k, jnp.int32), axes, x.dtype)
  # The least of those that reach the threshold is the k-th.
  largest = jnp.iinfo(bits.dtype).max
  kth = jnp.min(jnp.where(bits >= low, bits, largest), axes)
  return jax.lax.bitcast_convert_type(kth, x.dtype)


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
  threshold, count = _threshold(
    bits, k, axes, x.dtype, has_protected=protected is not None
  )
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
