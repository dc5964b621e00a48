"""The target: bounds over templates, and the adversary's share."""

import dataclasses

import helpers
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import outside


def stacked(mask):
  return {name: np.asarray(m)[None] for name, m in mask.items()}


class TargetTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.evaluator = helpers.tiny_evaluator()
    self.mask = helpers.random_masks(self.evaluator.model, 0.5)

  def with_groups(self, groups):
    sequences = self.evaluator.sequences._replace(groups=jnp.asarray(groups))
    return self.evaluator.on(sequences)

  def test_prompts_of_one_template_have_no_interval(self):
    # All of one template: its resamples are itself.
    target = target_lib.Target(self.with_groups(np.zeros(16, int)), 0.5)
    reached = target.measure(stacked(self.mask))
    self.assertAlmostEqual(
      reached.shares[0], reached.scores.losses[0] / 0.5, places=5
    )

  def test_the_bound_lies_above_the_loss_where_templates_differ(self):
    target = target_lib.Target(self.with_groups(np.tile(np.arange(8), 2)), 0.5)
    reached = target.measure(stacked(self.mask))
    self.assertGreater(reached.shares[0], reached.scores.losses[0] / 0.5)

  def test_the_robust_share_is_of_the_accuracy_lost_to_the_attack(self):
    evaluator = self.with_groups(np.zeros(16, int))
    full = np.mean(evaluator.logit_difference(evaluator.constant(1)) > 0)
    target = target_lib.Target(
      evaluator, 1e6, accuracy_lost=0.1, steps=5, seed=3
    )
    reached = target.measure(stacked(self.mask))
    attacks = [
      outside.attack(evaluator, self.mask, start, 5, seed=3)
      for start in outside.STARTS
    ]
    lost = full - min(np.mean(a.differences > 0) for a in attacks)
    self.assertGreater(lost, 0)
    self.assertAlmostEqual(reached.accuracy_lost[0], lost)
    self.assertAlmostEqual(reached.shares[0], lost / 0.1, places=4)

  def test_a_hasty_target_stops_at_a_miss_and_misses_alike(self):
    args = self.evaluator, 1e6
    for allowed in (0.01, 2.0):
      target = target_lib.Target(*args, accuracy_lost=allowed, steps=8)
      hasty = dataclasses.replace(target, stops_early=True)
      want, got = (t.measure(stacked(self.mask)) for t in (target, hasty))
      self.assertEqual(got.shares[0] > 1, want.shares[0] > 1)
      (attack,) = hasty._attacks.values()
      self.assertEqual(len(attack.losses) < 9, allowed == 0.01)

  def test_the_whole_model_loses_nothing(self):
    target = target_lib.Target(self.evaluator, 1e6, accuracy_lost=0.1, steps=3)
    reached = target.measure(stacked(self.evaluator.constant(1)))
    self.assertLess(reached.shares[0], 1e-3)

  def test_plain_configs_ask_for_no_adversary(self):
    config = config_lib.PruneConfig(target_accuracy_lost=0.2)
    made = target_lib.Target.of(config.core, self.evaluator, 0)
    self.assertIsNone(made.accuracy_lost)
    made = target_lib.Target.of(config.robust, self.evaluator, 0)
    self.assertEqual(made.accuracy_lost, 0.2)

  def test_a_share_leaves_room_in_both_targets(self):
    config = config_lib.PruneConfig(
      target_loss=0.4, target_accuracy_lost=0.2, target_share=0.25
    )
    made = target_lib.Target.of(config, self.evaluator, 0)
    self.assertAlmostEqual(made.loss, 0.1)
    self.assertAlmostEqual(made.accuracy_lost, 0.05)


if __name__ == "__main__":
  absltest.main()
