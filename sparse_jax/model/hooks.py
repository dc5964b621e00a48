"""Small interventions on the forward pass, which compose.

A hook is `hook(site, layer, x) -> x`: `model.apply(params, tokens, hook)` calls
it at every site and goes on with what it returns. `layer` is None for sites the
model has once.
"""

from collections.abc import Collection, Mapping, MutableMapping

import jax
import jax.numpy as jnp

from sparse_jax import sites as site_lib
from sparse_jax.model import attention, heads, transformer
from sparse_jax.utils import errors

SiteArrays = Mapping[str, jax.Array]  # Per site `[layers, width]`.


def identity(site: str, layer: int | None, x: jax.Array) -> jax.Array:
  """The hook that changes nothing."""
  del site, layer
  return x


def compose(*hooks: transformer.Hook) -> transformer.Hook:
  """Returns the hook that applies `hooks` in order."""

  def hook(site, layer, x):
    for each in hooks:
      x = each(site, layer, x)
    return x

  return hook


def record(
  store: MutableMapping[str, jax.Array],
  names: Collection[str] | None = None,
) -> transformer.Hook:
  """Returns a hook that writes `{"0.attn.q": x, …}` into `store`.

  Args:
    store: filled while the forward pass is traced.
    names: full site names to keep; None keeps all.
  """

  def hook(site, layer, x):
    name = site_lib.site_id(site, layer)
    if names is None or name in names:
      store[name] = x
    return x

  return hook


def gate(
  gates: Mapping[str, jax.Array], means: Mapping[str, jax.Array]
) -> transformer.Hook:
  """Returns a hook that replaces closed nodes by their ablation value.

  `x * g + mean * (1 - g)` (paper appendix A.5). Sites without a gate pass.

  Args:
    gates: per site `[layers, width]`, 1 or true for open, 0 or false if not.
    means: per site `[layers, width]`, the value a closed node takes.
  """

  def hook(site, layer, x):
    if site not in gates:
      return x
    row = 0 if layer is None else layer
    g = jnp.asarray(gates[site])[row].astype(x.dtype)
    mean = jnp.asarray(means[site])[row].astype(x.dtype)
    return x * g + mean * (1 - g)

  return hook


def loosen(
  key: jax.Array, chance: float, largest_share: float = 1.0
) -> transformer.Hook:
  """Returns a hook that moves random channels part of the way to their mean.

  With probability `chance` the pass is a noisy one: a share of each node site's
  channels, uniform up to `largest_share`, takes μ + r (x - μ), r uniform, one
  for all positions; μ is the batch's mean. What adversaries do outside a
  circuit, at random: a model trained under it has answers that do not hang on
  the rest being in place.
  """
  chance_key, share_key, key = jax.random.split(key, 3)
  is_noisy = jax.random.bernoulli(chance_key, chance)
  share = largest_share * jax.random.uniform(share_key)

  def hook(site, layer, x):
    if site not in site_lib.LAYER_NODE_SITES:
      return x
    index = site_lib.LAYER_NODE_SITES.index(site)
    own = jax.random.fold_in(jax.random.fold_in(key, index), layer or 0)

    def move(x):
      moved_key, r_key = jax.random.split(own)
      width = x.shape[-1:]
      r = jax.random.uniform(r_key, width, x.dtype)
      m = jnp.where(jax.random.bernoulli(moved_key, share, width), r, 1)
      mean = jax.lax.stop_gradient(jnp.mean(x, tuple(range(x.ndim - 1))))
      return mean + m * (x - mean)

    # Most steps are not noisy; means of all sites would cost a seventh of them.
    return jax.lax.cond(is_noisy, move, lambda x: x, x)

  return hook


def patch(values: Mapping[str, jax.Array]) -> transformer.Hook:
  """Returns a hook that puts `values["0.attn.q"]` in place of those sites."""

  def hook(site, layer, x):
    return values.get(site_lib.site_id(site, layer), x)

  return hook


