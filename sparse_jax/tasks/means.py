"""Ablation values: what closed nodes take."""

import functools

import jax
import jax.numpy as jnp

from sparse_jax import config as config_lib
from sparse_jax.model import hooks, means, transformer
from sparse_jax.tasks.sequences import Sequences

# Every activation of so many prompts is held at once.
_SEQUENCES_AT_ONCE = 32


@functools.partial(jax.jit, static_argnames="model")
def task_means(
  model: transformer.Model, params: transformer.Params, sequences: Sequences
) -> dict[str, jax.Array]:
  """Returns every node site's mean over the prompts' tokens, not padding."""
  tokens_SxT, positions_S = sequences.tokens, sequences.positions
  index_T = jnp.arange(tokens_SxT.shape[1])
  size = min(_SEQUENCES_AT_ONCE, len(tokens_SxT))
  missing = -len(tokens_SxT) % size

  def in_parts(x, fill):
    widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
    padded = jnp.pad(x, widths, constant_values=fill)
    return padded.reshape(-1, size, *x.shape[1:])

  def sums(part):
    tokens, positions = part
    _, acts = hooks.run_with_sites(model, params, tokens)
    weight_SxTx1 = (index_T <= positions[:, None])[..., None]
    return means.over_sites(
      model, acts, lambda x_SxTxW: jnp.sum(x_SxTxW * weight_SxTx1, (0, 1))
    )

  # Prompts that only fill the last part end before their first token.
  parts = in_parts(tokens_SxT, 0), in_parts(positions_S, -1)
  count = jnp.sum(positions_S + 1)
  return jax.tree.map(
    lambda sum_PxRxW: jnp.sum(sum_PxRxW, 0) / count, jax.lax.map(sums, parts)
  )


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
