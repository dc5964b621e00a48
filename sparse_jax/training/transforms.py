"""Sparse training and mask training as optax transforms.

Training chains `normalize_rms | clip_rms`, Adam, the learning rate,
`keep_largest` and `decay`, the step order of the authors' `train.py`; pruning
ends its chain with `box`. Constraints on the new value act through the update,
so no step can forget them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

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
  return jnp.sqrt(total / float(size))  # More than an int32 holds.


def _scaled(updates, factor: jax.Array):
  return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)


def normalize_rms(eps: float = 1e-5) -> optax.GradientTransformation:
  """Divides updates by their global RMS plus `eps`, always (`train.py`).

  >>> import jax.numpy as jnp
  >>> scale = normalize_rms()
  >>> updates, _ = scale.update({"w": jnp.array([3., -3.])}, scale.init(None))
  >>> print(updates["w"].round(3))
  [ 1. -1.]
  """
  factor = lambda rms: 1 / (rms + eps)
  return optax.stateless(lambda u, _: _scaled(u, factor(global_rms(u))))


def clip_rms(limit: float = 1.0) -> optax.GradientTransformation:
  """Scales updates down to a global RMS of `limit` if it is exceeded.

  Paper section 2; also the clipping of mask training (appendix A.5).
  """
  factor = lambda rms: jnp.minimum(1.0, limit / jnp.maximum(rms, 1e-30))
  return optax.stateless(lambda u, _: _scaled(u, factor(global_rms(u))))


@dataclasses.dataclass(frozen=True)
class Kept:
  """How many entries of a parameter survive at each step."""

  table: np.ndarray  # int64 [steps], survivors per matrix.
  is_stacked: bool  # The leading axis is layers, each a matrix of its own.
  unit_axis: int | None  # As in `rules.Rule`.
  min_alive: int  # Protected entries per unit.

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


def _at_step(name: str, change) -> optax.GradientTransformation:
  """Returns the transform `change(step, params, updates) -> updates`."""

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError(f"{name} needs `params` in update().")
    after = optax.ScaleByScheduleState(optax.safe_increment(state.count))
    return change(state.count, params, updates), after

  start = lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
  return optax.GradientTransformation(start, update_fn)


def keep_largest(kept: Any) -> optax.GradientTransformation:
  """Zeroes all but the largest magnitudes of every new value.

  Acts through the update: a removed entry becomes exactly 0, a kept one exactly
  `p + u`. Moments are not masked, so an entry returns once a single update
  beats the threshold (the authors' train.py). `kept` is of `kept_tree`.
  """

  def project(step, params, updates):
    def into(k, p, u):
      return u if k is None else jnp.where(k.mask(p + u, step), u, -p)

    return jax.tree.map(into, kept, params, updates, is_leaf=is_kept)

  return _at_step("keep_largest", project)


def is_kept(x: Any) -> bool:
  """Whether x is a leaf of the tree that `kept_tree` returns."""
  return x is None or isinstance(x, Kept)


def kept_tree(config: config_lib.Config, params) -> Any:
  """Returns the `Kept` of each parameter (or shape), None where it is dense."""
  sparsity, steps = config.sparsity, config.train.steps
  densities = {
    "block": schedules.block_density(sparsity, steps),
    "embedding": schedules.embedding_density(sparsity, steps),
  }

  def kept(path, leaf, rule):
    if rule.density is None or densities[rule.density].min() == 1:
      return None
    is_stacked = sites.path_name(path).startswith("layers/")
    numel = leaf.size // (leaf.shape[0] if is_stacked else 1)
    counts = (densities[rule.density] * numel).astype(np.int64)
    return Kept(counts, is_stacked, rule.unit_axis, sparsity.min_alive)

  return jax.tree_util.tree_map_with_path(
    kept, params, rules.rule_tree(config.model, sparsity, params)
  )


def decay(
  rate: Sequence[float], weight_decay: float, decays: Any
) -> optax.GradientTransformation:
  """Decoupled weight decay on the new value: `p <- p - rate * wd * p`.

  Last in the chain, after the projection, as `train.py` has it. `decays` is a
  static tree of booleans.
  """

  def shrink(step, params, updates):
    factor = 1 - weight_decay * lookup(rate)(step)
    into = lambda d, p, u: (p + u) * factor.astype(p.dtype) - p if d else u
    return jax.tree.map(into, decays, params, updates)

  return _at_step("decay", shrink)


def box(low: float, high: float) -> optax.GradientTransformation:
  """Keeps every new value inside [low, high] (paper appendix A.5: [-1, 1])."""

  def clamp(updates, params):
    if params is None:
      raise ValueError("box needs `params` in update().")
    into = lambda p, u: (jnp.clip(p + u, low, high) - p).astype(u.dtype)
    return jax.tree.map(into, params, updates)

  return optax.stateless(clamp)


def lookup(table: Sequence[float]) -> optax.Schedule:
  """Returns a schedule that reads `table[step]`; past the end, the last."""
  values = np.asarray(table, np.float32)
  return lambda step: jnp.asarray(values)[jnp.minimum(step, len(values) - 1)]


def sparse_adam(
  config: config_lib.Config, params
) -> optax.GradientTransformation:
  """Returns the recipe's optimizer for a model's parameters (or shapes)."""
  train = config.train
  rate = schedules.learning_rate(train, config.sparsity)
  scale = {"normalize_rms": normalize_rms, "clip_rms": clip_rms}
  rule_of = rules.rule_tree(config.model, config.sparsity, params)
  decays = jax.tree.map(lambda r: r.decays and r.trained, rule_of)
  trained = optax.chain(
    scale[train.gradient](),
    optax.scale_by_adam(train.adam_b1, train.adam_b2, train.adam_eps),
    optax.scale_by_learning_rate(lookup(rate)),
    keep_largest(kept_tree(config, params)),
    decay(rate, train.weight_decay, decays),
  )
  return optax.partition(
    {"trained": trained, "fixed": optax.set_to_zero()},
    jax.tree.map(lambda r: "trained" if r.trained else "fixed", rule_of),
  )


def by_branch(
  **optimizers: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Gives every branch of a tree `{name: branch}` an optimizer of its own.

  Unlike `optax.partition`, each sees its branch alone, paths included.
  """

  def init(params):
    return {name: of.init(params[name]) for name, of in optimizers.items()}

  def update(updates, state, params=None):
    found = {
      name: of.update(updates[name], state[name], params and params[name])
      for name, of in optimizers.items()
    }
    pick = lambda i: {name: of[i] for name, of in found.items()}
    return pick(0), pick(1)

  return optax.GradientTransformation(init, update)
