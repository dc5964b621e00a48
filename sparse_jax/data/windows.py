"""Windows of tokens as Grain datasets, a function of (seed, step)."""

import grain
import numpy as np

from sparse_jax.utils import errors

READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def _windows(tokens: np.ndarray, context_length: int) -> np.ndarray:
  """Returns `[N, context_length + 1]`: a token is a target once, if at all."""
  size = context_length + 1
  if len(tokens) < size:
    raise errors.InputError(
      f"{len(tokens)} tokens make no window of data.context_length="
      f"{context_length}; need at least {size}"
    )
  tokens = np.asarray(tokens)  # Slicing a memmap itself is slow.
  every = np.lib.stride_tricks.sliding_window_view(tokens, size)
  return every[::context_length]


def train_batches(
  tokens: np.ndarray,
  *,
  context_length: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.MapDataset:
  """Returns an endless dataset of shuffled batches, indexed by step.

  Windows are shuffled anew every epoch. `ds[step]` is a process's share, int32
  [batch_size / process_count, context_length + 1]; the shares of all processes
  make up the batch that one would get.
  """
  if batch_size % process_count:
    accepted = f"a multiple of the {process_count} processes"
    raise errors.bad_value("train.batch_size", batch_size, accepted)
  # Grain shuffles epoch e with seed + e; spread out, two seeds share no epoch.
  spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
  windows = grain.MapDataset.source(_windows(tokens, context_length))
  share = windows.shuffle(spread).repeat()[process_index::process_count]
  batches = share.batch(batch_size // process_count, drop_remainder=True)
  return batches.map(lambda rows: rows.astype(np.int32))


def iterate(ds: grain.MapDataset, start_step: int = 0) -> grain.DatasetIterator:
  """Returns a prefetching iterator over `ds[start_step]`, `ds[start_step + 1]`…

  Its `get_state()` and `set_state()` checkpoint it.
  """
  iterator = iter(ds.to_iter_dataset(READ_OPTIONS))
  iterator.set_state({"next_index": start_step})
  return iterator


def eval_batches(
  tokens: np.ndarray,
  *,
  context_length: int,
  batch_size: int,
  num_batches: int,
) -> np.ndarray:
  """Returns fixed windows spread evenly over the tokens, repeated if too few.

  They are int32 [num_batches, batch_size, context_length + 1].
  """
  windows = _windows(tokens, context_length)
  wanted, num = num_batches * batch_size, len(windows)
  index = np.arange(wanted)
  index = index % num if wanted > num else index * num // wanted
  rows = windows[index].astype(np.int32)
  return rows.reshape(num_batches, batch_size, -1)
