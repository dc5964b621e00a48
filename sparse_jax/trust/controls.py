"""Controls: the same pipeline where no true circuit is to be found.

A pruning that fits nonsense as well as sense proves nothing (FACTS section 3).
Each control is `search.find_circuit` with another task, model or set of nodes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import model as model_lib
from sparse_jax import prune, search
from sparse_jax import tasks as tasks_lib


@dataclasses.dataclass(frozen=True, eq=False)
class NonsenseTask(tasks_lib.Task):
  """A task whose answers are swapped at random, pair by pair.

  Nothing in a prompt tells which answer is "right", so only a circuit that
  remembers pairs, or fits noise, can do it.
  """

  def pairs(self, split: str, count: int, seed: int = 0, **options):
    """Returns the task's pairs with half of them swapped."""
    pairs = super().pairs(split, count, seed, **options)
    index = tasks_lib.SPLITS.index(split)
    swap = np.random.default_rng((seed, index)).random(len(pairs)) < 0.5
    return dataclasses.replace(
      pairs,
      answers=np.where(swap, pairs.counter_answers, pairs.answers),
      counter_answers=np.where(swap, pairs.answers, pairs.counter_answers),
    )


def nonsense(task: tasks_lib.Task) -> NonsenseTask:
  """Returns the task with nonsense labels."""
  fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
  return NonsenseTask(**fields)


def reinitialised(
  model: model_lib.Model, params: model_lib.Params, seed: int
) -> model_lib.Params:
  """Returns fresh weights behind the same zeros, of the same scale.

  Every matrix keeps which of its entries are zero; the others are drawn anew
  and scaled to the root mean square that training left, so that norms,
  activations and gradients are of a working model's size.
  """
  fresh = model.init(jax.random.key(seed))

  def redraw(old, new):
    old, new = np.asarray(old), np.asarray(new)
    if old.ndim < 2 or not np.any(new):
      return old
    new = new * (old != 0)
    size = np.sqrt(np.mean(np.square(new)))
    return new * (np.sqrt(np.mean(np.square(old))) / size) if size else old

  return jax.tree.map(redraw, params, fresh)


def reduced(config: config_lib.PruneConfig) -> config_lib.PruneConfig:
  """Returns the settings of controls: two coefficients, no further search."""
  return dataclasses.replace(
    config,
    num_runs=min(2, len(config.k_coefs)),
    num_seeds=0,
    k_coefs=tuple(sorted(config.k_coefs))[:: max(1, len(config.k_coefs) - 1)],
    edge_steps=0,
    curve_targets=(config.target_loss,),
  )


def jaccard(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
  """Returns |A and B| / |A or B| of two circuits' nodes."""
  both = sum(int(np.sum(a[n] & b[n])) for n in a)
  either = sum(int(np.sum(a[n] | b[n])) for n in a)
  return both / either if either else 1.0


def _figures(circuit: circuit_lib.Circuit) -> dict[str, Any]:
  names = (
    "num_nodes",
    "num_edges",
    "test_loss",
    "test_accuracy",
    "validation_loss",
    "meets_target",
  )
  figures = {name: circuit.metrics[name] for name in names}
  return {**figures, "curve": circuit.details["curve"]}


def run(
  model: model_lib.Model,
  params: model_lib.Params,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  pretrain_means: prune.SiteArrays,
  mean_tokens: np.ndarray,
  seed: int,
) -> dict[str, Any]:
  """Returns the controls' figures, each with its loss-against-size curve.

  `same`: the task itself under the controls' settings, the fair comparison, and
  with another seed the circuit whose overlap is `jaccard_over_seeds`.
  `nonsense`: labels swapped at random. `reinitialised`: random weights behind
  the same zeros. `backup`: the task without the circuit's nodes: how much of
  the model can stand in for it.

  Args:
    model: the model.
    params: its parameters.
    circuit: the circuit in question.
    task: its task.
    config: the settings it was found with.
    pretrain_means: the model's means.
    mean_tokens: int `[batches, B, L]`, on which another model's means are
      taken.
    seed: of the controls.
  """
  config = reduced(config)

  def find(task=task, params=params, means=pretrain_means, allowed=None):
    return search.find_circuit(
      model, params, task, config, means, seed, allowed=allowed
    )

  same = find()
  fresh = reinitialised(model, params, seed)
  fresh_means = prune.mean_activations(model, fresh, mean_tokens)
  complement = {n: ~np.asarray(m) for n, m in circuit.node_mask.items()}
  found = {
    "same": same,
    "nonsense": find(task=nonsense(task)),
    "reinitialised": find(params=fresh, means=fresh_means),
    "backup": find(allowed=complement),
  }
  result: dict[str, Any] = {n: _figures(c) for n, c in found.items()}
  result["jaccard_over_seeds"] = jaccard(same.node_mask, circuit.node_mask)
  size = same.metrics["num_nodes"]
  result["gap_in_nodes"] = {
    name: found[name].metrics["num_nodes"] - size
    if found[name].metrics["meets_target"]
    else None
    for name in ("nonsense", "reinitialised", "backup")
  }
  return result
