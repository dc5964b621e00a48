"""Prompts as arrays: pairs stay pairs, however they are dealt and drawn."""

import helpers
import hypothesis
import numpy as np
from absl.testing import absltest
from hypothesis import strategies as st

from sparse_jax.pruning import batched
from sparse_jax.tasks import sequences as sequences_lib


def numbered(pairs):
  """Returns sequences whose positions tell the pair, and the side by sign."""
  number = np.arange(1, pairs + 1)
  sequences = helpers.random_sequences(2 * pairs)
  return sequences._replace(positions=np.r_[number, -number])


class PairsTest(absltest.TestCase):
  @hypothesis.given(st.integers(1, 20), st.integers(1, 5))
  @hypothesis.settings(deadline=None, max_examples=30)
  def test_whole_pairs_are_dealt_and_none_twice(self, pairs, hands):
    hypothesis.assume(pairs >= hands)
    dealt = sequences_lib.deal(numbered(pairs), hands)
    a, b = np.split(np.asarray(dealt.positions), 2, axis=1)
    np.testing.assert_array_equal(a, -b)
    self.assertEqual(a.shape, (hands, pairs // hands))
    self.assertLen(set(a.ravel().tolist()), a.size)
    self.assertEqual(dealt.tokens.shape[:2], (hands, 2 * (pairs // hands)))

  @hypothesis.given(st.integers(1, 40), st.integers(1, 60))
  @hypothesis.settings(deadline=None, max_examples=30)
  def test_spread_pairs_come_from_all_over(self, pairs, count):
    found = sequences_lib.spread_pairs(numbered(pairs), count)
    a, b = np.split(np.asarray(found.positions), 2)
    np.testing.assert_array_equal(a, -b)
    self.assertLen(set(a.tolist()), min(pairs, count))
    gaps = np.diff(a)
    if len(gaps):
      self.assertLessEqual(max(gaps) - min(gaps), 1)

  @hypothesis.given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 9))
  @hypothesis.settings(deadline=None, max_examples=50)
  def test_no_pair_is_drawn_again_before_all_were(self, pairs, size, seed):
    drawn = []
    for step in range(12):
      rows = batched.draw_rows(pairs, size, seed, step)
      a, b = np.split(rows, 2)
      np.testing.assert_array_equal(b, a + pairs)
      drawn += a.tolist()
    for start in range(0, len(drawn) - pairs + 1, pairs):
      self.assertLen(set(drawn[start : start + pairs]), pairs)


if __name__ == "__main__":
  absltest.main()
