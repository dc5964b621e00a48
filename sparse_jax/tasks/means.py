"""Ablation values: what closed nodes take."""

import jax
import jax.numpy as jnp

from sparse_jax import config as config_lib
from sparse_jax.model import hooks, means, transformer
from sparse_jax.tasks.sequences import Sequences


def task_means(
  model: transformer.Model, params: transformer.Params, sequences: Sequences
) -> dict[str, jax.Array]:
  """Returns every node site's mean over the prompts' tokens, not padding."""
  _, acts = hooks.run_with_sites(model, params, sequences.tokens)
  index = jnp.arange(sequences.tokens.shape[1])
  weight_SxTx1 = (index <= sequences.positions[:, None])[..., None]

  def mean(x_SxTxW):
    return jnp.sum(x_SxTxW * weight_SxTx1, (0, 1)) / jnp.sum(weight_SxTx1)

  return means.over_sites(model, acts, mean)


def ablation_values(
  model: transformer.Model,
  params: transformer.Params,
  config: config_lib.PruneConfig,
  pretrain_means: hooks.SiteArrays,
  sequences: Sequences,
) -> dict[str, jnp.ndarray]:
  """Returns what closed nodes take, per gated site `[layers, width]`."""
  if config.ablation == "mean_task":
    values = task_means(model, params, sequences)
  elif config.ablation == "zero":
    values = {n: jnp.zeros_like(m) for n, m in pretrain_means.items()}
  else:
    values = pretrain_means
  return {name: jnp.asarray(values[name]) for name in config.sites}
