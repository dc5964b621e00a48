"""Nodes outside a circuit that are left on: identities and a worst case."""

import functools

import helpers
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax.tasks import outside


class OutsideTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.evaluator = helpers.tiny_evaluator()
    self.mask = helpers.random_masks(self.evaluator.model, 0.3)

  @parameterized.parameters(("zeros", "circuit"), ("ones", "model"))
  def test_the_ends_are_the_circuit_and_the_whole_model(self, start, end):
    r = outside.start_r(start, self.mask, 0)
    opened = outside.opened(self.mask, r)
    want = self.mask if end == "circuit" else self.evaluator.constant(1)
    np.testing.assert_allclose(
      self.evaluator.logit_difference(opened),
      self.evaluator.logit_difference(want),
      atol=1e-5,
    )

  def test_leave_on_and_ascend_by_hand(self):
    g = {"a": jnp.array([1.0, 0.0, 0.0])}
    r = {"a": jnp.array([0.3, 0.3, 0.95])}
    np.testing.assert_allclose(outside.leave_on(g, r)["a"], [1, 0.3, 0.95])
    slope = {"a": jnp.array([0.0, -2.0, 1e-9])}
    np.testing.assert_allclose(
      outside.ascend(r, slope, 0.1)["a"], [0.3, 0.2, 1.0], atol=1e-6
    )

  def test_an_attack_reports_the_loss_of_the_r_it_returns(self):
    start = outside.start_r("uniform", self.mask, 1)
    found = outside.attack(self.evaluator, self.mask, "uniform", 5, seed=1)
    self.assertLen(found.losses, 6)
    before = self.evaluator.task_loss(outside.opened(self.mask, start))
    self.assertAlmostEqual(found.losses[0], before, places=5)
    after = self.evaluator.task_loss(outside.opened(self.mask, found.r))
    self.assertAlmostEqual(found.loss, after, places=5)
    own = np.mean(np.logaddexp(0, -found.differences))
    self.assertAlmostEqual(own, after, places=5)
    self.assertGreater(after, before)
    for name, r in found.r.items():
      self.assertFalse(np.any(r[self.mask[name]]))

  def test_an_attack_ends_at_the_first_r_that_is_enough(self):
    attack = functools.partial(
      outside.attack, self.evaluator, self.mask, "uniform", 5, seed=1
    )
    whole = attack()
    target = np.mean(whole.losses[1:3])
    self.assertBetween(target, whole.losses[1], whole.losses[2])
    loss_of = lambda diff_S: np.mean(np.logaddexp(0, -diff_S))
    found = attack(is_enough=lambda diff_S: loss_of(diff_S) > target)
    np.testing.assert_allclose(found.losses, whole.losses[:3], rtol=1e-5)
    self.assertAlmostEqual(loss_of(found.differences), found.losses[2], 5)
    opened = outside.opened(self.mask, found.r)
    self.assertAlmostEqual(
      self.evaluator.task_loss(opened), found.losses[2], places=5
    )

  def test_an_attack_finds_the_corner_that_a_search_of_all_finds(self):
    # All but three nodes are kept: eight corners.
    mask = self.evaluator.constant(1)
    nodes = [("mlp.post_act", 1, 5), ("attn.v", 0, 3), ("attn.v", 0, 9)]
    for name, layer, index in nodes:
      mask[name][layer, index] = 0
    losses = []
    for corner in range(8):
      r = {name: np.zeros_like(m) for name, m in mask.items()}
      for bit, (name, layer, index) in enumerate(nodes):
        r[name][layer, index] = corner >> bit & 1
      losses.append(self.evaluator.task_loss(outside.opened(mask, r)))
    attack = functools.partial(outside.attack, self.evaluator, mask)
    worst = max(attack(start, 15).loss for start in outside.STARTS)
    self.assertGreaterEqual(worst, max(losses) - 1e-5)

  def test_where_nothing_is_outside_nothing_changes(self):
    mask = self.evaluator.constant(1)
    found = outside.attack(self.evaluator, mask, "zeros", 3)
    np.testing.assert_allclose(found.losses, found.losses[0], rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
