"""Prunings and prompts over several devices give what one device gives."""

import chex
import helpers
import jax
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax.model import sharding
from sparse_jax.pruning import batched, masks
from sparse_jax.tasks import mask_evaluator
from sparse_jax.utils import errors

NUM_RUNS = 3  # As many as no mesh divides evenly.


def tiny():
  model, params, _ = helpers.tiny_model(n_layer=1)
  return model, jax.device_put(params, jax.devices()[0])


def train(model, params):
  """Returns the masks of runs that differ in everything they may differ in."""
  config = config_lib.PruneConfig(steps=3, batch_size=4, learning_rate=0.2)
  seeds = range(NUM_RUNS)
  runs = masks.Run(
    masks.Hyperparameters.from_config(
      config, k_coef=[1e-3, 3e-2, 1e-2], seed=[*seeds]
    ),
    batched.stack([helpers.random_means(model, seed) for seed in seeds]),
    batched.stack([helpers.random_sequences(12, seed=seed) for seed in seeds]),
    batched.stack([helpers.random_masks(model, 0.9, seed) for seed in seeds]),
  )
  return batched.train_masks(model, params, config, runs, 7, "test").tau


class MeshTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_prunings_equal_those_of_one_device(self, model_parallel):
    model, params = tiny()
    spread = sharding.spread(params, model_parallel)
    kernel = spread["layers"]["mlp"]["c_fc"]["kernel"]
    self.assertLen(kernel.addressable_shards, 4)
    self.assertEqual(
      kernel.addressable_shards[0].data.shape[-1], 32 // model_parallel
    )
    chex.assert_trees_all_close(
      train(model, spread), train(model, params), atol=1e-4
    )

  def test_prompts_equal_those_of_one_device(self):
    model, params = tiny()
    evaluators = [
      mask_evaluator.on_mesh(
        model, where, helpers.random_means(model), helpers.random_sequences(8)
      )
      for where in (params, sharding.spread(params))
    ]
    shards = evaluators[1].sequences.tokens.addressable_shards
    self.assertEqual({shard.data.shape for shard in shards}, {(2, 9)})
    mask = helpers.random_masks(model, 0.5)
    one, many = (e.difference_and_gradient(mask) for e in evaluators)
    chex.assert_trees_all_close(many, one, atol=1e-5)

  def test_prompts_that_do_not_divide_stay_whole(self):
    _, params = tiny()
    rows = np.zeros((6, 2))
    self.assertIs(sharding.beside(sharding.spread(params), rows), rows)

  def test_a_mesh_that_the_devices_do_not_fill(self):
    with self.assertRaisesRegex(errors.InputError, "prune.model_parallel=3"):
      sharding.spread(tiny()[1], 3)


if __name__ == "__main__":
  absltest.main()
