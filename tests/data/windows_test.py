"""Tests for data/windows.py."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax.data import windows
from sparse_jax.utils import errors

SETTINGS = hypothesis.settings(deadline=None, max_examples=25)


def _rows(*batches):
  return sorted(tuple(row) for batch in batches for row in batch)


def _batches(num_tokens=101, context_length=5, batch_size=4, seed=0, **kwargs):
  return windows.train_batches(
    np.arange(num_tokens, dtype=np.uint16),
    context_length=context_length,
    batch_size=batch_size,
    seed=seed,
    **kwargs,
  )


class TrainBatchesTest(parameterized.TestCase):
  @SETTINGS
  @hypothesis.given(
    num_windows=st.integers(1, 40),
    spare=st.integers(0, 4),
    seed=st.integers(0, 2**40),
  )
  def test_an_epoch_is_every_window_once(self, num_windows, spare, seed):
    ds = _batches(5 * num_windows + 1 + spare, 5, 1, seed)
    want = [tuple(range(5 * i, 5 * i + 6)) for i in range(num_windows)]
    for epoch in (0, 1, 7):
      steps = range(epoch * num_windows, (epoch + 1) * num_windows)
      self.assertEqual(_rows(*(ds[step] for step in steps)), want)

  @SETTINGS
  @hypothesis.given(
    per_process=st.integers(1, 4),
    process_count=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**9),
  )
  def test_processes_share_the_batch(
    self, per_process, process_count, seed, step
  ):
    batch_size = per_process * process_count
    whole = _batches(batch_size=batch_size, seed=seed)[step]
    self.assertEqual(whole.shape, (batch_size, 6))
    self.assertEqual(whole.dtype, np.int32)
    shares = [
      _batches(
        batch_size=batch_size,
        seed=seed,
        process_index=i,
        process_count=process_count,
      )[step]
      for i in range(process_count)
    ]
    self.assertEqual({s.shape for s in shares}, {(per_process, 6)})
    self.assertEqual(_rows(*shares), _rows(whole))

  @SETTINGS
  @hypothesis.given(seed=st.integers(0, 2**32), step=st.integers(0, 10**9))
  def test_seed_and_step_determine_the_batch(self, seed, step):
    ds = _batches(seed=seed)
    first = ds[step]
    ds[step + 1]  # Reading elsewhere in between changes nothing.
    np.testing.assert_array_equal(ds[step], first)
    np.testing.assert_array_equal(_batches(seed=seed)[step], first)

  def test_epochs_and_seeds_have_orders_of_their_own(self):
    def order(seed, epoch):
      ds = _batches(batch_size=1, seed=seed)
      return tuple(ds[20 * epoch + i][0, 0] for i in range(20))

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
    self.assertLen(orders, 16)

  def test_batch_that_does_not_divide(self):
    with self.assertRaisesRegex(errors.InputError, "train.batch_size=4.*3"):
      _batches(process_count=3)

  def test_too_few_tokens(self):
    self.assertEqual(_batches(num_tokens=6)[0].shape, (4, 6))
    with self.assertRaisesRegex(errors.InputError, "5 tokens.*at least 6"):
      _batches(num_tokens=5)

  def test_wide_tokens(self):
    tokens = np.array([70_000, 65_536, 3], np.uint32)
    ds = windows.train_batches(tokens, context_length=2, batch_size=1, seed=0)
    np.testing.assert_array_equal(ds[0], [[70_000, 65_536, 3]])


class IterateTest(parameterized.TestCase):
  @SETTINGS
  @hypothesis.given(st.integers(0, 10**6))
  def test_starts_where_it_is_told(self, start):
    ds = _batches()
    iterator = windows.iterate(ds, start)
    for step in range(start, start + 3):
      np.testing.assert_array_equal(next(iterator), ds[step])

  def test_state_resumes(self):
    ds = _batches()
    iterator = windows.iterate(ds, 5)
    next(iterator)
    state = iterator.get_state()
    want = [next(iterator) for _ in range(12)]
    resumed = windows.iterate(_batches())
    next(resumed)
    resumed.set_state(state)
    for batch in want:
      np.testing.assert_array_equal(next(resumed), batch)


class EvalBatchesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("spread", 17, 2, 2, [0, 4, 8, 12]),
    ("all", 17, 2, 4, [0, 2, 4, 6, 8, 10, 12, 14]),
    ("wrapped", 5, 2, 3, [0, 2, 0, 2, 0, 2]),
    ("remainder_unused", 6, 1, 2, [0, 2]),
  )
  def test_starts(self, num_tokens, batch_size, num_batches, want):
    got = windows.eval_batches(
      np.arange(num_tokens, dtype=np.uint16),
      context_length=2,
      batch_size=batch_size,
      num_batches=num_batches,
    )
    self.assertEqual(got.shape, (num_batches, batch_size, 3))
    self.assertEqual(got.dtype, np.int32)
    np.testing.assert_array_equal(got[..., 0].ravel(), want)
    np.testing.assert_array_equal(
      got, got[..., :1] + np.arange(3)[None, None, :]
    )

  @SETTINGS
  @hypothesis.given(st.integers(6, 300), st.integers(1, 30))
  def test_no_window_twice_while_there_are_enough(self, num_tokens, wanted):
    got = windows.eval_batches(
      np.arange(num_tokens),
      context_length=5,
      batch_size=wanted,
      num_batches=1,
    )
    found = (num_tokens - 1) // 5
    self.assertLen(set(got[0, :, 0]), min(found, wanted))

  def test_too_few_tokens(self):
    with self.assertRaisesRegex(errors.InputError, "3 tokens.*at least 6"):
      windows.eval_batches(
        np.arange(3), context_length=5, batch_size=1, num_batches=1
      )


if __name__ == "__main__":
  absltest.main()
