"""Controls: the same pipeline where no true circuit is to be found.

A pruning that fits nonsense as well as sense proves nothing (Drori 2026,
"Weight-sparse circuits may be interpretable yet unfaithful").
Each control is `search.find_circuit` with another task, model or set of nodes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import search, thresholding
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib


@dataclasses.dataclass(frozen=True, eq=False)
class NonsenseTask(tasks_lib.Task):
  """A task whose two answers are two tokens that mean nothing there.

  The model has no reason to answer so; a pruning that still finds a small
  circuit made the computation instead of finding it (a control of Drori 2026).
  The rule is consistent, so it can be learnt and carries over to
  new prompts. Answers swapped at random from pair to pair could not: nothing
  could fail on held-out pairs, and the control would always be passed.

  Attributes:
    meaningless: the tokens that stand for the two answers.
  """

  meaningless: tuple[int, int] = (0, 1)

  def pairs(self, split: str, count: int, seed: int = 0, **options):
    """Returns the task's pairs with the meaningless answers."""
    pairs = super().pairs(split, count, seed, **options)
    first, second = self.meaningless
    return dataclasses.replace(
      pairs,
      answers=np.full_like(pairs.answers, first),
      counter_answers=np.full_like(pairs.counter_answers, second),
    )


def nonsense(task: tasks_lib.Task, seed: int) -> NonsenseTask:
  """Returns the task with nonsense labels, drawn among all other tokens."""
  fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
  real = {task.tokenizer.single_token(text) for text in task.answers}
  others = [t for t in range(task.tokenizer.vocab_size) if t not in real]
  first, second = np.random.default_rng(seed).choice(others, 2, replace=False)
  return NonsenseTask(**fields, meaningless=(int(first), int(second)))


def reinitialised(
  model: transformer.Model, params: transformer.Params, seed: int
) -> transformer.Params:
  """Returns fresh weights behind the same zeros, of the same scale.

  Every parameter keeps which of its entries are zero; the others are drawn anew
  and scaled to the root mean square that training left, so that norms,
  activations and gradients are of a working model's size. What starts at zero
  (biases, sinks) is zero again: nothing that was learnt is left.
  """
  fresh = model.init(jax.random.key(seed))

  def redraw(old, new):
    old, new = np.asarray(old), np.asarray(new)
    if not np.any(new):
      return new
    new = new * (old != 0)
    size = np.sqrt(np.mean(np.square(new)))
    return new * (np.sqrt(np.mean(np.square(old))) / size) if size else new

  return jax.tree.map(redraw, params, fresh)


def reduced(config: config_lib.PruneConfig) -> config_lib.PruneConfig:
  """Returns the settings of controls: two coefficients, no further search."""
  ends = lambda costs: tuple(sorted(costs))[:: max(1, len(costs) - 1)]
  return dataclasses.replace(
    config,
    num_runs=min(2, len(config.k_coefs)),
    num_robust_runs=min(2, len(config.robust_k_coefs)),
    num_seeds=0,
    k_coefs=ends(config.k_coefs),
    robust_k_coefs=ends(config.robust_k_coefs),
    edge_steps=0,
    curve_targets=(config.target_loss,),
  )


def jaccard(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
  """Returns |A and B| / |A or B| of two circuits' nodes."""
  both = sum(int(np.sum(a[n] & b[n])) for n in a)
  either = sum(int(np.sum(a[n] | b[n])) for n in a)
  return both / either if either else 1.0


def _metrics(circuit: circuit_lib.Circuit) -> dict[str, Any]:
  names = (
    "num_nodes",
    "num_edges",
    "test_loss",
    "test_accuracy",
    "validation_loss",
    "validation_accuracy_lost",
    "meets_target",
  )
  metrics = {name: circuit.metrics[name] for name in names}
  return {**metrics, "curve": circuit.details["curve"]}


class Controls(NamedTuple):
  """The controls' circuits by name, and nodes in random order as a curve."""

  found: Mapping[str, search.Found]
  random: list[dict[str, Any]]

  def beside(self, which: str, circuit: circuit_lib.Circuit) -> dict[str, Any]:
    """Returns the controls of a "core" or "robust" circuit, fit for JSON."""
    circuits = {name: getattr(f, which) for name, f in self.found.items()}
    same = circuits["same"]
    extra = {
      name: c.num_nodes - same.num_nodes if c.metrics["meets_target"] else None
      for name, c in circuits.items()
      if name != "same"
    }
    return {
      **{name: _metrics(c) for name, c in circuits.items()},
      "random": {"curve": self.random},
      "jaccard_over_seeds": jaccard(same.node_mask, circuit.node_mask),
      "extra_nodes": extra,
    }


def prune_controls(
  evaluator: mask_evaluator.MaskEvaluator,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  pretrain_means: hooks.SiteArrays,
  seed: int,
) -> Controls:
  """Prunes the controls, robustly where the circuit was.

  `same`: the task itself under the controls' settings, the fair comparison, and
  with another seed the circuit whose overlap is `jaccard_over_seeds`.
  `nonsense`: meaningless answers. `reinitialised`: random weights behind the
  same zeros. `backup`: the task without the circuit's nodes: how much of the
  model can stand in for it. `random`: nodes in random order, a curve alone.

  Args:
    evaluator: the model on validation prompts, for the random order.
    circuit: whose nodes the backup lacks.
    task: its task, with what stood around its prompts when it was pruned.
    config: the settings it was found with.
    pretrain_means: the model's, per site `[layers, width]`.
    seed: of the controls.
  """
  config = reduced(config)
  model, params = evaluator.model, evaluator.params

  def find(task=task, params=params, means=pretrain_means, allowed=None):
    return search.find_circuit(
      model, params, task, config, means, seed, allowed=allowed
    )

  fresh = reinitialised(model, params, seed)
  train = sequences_lib.make_splits(task, config, seed).train
  fresh_means = means_lib.task_means(model, fresh, train)
  complement = {n: ~np.asarray(m) for n, m in circuit.node_mask.items()}
  found = {
    "same": find(),
    "nonsense": find(task=nonsense(task, seed)),
    "reinitialised": find(params=fresh, means=fresh_means),
    "backup": find(allowed=complement),
  }
  order = np.random.default_rng(seed).permutation(evaluator.num_nodes)
  return Controls(found, thresholding.size_curve(evaluator, order)[0])
