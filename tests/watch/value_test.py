"""What alarms are worth: AUROC by its meaning, fits by what they promise."""

import numpy as np
import small_circuits
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.utils import ranks
from sparse_jax.watch import monitor, value


def cases(circuit, count=400, seed=0):
  """Returns random readings; errors have nodes far away."""
  rng = np.random.default_rng(seed)
  is_error = rng.random(count) < 0.2
  normal = lambda *shape: rng.normal(size=(count, *shape))
  reading = monitor.Reading(
    rows=np.arange(count),
    answers=np.zeros((count, 2), int),
    mass=np.ones(count),
    full=np.abs(normal()),
    circuit=1 + normal(),
    without=normal(),
    nodes=normal(2 * circuit.num_nodes) + 9 * is_error[:, None],
  )
  groups = rng.integers(0, 60, count)
  return value.Cases(
    reading, is_error, groups, normal() ** 2, normal(5), count + 3
  )


class ValueTest(absltest.TestCase):
  @given(
    st.lists(
      st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=9
    )
  )
  @settings(max_examples=40)
  def test_auroc_counts_pairs(self, rows):
    score, error = map(np.array, zip(*rows, strict=True))
    pairs = [
      (a > b) + (a == b) / 2 for a in score[error] for b in score[~error]
    ]
    if pairs:
      self.assertAlmostEqual(ranks.auroc(score, error), np.mean(pairs))

  def test_false_alarms_are_as_rare_as_asked_for_on_other_prompts(self):
    circuit, _ = small_circuits.make()
    usual = value.fit(circuit, np.zeros((1, 2)), {"any": cases(circuit)}, 0.1)
    self.assertGreaterEqual(usual.limits["disagreement"], 0)
    on = cases(circuit, 4000, seed=1)
    found = value.worth(on, usual, value.usual_stream(on.residual))
    for alarm in ("disagreement", "outside", "range"):
      self.assertLess(found["sounds"][alarm]["right"], 0.16, alarm)
    self.assertEqual(found["sounds"]["range"]["errors"], 1.0)
    self.assertEqual(found["auroc"]["range"]["value"], 1.0)
    self.assertBetween(found["auroc"]["entropy"]["value"], 0.4, 0.6)
    low, high = (found["auroc"]["entropy"][end] for end in ("low", "high"))
    self.assertBetween(found["auroc"]["entropy"]["value"], low, high)

  def test_the_rate_holds_for_each_kind_of_prompt(self):
    circuit, _ = small_circuits.make()
    few, many = cases(circuit, 400), cases(circuit, 4000, seed=1)
    shifted = lambda c: c._replace(
      reading=c.reading._replace(circuit=c.reading.circuit - 3)
    )
    kinds = {"calm": many, "restless": shifted(few)}
    usual = value.fit(circuit, np.zeros((1, 2)), kinds, 0.1)
    on = shifted(cases(circuit, 4000, seed=2))
    found = value.worth(on, usual, value.usual_stream(on.residual))
    self.assertLess(found["sounds"]["disagreement"]["right"], 0.16)
    # Too few prompts give no limit, and take none away.
    kinds["rare"] = cases(circuit, 9)
    again = value.fit(circuit, np.zeros((1, 2)), kinds, 0.1)
    self.assertLess(again.limits["disagreement"], np.inf)

  def test_without_errors_there_is_nothing_to_rank(self):
    circuit, _ = small_circuits.make()
    right = cases(circuit)._replace(is_error=np.zeros(400, bool))
    usual = value.fit(circuit, np.zeros((1, 2)), {"any": right}, 0.1)
    found = value.worth(right, usual, value.usual_stream(right.residual))
    self.assertIsNone(found["auroc"]["outside"])
    self.assertIsNone(found["sounds"]["any"]["errors"])
    none = right._replace(is_error=np.ones(400, bool))
    self.assertIsNone(value.fit(circuit, np.zeros((1, 2)), {"any": none}, 0.1))

  def test_mahalanobis_by_hand(self):
    # Variances 2 and 8 but for the ridge; no covariance.
    x = np.array([[1.0, 2], [-1, 2], [1, -2], [-1, -2]]) * np.sqrt(1.5)
    stream = value.usual_stream(x)
    np.testing.assert_allclose(
      stream.distance(np.array([[2.0, 0], [0, 4]])),
      [2 / np.sqrt(2.05), 4 / np.sqrt(8.05)],
    )


if __name__ == "__main__":
  absltest.main()
