"""Whether a model still has the circuits of a directory, measured anew."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from sparse_jax import checkpoint, reference, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.faithfulness import criteria, measure
from sparse_jax.faithfulness.reproduce import (
  left_out,
  reproduce,
  reproduce_metrics,
)
from sparse_jax.model import fingerprint, sharding
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import real_code
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files

Measures = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
  """What one circuit directory says, and what a model says to it.

  Attributes:
    circuits: the "core" and, where there is one, the "robust" circuit, with the
      model's own ablation values.
    stored: each one's `metrics.faithfulness` as it was saved, or None.
    again: the same, measured in the model.
    model_fingerprint: of that model.
    is_same: whether it is the model that the circuits were cut from.
    failures: what does not reproduce in the same model, or held before and
      fails in another one; a line each.
    left_out: what is stored and was not measured again.
  """

  circuits: Mapping[str, circuit_lib.Circuit]
  stored: Mapping[str, Measures | None]
  again: Mapping[str, Measures]
  model_fingerprint: str
  is_same: bool
  failures: tuple[str, ...]
  left_out: tuple[str, ...]


def verify(
  directory: files.PathLike,
  model_directory: files.PathLike | None = None,
  *,
  task: str | None = None,
  natural: bool = True,
  controls: bool = True,
  model_parallel: int = 1,
) -> Verification:
  """Measures a directory's circuits again, in their own model or another.

  In the model that they were cut from all that is stored has to reproduce
  within its interval. In another one of the same shape (trained on, fine-tuned,
  exported and read again) every claim that held has to hold.

  Args:
    directory: of one circuit, or of a core and its robust circuit.
    model_directory: the model; the one beside the circuits by default.
    task: file of the task, if it is a user's own.
    natural: whether to look for prompts in held-out files of the model's data.
    controls: whether to prune the controls again: minutes.
    model_parallel: devices that split the model.

  Raises:
    InputError: if it cannot be measured.
  """
  directory = pathlib.Path(directory)
  where = model_directory or reference.model_beside(directory)
  circuits = circuit_lib.load_all(directory)
  core = circuits["core"]
  if not task and core.task not in tasks.TASK_NAMES:
    raise errors.InputError(
      f"circuit of {core.task}: the task is a user's own; need --task=FILE,"
      " its .py or .jsonl file"
    )
  stored = {k: c.metrics.get("faithfulness") for k, c in circuits.items()}
  model, params = checkpoint.load_model(where, model_parallel)
  own = fingerprint.fingerprint(model, params)
  params = sharding.spread(params, model_parallel)
  is_same = own == core.model_fingerprint
  if not is_same and None in stored.values():
    raise errors.InputError(
      f"{directory}: no metrics.faithfulness; need claims that were measured"
      " in the circuit's own model, as experiments.verify stores them"
    )
  made = tasks.make_task(task or core.task, checkpoint.load_tokenizer(where))
  run = checkpoint.load_run(where)
  config = _as_stored(
    run or config_lib.Config(),
    stored["core"] or core.details.get("settings"),
  )
  options = measure.FaithfulnessOptions(
    config.prune,
    # What prune measured lies beside the circuit, if the model had none.
    checkpoint.find_means(where, model, params, directory.parent / "means.npz"),
    config.seed,
    sequences_lib.natural_prompts(made, config) if run and natural else None,
    real_code.collect([made], config)
    if run and controls
    else real_code.RealCode(),
    with_controls=controls,
  )
  if not is_same:
    circuits = _moved(circuits, model, params, made, options)
  again = measure.measure_all(model, params, circuits, made, options)
  compare = _contradicted if is_same else _lost
  return Verification(
    circuits=circuits,
    stored=stored,
    again=again,
    model_fingerprint=own,
    is_same=is_same,
    failures=tuple(
      f"{which}: {line}"
      for which, circuit in circuits.items()
      for line in compare(circuit, stored[which], again[which])
    ),
    left_out=tuple(
      f"{which}: {name}"
      for which in circuits
      for name in left_out(stored[which], again[which])
      if is_same
    ),
  )


def _as_stored(
  config: config_lib.Config, stored: Mapping[str, Any] | None
) -> config_lib.Config:
  """Returns the config with the settings that a circuit was measured with.

  Without any, the model's own: its pairs may then be others.
  """
  if stored is None:
    return config
  try:
    settings, seed = stored["prune"], stored["seed"]
  except (KeyError, TypeError) as e:
    raise errors.InputError(
      "circuit.json: no settings where they belong, `prune` and `seed`; need"
      " what the search wrote"
    ) from e
  prune = config_lib.from_dict(config_lib.PruneConfig, settings, "prune.")
  return config_lib.from_dict(
    config_lib.Config,
    config_lib.to_dict(config)
    | {"prune": config_lib.to_dict(prune), "seed": seed},
  )


def _moved(circuits, model, params, task, options):
  """Returns the circuits' nodes in another model, with its ablation values."""
  train = sequences_lib.make_splits(task, options.config, options.seed).train
  moved = {}
  for which, circuit in circuits.items():
    config = dataclasses.replace(
      options.config,
      ablation=circuit.ablation,
      sites=tuple(circuit.node_mask),
    )
    means = means_lib.ablation_values(
      model, params, config, options.pretrain_means, train
    )
    moved[which] = circuit_lib.in_model(circuit, model, params, means)
  return moved


def _contradicted(circuit, stored, again) -> list[str]:
  """Returns what is stored with a circuit and does not reproduce."""
  lines = reproduce_metrics(circuit.metrics, again)
  return lines + (reproduce(stored, again) if stored else [])


def _lost(circuit, stored, again) -> list[str]:
  """Returns the claims that held in the circuit's own model and fail here."""
  del circuit
  held = {c.name for c in criteria.check_criteria(stored) if c.holds}
  return [
    f"{criterion.name}: {criterion.measured}"
    for criterion in criteria.check_criteria(again)
    if criterion.name in held and not criterion.holds
  ]
