"""The losses of bridges, and their gradients with one pass back per body.

loss = CE(sparse) + sum over bridges of
  NMSE(encode(dense state), AbsTopK(sparse)) + NMSE(decode(sparse), dense state)
  + KL(dense, sparse tail from the encoded state)
  + KL(dense, dense tail from the decoded state),

each with its coefficient (paper, section on bridges; Drori 2026).

Axes: B batch, W window, L position, N positions of all windows, D residual, V
vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparse_jax import config as config_lib
from sparse_jax.bridge import maps, points
from sparse_jax.model import hooks, top_k, transformer
from sparse_jax.model import loss as loss_lib

Losses = Mapping[str, jax.Array]
# What is trained: {"sparse": the decoder's parameters, "maps": the bridges, in
# units of the states (`maps.Units`)}.
Params = Mapping[str, Any]

PER_BRIDGE = ("nmse_encode", "nmse_decode", "kl_encode", "kl_decode")
PER_MODEL = ("cross_entropy", "distillation")


@dataclasses.dataclass(frozen=True)
class Span:
  """Two models of equal depth and the settings of the bridges between them."""

  dense: transformer.Model
  sparse: transformer.Model
  settings: config_lib.BridgeConfig

  @property
  def points(self) -> tuple[str, ...]:
    """The sites of the bridges, in order."""
    return points.bridge_points(self.dense.config, self.sparse.config)

  @property
  def num_active(self) -> int:
    """How many channels an encoder's AbsTopK keeps, at least one."""
    share = self.settings.activation_fraction
    return max(1, int(share * self.sparse.config.d_model))

  def init_maps(self, rng: jax.Array) -> maps.Maps:
    """Returns fresh bridges."""
    widths = self.dense.config.d_model, self.sparse.config.d_model
    return maps.init(rng, len(self.points), *widths)

  def encode(self, params: maps.Maps, index: int, state: jax.Array):
    """Returns a dense state at a bridge as the sparse model's."""
    return maps.encode(params, index, state, self.num_active)

  def code(self, state: jax.Array) -> jax.Array:
    """Returns what an encoder is to give for a sparse state: its AbsTopK."""
    return top_k.abs_top_k(state, self.num_active)


class Teacher(NamedTuple):
  """The dense model on a batch: what everything is compared with."""

  states: tuple[jax.Array, ...]  # At every bridge `[B, L, D]`.
  probability_NxV: jax.Array
  negative_entropy: jax.Array  # Mean over positions, in nats.

  def divergence(self, logits_NxV: jax.Array) -> jax.Array:
    """Returns the mean KL(dense, softmax(logits)), in nats."""
    log_NxV = jax.nn.log_softmax(logits_NxV)
    expected = jnp.sum(self.probability_NxV * log_NxV, -1)
    return self.negative_entropy - jnp.mean(expected)


def teach(span: Span, dense: transformer.Params, tokens: jax.Array) -> Teacher:
  """Returns the dense model's states and answers on tokens `[B, L]`."""
  states = points.body_states(span.dense, dense, tokens, span.points)
  logits_NxV = points.unembedded(span.dense, dense, tokens, states[-1])
  log_NxV = jax.nn.log_softmax(logits_NxV)
  probability_NxV = jnp.exp(log_NxV)
  entropy_N = jnp.sum(probability_NxV * log_NxV, -1)
  return Teacher(states, probability_NxV, jnp.mean(entropy_N))


def normalized_error(found: jax.Array, target: jax.Array) -> jax.Array:
  """Returns the mean squared error over the target's variance, float32.

  The variance is around the batch's mean, summed over channels. It passes
  gradients: a target that is trained would otherwise shrink toward what is
  found, for as long as little is, and never stop.
  """
  found, target = (
    x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (found, target)
  )
  size = lambda x: jnp.mean(jnp.sum(jnp.square(x), -1))
  variance = size(target - jnp.mean(target, 0))
  return size(found - target) / variance


def bridge_losses(
  span: Span,
  index: int,
  params: Params,
  dense: transformer.Params,
  tokens: jax.Array,
  teacher: Teacher,
  sparse_state: jax.Array,
  in_units: bool = True,
) -> Losses:
  """Returns one bridge's losses, by the names of `PER_BRIDGE`.

  Its maps are in units of the states, or plain.
  """
  point, dense_state = span.points[index], teacher.states[index]
  own = params["maps"]
  if in_units:
    units = maps.units_of([dense_state]), maps.units_of([sparse_state])
    own = maps.out_of_units(own, *units)
  encoded = span.encode(own, index, dense_state)
  decoded = maps.decode(own, index, sparse_state)
  to_sparse = points.tail_logits(
    span.sparse, params["sparse"], tokens, point, encoded
  )
  to_dense = points.tail_logits(span.dense, dense, tokens, point, decoded)
  return {
    "nmse_encode": normalized_error(encoded, span.code(sparse_state)),
    "nmse_decode": normalized_error(decoded, dense_state),
    "kl_encode": teacher.divergence(to_sparse),
    "kl_decode": teacher.divergence(to_dense),
  }


