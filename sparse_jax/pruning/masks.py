"""Node-mask pruning: a pure step that vmaps (paper appendix A.5).

Node i has a mask parameter τ_i in [-1, 1]; its gate is H(τ_i). A closed node
takes its ablation value. The loss is the task's two-sided two-token
cross-entropy plus `k_coef` times the number of open gates; the gradient of H is
that of a sigmoid. Weights get no gradient.

A share of the loss, `outside_weight`, may be taken with closed nodes left on by
some r (`tasks/outside.py`): drawn at random, or climbing the loss by the same
backward pass that trains τ.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator, outside
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.training import transforms


class Hyperparameters(NamedTuple):
  """What may differ between runs of one program; every field is a scalar.

  Fields are those of `config.PruneConfig`; Table 2 of the paper lists them.
  Those of several runs are one `Hyperparameters` of arrays `[runs]`.
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

  @classmethod
  def from_config(
    cls, config: config_lib.PruneConfig, k_coef, seed, **fields
  ) -> "Hyperparameters":
    """Returns the config's values but for those given, one or `[runs]` each."""
    fields |= {"k_coef": k_coef, "seed": seed}
    values = (fields.get(n, getattr(config, n, None)) for n in cls._fields)
    arrays = jnp.broadcast_arrays(*map(jnp.asarray, values))
    *rest, seeds = arrays
    return cls(*(x.astype(jnp.float32) for x in rest), seeds.astype(jnp.int32))


class Run(NamedTuple):
  """What one training of masks is given; several are one, stacked.

  Attributes:
    hyperparameters: of the run.
    means: ablation values, per site `[layers, width]`.
    sequences: training pairs, or a batch of them.
    allowed: nodes that may be open, per site `[layers, width]` bool.
  """

  hyperparameters: Hyperparameters
  means: hooks.SiteArrays
  sequences: sequences_lib.Sequences
  allowed: hooks.SiteArrays


class PruneState(NamedTuple):
  """State of one run.

  Attributes:
    step: int32, updates made.
    tau: mask parameters, per site `[layers, width]`, in [-1, 1].
    opt_state: of the mask optimizer.
    r: how far closed nodes are left on, per site `[num_r, layers, width]` in
      [0, 1], the adversary's first; empty under plain ablation.
    pull: running means of the loss's slopes along `r`: one batch is noisy.
  """

  step: jax.Array
  tau: dict[str, jax.Array]
  opt_state: Any
  r: dict[str, jax.Array]
  pull: dict[str, jax.Array]


@jax.custom_vjp
def binarize(tau: jax.Array, temperature: jax.Array) -> jax.Array:
  """H(τ): 1 where τ >= 0, else 0; backward σ(τ/T)(1 - σ(τ/T))/T."""
  del temperature
  return (tau >= 0).astype(tau.dtype)


def _binarize_forward(tau, temperature):
  return binarize(tau, temperature), (tau, temperature)


def _binarize_backward(residuals, grad):
  tau, temperature = residuals
  s = jax.nn.sigmoid(tau / temperature)
  return grad * s * (1 - s) / temperature, jnp.zeros_like(temperature)


binarize.defvjp(_binarize_forward, _binarize_backward)


def mask_optimizer(
  hyperparameters: Hyperparameters, steps: int
) -> optax.GradientTransformation:
  """AdamW on τ: gradients clipped to RMS 1, linear decay, box [-1, 1]."""
  # With no warm-up the first step already runs at the full rate.
  warmup = jnp.maximum(hyperparameters.warmup_fraction * steps, 1e-6)

  def rate(count):
    rising = jnp.minimum(1.0, (count + 1) / warmup)
    falling = jnp.maximum(0.0, 1 - count / steps)
    return hyperparameters.learning_rate * rising * falling

  return optax.chain(
    transforms.clip_rms(1.0),
    optax.scale_by_adam(0.9, hyperparameters.beta2),
    optax.add_decayed_weights(hyperparameters.weight_decay),
    optax.scale_by_learning_rate(rate),
    transforms.box(-1.0, 1.0),
  )


