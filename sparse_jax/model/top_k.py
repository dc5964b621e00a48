"""The k largest magnitudes, exactly, by threshold: never a sort.

The bits of a non-negative float, read as an integer, order as the float does.
So the k-th largest magnitude is found by counting how many entries reach a
candidate: an interval shrinks around it, cut into up to four parts a pass, as
values and, now and then, as integers, which bounds the search where values span
many exponents. Once at most two entries too many reach its lower end, the least
are dropped one by one: near ties would need many more candidates. These are
elementwise passes and sums, no gather and no sort, so a sharded array costs one
scalar a pass. Ties go to the lower index, by a like search over indices;
exactly k entries survive.

Along the last axis this is AbsTopK (`abs_top_k`; `inference/gpt.py` of
openai/circuit_sparsity), over a whole matrix the weight mask of its `train.py`,
with protected entries raised above every other for min-alive.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.model import sharding

# Signed: CPUs compare signed integers in vectors, unsigned ones they do not.
_INT = {2: jnp.int16, 4: jnp.int32}
_BIT = np.arange(8, dtype=np.uint8)
_PACKED_TOGETHER = 512
_NARROW = 32  # Widths up to which AbsTopK compares all pairs.
_NUM_SLICES = 8  # With 16 the loop is cut in two: half as fast.


def check_dtype(x: jax.Array) -> None:
  """Raises TypeError unless x holds floats of 16 or 32 bits."""
  if x.dtype.itemsize not in _INT or not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"need a 16- or 32-bit float array, got {x.dtype}")


def magnitude_bits(x: jax.Array) -> jax.Array:
  """Returns integers that order as |x| does; NaN is above infinity."""
  check_dtype(x)
  bits = jax.lax.bitcast_convert_type(x, _INT[x.dtype.itemsize])
  return bits & jnp.iinfo(bits.dtype).max


def _axes(ndim: int, axis: int | Sequence[int]) -> tuple[int, ...]:
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  return tuple(sorted(a % ndim for a in axes))


def _fold(x: jax.Array, combine) -> jax.Array:
  """Returns x with slices of its last axis combined, to be reduced along it.

  XLA's CPU compiler cuts a long reduction off from what feeds it and does not
  turn it into vectors. Slices of the last axis are combined first, in the loop
  that makes them: twice as fast for sums, nine times for least and largest
  (docs/performance.md). A device that holds a part of the axis folds its part,
  on an axis of its own: slices of the whole would move between devices.
  """
  shards = sharding.axis_size("model")
  if shards > 1 and x.shape[-1] % shards == 0:
    x = x.reshape(*x.shape[:-1], shards, -1)
  if x.shape[-1] % _NUM_SLICES:
    return x
  return functools.reduce(combine, jnp.split(x, _NUM_SLICES, -1))


def _reduce(x: jax.Array, axes: tuple[int, ...], combine, reduce) -> jax.Array:
  """Returns `reduce(x, axes)`, each axis kept as size one."""
  if x.ndim - 1 not in axes:
    return reduce(x, axes, keepdims=True)
  folded = _fold(x, combine)
  axes = tuple({*axes, folded.ndim - 1})
  kept = reduce(folded, axes, keepdims=True)
  return kept.reshape(kept.shape[: x.ndim])


_sum = functools.partial(_reduce, combine=jnp.add, reduce=jnp.sum)
_least = functools.partial(_reduce, combine=jnp.minimum, reduce=jnp.min)
_most = functools.partial(_reduce, combine=jnp.maximum, reduce=jnp.max)


def _count(condition: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return _sum(condition.astype(jnp.int32), axes)


def _count_each(
  bits: jax.Array, candidates: Sequence[jax.Array], axes: tuple[int, ...]
) -> list[jax.Array]:
  """Returns how many entries reach each candidate, in one pass.

  Along the last of the axes the counts share an integer, so many bits each.
  """
  width = 32 // len(candidates)
  together = sum(
    (bits >= candidate).astype(jnp.int32) << (width * i)
    for i, candidate in enumerate(candidates)
  )
  last = axes[-1]
  if last == bits.ndim - 1:
    together = _fold(together, jnp.add)
    last = together.ndim - 1
  shared = jnp.sum(together, last, keepdims=True)
  mask = -1 if width == 32 else (1 << width) - 1
  counts = [(shared >> (width * i)) & mask for i in range(len(candidates))]
  # Taken apart before devices add up: one integer each, not one a row.
  axes = tuple({*axes, last})
  sums = [jnp.sum(count, axes, keepdims=True) for count in counts]
  return [x.reshape(x.shape[: bits.ndim]) for x in sums]


_DROPPED_SINGLY = 2
_MOST_CANDIDATES = 3  # A pass; more cost as much as they save.


def _threshold(
  bits: jax.Array,
  k: jax.Array,
  axes: tuple[int, ...],
  dtype: jnp.dtype,
  has_protected: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (threshold, entries that reach it, entries above), axes size one.

  At least k entries of `bits`, magnitudes of `dtype`, reach it. Where more do,
  it is the magnitude of the k-th, and fewer than k are above; where exactly k
  do, the number above is what some larger threshold left. Protected entries
  hold the largest integer.
  """
  largest = jnp.iinfo(bits.dtype).max
  num_bits = 8 * bits.dtype.itemsize - 1
  shape = [1 if a in axes else n for a, n in enumerate(bits.shape)]
  size = math.prod(bits.shape[a] for a in axes)
  # As many as one integer can hold counts of.
  num_bits_a_count = bits.shape[axes[-1]].bit_length()
  num_candidates = max(1, min(_MOST_CANDIDATES, 32 // num_bits_a_count))
  k = jnp.broadcast_to(k, shape)
  value = lambda b: jax.lax.bitcast_convert_type(b, dtype).astype(jnp.float32)

  def between_bits(low, high, share):
    return low + ((high - low) * share).astype(bits.dtype)

  def between_values(low, high, share):
    between = (value(low) * (1 - share) + value(high) * share).astype(dtype)
    # Infinite ends give NaN, whose bits the clipping below brings back.
    return jax.lax.bitcast_convert_type(between, bits.dtype)

  def is_open(low, high, count_low):
    return (count_low != k) & (high - low > 1)

  def is_wide(state):
    i, low, high, count_low, _ = state
    wide = is_open(low, high, count_low) & (count_low - k > _DROPPED_SINGLY)
    return (i < 6 * num_bits) & jnp.any(wide)

  def narrow(state):
    i, low, high, count_low, count_high = state
    open_ = is_open(low, high, count_low)
    candidates = []
    for number in range(1, num_candidates + 1):
      cut = low, high, number / (num_candidates + 1)
      candidate = jnp.where(
        i % 6 == 5, between_bits(*cut), between_values(*cut)
      )
      if number == 1:
        # Zeros are often many: the least magnitude above settles those first.
        candidate = jnp.where(i == 0, 1, candidate)
      candidate = jnp.clip(candidate, low + 1, jnp.maximum(high - 1, low + 1))
      candidates.append(candidate.astype(bits.dtype))
    counts = _count_each(bits, candidates, axes)
    for candidate, reaching in zip(candidates, counts, strict=True):
      up = open_ & (reaching >= k)
      down = open_ & (reaching < k) & (candidate < high)
      low = jnp.where(up, candidate, low)
      high = jnp.where(down, candidate, high)
      count_low = jnp.where(up, reaching, count_low)
      count_high = jnp.where(down, reaching, count_high)
    return i + 1, low, high, count_low, count_high

  unprotected = jnp.where(bits == largest, 0, bits) if has_protected else bits
  top = _most(unprotected, axes)
  # Not just one above: where x is a sum, XLA may round it otherwise here than
  # in the loops below.
  slack = 1 << max(0, jnp.finfo(dtype).nmant - 7)
  high = (jnp.minimum(top, largest - slack) + slack).astype(bits.dtype)
  count_high = jnp.zeros(shape, jnp.int32)
  if has_protected:
    count_high = _count(bits == largest, axes)
  low = jnp.zeros(shape, bits.dtype)
  # Protected entries alone suffice, or none is wanted: the threshold is above.
  is_above = count_high >= k
  above = jnp.where(count_high > 0, largest, high).astype(bits.dtype)
  start = (
    jnp.zeros([], jnp.int32),
    jnp.where(is_above, above, low),
    jnp.where(is_above, above, high),
    jnp.where(is_above, count_high, size),
    jnp.where(is_above, 0, count_high),
  )
  _, *ends = jax.lax.while_loop(is_wide, narrow, start)

  def drop_least(state):
    low, high, count_low, count_high = state
    least = _least(jnp.where(bits >= low, bits, largest), axes)
    left = _count(bits > least, axes)
    open_ = is_open(low, high, count_low)
    drops, ties = open_ & (left >= k), open_ & (left < k)
    return (
      jnp.where(drops, least + 1, jnp.where(ties, least, low)),
      jnp.where(ties, least + 1, high),
      jnp.where(drops, left, count_low),
      jnp.where(ties, left, count_high),
    )

  low, _, count_low, count_high = jax.lax.while_loop(
    lambda state: jnp.any(is_open(*state[:3])), drop_least, tuple(ends)
  )
  return low, count_low, count_high


def kth_magnitude(
  x: jax.Array, k: int | jax.Array, axis: int | Sequence[int] = -1
) -> jax.Array:
  """Returns the k-th largest magnitude over the axes, without them.

  k is at least 1; else as in `top_k_mask`.
  """
  axes = _axes(x.ndim, axis)
  bits = magnitude_bits(x)
  low, _, _ = _threshold(bits, jnp.asarray(k, jnp.int32), axes, x.dtype)
  # The least of those that reach the threshold is the k-th.
  largest = jnp.iinfo(bits.dtype).max
  kth = _least(jnp.where(bits >= low, bits, largest), axes)
  return jnp.squeeze(jax.lax.bitcast_convert_type(kth, x.dtype), axes)


@functools.partial(jax.jit, static_argnames="axis")
def top_k_mask(
  x: jax.Array,
  k: int | jax.Array,
  axis: int | tuple[int, ...] = -1,
  protected: jax.Array | None = None,
) -> jax.Array:
  """Returns a boolean mask of the k entries of largest magnitude.

  x holds floats of 16 or 32 bits. Exactly k entries are true along `axis`, from
  0 to all; among equal magnitudes the lower (row-major) index wins. k may be
  traced, and an array broadcasts against x with `axis` reduced to size one.
  Entries of the mask `protected`, shaped as x, rank above all others.
  """
  axes = _axes(x.ndim, axis)
  k = jnp.asarray(k, jnp.int32)
  bits = magnitude_bits(x)
  if protected is not None:
    bits = jnp.where(protected, jnp.iinfo(bits.dtype).max, bits)
  threshold, count, count_above = _threshold(
    bits, k, axes, x.dtype, has_protected=protected is not None
  )
  missing = k - count_above
  has_surplus = jnp.any(count > k)
  size = math.prod(bits.shape[a] for a in axes)

  # Made anew wherever it is needed: kept, it would be as large as x.
  def is_tied_before(end):
    index = _row_major_index(bits.shape, axes)
    return (bits == threshold) & (index < end)

  def raise_end(i, end):
    candidate = end | (jnp.ones_like(end) << (size.bit_length() - 1 - i))
    before = _count(is_tied_before(candidate), axes)
    return jnp.where(before <= missing, candidate, end)

  # Ties are rare: where every one survives, no pass is spent on them.
  end = jax.lax.fori_loop(
    0,
    jnp.where(has_surplus, size.bit_length(), 0),
    raise_end,
    jnp.zeros(threshold.shape, jnp.int32),
  )
  end = jnp.where(has_surplus, end, size)

  # In a loop too, of one pass, which the compiler cannot know: XLA writes what
  # a loop reads to memory, once. Elsewhere it makes x anew for each reader,
  # with or without fused multiply-adds: what is kept is not what was counted.
  def mark(_, mask):
    del mask
    return (bits > threshold) | is_tied_before(end)

  once = jnp.any(count >= k).astype(jnp.int32)
  return jax.lax.fori_loop(0, once, mark, jnp.zeros(bits.shape, bool))


def _row_major_index(shape: Sequence[int], axes: tuple[int, ...]) -> jax.Array:
  """Returns each entry's row-major index within `axes`."""
  index = jnp.zeros([1] * len(shape), jnp.int32)
  for axis in axes:
    size = [shape[axis] if a == axis else 1 for a in range(len(shape))]
    index = index * shape[axis] + jnp.arange(shape[axis]).reshape(size)
  return index


def row_mask(x: jax.Array, k: int) -> jax.Array:
  """Returns `top_k_mask` of the last axis.

  A narrow one is ranked by comparing all pairs of its entries: that is little
  work, and a small program.
  """
  if x.shape[-1] > _NARROW:
    return top_k_mask(x, k)
  bits = magnitude_bits(x)
  index = jnp.arange(x.shape[-1])
  is_before = index[None, :] < index[:, None]

  def rank(_, mask):
    del mask
    mine, other = bits[..., :, None], bits[..., None, :]
    is_above = (other > mine) | ((other == mine) & is_before)
    return jnp.sum(is_above, -1) < k

  # In a loop of one pass, for the reason that `top_k_mask` gives.
  once = jnp.any(bits >= 0).astype(jnp.int32)
  return jax.lax.fori_loop(0, once, rank, jnp.zeros(bits.shape, bool))


def abs_top_k(
  x: jax.Array,
  k: int,
  mask_of: Callable[[jax.Array, int], jax.Array] = row_mask,
) -> jax.Array:
  """AbsTopK: keeps the k largest magnitudes of the last axis, zeroes the rest.

  Paper section 2 ("activation sparsity"). The gradient passes unchanged through
  kept entries and is zero elsewhere. A kernel may stand for `row_mask`.
  """
  if k == x.shape[-1]:
    return x
  return _keep(x, mask_of(jax.lax.stop_gradient(x), k))


@jax.custom_vjp
def _keep(x, mask):
  return jnp.where(mask, x, 0)


def _keep_forward(x, mask):
  return _keep(x, mask), pack_bits(mask)


def _keep_backward(packed, grad):
  return jnp.where(unpack_bits(packed, grad.shape[-1]), grad, 0), None


_keep.defvjp(_keep_forward, _keep_backward)


def pack_bits(mask: jax.Array) -> jax.Array:
  """Returns a boolean mask `[..., width]` as uint8 `[..., ceil(width / 8)]`.

  Autodiff would keep a byte an entry until the backward pass. A byte holds
  entries that are up to 64 apart: adjacent ones, as `jnp.packbits` takes them,
  cost twice the temporaries (docs/performance.md). Groups of at most 512 are
  packed by themselves, so that each lies on one device.
  """
  *rest, width = mask.shape
  mask = jnp.pad(mask, [(0, 0)] * len(rest) + [(0, -width % 8)])
  group = _packed_together(mask.shape[-1])
  planes = mask.reshape(*rest, -1, 8, group // 8).astype(jnp.uint8)
  packed = jnp.sum(planes << _BIT[:, None], -2, dtype=jnp.uint8)
  return packed.reshape(*rest, -1)


def _packed_together(width: int) -> int:
  """Returns how many of `width` entries, a multiple of 8, make a group."""
  shards = sharding.axis_size("model")
  if width % (8 * shards) == 0:
    width //= shards
  return math.gcd(width, _PACKED_TOGETHER)


def unpack_bits(packed: jax.Array, width: int) -> jax.Array:
  """Returns the mask `[..., width]` that `pack_bits` has packed."""
  *rest, num_bytes = packed.shape
  group = _packed_together(8 * num_bytes)
  packed = packed.reshape(*rest, -1, 1, group // 8)
  planes = (packed >> _BIT[:, None]) & 1
  return planes.reshape(*rest, -1)[..., :width].astype(bool)
