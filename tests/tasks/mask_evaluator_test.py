"""Masks on prompts that are taken in parts: as if they were taken at once."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax.model import edges as edges_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib


class MaskEvaluatorTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # One more than a call takes, so that the last is nearly all padding.
    self.evaluator = helpers.tiny_evaluator(0.5, count=33)
    # Lengths in no order, from one token to more than is padded to at once.
    rng = np.random.default_rng(1)
    self.lengths = rng.integers(1, 33, 33)
    self.lengths[5] = 40
    sequences = self.evaluator.sequences._replace(
      tokens=jnp.asarray(rng.integers(0, 40, (33, 96)), jnp.int32),
      positions=jnp.asarray(self.lengths - 1),
    )
    self.evaluator = self.evaluator.on(sequences)
    self.masks = {
      name: np.stack([mask, ~mask])
      for name, mask in helpers.random_masks(self.evaluator.model, 0.5).items()
    }

  def test_every_mask_gives_what_it_gives_on_all_prompts_at_once(self):
    rng = np.random.default_rng(0)
    matrices = edges_lib.kept_edges(
      self.evaluator.params, self.evaluator.constant(1)
    )
    edge_masks = {
      path: (rng.random((2, *kept.shape)) < 0.7).astype(np.float32)
      for path, kept in matrices.items()
    }
    evaluator = self.evaluator
    for given in ((self.masks,), (self.masks, edge_masks)):
      got = evaluator.logit_differences(*given)
      want = jax.jit(jax.vmap(evaluator.difference))(
        *jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), given)
      )
      self.assertEqual(got.shape, (2, 33))
      np.testing.assert_allclose(got, want, atol=1e-5)

  def test_differences_and_slope_are_those_of_all_prompts(self):
    mask = {name: np.float32(m[0]) for name, m in self.masks.items()}
    diff_S, slope = self.evaluator.difference_and_gradient(mask)
    loss_of = lambda mask: logit_difference_lib.task_loss(
      self.evaluator.difference(mask)
    )
    want_slope = jax.jit(jax.grad(loss_of))(mask)
    want_S = self.evaluator.logit_difference(mask)
    np.testing.assert_allclose(diff_S, want_S, atol=1e-5)
    for name, want_of_site in want_slope.items():
      np.testing.assert_allclose(slope[name], want_of_site, atol=1e-5)

  def test_a_call_takes_prompts_of_like_length_without_their_padding(self):
    widths = [p.sequences.tokens.shape[1] for p, _ in self.evaluator._parts]
    self.assertEqual(widths, [32, 64])

  def test_no_masks_have_no_differences(self):
    none = {name: m[:0] for name, m in self.masks.items()}
    self.assertEqual(self.evaluator.logit_differences(none).shape, (0, 33))


if __name__ == "__main__":
  absltest.main()