def init_prune(
  model: config_lib.ModelConfig,
  config: config_lib.PruneConfig,
  hyperparameters: Hyperparameters,
  allowed: hooks.SiteArrays,
) -> PruneState:
  """Returns the first state of one run: τ ~ N(init_bias, init_scale).

  r is uniform: a source that starts at a corner has that corner's bias.
  """
  keys = jax.random.split(
    jax.random.key(hyperparameters.seed), len(config.sites)
  )
  tau = {}
  for name, key in zip(config.sites, keys, strict=True):
    shape = (sites.num_rows(name, model.n_layer), model.width(name))
    noise = hyperparameters.init_scale * jax.random.normal(key, shape)
    tau[name] = jnp.clip(hyperparameters.init_bias + noise, -1, 1)
    tau[name] = jnp.where(allowed[name], tau[name], -1.0)
  optimizer = mask_optimizer(hyperparameters, config.steps)
  step = jnp.zeros([], jnp.int32)
  r = _draw_r(config, hyperparameters, step, tau)
  pull = jax.tree.map(jnp.zeros_like, r)
  return PruneState(step, tau, optimizer.init(tau), r, pull)


def _draw_r(config, hyperparameters, step, tau):
  """Returns `num_r` uniform r's like `tau`, of a run and step."""
  if not config.num_r:
    return {}
  key = jax.random.fold_in(jax.random.key(hyperparameters.seed), step)
  draw = lambda key, t: jax.random.uniform(key, (config.num_r, *t.shape))
  keys = jax.random.split(key, len(tau))
  return {n: draw(k, tau[n]) for n, k in zip(tau, keys, strict=True)}


def _is_fresh(config: config_lib.PruneConfig, step: jax.Array) -> jax.Array:
  """Returns which r's are drawn anew at a step, `[num_r]` bool.

  Uniform ones always; the adversary's in turn, each after `outside_life` steps:
  masks soon hold against an r that they have seen for long, not against others.
  """
  source_R = jnp.arange(config.num_r)
  offset_R = source_R * config.outside_life // max(1, config.num_sources)
  is_due_R = (step + offset_R) % config.outside_life == 0
  return is_due_R | (source_R >= config.num_sources)


