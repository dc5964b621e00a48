"""Density and learning rate as tables over the steps.

Every schedule is evaluated once, in float64, for all steps; jitted code looks
its value up. So the number of surviving weights is the script's integer, not a
float32 neighbour of it. Source: `circuit_sparsity/train.py` of
openai/circuit_sparsity; paper section 2 and appendix ("sharkfin").
"""

import numpy as np

from sparse_jax.config import SparsityConfig, TrainConfig


def block_density(sparsity: SparsityConfig, steps: int) -> np.ndarray:
  """Returns the density of the block matrices before each step, `[steps]`."""
  step = np.arange(steps, dtype=np.float64)
  start, stop = sparsity.anneal_start, sparsity.anneal_stop
  if stop == start:
    t = (step >= start * steps).astype(np.float64)
  elif sparsity.anneal_shape == "linear":
    t = np.clip((step / steps - start) / (stop - start), 0, 1)
  else:
    # Straight in (log step, log density) from the first annealed step on.
    first, last = max(1.0, start * steps), max(2.0, stop * steps)
    t = np.log(np.maximum(step, first) / first) / np.log(last / first)
    t = np.clip(t, 0, 1)
  to_go = (1 - t) ** sparsity.anneal_exponent
  if sparsity.anneal_shape == "loglog":
    return sparsity.density ** (1 - to_go)
  # Ends on `density` itself: one rounding below would cost a weight.
  return sparsity.density + (1 - sparsity.density) * to_go


def embedding_density(sparsity: SparsityConfig, steps: int) -> np.ndarray:
  """Returns the density of embedding and unembedding, `[steps]`.

  "expanded" is linear in the block density, from 1 to
  `density * expansion_factor` (the authors' train.py).
  """
  block, final = block_density(sparsity, steps), sparsity.density
  if sparsity.embedding_rule == "expanded":
    final = min(1.0, final * sparsity.expansion_factor)
  if sparsity.density == 1:
    return block
  if sparsity.embedding_anneal == "abrupt":
    return np.where(block > sparsity.density, 1.0, final)
  if final == sparsity.density:
    return block
  to_go = (block - sparsity.density) / (1 - sparsity.density)
  return final + (1 - final) * to_go


def learning_rate(train: TrainConfig, sparsity: SparsityConfig) -> np.ndarray:
  """Returns the learning rate of each step, `[steps]`.

  Linear warm-up from 0, then linear to 0; times `sqrt(final / current density)`
  when `scale_rate_by_density`, so that the rate rises while weights disappear.
  """
  step = np.arange(train.steps, dtype=np.float64)
  warmup = int(train.warmup_fraction * train.steps)
  falling = (train.steps - step) / (train.steps - warmup or 1)
  rate = np.where(step < warmup, step / max(1, warmup), falling)
  if train.scale_rate_by_density:
    rate *= np.sqrt(sparsity.density / block_density(sparsity, train.steps))
  return train.learning_rate * rate
