"""Density and learning rate, by hand and against the released script."""

import json
import pathlib

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import config as config_lib
from sparse_jax.training import schedules

RECIPE = pathlib.Path(__file__).parents[1] / "golden" / "train_recipe"


def recipe():
  """Returns the released script's run: (train, sparsity, its arrays)."""
  r = json.loads((RECIPE / "recipe.json").read_text(encoding="utf-8"))
  sparsity = config_lib.SparsityConfig(
    density=r["pfrac"] / r["expansion_factor"] ** 2,
    expansion_factor=r["expansion_factor"],
    embedding_rule="expanded",
    min_alive=r["min_alive"],
    anneal_start=r["anneal_start"],
    anneal_stop=r["anneal_stop"],
  )
  train = config_lib.TrainConfig(
    steps=r["steps"],
    learning_rate=r["learning_rate"],
    warmup_fraction=r["warmup_steps"] / r["steps"],
    scale_rate_by_density=r["lr_scaled_by_sqrt_pfrac"],
  )
  return train, sparsity, np.load(RECIPE / "expected.npz")


@st.composite
def sparsities(draw):
  start, stop = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
  return config_lib.SparsityConfig(
    density=draw(st.floats(1e-4, 1)),
    embedding_rule=draw(st.sampled_from(["equal", "expanded"])),
    expansion_factor=draw(st.floats(1, 16)),
    embedding_anneal=draw(st.sampled_from(["smooth", "abrupt"])),
    anneal_start=start,
    anneal_stop=stop,
    anneal_shape=draw(st.sampled_from(["linear", "loglog"])),
    anneal_exponent=draw(st.floats(0.2, 5)),
  )


class ReleasedScriptTest(absltest.TestCase):
  def test_block_density_is_the_nonzero_fraction(self):
    train, sparsity, expected = recipe()
    density = schedules.block_density(sparsity, train.steps)
    np.testing.assert_allclose(
      density * sparsity.expansion_factor**2, expected["pfrac"], atol=1e-9
    )

  def test_embedding_density_interpolates(self):
    # In the script's units: from EF to pfrac, linear in pfrac.
    train, sparsity, expected = recipe()
    ef, pfrac = sparsity.expansion_factor, expected["pfrac"]
    final = pfrac[-1]
    adjusted = final + (ef - final) * (pfrac - final) / (ef**2 - final)
    np.testing.assert_allclose(
      schedules.embedding_density(sparsity, train.steps),
      adjusted / ef,
      atol=1e-9,
    )

  def test_learning_rate(self):
    train, sparsity, expected = recipe()
    np.testing.assert_allclose(
      schedules.learning_rate(train, sparsity),
      expected["learning_rate"],
      atol=1e-12,
    )


class BlockDensityTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("linear", {}, [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2]),
    (
      "square",
      {"anneal_exponent": 2.0},
      [1, 1, 1, 0.65, 0.4, 0.25, 0.2, 0.2, 0.2, 0.2],
    ),
    (
      "at_once",
      {"anneal_stop": 0.2},
      [1, 1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    ),
  )
  def test_by_hand(self, fields, want):
    sparsity = config_lib.SparsityConfig(
      **{"density": 0.2, "anneal_start": 0.2, "anneal_stop": 0.6, **fields}
    )
    np.testing.assert_allclose(
      schedules.block_density(sparsity, 10), want, atol=1e-12
    )

  def test_loglog_is_a_power_of_the_step(self):
    sparsity = config_lib.SparsityConfig(
      density=1 / 64,
      anneal_start=0.125,
      anneal_stop=0.5,
      anneal_shape="loglog",
    )
    # From step 2 to step 8 the density falls 64-fold: the power is -3.
    want = [1, 1, 1, (2 / 3) ** 3, 1 / 8, (2 / 5) ** 3, 1 / 27, (2 / 7) ** 3]
    np.testing.assert_allclose(
      schedules.block_density(sparsity, 16), want + 8 * [1 / 64]
    )

  @hypothesis.given(sparsities(), st.integers(1, 200))
  def test_density_falls_from_dense_to_final(self, sparsity, steps):
    for density in (
      schedules.block_density(sparsity, steps),
      schedules.embedding_density(sparsity, steps),
    ):
      self.assertLen(density, steps)
      self.assertLessEqual(density.max(), 1)
      self.assertTrue((np.diff(density) <= 0).all())
    block = schedules.block_density(sparsity, steps)
    self.assertTrue((block >= sparsity.density).all())
    before = np.arange(steps) < sparsity.anneal_start * steps
    np.testing.assert_array_equal(block[before], 1)

  @hypothesis.given(st.floats(1e-4, 1), st.sampled_from(["linear", "loglog"]))
  def test_final_density_is_the_very_number(self, density, shape):
    # One unit in the last place less would cost a surviving weight.
    sparsity = config_lib.SparsityConfig(density=density, anneal_shape=shape)
    self.assertEqual(schedules.block_density(sparsity, 20)[-1], density)
    self.assertEqual(schedules.embedding_density(sparsity, 20)[-1], density)


class EmbeddingDensityTest(parameterized.TestCase):
  def density(self, **fields):
    sparsity = config_lib.SparsityConfig(
      **{"anneal_start": 0.0, "anneal_stop": 0.4, **fields}
    )
    return schedules.embedding_density(sparsity, 5)

  def test_equal_to_the_blocks(self):
    np.testing.assert_allclose(
      self.density(density=0.2), [1, 0.6, 0.2, 0.2, 0.2]
    )

  def test_expanded_ends_at_the_factor_times_the_blocks(self):
    np.testing.assert_allclose(
      self.density(
        density=0.2, embedding_rule="expanded", expansion_factor=3.0
      ),
      [1, 0.8, 0.6, 0.6, 0.6],
    )

  def test_expanded_stays_dense_where_the_factor_fills_it(self):
    np.testing.assert_array_equal(
      self.density(
        density=0.2, embedding_rule="expanded", expansion_factor=9.0
      ),
      np.ones(5),
    )

  @parameterized.parameters(0.1, 0.2, 0.3, 0.7)
  def test_abrupt_waits_for_the_end_of_annealing(self, density):
    np.testing.assert_array_equal(
      self.density(density=density, embedding_anneal="abrupt"),
      [1, 1, density, density, density],
    )


class LearningRateTest(absltest.TestCase):
  def rate(self, **fields):
    train = config_lib.TrainConfig(
      **{"steps": 6, "learning_rate": 0.4, "warmup_fraction": 0.34, **fields}
    )
    sparsity = config_lib.SparsityConfig(
      density=0.25, anneal_start=0.5, anneal_stop=0.5
    )
    return schedules.learning_rate(train, sparsity)

  def test_rises_then_falls_to_zero(self):
    np.testing.assert_allclose(
      self.rate(scale_rate_by_density=False), [0, 0.2, 0.4, 0.3, 0.2, 0.1]
    )

  def test_scaled_by_the_root_of_the_density(self):
    np.testing.assert_allclose(self.rate(), [0, 0.1, 0.2, 0.3, 0.2, 0.1])

  def test_without_warmup_starts_at_the_peak(self):
    rate = self.rate(scale_rate_by_density=False, warmup_fraction=0.0)
    self.assertAlmostEqual(rate[0], 0.4)


if __name__ == "__main__":
  absltest.main()
