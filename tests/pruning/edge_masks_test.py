"""Edge masks: identities with node masks, and a planted edge."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks
from sparse_jax.pruning import edge_masks, thresholding
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib


class EdgeMaskTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.model, params, self.tokens = helpers.tiny_model(
      activation_fraction=1.0
    )
    self.params = helpers.sparsify(params, 0.5)
    self.means = helpers.random_means(self.model)
    self.apply = jax.jit(self.model.apply, static_argnames="hook")

  def open_gates(self):
    paths = dict.fromkeys(kind.matrix for kind in sites.EDGE_KINDS)
    return {
      p: np.ones(edges_lib.parameter(self.params, p).shape, np.float32)
      for p in paths
    }

  def test_open_gates_change_nothing(self):
    masked = edges_lib.mask_edges(self.params, self.open_gates(), self.means)
    np.testing.assert_allclose(
      self.apply(masked, self.tokens),
      self.apply(self.params, self.tokens),
      atol=1e-5,
    )

  def test_a_node_without_its_edges_is_a_closed_node(self):
    nodes = {
      name: np.ones_like(mean, bool) for name, mean in self.means.items()
    }
    nodes["mlp.post_act"][0, 5] = nodes["mlp.act_in"][1, 2] = False
    nodes["attn.act_in"][1, 7] = False
    gates = self.open_gates()
    gates[sites.MLP_C_PROJ][0, 5] = 0
    gates[sites.C_FC][1, 2] = 0
    gates[sites.C_ATTN][1, 7] = 0
    masked = edges_lib.mask_edges(self.params, gates, self.means)
    np.testing.assert_allclose(
      self.apply(masked, self.tokens),
      self.apply(self.params, self.tokens, hook=hooks.gate(nodes, self.means)),
      atol=1e-4,
    )

  def test_kept_edges_are_those_that_are_counted(self):
    masks = helpers.random_masks(self.model, 0.4)
    kept = edges_lib.kept_edges(self.params, masks)
    self.assertEqual(
      sum(int(k.sum()) for k in kept.values()),
      edges_lib.count_edges(self.params, masks),
    )
    edges = edges_lib.find_edges(self.params, masks)
    essential = {p: k.copy() for p, k in kept.items()}
    first = edges[0]["from"]["index"]
    essential[sites.C_ATTN][0, first, :] = False
    edge_masks.mark_edges(self.params, edges, essential)
    for edge in edges:
      from_first = edge["from"] == edges[0]["from"]
      self.assertEqual(edge["essential"], not from_first)

  def test_open_edges_have_what_a_node_adds_as_slope(self):
    masks = helpers.random_masks(self.model, 0.4)
    gates = {name: jnp.float32(mask) for name, mask in masks.items()}
    count = edges_lib.open_edges(self.params, gates)
    self.assertEqual(count, edges_lib.count_edges(self.params, masks))
    opened = {name: mask.copy() for name, mask in masks.items()}
    opened["mlp.act_in"][1, 3] = True
    closed = {name: mask.copy() for name, mask in opened.items()}
    closed["mlp.act_in"][1, 3] = False
    want = edges_lib.count_edges(self.params, opened)
    want -= edges_lib.count_edges(self.params, closed)
    self.assertGreater(want, 0)
    slope = jax.grad(edges_lib.open_edges, argnums=1)(self.params, gates)
    self.assertAlmostEqual(slope["mlp.act_in"][1, 3], want, places=3)

  def test_gradient_reaches_the_gates(self):
    seqs = helpers.random_sequences()
    grad = jax.jit(
      jax.grad(
        lambda gates: jnp.sum(
          logit_difference_lib.logit_difference(
            self.model,
            edges_lib.mask_edges(self.params, gates, self.means),
            seqs,
          )
        )
      )
    )(self.open_gates())
    for path, value in grad.items():
      kernel = edges_lib.parameter(self.params, path)
      self.assertTrue(np.any(value != 0), path)
      np.testing.assert_array_equal(
        np.asarray(value)[np.asarray(kernel) == 0], 0
      )

  def test_all_steps_are_one_program(self):
    evaluator = helpers.tiny_evaluator()
    # As a checkpoint gives them, and a jitted step returns its results.
    params = jax.device_put(evaluator.params, jax.devices()[0])
    evaluator = dataclasses.replace(evaluator, params=params)
    target = target_lib.Target(evaluator, 10.0)
    candidate = thresholding.keep(target, np.arange(20), 20)
    config = config_lib.PruneConfig(edge_steps=3, batch_size=2)
    before = edge_masks._train_step._cache_size()
    train = evaluator.sequences
    edge_masks.find_essential(target, candidate, train, config, 0, "")
    self.assertEqual(edge_masks._train_step._cache_size(), before + 1)


if __name__ == "__main__":
  absltest.main()
