"""Ablation values: what closed nodes take, and means where none are stored."""

import functools

import jax
import jax.numpy as jnp

from sparse_jax import config as config_lib
from sparse_jax.data import sample
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import hooks, means, transformer
from sparse_jax.tasks.sequences import Sequences
from sparse_jax.utils import progress as progress_lib

# Every activation of so many prompts is held at once.
_SEQUENCES_AT_ONCE = 32
_WINDOWS_AT_ONCE = 8


def measured_means(
  model: transformer.Model,
  params: transformer.Params,
  tokenizer: tokenizer_lib.Tokenizer,
  config: config_lib.Config,
  progress: bool = True,
) -> dict[str, jax.Array]:
  """Returns every node site's mean over text of `config.data.source`.

  For models that come without pretraining means. As many windows as training
  takes for them, `[layers, width]` a site; none is longer than the model reads.
  """
  length = config.data.context_length
  if model.config.positions != "none":
    length = min(length, model.config.context_length)
  num_batches = -(
    -config.prune.mean_batches * config.train.batch_size // _WINDOWS_AT_ONCE
  )
  windows = sample.first_windows(
    config.data,
    tokenizer,
    context_length=length,
    count=num_batches * _WINDOWS_AT_ONCE,
    progress=progress,
  )

  def batches():
    with progress_lib.progress_bar(num_batches, 0, "means of the nodes") as bar:
      bar.disable = not progress
      for batch in windows.reshape(num_batches, _WINDOWS_AT_ONCE, length):
        yield batch
        bar.update()

  return means.mean_activations(model, params, batches())


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
