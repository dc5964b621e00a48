"""Attention: whether the kept heads look where they look in the model."""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.faithfulness import evidence
from sparse_jax.model import hooks


def attention(subject: evidence.Subject) -> dict[str, dict[str, float]]:
  """Returns how much the kept heads look elsewhere, by "layer.head".

  The total variation distance sum|p - q| / 2 between the head's pattern in the
  model and in the circuit, sink included, mean over queries of the test
  prompts: 0 is the same pattern, 1 disjoint ones (Drori 2026 finds patterns
  that circuits drop or use for something else).
  """
  config, circuit = subject.model.config, subject.circuit
  kept = np.zeros((config.n_layer, config.n_head), bool)
  for name in ("attn.q", "attn.k", "attn.v"):
    if name in circuit.node_mask:
      mask = circuit.node_mask[name]
      kept |= mask.reshape(config.n_layer, config.n_head, -1).any(-1)
  names = hooks.attention_sites(config.n_layer)

  @jax.jit
  def distances(params, test):
    found = []
    for hook in (hooks.identity, circuit.hook(params, test.tokens)):
      acts: dict[str, jax.Array] = {}
      both = hooks.compose(hook, hooks.record(acts, names))
      subject.model.residual(params, test.tokens, both)
      found.append(hooks.attention_patterns(subject.model, params, acts))
    p, q = found
    # What a pattern lacks to one is the sink's.
    return (jnp.abs(p - q).sum(-1) + jnp.abs(p.sum(-1) - q.sum(-1))) / 2

  # [layers, S, T, heads]
  distance = np.asarray(distances(subject.params, subject.test))
  index = np.arange(distance.shape[2])
  used = index[None] <= np.asarray(subject.test.positions)[:, None]
  mean_LxSxH = (distance * used[None, ..., None]).sum(2) / used.sum(1)[:, None]
  return {
    f"{layer}.{head}": evidence.estimate(
      mean_LxSxH[layer, :, head], evidence.pair_groups(len(used)), subject.seed
    )
    for layer, head in zip(*np.nonzero(kept), strict=True)
  }
