"""Measures a saved circuit's faithfulness again: a regression test for a model.

  python -m experiments.verify --circuit=runs/quickstart/circuits/NAME

Exit status 0 if all that is stored reproduces within its interval, 1 if not,
2 if it cannot be measured. A circuit without stored measures gets them.
"""

import dataclasses
import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, faithfulness, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

_CIRCUIT = flags.DEFINE_string("circuit", None, "A circuit directory.")
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


def model_directory(circuit: pathlib.Path) -> pathlib.Path:
  """Returns the model that a circuit directory most likely belongs to.

  Raises:
    InputError: if there is none nearby.
  """
  circuit = circuit.absolute()
  for parent in (circuit.parent, circuit.parent.parent):
    if (parent / "model" / "config.json").is_file():
      return parent / "model"
  raise errors.InputError(
    f"--model is missing, and there is no model/ beside {circuit.parent}; need"
    " the directory of the model that the circuit was cut from"
  )


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
  """Verifies as the flags say."""
  del overrides  # The command has no config.
  directory = pathlib.Path(_CIRCUIT.value)
  circuit = circuit_lib.Circuit.load(directory)
  where = pathlib.Path(_MODEL.value or model_directory(directory))
  model, params = checkpoint.load_model(where)
  faithfulness.check_circuit(model, params, circuit)
  tokenizer = checkpoint.load_tokenizer(where)
  means = checkpoint.load_means(where)
  run = checkpoint.load_run(where)
  config = run or config_lib.Config()
  stored = circuit.metrics.get("faithfulness")
  if stored is not None:
    config = as_stored(config, stored)
  if not _TASK.value and circuit.task not in tasks.TASK_NAMES:
    raise errors.InputError(
      f"circuit of {circuit.task}: the task is a user's own; need --task=FILE,"
      " its .py or .jsonl file"
    )
  task = tasks.make_task(_TASK.value or circuit.task, tokenizer)
  natural = None
  if _NATURAL.value and run is not None:
    natural = sequences_lib.natural_prompts(task, config)
  again = faithfulness.measure_faithfulness(
    model,
    params,
    circuit,
    task,
    faithfulness.FaithfulnessOptions(
      config.prune, means, config.seed, natural, with_controls=_CONTROLS.value
    ),
  )
  print(f"{circuit.task}: {circuit.num_nodes} nodes, {circuit.num_edges} edges")
  print(faithfulness.summary(again))
  lines = faithfulness.reproduce_metrics(circuit.metrics, again)
  if stored is None and not lines:
    metrics = {**circuit.metrics, "faithfulness": again}
    dataclasses.replace(circuit, metrics=metrics).save(directory)
    print("no faithfulness was stored with it; now it is")
    return 0
  if stored is not None:
    lines += faithfulness.reproduce(stored, again)
    for name in faithfulness.left_out(stored, again):
      print(f"not measured again: {name}")
  for line in lines:
    print(f"does not reproduce: {line}")
  if not lines:
    print("all that is stored reproduces")
  return 1 if lines else 0


if __name__ == "__main__":
  cli.run(main, __doc__)
