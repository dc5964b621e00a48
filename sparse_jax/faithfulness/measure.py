"""`metrics.faithfulness`: every measure of one circuit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.faithfulness import (
  agreement,
  attention,
  context,
  controls,
  criteria,
  curve,
  importance,
  interchange,
  reproduce,
  robustness,
  sufficiency,
)
from sparse_jax.model import transformer
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import real_code
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_IMPORTANCE_PAIRS = 16
_TRAIN_PAIRS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class FaithfulnessOptions:
  """What faithfulness is measured with.

  Attributes:
    config: pruning settings of the circuits; controls use them reduced.
    pretrain_means: the model's means, per site `[layers, width]`.
    seed: of pairs, random subsets and controls.
    natural: prompts of held-out real files, or None where there are none.
    code: real code that stood around training prompts; controls need it.
    with_controls: whether to prune the controls as well: minutes.
  """

  config: config_lib.PruneConfig
  pretrain_means: Mapping[str, Any]
  seed: int = 0
  natural: tasks_lib.Prompts | None = None
  code: real_code.RealCode = dataclasses.field(
    default_factory=real_code.RealCode
  )
  with_controls: bool = True


def measure_all(
  model: transformer.Model,
  params: transformer.Params,
  circuits: Mapping[str, circuit_lib.Circuit],
  task: tasks_lib.Task,
  options: FaithfulnessOptions,
) -> dict[str, dict[str, Any]]:
  """Returns `metrics.faithfulness` of circuits by name: "core", "robust".

  Raises:
    InputError: if a circuit is not this model's, or was edited.
  """
  measured = {
    name: measure_faithfulness(model, params, circuit, task, options)
    for name, circuit in circuits.items()
  }
  if options.with_controls:
    config = options.config
    if "robust" not in circuits:
      config = config.core
    widest = circuits.get("robust", circuits["core"])
    around = real_code.surround(task, options.code, config)
    splits = sequences_lib.make_splits(task, config, options.seed)
    on_validation = context.make_context(
      model, params, widest, splits.validation, options.seed
    )
    pruned = controls.prune_controls(
      on_validation.evaluator,
      widest,
      around,
      config,
      options.pretrain_means,
      options.seed + 1,
    )
    for name, circuit in circuits.items():
      measured[name]["controls"] = pruned.beside(name, circuit)
      measured[name]["verdict"] = criteria.verdict(measured[name])
  return measured


def measure_faithfulness(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  options: FaithfulnessOptions,
) -> dict[str, Any]:
  """Returns one circuit's measures but for controls, plain values fit for JSON.

  Raises:
    InputError: if the circuit is not this model's, or was edited.
  """
  reproduce.check_circuit(model, params, circuit)
  config, seed = options.config, options.seed
  # Training pairs give means and importance here: few do.
  num_train = min(_TRAIN_PAIRS, config.num_pairs("train"))
  splits = sequences_lib.make_splits(
    task, dataclasses.replace(config, num_train=num_train), seed
  )
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
  if options.natural is not None and len(options.natural):
    prompts["natural"] = sequences_lib.task_sequences(options.natural)
  few = sequences_lib.spread_pairs(splits.train, _IMPORTANCE_PAIRS)
  measures = {
    "sufficiency_and_necessity": lambda c: (
      sufficiency.sufficiency_and_necessity(c, ablations)
    ),
    "agreement": lambda c: agreement.agreement(c, prompts),
    "interchange": interchange.interchange,
    "partial_ablation": robustness.partial_ablation,
    "frozen_norms": robustness.frozen_norms,
    "curve": curve.faithfulness_curve,
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
  return {**measured, "verdict": criteria.verdict(measured)}
