import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from hypothesis import given
from hypothesis import strategies as st

from sparse_jax import config as config_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib


def _model():
  model = transformer.Model(
    config_lib.ModelConfig(
      n_layer=1,
      d_model=16,
      d_head=8,
      d_mlp=32,
      vocab_size=20,
      context_length=24,
      positions="learned",
    ),
    config_lib.SparsityConfig(activation_fraction=0.5),
  )
  return model, model.init(jax.random.key(0))


class DifferencesTest(absltest.TestCase):
  def test_diffs_are_those_of_the_whole_forward_pass(self):
    model, params = _model()
    rng = np.random.default_rng(0)
    sequences = sequences_lib.Sequences(
      tokens=rng.integers(0, 20, (90, 24)),
      positions=np.concatenate([rng.integers(0, 24, 88), [0, 23]]),
      correct=rng.integers(0, 20, 90),
      incorrect=rng.integers(0, 20, 90),
      groups=np.arange(90),
    )
    logits = jax.jit(model.apply)(params, jnp.asarray(sequences.tokens))
    last = np.asarray(logits)[np.arange(90), sequences.positions]
    want = (
      last[np.arange(90), sequences.correct]
      - last[np.arange(90), sequences.incorrect]
    )
    got = evaluation.make_difference_function(model, params)(sequences)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    self.assertGreater(np.ptp(want), 0.1)

  @given(
    st.lists(st.integers(0, 299), max_size=200), st.sampled_from([None, 300])
  )
  def test_batches_hold_each_row_once_in_few_shapes(self, positions, limit):
    positions = np.array(positions, int)
    seen, widths = [], set()
    for width, rows in evaluation._batches(positions, limit):
      self.assertLessEqual(len(rows), evaluation._ROWS)
      self.assertTrue((positions[rows] < width).all())
      self.assertLessEqual(width, limit or 512)
      seen += rows.tolist()
      widths.add(width)
    self.assertEqual(sorted(seen), list(range(len(positions))))
    self.assertLessEqual(len(widths), 6)


class ScoreTest(absltest.TestCase):
  def test_by_hand(self):
    score = evaluation.score_differences([0, np.log(3)], "ab", 1, 0)
    self.assertEqual((score.count, score.num_groups), (1, 2))
    # An even choice costs log 2, one at odds of 3 costs log 4/3.
    low, high = np.log(4 / 3), np.log(2)
    self.assertAlmostEqual(score.loss.value, (low + high) / 2)
    # Two groups: a quarter of the resamples holds only one of them.
    np.testing.assert_allclose(score.loss[1:], (low, high))
    # No preference is not right.
    self.assertEqual(score.accuracy, (0.5, 0, 1))

  def test_equal_groups_leave_no_doubt(self):
    score = evaluation.score_differences(
      [1.0, -2.0] * 5, np.repeat(range(5), 2), 5, 0
    )
    for estimate in (score.loss, score.accuracy):
      np.testing.assert_allclose(estimate, estimate.value)
    self.assertAlmostEqual(score.accuracy.value, 0.5)

  def test_equal_rows_leave_no_doubt(self):
    # However many of them a group has.
    score = evaluation.score_differences([1.0] * 5, "aaaab", 2, 0)
    np.testing.assert_allclose(score.loss, score.loss.value)
    np.testing.assert_allclose(score.accuracy, 1)

  def test_interval_of_a_proportion(self):
    right = np.arange(400) < 320
    diffs = np.repeat(np.where(right, 1.0, -1.0), 2)
    sigma = np.sqrt(0.8 * 0.2 / 400)
    score = evaluation.score_differences(
      diffs, np.repeat(range(400), 2), 400, 1
    )
    for bound, side in zip(score.accuracy[1:], (-1, 1), strict=True):
      self.assertAlmostEqual(bound, 0.8 + side * 1.645 * sigma, delta=sigma / 4)
    # Rows that are not tied would seem surer than they are.
    loose = evaluation.score_differences(diffs, range(800), 400, 1)
    width = lambda e: e.high - e.low
    self.assertAlmostEqual(
      width(loose.accuracy) / width(score.accuracy), 0.5**0.5, delta=0.1
    )

  def test_seed_decides(self):
    diffs = np.random.default_rng(0).normal(size=50)
    a, b, c = (
      evaluation.score_differences(diffs, range(50), 50, seed)
      for seed in (0, 0, 1)
    )
    self.assertEqual(a, b)
    self.assertNotEqual(a.loss, c.loss)


if __name__ == "__main__":
  absltest.main()
