"""A planted circuit beside a decoy that plain pruning falls for."""

import dataclasses
import functools

import jax
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import transformer
from sparse_jax.pruning import batched, edge_masks, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import mask_evaluator, outside
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib

_WIDTH = 16
_TRUE = {
  "mlp.act_in": [(0, 0), (1, 1)],
  "mlp.post_act": [(0, 0), (0, 1), (1, 4), (1, 5)],
  "mlp.resid_delta": [(0, 1), (1, 8)],
}
_DECOY = {
  "mlp.act_in": [(1, 0)],
  "mlp.post_act": [(1, 0), (1, 1)],
  "mlp.resid_delta": [(1, 5)],
}


def decoyed():
  """A model that answers by its last token, 3 after 1 and 4 after 2.

  Tokens 1 and 2 put +1 and -1 into channel 0. Layer 0 copies that to channel 1,
  layer 1 copies channel 1 to channel 8, and the unembedding reads it: eight
  nodes. The decoy is shorter: layer 1 copies channel 0 to channel 5, four
  nodes. In the whole model it is worth nothing: what neurons 2 and 3 write to
  channel 6 cancels it.
  """
  config = config_lib.ModelConfig(
    n_layer=2,
    d_model=_WIDTH,
    d_head=_WIDTH,
    vocab_size=8,
    d_mlp=_WIDTH,
    context_length=4,
    activation="relu",
    bigram="none",
    sink=False,
  )
  sparsity = config_lib.SparsityConfig(activation_fraction=1.0, min_alive=0)
  model = transformer.Model(config, sparsity)
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), model.init(jax.random.key(0))
  )
  for norm in ("ln_1", "ln_2"):
    params["layers"][norm]["scale"][:] = 1
  params["ln_f"]["scale"][:] = 1
  embed = params["wte"]["embedding"]
  embed[1, 0], embed[2, 0] = 1, -1
  embed[:, 7] = 1  # A constant channel keeps the norms' size alike.
  mlp, head = params["layers"]["mlp"], params["lm_head"]["embedding"]

  def copy(layer, source, target, neuron, weight):
    """A pair of neurons writes weight times channel `source` to `target`."""
    for i, sign in enumerate((1, -1)):
      mlp["c_fc"]["kernel"][layer, source, neuron + i] = sign
      mlp["c_proj"]["kernel"][layer, neuron + i, target] = sign * weight

  copy(0, 0, 1, 0, 1.0)
  copy(1, 1, 8, 4, 3.0)
  copy(1, 0, 5, 0, 1.0)
  copy(1, 0, 6, 2, 1.0)
  for channel, sign in ((8, 1), (5, 1), (6, -1)):
    head[3, channel], head[4, channel] = sign, -sign
  tokens = np.tile([[5, 1], [6, 1], [5, 2], [6, 2]], (4, 1))
  tokens = tokens[np.argsort(tokens[:, 1], kind="stable")]
  first = tokens[:, 1] == 1
  sequences = sequences_lib.Sequences(
    *map(
      jax.numpy.asarray,
      (
        tokens,
        np.full(16, 1),
        np.where(first, 3, 4),
        np.where(first, 4, 3),
        np.tile(np.arange(8), 2),
      ),
    )
  )
  return model, params, sequences


def mask_of(nodes, shapes):
  """Returns the mask that keeps the given (layer, channel) nodes by site."""
  mask = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  for name, kept in nodes.items():
    for layer, index in kept:
      mask[name][layer, index] = 1
  return mask


class PlantedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.params, sequences = decoyed()
    means = means_lib.task_means(cls.model, cls.params, sequences)
    means = {n: np.asarray(means[n]) for n in sites.LAYER_NODE_SITES}
    cls.evaluator = mask_evaluator.MaskEvaluator(
      cls.model, cls.params, means, sequences
    )

  def _pruned(self, ablation_outside, seed):
    config = config_lib.PruneConfig(
      steps=400,
      batch_size=8,
      # Gates that all closed at once would shut both paths.
      init_scale=0.3,
      init_bias=0.4,
      learning_rate=1e-2,
      ablation_outside=ablation_outside,
    )
    hyperparameters = masks_lib.Hyperparameters.from_config(
      config, k_coef=np.array([1e-2]), seed=np.array([seed])
    )
    shapes = self.evaluator.shapes
    run = masks_lib.Run(
      hyperparameters,
      batched.stack([self.evaluator.means]),
      batched.stack([self.evaluator.sequences]),
      batched.stack([{n: np.ones(s, bool) for n, s in shapes.items()}]),
    )
    states = batched.train_masks(self.model, self.params, config, run, 0, "")
    tau = batched.take(states, 0).tau
    return {name: np.float32(tau[name] >= 0) for name in shapes}

  def _worst(self, mask):
    attack = functools.partial(outside.attack, self.evaluator, mask)
    return max(attack(start, 40).loss for start in outside.STARTS)

  def test_both_circuits_do_the_task_and_only_the_true_one_holds(self):
    true, decoy = (
      mask_of(nodes, self.evaluator.shapes) for nodes in (_TRUE, _DECOY)
    )
    self.assertLess(self.evaluator.task_loss(true), 0.1)
    self.assertLess(self.evaluator.task_loss(decoy), 0.1)
    self.assertLess(self._worst(true), 0.15)
    self.assertGreater(self._worst(decoy), 0.6)

  def test_plain_pruning_takes_the_decoy(self):
    # Of the first six seeds the others shut both paths.
    plain = self._pruned("plain", seed=3)
    self.assertLess(self.evaluator.task_loss(plain), 0.15)
    self.assertGreater(self._worst(plain), 0.6)
    self.assertTrue(plain["mlp.resid_delta"][1, 5])
    self.assertFalse(any(mask[0].any() for mask in plain.values()))

  def test_robust_pruning_finds_the_planted_circuit(self):
    robust = self._pruned("adversarial", seed=0)
    self.assertLess(self.evaluator.task_loss(robust), 0.15)
    self.assertLess(self._worst(robust), 0.15)
    # One neuron of each pair is enough for two tokens.
    for name in ("mlp.act_in", "mlp.resid_delta"):
      for layer, index in _TRUE[name]:
        self.assertTrue(robust[name][layer, index], (name, layer, index))
    self.assertLess(sum(mask.sum() for mask in robust.values()), 12)

  def test_relief_sums_to_what_opening_all_repairs(self):
    decoy = mask_of(_DECOY, self.evaluator.shapes)
    found = outside.attack(self.evaluator, decoy, "uniform", 10)
    relief = outside.relief(self.evaluator, decoy, found, points=100)
    whole = self.evaluator.task_loss(self.evaluator.constant(1))
    total = sum(float(np.sum(x)) for x in relief.values())
    self.assertAlmostEqual(total, found.loss - whole, delta=5e-3)
    for name, kept in decoy.items():
      self.assertFalse(np.any(relief[name][kept == 1]))

  def test_growing_finds_the_planted_circuit_from_the_decoy(self):
    target = target_lib.Target(self.evaluator, 0.3, accuracy_lost=0.1)
    decoy, true = (
      np.flatnonzero(masks_lib.flatten(mask_of(nodes, self.evaluator.shapes)))
      for nodes in (_DECOY, _TRUE)
    )
    missed = thresholding.keep(target, decoy, len(decoy))
    self.assertFalse(missed.meets_target)
    grown = thresholding.grow(target, missed, most=20)
    self.assertTrue(grown.meets_target)
    opened = grown.order[: grown.num_nodes - len(decoy)]
    self.assertNotEmpty(opened)
    self.assertContainsSubset(opened, true)

  def test_edge_masks_find_a_path_in_a_dense_circuit(self):
    # Six nodes more, and a small weight wherever there is none: 24 edges.
    nodes = {
      "mlp.act_in": [*_TRUE["mlp.act_in"], (0, 3), (1, 3)],
      "mlp.post_act": [*_TRUE["mlp.post_act"], (0, 7), (1, 7)],
      "mlp.resid_delta": [*_TRUE["mlp.resid_delta"], (0, 9), (1, 9)],
    }
    params = jax.tree.map(np.copy, self.params)
    mlp = params["layers"]["mlp"]
    for name in ("c_fc", "c_proj"):
      mlp[name]["kernel"] += 1e-3 * (mlp[name]["kernel"] == 0)
    evaluator = dataclasses.replace(self.evaluator, params=params)
    target = target_lib.Target(evaluator, 0.15)
    mask = mask_of(nodes, evaluator.shapes)
    order = np.flatnonzero(masks_lib.flatten(mask))
    whole = thresholding.keep(target, order, len(order))
    self.assertEqual((whole.num_nodes, whole.num_edges), (14, 24))
    config = config_lib.PruneConfig(
      batch_size=8, edge_k_coefs=(1e-3, 4e-3, 1e-2)
    )
    essential = edge_masks.find_essential(
      target, whole, evaluator.sequences, config, 0, ""
    )
    # One neuron of each pair is enough for two tokens.
    found = {
      (path.split("/")[2], *map(int, at))
      for path, mask in essential.items()
      for at in np.argwhere(mask)
    }
    planted = [
      {("c_fc", layer, source, neuron), ("c_proj", layer, neuron, written)}
      for layer, source, written, neurons in (
        (0, 0, 1, (0, 1)),
        (1, 1, 8, (4, 5)),
      )
      for neuron in neurons
    ]
    self.assertLess(found, set.union(*planted))
    for pair in (planted[:2], planted[2:]):
      self.assertTrue(any(edges <= found for edges in pair))


if __name__ == "__main__":
  absltest.main()
