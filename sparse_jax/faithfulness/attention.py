"""Attention: whether the kept heads look where they look in the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.faithfulness import context as context_lib
from sparse_jax.model import hooks


def attention(context: context_lib.Context) -> dict[str, dict[str, float]]:
  """Returns how much the kept heads look elsewhere, by "layer.head".

  The total variation distance sum|p - q| / 2 between the head's pattern in the
  model and in the circuit, sink included, mean over queries of the test
  prompts: 0 is the same pattern, 1 disjoint ones (Drori 2026 finds patterns
  that circuits drop or use for something else).
  """
  circuit, evaluator = context.circuit, context.evaluator
  config = evaluator.model.config
  kept = np.zeros((config.n_layer, config.n_head), bool)
  for name in ("attn.q", "attn.k", "attn.v"):
    if name in circuit.node_mask:
      mask = circuit.node_mask[name]
      kept |= mask.reshape(config.n_layer, config.n_head, -1).any(-1)
  distance_NxSxTxH = np.asarray(
    _distances(
      evaluator.model,
      evaluator.freeze_norms,
      evaluator.params,
      evaluator.sequences.tokens,
      jax.tree.map(jnp.asarray, context.mask),
      jax.tree.map(jnp.asarray, dict(evaluator.means)),
    )
  )
  index = np.arange(distance_NxSxTxH.shape[2])
  used_SxT = index <= np.asarray(evaluator.sequences.positions)[:, None]
  total_NxSxH = (distance_NxSxTxH * used_SxT[None, ..., None]).sum(2)
  mean_NxSxH = total_NxSxH / used_SxT.sum(1)[:, None]
  return {
    f"{layer}.{head}": context.estimate(mean_NxSxH[layer, :, head])
    for layer, head in zip(*np.nonzero(kept), strict=True)
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distances(model, freeze_norms, params, tokens, mask, means):
  """Returns total variation distances, `[layers, S, T, heads]`."""
  names = hooks.attention_sites(model.config.n_layer)
  circuit_hook = hooks.circuit_hook(
    model, params, tokens, None, mask, means, freeze_norms
  )
  patterns = []
  for hook in (hooks.identity, circuit_hook):
    acts: dict[str, jax.Array] = {}
    model.residual(
      params, tokens, hooks.compose(hook, hooks.record(acts, names))
    )
    patterns.append(hooks.attention_patterns(model, params, acts))
  p, q = patterns
  # What a pattern lacks to one is the sink's.
  return (jnp.abs(p - q).sum(-1) + jnp.abs(p.sum(-1) - q.sum(-1))) / 2
