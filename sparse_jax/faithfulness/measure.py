"""`metrics.faithfulness`: every measure of one circuit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.faithfulness import (
  agreement,
  attention,
  context,
  controls,
  criteria,
  importance,
  interchange,
  reproduce,
  robustness,
  sufficiency,
)
from sparse_jax.model import transformer
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_IMPORTANCE_PAIRS = 16


@dataclasses.dataclass(frozen=True)
class FaithfulnessOptions:
  """What faithfulness is measured with.

  Attributes:
    config: pruning settings of the circuit; controls use them reduced.
    pretrain_means: the model's means, per site `[layers, width]`.
    seed: of pairs, random subsets and controls.
    natural: prompts of real files, or None where there are none.
    with_controls: whether to prune the controls as well: minutes.
  """

  config: config_lib.PruneConfig
  pretrain_means: Mapping[str, Any]
  seed: int = 0
  natural: tasks_lib.Prompts | None = None
  with_controls: bool = True


def measure_faithfulness(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  options: FaithfulnessOptions,
) -> dict[str, Any]:
  """Returns `metrics.faithfulness`, plain values fit for JSON.

  Raises:
    InputError: if the circuit is not this model's, or was edited.
  """
  reproduce.check_circuit(model, params, circuit)
  config, seed = options.config, options.seed
  splits = sequences_lib.make_splits(task, config, seed)
  ablations = {
    name: means_lib.ablation_values(
      model,
      params,
      dataclasses.replace(
        config, ablation=name, sites=tuple(circuit.node_mask)
      ),
      options.pretrain_means,
      splits.train,
    )
    for name in config_lib.ABLATIONS
  }
  ablations[circuit.ablation] = circuit.means
  test = splits.test
  prompts = {
    "test": test,
    "corrupted": agreement.corrupted(test, model.config.vocab_size, seed),
  }
  groups = {}
  if options.natural is not None and len(options.natural):
    arrays = map(jnp.asarray, options.natural.sequences())
    prompts["natural"] = sequences_lib.Sequences(*arrays)
    groups["natural"] = options.natural.names
  few = sequences_lib.first_pairs(splits.train, _IMPORTANCE_PAIRS)
  measures = {
    "sufficiency_and_necessity": lambda c: (
      sufficiency.sufficiency_and_necessity(c, ablations)
    ),
    "agreement": lambda c: agreement.agreement(c, prompts, groups),
    "interchange": interchange.interchange,
    "partial_ablation": robustness.partial_ablation,
    "frozen_norms": robustness.frozen_norms,
    "attention": attention.attention,
    "importance": lambda c: importance.importance(c.on(few)),
  }
  measured: dict[str, Any] = {
    "ablation": circuit.ablation,
    "target_loss": circuit.target_loss,
    "seed": seed,
    "prune": config_lib.to_dict(config),
  }
  on_test = context.make_context(model, params, circuit, test, seed)
  with progress.progress_bar(len(measures), 0, f"examining {task.name}") as bar:
    for name, measure in measures.items():
      measured[name] = measure(on_test)
      bar.update()
  if options.with_controls:
    measured["controls"] = controls.prune_controls(
      on_test, task, config, options.pretrain_means, splits, seed + 1
    )
  return {**measured, "verdict": criteria.verdict(measured)}
