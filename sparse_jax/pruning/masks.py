"""Node-mask pruning: a pure step that vmaps (paper appendix A.5).

Node i has a mask parameter τ_i in [-1, 1]; its gate is H(τ_i). A closed node
takes its ablation value. The loss is the task's two-sided two-token
cross-entropy plus `k_coef` times the number of open gates; the gradient of H is
that of a sigmoid. Weights get no gradient.

A share of the loss, `outside_weight`, may be taken with closed nodes left on by
some r (`tasks/outside.py`): drawn at random, or climbing the loss: from step to
step by the same backward pass that trains τ, or anew on every batch by passes
of its own (`outside_ascents`).
"""

import math
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
      [0, 1], the adversary's first; empty under plain ablation, and where r is
      made anew on every batch.
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
  shapes = {name: model.site_shape(name) for name in config.sites}
  key = jax.random.key(hyperparameters.seed)
  tau = {}
  for name, noise in _draw(jax.random.normal, key, shapes).items():
    noise = hyperparameters.init_scale * noise
    tau[name] = jnp.clip(hyperparameters.init_bias + noise, -1, 1)
    tau[name] = jnp.where(allowed[name], tau[name], -1.0)
  optimizer = mask_optimizer(hyperparameters, config.steps)
  step = jnp.zeros([], jnp.int32)
  r = {}
  if config.num_r and not config.outside_ascents:
    r = _draw_r(config, hyperparameters, step, tau)
  pull = jax.tree.map(jnp.zeros_like, r)
  return PruneState(step, tau, optimizer.init(tau), r, pull)


def _draw(draw, key, shapes):
  """Returns an array of each shape, by name, of one draw.

  A draw for each would take ten times as long to compile.
  """
  sizes = [math.prod(shape) for shape in shapes.values()]
  parts = jnp.split(draw(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
  return {
    name: part.reshape(shape)
    for (name, shape), part in zip(shapes.items(), parts, strict=True)
  }


def _draw_r(config, hyperparameters, step, tau, axes=()):
  """Returns `num_r` uniform r's like `tau`, of a run and step.

  Per site `[num_r, layers, *axes, width]`.
  """
  key = jax.random.fold_in(jax.random.key(hyperparameters.seed), step)
  shape = lambda t: (config.num_r, t.shape[0], *axes, t.shape[1])
  shapes = {n: shape(tau[n]) for n in in_order(tau)}
  return _draw(jax.random.uniform, key, shapes)


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

  def parts():
    return sequences_lib.deal(run.sequences, config.num_r)

  def left_on(gates, r):
    # An r may have axes for prompts between those of layers and channels.
    axes = {n: (1,) * (x.ndim - 3) for n, x in r.items()}
    gates = {n: g.reshape(len(g), *axes[n], -1) for n, g in gates.items()}
    return gates, outside.leave_on(gates, r)

  def robust_loss(gates, r):
    """Returns the loss under each r on its part."""
    return jnp.mean(jax.vmap(loss_under)(left_on(gates, r)[1], parts()))

  def both_losses(gates, r):
    """Returns the plain loss and the robust one."""
    num_r = config.num_r
    if len(run.sequences.positions) // 2 % num_r:
      return loss_under(gates, run.sequences), robust_loss(gates, r)
    # As parts of one batch: two passes take twice as long to compile.
    gates, opened = left_on(gates, r)
    plain = {n: jnp.broadcast_to(g, opened[n].shape) for n, g in gates.items()}
    join = lambda *trees: jax.tree.map(lambda *x: jnp.concatenate(x), *trees)
    every = join(plain, opened), join(parts(), parts())
    losses_R = jax.vmap(loss_under)(*every)
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
      loss, robust = both_losses(gates, r)
    else:
      loss, robust = loss_under(gates, run.sequences), jnp.zeros([])
    total = (1 - weight) * loss + weight * robust
    metrics = {
      "task_loss": loss,
      "robust_loss": robust,
      "open_gates": sum(counts.values()),
    }
    return total + hyperparameters.k_coef * cost, metrics

  r = state.r
  if config.num_r and config.outside_ascents:
    r = _climb_anew(config, hyperparameters, state, run.sequences, robust_loss)
  grad = jax.grad(objective, argnums=(0, 1), has_aux=True)
  (grads, slope), metrics = grad(state.tau, r)
  optimizer = mask_optimizer(hyperparameters, config.steps)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.tau)
  tau = optax.apply_updates(state.tau, updates)
  tau = {n: jnp.where(run.allowed[n], t, -1.0) for n, t in tau.items()}
  step = state.step + 1
  after = state._replace(step=step, tau=tau, opt_state=opt_state)
  if state.r:
    after = _climb_on(config, hyperparameters, after, slope)
  return after, metrics


def _climb_on(config, hyperparameters, state, slope):
  """Returns the state with its r's one sign step further, or drawn anew."""
  keep = config.outside_momentum
  pull = {n: keep * state.pull[n] + (1 - keep) * s for n, s in slope.items()}
  climbed = outside.ascend(state.r, pull, config.outside_rate)
  is_fresh_R = _is_fresh(config, state.step)[:, None, None]
  pull = {n: jnp.where(is_fresh_R, 0.0, p) for n, p in pull.items()}
  drawn = _draw_r(config, hyperparameters, state.step, state.tau)
  r = {n: jnp.where(is_fresh_R, drawn[n], climbed[n]) for n in drawn}
  return state._replace(r=r, pull=pull)


def _climb_anew(config, hyperparameters, state, sequences, robust_loss):
  """Returns r's for one batch: drawn, then several sign steps up its loss.

  Per site `[num_r, layers, width]`; where every prompt has its own, with axes
  `[prompts of a part, 1]` before the last.
  """
  size = len(sequences.positions) // 2 // config.num_r
  axes = (2 * size, 1) if config.outside_per_example else ()
  start = _draw_r(config, hyperparameters, state.step, state.tau, axes)
  temperature = hyperparameters.temperature
  gates = {n: binarize(t, temperature) for n, t in state.tau.items()}
  climbs_R = jnp.arange(config.num_r) < config.num_sources

  def ascend(_, r):
    slope = jax.grad(lambda r: robust_loss(gates, r))(r)
    higher = outside.ascend(r, slope, config.outside_rate)
    pick = lambda new, old: jnp.where(
      climbs_R.reshape(-1, *(1,) * (old.ndim - 1)), new, old
    )
    return jax.tree.map(pick, higher, r)

  return jax.lax.fori_loop(0, config.outside_ascents, ascend, start)


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
