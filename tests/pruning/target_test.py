"""The target: bounds over templates, and the adversary's share."""

import dataclasses

import helpers
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import outside


def stacked(mask):
  return {name: np.asarray(m)[None] for name, m in mask.items()}


class TargetTest(parameterized.TestCase):
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
      evaluator, 1e6, accuracy_lost=0.1, steps=5, stride=0.2, seed=3
    )
    reached = target.measure(stacked(self.mask))
    attacks = [
      outside.attack(evaluator, self.mask, start, 5, seed=3, rate=0.2)
      for start in outside.STARTS
    ]
    lost = full - min(np.mean(a.differences > 0) for a in attacks)
    self.assertGreater(lost, 0)
    self.assertAlmostEqual(reached.accuracy_lost[0], lost)
    self.assertAlmostEqual(reached.shares[0], lost / 0.1, places=4)

  @parameterized.product(allowed=(0.01, 2.0), ends=("attack", "starts"))
  def test_what_ends_on_a_miss_misses_alike(self, allowed, ends):
    target = target_lib.Target(self.evaluator, 1e6, allowed, steps=8)
    brisk = dataclasses.replace(target, ends_on_miss=ends)
    want, got = (t.measure(stacked(self.mask)) for t in (target, brisk))
    self.assertEqual(got.shares[0] > 1, want.shares[0] > 1)
    (attack,) = brisk._attacks.values()
    is_short = (allowed, ends) == (0.01, "attack")
    self.assertEqual(len(attack.losses) < 9, is_short)

  @parameterized.parameters(("", 3), ("starts", 1), ("attack", 1))
  def test_a_miss_may_end_the_list_of_starts(self, ends, num_starts):
    target = target_lib.Target(
      self.evaluator, 1e6, 0.01, steps=8, ends_on_miss=ends
    )
    self.assertLen(list(target._ascents(self.mask)), num_starts)

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
