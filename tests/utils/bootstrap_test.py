"""Resampling by hand."""

import numpy as np

from sparse_jax.utils import bootstrap


def test_indices_of_every_axis():
  seeds, tasks = bootstrap.draw_indices((2, 3), seed=1, count=50)
  assert seeds.shape == (50, 2)
  assert tasks.shape == (50, 3)
  assert set(seeds.flat) == {0, 1}
  assert set(tasks.flat) == {0, 1, 2}


def test_a_seed_gives_the_same_draws_however_many():
  few = bootstrap.draw_indices((3, 4), seed=5, count=10)
  many = bootstrap.draw_indices((3, 4), seed=5, count=20)
  for a, b in zip(few, many, strict=True):
    np.testing.assert_array_equal(a, b[:10])
  other = bootstrap.draw_indices((3, 4), seed=6, count=10)
  assert any((a != b).any() for a, b in zip(few, other, strict=True))


def test_interval_by_hand():
  assert bootstrap.interval(np.arange(101.0)) == (5.0, 95.0)
  assert bootstrap.interval([0.0, 4.0], (0.25, 0.5)) == (1.0, 2.0)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
  values = np.random.default_rng(0).normal(size=400)
  (index,) = bootstrap.draw_indices((400,), seed=0)
  low, high = bootstrap.interval(values[index].mean(1))
  np.testing.assert_allclose(high - low, 2 * 1.645 * 400**-0.5, rtol=0.1)
