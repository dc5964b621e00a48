"""Measures a saved circuit's faithfulness again: a regression test for a model.

  python -m experiments.verify --circuit=runs/quickstart/circuits/NAME
  python -m experiments.verify --circuit=reference --natural=false \\
    --controls=false

Of a directory that holds several circuits each is measured, and "reference" is
the shipped atlas. Held-out real prompts and controls need the model's corpus.

Exit status 0 if all that is stored reproduces within its interval, 1 if not,
2 if it cannot be measured. A circuit without stored measures gets them.

With --model=OTHER, of the same shape and another fingerprint (trained on,
fine-tuned, exported and read again), every claim is measured there: exit status
1 if one fails that held in the circuit's own model.
"""

import dataclasses
import pathlib

from absl import flags

from experiments import circuit_paths, cli
from sparse_jax import checkpoint, faithfulness, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.model import fingerprint, sharding
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import real_code
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

_CIRCUIT = flags.DEFINE_string(
  "circuit", None, "A circuit directory, or one that holds several."
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model directory; model/ beside circuits/ by default."
)
_TASK = flags.DEFINE_string(
  "task", None, "The task's file, if it is one of your own."
)
_CONTROLS = flags.DEFINE_bool(
  "controls", True, "Whether to prune the controls again: minutes."
)
_NATURAL = flags.DEFINE_bool(
  "natural", True, "Whether to look for prompts in held-out real files."
)
cli.require("circuit")


def as_stored(config: config_lib.Config, stored) -> config_lib.Config:
  """Returns the config with the settings that faithfulness was measured with.

  Raises:
    InputError: if they are not to be read.
  """
  try:
    settings, seed = stored["prune"], stored["seed"]
  except (KeyError, TypeError) as e:
    raise errors.InputError(
      "circuit.json: metrics.faithfulness has no settings; need what the search"
      " returned"
    ) from e
  prune = config_lib.from_dict(config_lib.PruneConfig, settings, "prune.")
  return config_lib.from_dict(
    config_lib.Config,
    config_lib.to_dict(config)
    | {"prune": config_lib.to_dict(prune), "seed": seed},
  )


def main(overrides: list[str]) -> int:
  """Verifies as the flags say; returns the worst of the exit statuses."""
  del overrides  # The command has no config.
  directories = circuit_paths.find([_CIRCUIT.value], "--circuit")
  return max(verify(directory) for directory in directories)


def verify(directory: pathlib.Path) -> int:
  """Returns 0 if what is stored with a circuit holds, 1 if not."""
  circuits = circuit_lib.load_all(directory)
  core = circuits["core"]
  where = pathlib.Path(_MODEL.value or circuit_paths.model_directory(directory))
  model, params = checkpoint.load_model(where)
  own = fingerprint.fingerprint(model, params)
  params = sharding.spread(params)
  is_same = own == core.model_fingerprint
  run = checkpoint.load_run(where)
  config = run or config_lib.Config()
  stored = {k: c.metrics.get("faithfulness") for k, c in circuits.items()}
  if stored["core"] is not None:
    config = as_stored(config, stored["core"])
  if not _TASK.value and core.task not in tasks.TASK_NAMES:
    raise errors.InputError(
      f"circuit of {core.task}: the task is a user's own; need --task=FILE,"
      " its .py or .jsonl file"
    )
  tokenizer = checkpoint.load_tokenizer(where)
  task = tasks.make_task(_TASK.value or core.task, tokenizer)
  natural, code = None, real_code.RealCode()
  if run is not None and _NATURAL.value:
    natural = sequences_lib.natural_prompts(task, config)
  if run is not None and _CONTROLS.value:
    code = real_code.collect([task], config)
  options = faithfulness.FaithfulnessOptions(
    config.prune,
    # What prune measured lies beside the circuit, if the model had none.
    checkpoint.find_means(where, model, params, directory.parent / "means.npz"),
    config.seed,
    natural,
    code,
    with_controls=_CONTROLS.value,
  )
  if not is_same:
    if None in stored.values():
      raise errors.InputError(
        f"{directory}: no metrics.faithfulness; need claims that were measured"
        " in the circuit's own model, as experiments.verify stores them"
      )
    print(
      f"the circuit is of model {core.model_fingerprint}; {where} is {own}, of"
      " the same shape: every claim is measured there"
    )
    circuits = _moved(circuits, model, params, task, options)
  again = faithfulness.measure_all(model, params, circuits, task, options)
  for which, circuit in circuits.items():
    print(
      f"{circuit.task}, {which}: {circuit.num_nodes} nodes,"
      f" {circuit.num_edges} edges"
    )
    print(faithfulness.summary(again[which]))
  check = _check_same if is_same else _check_other
  return 1 if check(directory, circuits, stored, again) else 0


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


def _check_same(directory, circuits, stored, again) -> bool:
  """Prints what does not reproduce; stores measures that were not there yet."""
  lines = []
  for which, circuit in circuits.items():
    found = faithfulness.reproduce_metrics(circuit.metrics, again[which])
    if stored[which] is not None:
      found += faithfulness.reproduce(stored[which], again[which])
      for name in faithfulness.left_out(stored[which], again[which]):
        print(f"{which}: not measured again: {name}")
    lines += [f"{which}: {line}" for line in found]
  for line in lines:
    print(f"does not reproduce: {line}")
  if lines:
    return True
  if None in stored.values():
    for which, circuit in circuits.items():
      circuit.metrics["faithfulness"] = stored[which] or again[which]
    circuits["core"].save(directory, robust=circuits.get("robust"))
    print("no faithfulness was stored with it; now it is")
  else:
    print("all that is stored reproduces")
  return False


def _check_other(directory, circuits, stored, again) -> bool:
  """Prints which claims held in the circuit's own model and fail here."""
  del directory
  lost = []
  for which in circuits:
    before = faithfulness.check_criteria(stored[which])
    held = {criterion.name for criterion in before if criterion.holds}
    for criterion in faithfulness.check_criteria(again[which]):
      if criterion.name in held and not criterion.holds:
        lost.append(f"{which}: {criterion.name}: {criterion.measured}")
  for line in lost:
    print(f"held before and fails here: {line}")
  if not lost:
    print("every claim that held before holds here")
  return bool(lost)


if __name__ == "__main__":
  cli.run(main, __doc__)
