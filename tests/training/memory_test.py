"""What a step takes of memory: counted by hand, less in parts, refused."""

import dataclasses
import functools

import chex
import helpers
import jax
import jax.numpy as jnp
from absl.testing import absltest

from sparse_jax.training import loop, memory
from sparse_jax.utils import errors


def step(params, moments, x):
  hidden = jnp.tanh(x @ params)
  return params + hidden.T @ x, moments + 1


class MemoryTest(absltest.TestCase):
  def test_parameters_and_moments_are_counted_and_all_that_is_held(self):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=device)
    params, moments, x = shape(32, 32), shape(8, 16), shape(64, 32)
    compiled = jax.jit(step).lower(params, moments, x).compile()
    found = memory.estimate(compiled, params, moments)
    self.assertEqual(found.params, 4 * 32 * 32)
    self.assertEqual(found.optimizer, 4 * 8 * 16)
    arguments = 4 * (32 * 32 + 8 * 16 + 64 * 32)
    outputs = 4 * (32 * 32 + 8 * 16)
    self.assertGreaterEqual(found.total, arguments + outputs)
    self.assertIn("4.1 kB of parameters, 512 B of optimizer state", found.text)
    found.check_fits(found.total)
    with self.assertRaisesRegex(errors.InputError, "train.accumulate"):
      found.check_fits(found.total - 1)

  def test_parts_of_a_batch_give_its_gradients_in_less_memory(self):
    model, params, _ = helpers.tiny_model()
    windows = jax.random.randint(jax.random.key(1), (32, 11), 0, 40)
    results, temporary = [], []
    for num_parts in (1, 4):
      both = functools.partial(
        loop.loss_and_gradients, model, num_parts=num_parts
      )
      compiled = jax.jit(both).lower(params, windows).compile()
      results.append(compiled(params, windows))
      temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=1e-6)
    self.assertLess(temporary[1], 0.6 * temporary[0])

  def test_layers_computed_again_give_the_gradients_in_less_memory(self):
    windows = jax.random.randint(jax.random.key(1), (8, 11), 0, 40)
    model, params, _ = helpers.tiny_model(activation_fraction=1.0, n_layer=8)
    results, temporary = [], []
    for remat in (False, True):
      own = dataclasses.replace(model, remat=remat)
      both = functools.partial(loop.loss_and_gradients, own)
      compiled = jax.jit(both).lower(params, windows).compile()
      results.append(compiled(params, windows))
      temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=1e-6)
    self.assertLess(temporary[1], 0.6 * temporary[0])


if __name__ == "__main__":
  absltest.main()
