"""Bridge points: where bodies are tapped and hybrid passes begin.

A *body* is a model from its tokens to the last residual state; a *tail* is the
rest of a model from one bridge point on.

Axes: B batch, L position, D residual, V vocabulary.
"""

from collections.abc import Sequence

import jax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import hooks, transformer


def bridge_points(*configs: config_lib.ModelConfig) -> tuple[str, ...]:
  """Returns the sites of the bridges between models of equal depth, in order.

  They are the embedding and the stream behind each sublayer. In a model with a
  parallel residual no MLP reads what attention has just written, so there the
  points behind attention are left out.
  """
  names = ["resid_in", "resid_mid"]
  if any(config.parallel for config in configs):
    names.remove("resid_mid")
  layers = range(configs[0].n_layer)
  ids = [sites.site_id(name, layer) for layer in layers for name in names]
  return (*ids, "final_resid")


def body_states(
  model: transformer.Model,
  params: transformer.Params,
  tokens: jax.Array,
  points: Sequence[str],
  hook: transformer.Hook = hooks.identity,
) -> tuple[jax.Array, ...]:
  """Returns the residual stream at every point, each `[B, L, D]`.

  `hook` acts at every site before the state is taken.
  """
  states: dict[str, jax.Array] = {}
  model.residual(params, tokens, hooks.compose(hook, hooks.record(states)))
  return tuple(states[point] for point in points)


def tail_logits(
  model: transformer.Model,
  params: transformer.Params,
  tokens: jax.Array,
  point: str,
  state_BxLxD: jax.Array,
) -> jax.Array:
  """Returns the logits `[B * L, V]` of a model that goes on from a state.

  What lies before the point is traced and, in a compiled program, not run.
  """
  hook = hooks.patch({point: state_BxLxD})
  return unembedded(model, params, tokens, model.residual(params, tokens, hook))


def unembedded(
  model: transformer.Model,
  params: transformer.Params,
  tokens: jax.Array,
  state_BxLxD: jax.Array,
) -> jax.Array:
  """Returns the logits `[B * L, V]` of the last residual state."""
  state_NxD = state_BxLxD.reshape(-1, state_BxLxD.shape[-1])
  return model.unembed(params, state_NxD, tokens.reshape(-1))