def model_losses(
  span: Span,
  params: Params,
  tokens: jax.Array,
  targets: jax.Array,
  teacher: Teacher,
  last_state: jax.Array,
) -> Losses:
  """Returns the sparse model's own losses, by the names of `PER_MODEL`."""
  logits_NxV = points.unembedded(
    span.sparse, params["sparse"], tokens, last_state
  )
  return {
    "cross_entropy": loss_lib.cross_entropy(logits_NxV, targets.reshape(-1)),
    "distillation": teacher.divergence(logits_NxV),
  }


def weighted(settings: config_lib.BridgeConfig, losses: Losses) -> jax.Array:
  """Returns the sum of losses, each over its bridges and by its coefficient."""
  return sum(
    getattr(settings, name) * jnp.sum(value) for name, value in losses.items()
  )


def all_losses(
  span: Span,
  params: Params,
  dense: transformer.Params,
  windows_BxW: jax.Array,
  hook: transformer.Hook = hooks.identity,
  in_units: bool = True,
) -> Losses:
  """Returns every loss, in nats or shares of variance, `[bridges]` or scalar.

  Windows are int `[B, L + 1]` tokens. `hook` acts in the sparse body. Maps are
  in units of the windows' states, or plain.
  """
  tokens, targets = windows_BxW[:, :-1], windows_BxW[:, 1:]
  teacher = teach(span, dense, tokens)
  states = points.body_states(
    span.sparse, params["sparse"], tokens, span.points, hook
  )
  per_bridge = [
    bridge_losses(span, i, params, dense, tokens, teacher, state, in_units)
    for i, state in enumerate(states)
  ]
  of_model = model_losses(span, params, tokens, targets, teacher, states[-1])
  return of_model | jax.tree.map(lambda *x: jnp.stack(x), *per_bridge)


def loss_and_gradients(
  span: Span,
  params: Params,
  dense: transformer.Params,
  windows_BxW: jax.Array,
  hook: transformer.Hook = hooks.identity,
) -> tuple[Losses, Params]:
  """Returns `all_losses` and the gradients of their `weighted` sum.

  The tails of a bridge are differentiated by themselves, down to the sparse
  state there; the sparse body is then differentiated once, with what the tails
  left at all bridges.
  """
  tokens, targets = windows_BxW[:, :-1], windows_BxW[:, 1:]
  teacher = teach(span, dense, tokens)
  states, pull_back = jax.vjp(
    lambda p: points.body_states(span.sparse, p, tokens, span.points, hook),
    params["sparse"],
  )
  at_bridge = lambda i: (
    lambda p, teacher, state: bridge_losses(
      span, i, p, dense, tokens, teacher, state
    )
  )
  at_end = lambda p, teacher, state: model_losses(
    span, p, tokens, targets, teacher, state
  )
  parts = [(i, at_bridge(i)) for i in range(len(states))]
  parts.append((len(states) - 1, at_end))

  found = []
  gradients = jax.tree.map(jnp.zeros_like, params)
  cotangents = [jnp.zeros_like(state) for state in states]
  for i, losses_of in parts:
    # In turn: a part starts when the one before it has added its gradients.
    gradients, teacher, state = jax.lax.optimization_barrier(
      (gradients, teacher, states[i])
    )
    losses, of_params, of_state = _part(
      span.settings, losses_of, params, teacher, state
    )
    found.append(losses)
    gradients = jax.tree.map(jnp.add, gradients, of_params)
    cotangents[i] += of_state
  (through_body,) = pull_back(tuple(cotangents))
  sparse = jax.tree.map(jnp.add, gradients["sparse"], through_body)
  *per_bridge, of_model = found
  losses = of_model | jax.tree.map(lambda *x: jnp.stack(x), *per_bridge)
  return losses, {**gradients, "sparse": sparse}


def _part(
  settings: config_lib.BridgeConfig,
  losses_of: Callable[[Params, Teacher, jax.Array], Losses],
  params: Params,
  teacher: Teacher,
  state: jax.Array,
) -> tuple[Losses, Params, jax.Array]:
  """Returns losses, and the gradients of parameters and of the state."""

  def loss(params, state):
    losses = losses_of(params, teacher, state)
    return weighted(settings, losses), losses

  (_, losses), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    params, state
  )
  return losses, *gradients