def freeze_norms_at(full: Mapping[str, jax.Array] | None) -> transformer.Hook:
  """Returns a hook that holds every RMS norm's scale at another run's.

  An RMS norm divides by the size of the residual stream it reads; AbsTopK
  behind it does not mind the scale, so the ratio of both sizes undoes it. The
  last norm lies behind every site and is not held.

  Args:
    full: that run's `resid_in` and `resid_mid`, as `record` writes them; None
      is this run: values stay, and no gradient passes through a scale.
  """
  read_by = {"attn.act_in": "resid_in", "mlp.act_in": "resid_mid"}
  here: dict[str, jax.Array] = {}

  def hook(site, layer, x):
    name = site_lib.site_id(site, layer)
    if site in read_by.values():
      here[name] = transformer.rms(x)
    elif site in read_by:
      source = site_lib.site_id(read_by[site], layer)
      own = here[source]
      if full is None:
        held = jax.lax.stop_gradient(own)
      else:
        held = transformer.rms(full[source])
      x = x * own / held
    return x

  return hook


def run_with_sites(
  model: transformer.Model,
  params: transformer.Params,
  tokens: jax.Array,
  sites: Collection[str] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns logits `[B, L, V]` and the activations at the sites.

  Args:
    model: the model.
    params: the model's.
    tokens: int `[B, L]`.
    sites: full names such as "0.attn.q" or "final_resid"; None is all.

  Returns:
    Logits, and `{name: [B, L, width]}` in forward order.

  Raises:
    InputError: if the model has no site of a given name.
  """
  for name in sites or ():
    site_lib.parse_site_id(name, model.config.n_layer)
  acts: dict[str, jax.Array] = {}
  logits = model.apply(params, tokens, record(acts, sites))
  return logits, acts


def attention_patterns(
  model: transformer.Model,
  params: transformer.Params,
  acts: Mapping[str, jax.Array],
) -> jax.Array:
  """Returns where every head looks, `[layers, B, L, heads, L]`.

  A row over the last axis sums to 1, less what the sink takes.

  Args:
    model: gives the heads their shape and their positions.
    params: for the sinks.
    acts: `record`ed `attn.q` and `attn.k` of every layer, all positions.
  """
  config = model.config
  sinks = params["layers"]["attn"].get("sink")
  windows = heads.windows(config)
  batch, length = acts[site_lib.site_id("attn.q", 0)].shape[:2]
  # Values that name their own position make attention return its pattern.
  own = jnp.broadcast_to(
    jnp.eye(length)[:, None], (batch, length, config.n_head, length)
  )

  def pattern(layer):
    q, k = (acts[site_lib.site_id(f"attn.{n}", layer)] for n in "qk")
    return attention.attend(
      *heads.queries_and_keys(config, q, k),
      own,
      None if sinks is None else sinks[layer],
      window=None if windows is None else windows[layer],
    )

  return jnp.stack([pattern(layer) for layer in range(config.n_layer)])


def attention_sites(n_layer: int) -> list[str]:
  """Returns the names of what `attention_patterns` reads."""
  return [
    site_lib.site_id(name, layer)
    for layer in range(n_layer)
    for name in ("attn.q", "attn.k")
  ]


def circuit_hook(
  model: transformer.Model,
  params: transformer.Params,
  tokens: jax.Array,
  positions_B: jax.Array | None,
  gates: SiteArrays,
  means: SiteArrays,
  freeze_norms: bool = False,
) -> transformer.Hook:
  """Returns the hook that runs a circuit: everything else is ablated.

  Args:
    model: the model.
    params: the model's.
    tokens: int `[B, L]`, what it is going to run on.
    positions_B: the only position of each row that is wanted, or None; as
      `Model.residual` is going to get it.
    gates: per site `[layers, width]`, 1 or true for open nodes.
    means: ablation values, per site `[layers, width]`.
    freeze_norms: whether norms keep the scales that they have in the whole
      model, which then runs first.

  Raises:
    InputError: if norms are frozen in a model with a parallel residual.
  """
  hook = gate(gates, means)
  if not freeze_norms:
    return hook
  if model.config.parallel:
    need = "false for models with a parallel residual"
    raise errors.bad_value("prune.freeze_norms", True, need)
  full: dict[str, jax.Array] = {}
  model.residual(params, tokens, record(full), positions_B)
  return compose(freeze_norms_at(full), hook)
