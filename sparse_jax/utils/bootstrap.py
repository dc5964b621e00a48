"""The bootstrap: resample with replacement, read an interval off the draws."""

import functools
from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
TAILS = (0.05, 0.95)  # Of 90% intervals.


@functools.lru_cache(maxsize=64)  # Many ratios are over the same axes.
def draw_indices(
  sizes: tuple[int, ...], seed: int, count: int = RESAMPLES
) -> list[np.ndarray]:
  """Returns for every axis `[count, size]` indices drawn with replacement.

  A seed's first draws are the same whatever `count` is. Arrays are read-only.
  """
  rng = np.random.default_rng(seed)
  draws = [[rng.integers(0, n, n) for n in sizes] for _ in range(count)]
  axes = [np.array(axis) for axis in zip(*draws, strict=True)]
  for axis in axes:
    axis.setflags(write=False)
  return axes


def interval(
  draws: Sequence[float] | np.ndarray, tails: Sequence[float] = TAILS
) -> tuple[float, float]:
  """Returns the draws' quantiles at `tails`: the ends of an interval."""
  low, high = np.quantile(draws, tails)
  return float(low), float(high)