def prune_step(
  model: transformer.Model,
  config: config_lib.PruneConfig,
  state: PruneState,
  params: transformer.Params,
  run: Run,
) -> tuple[PruneState, dict[str, jax.Array]]:
  """One step of one run: pure; `vmap` it over states and runs.

  Past the last of `config.steps` it changes nothing: the rate is 0.

  Args:
    model: the frozen model.
    config: steps, costs of sites and whether norms are frozen.
    state: before the step.
    params: the model's, frozen.
    run: with a batch of pairs.

  Returns:
    The state after it, and scalars: `task_loss` and `robust_loss` (0 under
    plain ablation) in nats, and `open_gates`.
  """
  hyperparameters = run.hyperparameters
  costs = config.cost_of_site()
  weight = config.outside_weight if config.num_r else 0.0

  def loss_under(gates, sequences):
    diff_S = mask_evaluator.masked_logit_difference(
      model, config.freeze_norms, params, run.means, gates, sequences
    )
    return logit_difference_lib.task_loss(diff_S)

  def both_losses(gates, left_on):
    """Returns the plain loss and the one under each r on its part."""
    num_r, num_pairs = config.num_r, len(run.sequences.positions) // 2
    parts = sequences_lib.deal(run.sequences, num_r)
    if num_pairs % num_r:
      robust = jnp.mean(jax.vmap(loss_under)(left_on, parts))
      return loss_under(gates, run.sequences), robust
    # As parts of one batch: two passes take twice as long to compile.
    plain = {n: jnp.broadcast_to(g, left_on[n].shape) for n, g in gates.items()}
    join = lambda *trees: jax.tree.map(lambda *x: jnp.concatenate(x), *trees)
    losses_R = jax.vmap(loss_under)(join(plain, left_on), join(parts, parts))
    return jnp.mean(losses_R[:num_r]), jnp.mean(losses_R[num_r:])

  def objective(tau, r):
    gates = {
      name: binarize(t, hyperparameters.temperature) for name, t in tau.items()
    }
    counts = {name: jnp.sum(g) for name, g in gates.items()}
    cost = sum(costs.get(name, 1.0) * count for name, count in counts.items())
    if config.edge_cost:
      cost += config.edge_cost * edges_lib.open_edges(params, gates)
    if weight:
      loss, robust_loss = both_losses(gates, outside.leave_on(gates, r))
    else:
      loss, robust_loss = loss_under(gates, run.sequences), jnp.zeros([])
    total = (1 - weight) * loss + weight * robust_loss
    metrics = {
      "task_loss": loss,
      "robust_loss": robust_loss,
      "open_gates": sum(counts.values()),
    }
    return total + hyperparameters.k_coef * cost, metrics

  grad = jax.grad(objective, argnums=(0, 1), has_aux=True)
  (grads, slope), metrics = grad(state.tau, state.r)
  optimizer = mask_optimizer(hyperparameters, config.steps)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.tau)
  tau = optax.apply_updates(state.tau, updates)
  tau = {n: jnp.where(run.allowed[n], t, -1.0) for n, t in tau.items()}
  step = state.step + 1
  keep = config.outside_momentum
  pull = {n: keep * state.pull[n] + (1 - keep) * s for n, s in slope.items()}
  climbed = outside.ascend(state.r, pull, config.outside_rate)
  is_fresh_R = _is_fresh(config, step)[:, None, None]
  pull = {n: jnp.where(is_fresh_R, 0.0, p) for n, p in pull.items()}
  r = {
    name: jnp.where(is_fresh_R, drawn, climbed[name])
    for name, drawn in _draw_r(config, hyperparameters, step, tau).items()
  }
  return PruneState(step, tau, opt_state, r, pull), metrics


def in_order(names: Iterable[str]) -> list[str]:
  """Returns site names in forward order, the order of flat node indices.

  Trees that JAX has mapped over have their keys sorted.
  """
  names = set(names)
  return [name for name in sites.NODE_SITES if name in names]


def flatten(arrays: Mapping[str, Any]) -> np.ndarray:
  """Returns per site `[layers, width]` as one row, in forward order."""
  return np.concatenate([np.ravel(arrays[n]) for n in in_order(arrays)])


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


def node_order(state: PruneState) -> np.ndarray:
  """Returns one run's nodes from most to least important, as flat indices.

  τ saturates at the box, so τ alone does not order the nodes. Ties are broken
  by the optimizer's running mean of the gradient (a steeper pull towards open
  comes first), then by site and channel: a total order. Flat indices run
  through the sites in forward order (`in_order`), row-major.
  """
  moments = optax.tree.get(state.opt_state, "mu")
  return np.lexsort((flatten(moments), -flatten(state.tau)))


def first_of_order(
  order: np.ndarray, counts: Iterable[int], total: int
) -> np.ndarray:
  """Returns `[counts, total]` bool: which entries are the first of an order."""
  rank = np.full(total, len(order))
  rank[order] = np.arange(len(order))
  return rank[None, :] < np.asarray(list(counts))[:, None]


def masks_of_order(
  shapes: Mapping[str, tuple[int, ...]],
  order: np.ndarray,
  counts: Iterable[int],
) -> dict[str, np.ndarray]:
  """Returns masks of the first nodes, per site `[counts, layers, width]`.

  Args:
    shapes: per site `(layers, width)`, in forward order.
    order: flat node indices, most important first; others are never kept.
    counts: how many nodes each mask keeps.
  """
  total = sum(int(np.prod(shape)) for shape in shapes.values())
  return unflatten(shapes, first_of_order(order, counts, total))
