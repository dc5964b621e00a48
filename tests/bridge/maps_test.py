"""Maps by themselves: their units, and what they learn of frozen states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from sparse_jax.bridge import maps, objective

_DENSE, _SPARSE, _STEPS = 24, 32, 1000


def frozen_states():
  """Returns `[N, D]` and `[N, S]` states, of one cause and unlike scales."""
  rng = np.random.default_rng(0)
  cause = rng.normal(size=(256, 8))
  noisy = lambda width: (
    cause @ rng.normal(size=(8, width)) + 0.3 * rng.normal(size=(256, width))
  )
  dense = 5 * noisy(_DENSE) + 3 * rng.normal(size=_DENSE)
  sparse = 0.02 * noisy(_SPARSE) + 0.01 * rng.normal(size=_SPARSE)
  return dense.astype(np.float32), sparse.astype(np.float32)


def both_errors(params, dense, sparse):
  """Returns the normalised errors of plain maps, encoding and decoding."""
  encoded = maps.encode(params, 0, dense, _SPARSE)
  decoded = maps.decode(params, 0, sparse)
  of = objective.normalized_error
  return jnp.stack([of(encoded, sparse), of(decoded, dense)])


def least_squares(source, target):
  """Returns the least normalised error of a linear map with a bias."""
  source = np.pad(source, ((0, 0), (0, 1)), constant_values=1)
  solution = np.linalg.lstsq(source, target, rcond=None)[0]
  return float(objective.normalized_error(source @ solution, target))


class UnitsTest(absltest.TestCase):
  def test_maps_alone_learn_what_least_squares_finds(self):
    dense, sparse = frozen_states()
    units = maps.units_of([dense]), maps.units_of([sparse])
    rate = optax.linear_schedule(3e-3, 0, _STEPS)  # That of a run.
    optimizer = optax.adam(rate)

    def errors(params):
      return both_errors(maps.out_of_units(params, *units), dense, sparse)

    def step(carry, _):
      params, state = carry
      gradients = jax.grad(lambda p: jnp.sum(errors(p)))(params)
      updates, state = optimizer.update(gradients, state)
      return (optax.apply_updates(params, updates), state), None

    params = maps.init(jax.random.key(0), 1, _DENSE, _SPARSE)
    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, length=_STEPS))(
      start
    )
    want = least_squares(dense, sparse), least_squares(sparse, dense)
    self.assertBetween(min(want), 0.01, 0.5)
    np.testing.assert_allclose(errors(params), want, atol=0.01)

  def test_units_by_hand(self):
    # x' = (x - 1) / 2 becomes y' = 3 x' + 1, and y = 10 + 4 y'.
    one = lambda mean, spread: maps.Units(
      jnp.array([[mean]]), jnp.array([spread])
    )
    there = {"kernel": jnp.array([[[3.0]]]), "bias": jnp.array([[1.0]])}
    back = {"kernel": jnp.array([[[1.0]]]), "bias": jnp.array([[0.0]])}
    plain = maps.out_of_units(
      {"encoder": there, "decoder": back}, one(1.0, 2.0), one(10.0, 4.0)
    )
    self.assertEqual(maps.encode(plain, 0, jnp.array([[5.0]]), 1), 38)
    self.assertEqual(maps.decode(plain, 0, jnp.array([[38.0]])), 15)

  def test_units_of_states(self):
    states = np.array([[[1.0, 0.0], [3.0, 8.0]]], np.float32)
    units = maps.units_of([states])
    np.testing.assert_array_equal(units.mean_PxW, [[2, 4]])
    np.testing.assert_allclose(units.spread_P, np.sqrt([(1 + 16) / 2]))


if __name__ == "__main__":
  absltest.main()
