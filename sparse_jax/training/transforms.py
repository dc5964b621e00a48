"""Sparse training and mask training as optax transforms.

Training chains `normalize_rms | clip_rms`, Adam, the learning rate,
`keep_largest` and `decay`, the step order of the authors' `train.py`; pruning
ends its chain with `box`. Constraints on the new value act through the update,
so no step can forget them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import top_k
from sparse_jax.training import rules, schedules


def global_rms(tree) -> jax.Array:
  """Returns the root mean square over all entries of a tree, float32."""
  leaves = jax.tree.leaves(tree)
  size = sum(leaf.size for leaf in leaves)
  total = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)
  return jnp.sqrt(total / size)


def normalize_rms(eps: float = 1e-5) -> optax.GradientTransformation:
  """Divides updates by their global RMS plus `eps`, always (`train.py`).

  >>> import jax.numpy as jnp
  >>> scale = normalize_rms()
  >>> updates, _ = scale.update({"w": jnp.array([3., -3.])}, scale.init(None))
  >>> print(updates["w"].round(3))
  [ 1. -1.]
  """

  def update_fn(updates, state, params=None):
    del params
    factor = 1 / (global_rms(updates) + eps)
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update_fn)


def clip_rms(limit: float = 1.0) -> optax.GradientTransformation:
  """Scales updates down to a global RMS of `limit` if it is exceeded.

  Paper section 2; also the clipping of mask training (appendix A.5).
  """

  def update_fn(updates, state, params=None):
    del params
    factor = jnp.minimum(1.0, limit / jnp.maximum(global_rms(updates), 1e-30))
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update_fn)


@dataclasses.dataclass(frozen=True)
class Kept:
  """How many entries of a parameter survive at each step.

  Attributes:
    table: int64 `[steps]`, survivors per matrix.
    is_stacked: whether the leading axis is layers, each a matrix of its own.
    unit_axis: see `rules.Rule`.
    min_alive: protected entries per unit.
  """

  table: np.ndarray
  is_stacked: bool
  unit_axis: int | None
  min_alive: int

  def mask(self, value: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the keep-mask of a new value at a step; exactly k true each."""
    table = jnp.asarray(self.table, jnp.int32)
    k = table[jnp.minimum(step, len(self.table) - 1)]
    axes = tuple(range(1 if self.is_stacked else 0, value.ndim))
    protected = None
    if self.unit_axis is not None and self.min_alive:
      alive = min(self.min_alive, value.shape[self.unit_axis])
      protected = top_k.top_k_mask(value, alive, self.unit_axis)
    return top_k.top_k_mask(value, k, axes, protected)


class KeepLargestState(NamedTuple):
  """Counts the steps taken."""

  count: chex.Array


def keep_largest(kept: Any) -> optax.GradientTransformation:
  """Zeroes all but the largest magnitudes of every new value.

  Acts through the update: a removed entry becomes exactly 0, a kept one exactly
  `p + u`. Moments are not masked, so an entry returns once a single update
  beats the threshold (the authors' train.py).

  Args:
    kept: tree with the parameters' structure, holding a `Kept` for each sparse
      parameter and None for each dense one.
  """
  is_leaf = lambda x: x is None or isinstance(x, Kept)

  def init_fn(params):
    del params
    return KeepLargestState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError("keep_largest needs `params` in update().")

    def project(rule, p, u):
      if rule is None:
        return u
      return jnp.where(rule.mask(p + u, state.count), u, -p)

    updates = jax.tree.map(project, kept, params, updates, is_leaf=is_leaf)
    return updates, KeepLargestState(optax.safe_increment(state.count))

  return optax.GradientTransformation(init_fn, update_fn)


def kept_tree(sparsity: config_lib.SparsityConfig, steps: int, params) -> Any:
  """Returns the `Kept` of every parameter, None where it is dense."""
  densities = {
    "block": schedules.block_density(sparsity, steps),
    "embedding": schedules.embedding_density(sparsity, steps),
  }

  def kept(path, leaf):
    name = sites.path_name(path)
    rule = rules.match(rules.rules(sparsity), name)
    if rule.density is None or densities[rule.density].min() == 1:
      return None
    is_stacked = name.startswith("layers/")
    numel = leaf.size // (leaf.shape[0] if is_stacked else 1)
    table = (densities[rule.density] * numel).astype(np.int64)
    return Kept(table, is_stacked, rule.unit_axis, sparsity.min_alive)

  return jax.tree_util.tree_map_with_path(kept, params)


def decay(
  rate: Sequence[float], weight_decay: float, decays: Any
) -> optax.GradientTransformation:
  """Decoupled weight decay on the new value: `p <- p - rate * wd * p`.

  Last in the chain, after the projection, as `train.py` has it.

  Args:
    rate: learning rate of each step.
    weight_decay: wd.
    decays: static tree of booleans: which parameters decay.
  """

  def init_fn(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError("decay needs `params` in update().")
    factor = 1 - weight_decay * lookup(rate)(state.count)
    updates = jax.tree.map(
      lambda d, p, u: (p + u) * factor.astype(p.dtype) - p if d else u,
      decays,
      params,
      updates,
    )
    count = optax.safe_increment(state.count)
    return updates, optax.ScaleByScheduleState(count)

  return optax.GradientTransformation(init_fn, update_fn)


def box(low: float, high: float) -> optax.GradientTransformation:
  """Keeps every new value inside [low, high] (paper appendix A.5: [-1, 1])."""

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError("box needs `params` in update().")
    clamp = lambda p, u: jnp.clip(p + u, low, high) - p
    return jax.tree.map(clamp, params, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update_fn)


def lookup(table: Sequence[float]) -> optax.Schedule:
  """Returns a schedule that reads `table[step]`; past the end, the last."""
  values = np.asarray(table, np.float32)
  return lambda step: jnp.asarray(values)[jnp.minimum(step, len(values) - 1)]


def sparse_adam(
  config: config_lib.Config, params
) -> optax.GradientTransformation:
  """The recipe's optimizer for a model's parameters.

  Args:
    config: resolved run configuration.
    params: parameters, or their shapes.
  """
  train, sparsity = config.train, config.sparsity
  rate = schedules.learning_rate(train, sparsity)
  scale = {"normalize_rms": normalize_rms, "clip_rms": clip_rms}
  decays = rules.map_rules(
    lambda rule, _: rule.decays, rules.rules(sparsity), params
  )
  trained = optax.chain(
    scale[train.gradient](),
    optax.scale_by_adam(train.adam_b1, train.adam_b2, train.adam_eps),
    optax.scale_by_learning_rate(lookup(rate)),
    keep_largest(kept_tree(sparsity, train.steps, params)),
    decay(rate, train.weight_decay, decays),
  )
  return optax.partition(
    {"trained": trained, "fixed": optax.set_to_zero()},
    rules.labels(config.model, params),
  )
