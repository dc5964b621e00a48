"""Node-mask pruning: a pure step that vmaps (paper appendix A.5).

Node i has a mask parameter τ_i in [-1, 1]; its gate is H(τ_i). A closed node
takes its ablation value. The loss is the task's two-sided two-token
cross-entropy plus `k_coef` times the number of open gates; the gradient of H is
that of a sigmoid. Weights get no gradient.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax import model as model_lib
from sparse_jax import sites, taps, transforms

SiteArrays = Mapping[str, jax.Array]  # Per site `[layers, width]`.


class Sequences(NamedTuple):
  """Both sides of task pairs, as rows; row i pairs with row i + S/2.

  Attributes:
    tokens: int `[S, T]`, right-padded.
    positions: int `[S]`, of the last prompt token: where the answer follows.
    right: int `[S]`, the right answer's token.
    wrong: int `[S]`, the other answer's token.
  """

  tokens: jax.Array
  positions: jax.Array
  right: jax.Array
  wrong: jax.Array


class Setting(NamedTuple):
  """What may differ between runs of one program; every field is a scalar.

  Fields are those of `config.PruneConfig`; Table 2 of the paper lists them.
  Several runs' settings are one `Setting` of arrays `[runs]`.
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


def answer_gap(
  model: model_lib.Model,
  params: model_lib.Params,
  sequences: Sequences,
  tap: model_lib.Tap | None = None,
) -> jax.Array:
  """Returns the right answer's logit minus the wrong one's, `[S]`, in nats.

  Only one position and two tokens are unembedded, and the last layer computes
  for that position alone what the others do not read (`Model.residual`).
  """
  chex.assert_rank(sequences.tokens, 2)
  positions_S = sequences.positions
  x_Sx1xD = model.residual(params, sequences.tokens, tap, positions_S)
  chex.assert_axis_dimension(x_Sx1xD, 1, 1)
  last_S = sequences.tokens[jnp.arange(len(positions_S)), positions_S]
  answers_Sx2 = jnp.stack([sequences.right, sequences.wrong], -1)
  logits_Sx2 = model.unembed(params, x_Sx1xD[:, 0], last_S, answers_Sx2)
  return logits_Sx2[:, 0] - logits_Sx2[:, 1]


def circuit_tap(
  model: model_lib.Model,
  params: model_lib.Params,
  sequences: Sequences,
  gates: SiteArrays,
  means: SiteArrays,
  freeze_norms: bool = False,
) -> model_lib.Tap:
  """Returns the tap that runs a circuit on these sequences.

  Args:
    model: the model.
    params: its parameters.
    sequences: what it is going to run on.
    gates: per site `[layers, width]`, 1 for open nodes.
    means: ablation values, per site `[layers, width]`.
    freeze_norms: whether norms keep the scales that they have in the whole
      model, which then runs first.
  """
  tap = taps.gate(gates, means)
  if not freeze_norms:
    return tap
  full: dict[str, jax.Array] = {}
  answer_gap(model, params, sequences, taps.record(full))
  return taps.compose(taps.freeze_norms(full), tap)


def gap_loss(gap_S: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
  """Returns the task loss: mean cross-entropy of the two answers, in nats.

  The mean over both sides of the pairs of -log softmax over the two answer
  tokens at the answer position; half of the sum that the released files hold.
  """
  return jnp.mean(jax.nn.softplus(-scale * gap_S))


def gap_accuracy(gap_S: jax.Array) -> jax.Array:
  """Returns the share of sides whose right answer has the larger logit."""
  return jnp.mean(gap_S > 0)


def mean_activations(
  model: model_lib.Model,
  params: model_lib.Params,
  batches: Iterable[np.ndarray],
) -> dict[str, jax.Array]:
  """Returns every node site's mean over all tokens, `[layers, width]`.

  The ablation values of the paper: the mean over the pretraining distribution.

  Args:
    model: the model.
    params: its parameters.
    batches: int `[B, L]` tokens each, all of one shape.
  """

  @jax.jit
  def batch_means(params, tokens):
    _, acts = taps.run_with_sites(model, params, tokens)
    return {
      name: jnp.stack(
        [
          jnp.mean(acts[sites.site_id(name, row)], (0, 1))
          for row in range(sites.num_rows(name, model.config.n_layer))
        ]
      )
      for name in sites.NODE_SITES
    }

  means = [batch_means(params, jnp.asarray(batch)) for batch in batches]
  return jax.tree.map(lambda *rows: jnp.mean(jnp.stack(rows), 0), *means)


def task_means(
  model: model_lib.Model, params: model_lib.Params, sequences: Sequences
) -> dict[str, jax.Array]:
  """Returns every node site's mean over the prompts' tokens, not padding."""
  _, acts = taps.run_with_sites(model, params, sequences.tokens)
  index = jnp.arange(sequences.tokens.shape[1])
  weight_SxTx1 = (index <= sequences.positions[:, None])[..., None]

  def mean(x_SxTxW):
    return jnp.sum(x_SxTxW * weight_SxTx1, (0, 1)) / jnp.sum(weight_SxTx1)

  return {
    name: jnp.stack(
      [
        mean(acts[sites.site_id(name, row)])
        for row in range(sites.num_rows(name, model.config.n_layer))
      ]
    )
    for name in sites.NODE_SITES
  }


def mask_optimizer(
  setting: Setting, steps: int
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
  setting: Setting,
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
  model: model_lib.Model,
  steps: int,
  state: PruneState,
  params: model_lib.Params,
  means: SiteArrays,
  sequences: Sequences,
  setting: Setting,
  site_costs: Mapping[str, float] | None = None,
  allowed: SiteArrays | None = None,
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
    freeze_norms: see `circuit_tap`.

  Returns:
    The state after it, and scalars `task_loss` in nats and `open_gates`.
  """

  def objective(tau):
    gates = {k: gate(v, setting.temperature) for k, v in tau.items()}
    tap = circuit_tap(model, params, sequences, gates, means, freeze_norms)
    gap = answer_gap(model, params, sequences, tap)
    counts = {name: jnp.sum(g) for name, g in gates.items()}
    cost = sum((site_costs or {}).get(n, 1.0) * c for n, c in counts.items())
    loss = gap_loss(gap)
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
