"""Node-mask pruning: a pure step that vmaps (paper appendix A.5).

Node i has a mask parameter τ_i in [-1, 1]; its gate is H(τ_i). A closed node
takes its ablation value. The loss is the task's two-sided two-token
cross-entropy plus `k_coef` times the number of open gates; the gradient of H is
that of a sigmoid. Weights get no gradient.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.training import transforms


class Hyperparameters(NamedTuple):
  """What may differ between runs of one program; every field is a scalar.

  Fields are those of `config.PruneConfig`; Table 2 of the paper lists them.
  Several runs' settings are one `Hyperparameters` of arrays `[runs]`.
  """

  k_coef: jax.Array
  learning_rate: jax.Array
  warmup_fraction: jax.Array
  beta2: jax.Array
  weight_decay: jax.Array
  temperature: jax.Array
  init_bias: jax.Array
  init_scale: jax.Array
  seed: jax.Array


class PruneState(NamedTuple):
  """State of one run.

  Attributes:
    step: int32, updates made.
    tau: mask parameters, per site `[layers, width]`, in [-1, 1].
    opt_state: of the mask optimizer.
  """

  step: jax.Array
  tau: dict[str, jax.Array]
  opt_state: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=())
def gate(tau: jax.Array, temperature: jax.Array) -> jax.Array:
  """H(τ): 1 where τ >= 0, else 0; backward σ(τ/T)(1 - σ(τ/T))/T."""
  del temperature
  return (tau >= 0).astype(tau.dtype)


def _gate_forward(tau, temperature):
  return gate(tau, temperature), (tau, temperature)


def _gate_backward(residuals, grad):
  tau, temperature = residuals
  s = jax.nn.sigmoid(tau / temperature)
  return grad * s * (1 - s) / temperature, jnp.zeros_like(temperature)


gate.defvjp(_gate_forward, _gate_backward)


def mask_optimizer(
  setting: Hyperparameters, steps: int
) -> optax.GradientTransformation:
  """AdamW on τ: gradients clipped to RMS 1, linear decay, box [-1, 1]."""
  # With no warm-up the first step already runs at the full rate.
  warmup = jnp.maximum(setting.warmup_fraction * steps, 1e-6)

  def rate(count):
    rising = jnp.minimum(1.0, (count + 1) / warmup)
    falling = jnp.maximum(0.0, 1 - count / steps)
    return setting.learning_rate * rising * falling

  return optax.chain(
    transforms.clip_rms(1.0),
    optax.scale_by_adam(0.9, setting.beta2),
    optax.add_decayed_weights(setting.weight_decay),
    optax.scale_by_learning_rate(rate),
    transforms.box(-1.0, 1.0),
  )


def init_prune(
  config: config_lib.ModelConfig,
  gated: tuple[str, ...],
  setting: Hyperparameters,
  steps: int,
) -> PruneState:
  """Returns the first state of one run: τ ~ N(init_bias, init_scale)."""
  keys = jax.random.split(jax.random.key(setting.seed), len(gated))
  tau = {}
  for name, key in zip(gated, keys, strict=True):
    shape = (sites.num_rows(name, config.n_layer), config.width(name))
    noise = setting.init_scale * jax.random.normal(key, shape)
    tau[name] = jnp.clip(setting.init_bias + noise, -1, 1)
  optimizer = mask_optimizer(setting, steps)
  return PruneState(jnp.zeros([], jnp.int32), tau, optimizer.init(tau))


def prune_step(
  model: transformer.Model,
  steps: int,
  state: PruneState,
  params: transformer.Params,
  means: hooks.SiteArrays,
  sequences: sequences_lib.Sequences,
  setting: Hyperparameters,
  site_costs: Mapping[str, float] | None = None,
  allowed: hooks.SiteArrays | None = None,
  freeze_norms: bool = False,
) -> tuple[PruneState, dict[str, jax.Array]]:
  """One step of one run: pure; `vmap` it over states and settings.

  Past the last of `steps` it changes nothing: the rate is 0.

  Args:
    model: the frozen model.
    steps: length of the run, for the rate's decay.
    state: before the step.
    params: frozen parameters.
    means: ablation values, per site `[layers, width]`.
    sequences: a batch of pairs.
    setting: the run's hyperparameters.
    site_costs: by site, what an open gate there costs in units of `k_coef`; 1
      where nothing is said.
    allowed: per site `[layers, width]` bool, nodes that may be open; None is
      all.
    freeze_norms: see `circuit_hook`.

  Returns:
    The state after it, and scalars `task_loss` in nats and `open_gates`.
  """

  def objective(tau):
    gates = {k: gate(v, setting.temperature) for k, v in tau.items()}
    hook = hooks.circuit_hook(
      model,
      params,
      sequences.tokens,
      sequences.positions,
      gates,
      means,
      freeze_norms,
    )
    diff = logit_difference_lib.logit_difference(model, params, sequences, hook)
    counts = {name: jnp.sum(g) for name, g in gates.items()}
    cost = sum((site_costs or {}).get(n, 1.0) * c for n, c in counts.items())
    loss = logit_difference_lib.task_loss(diff)
    return loss + setting.k_coef * cost, (loss, sum(counts.values()))

  grads, (loss, open_gates) = jax.grad(objective, has_aux=True)(state.tau)
  updates, opt_state = mask_optimizer(setting, steps).update(
    grads, state.opt_state, state.tau
  )
  tau = optax.apply_updates(state.tau, updates)
  if allowed is not None:
    tau = {name: jnp.where(allowed[name], t, -1.0) for name, t in tau.items()}
  metrics = {"task_loss": loss, "open_gates": open_gates}
  return PruneState(state.step + 1, tau, opt_state), metrics


def in_order(names: Iterable[str]) -> list[str]:
  """Returns site names in forward order, the order of flat node indices.

  Trees that JAX has mapped over have their keys sorted.
  """
  names = set(names)
  return [name for name in sites.NODE_SITES if name in names]


def node_order(state: PruneState) -> np.ndarray:
  """Returns one run's nodes from most to least needed, as flat indices.

  τ saturates at the box, so τ alone does not order the nodes. Ties are broken
  by the optimizer's running mean of the gradient (a steeper pull towards open
  comes first), then by site and channel: a total order. Flat indices run
  through the sites in forward order (`in_order`), row-major.
  """
  moments = optax.tree.get(state.opt_state, "mu")
  names = in_order(state.tau)
  flat = lambda tree: np.concatenate([np.ravel(tree[k]) for k in names])
  return np.lexsort((flat(moments), -flat(state.tau)))


def masks_of_order(
  tau_shapes: Mapping[str, tuple[int, ...]],
  order: np.ndarray,
  counts: Iterable[int],
) -> dict[str, np.ndarray]:
  """Returns masks of the first nodes, per site `[counts, layers, width]`.

  Args:
    tau_shapes: per site `(layers, width)`, in the order of τ.
    order: flat node indices, most needed first; others are never kept.
    counts: how many nodes each mask keeps.
  """
  total = sum(int(np.prod(shape)) for shape in tau_shapes.values())
  rank = np.full(total, len(order))
  rank[order] = np.arange(len(order))
  keep = rank[None, :] < np.asarray(list(counts))[:, None]
  return unflatten(tau_shapes, keep)


def unflatten(
  shapes: Mapping[str, tuple[int, ...]], flat: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns `[masks, nodes]` as per site `[masks, layers, width]`."""
  sizes = [int(np.prod(shape)) for shape in shapes.values()]
  parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
  return {
    name: part.reshape(-1, *shape)
    for (name, shape), part in zip(shapes.items(), parts, strict=True)
  }
