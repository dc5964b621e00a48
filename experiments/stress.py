"""From a circuit alone: prompts on which its model will fail, and whether.

  python -m experiments.stress --circuit=reference --out=stress.json \\
    --picture=stress.svg

Searches the task's grammar (depth, length, distracting lines, their distance)
for prompts where the circuit's logit difference turns, then runs the model.
Predicted failures, the surest and all, are compared with random prompts, with
other words in the same shapes, and with what another model of the same size
predicts (--other), or without one what random circuits of equal size do.
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, faithfulness, reference, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import stress, sufficiency
from sparse_jax.report import stress as picture
from sparse_jax.tasks import grammar as grammar_lib
from sparse_jax.utils import errors, files, tables

_CIRCUIT = flags.DEFINE_string(
  "circuit", None, "A circuit directory, or one that holds several."
)
_WHICH = flags.DEFINE_enum(
  "which", "core", ["core", "robust"], "Which of its circuits."
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model directory; model/ beside circuits/ by default."
)
_OTHER = flags.DEFINE_string(
  "other", None, "Another model of the same shape and tokenizer."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_PICTURE = flags.DEFINE_string(
  "picture", None, "SVG to write, of a single circuit."
)
_NUM_RANDOM = flags.DEFINE_integer(
  "num_random", 512, "Prompts drawn at random.", lower_bound=1
)
_NUM_ROUNDS = flags.DEFINE_integer(
  "num_rounds", 4, "Rounds of the search.", lower_bound=0
)
_NUM_NEIGHBOURS = flags.DEFINE_integer(
  "num_neighbours", 256, "Prompts of each round.", lower_bound=1
)
_NUM_PREDICTED = flags.DEFINE_integer(
  "num_predicted", 128, "The surest predictions that count.", lower_bound=1
)
_NUM_OTHERS = flags.DEFINE_integer(
  "num_others", 1, "Random circuits, without --other.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of prompts and random circuits.")
cli.require("circuit")

_NAMES = {
  "predicted": "predicted, the surest",
  "every": "predicted, all",
  "random": "random prompts",
  "same_shape": "other words, same shapes as the surest",
  "other": "predicted by {}, the surest",
}


def measure(directory: pathlib.Path) -> stress.Stress:
  """Returns how a circuit's predictions do."""
  circuit = circuit_lib.Circuit.load(directory, _WHICH.value)
  where = _MODEL.value or reference.model_beside(directory)
  model, params = checkpoint.load_model(where)
  faithfulness.check_circuit(model, params, circuit)
  task = tasks.make_task(circuit.task, checkpoint.load_tokenizer(where))
  grammar = grammar_lib.of_task(task, model.config.context_length, _SEED.value)
  if _OTHER.value:
    other_model, other_params = checkpoint.load_model(_OTHER.value)
    circuit_lib.check_model(circuit, "--other", other_model, None)
    others = [stress.model_differences(circuit, other_params)]
  else:
    others = [
      stress.differences(
        circuit, params, sufficiency.random_mask(circuit.node_mask, seed)
      )
      for seed in range(_SEED.value, _SEED.value + _NUM_OTHERS.value)
    ]
  return stress.measure(
    grammar,
    stress.differences(circuit, params),
    stress.model_differences(circuit, params),
    others,
    stress.StressOptions(
      _NUM_RANDOM.value,
      _NUM_ROUNDS.value,
      _NUM_NEIGHBOURS.value,
      _NUM_PREDICTED.value,
      _SEED.value,
    ),
  )


def table(found: stress.Stress) -> str:
  """Returns how often the model fails on each set of prompts."""
  by_other = "the other model" if _OTHER.value else "random circuits"
  figures, rows = found.to_dict(), []
  for key, name in _NAMES.items():
    entry = figures[key]
    share = entry["share"]
    rows.append(
      (
        name.format(by_other),
        entry["num_prompts"],
        entry["num_failures"],
        None if share is None else f"{share:.1%}",
        _times(**entry["times_random"]) if entry["times_random"] else None,
      )
    )
  header = found.task, "prompts", "the model fails", "share", "times random"
  return tables.text(header, rows)


def _times(value, low, high) -> str | None:
  if low is None:
    return None
  exact = f"{value:.1f}" if value is not None else "none at random"
  return f"{exact} ({low:.1f} to {high:.1f})"


def main(overrides: list[str]) -> None:
  """Measures, prints and writes."""
  del overrides
  directories = reference.find_circuits([_CIRCUIT.value], "--circuit")
  if _PICTURE.value and len(directories) > 1:
    raise errors.InputError(
      f"--picture={_PICTURE.value} with {len(directories)} circuits; need one"
      " circuit"
    )
  measured = []
  for directory in directories:
    found = measure(directory)
    print(table(found))
    if found.auroc is not None:
      print(f"AUROC on random prompts: {found.auroc:.2f}")
    measured.append(found)
  if _PICTURE.value:
    picture.write_picture(_PICTURE.value, measured[0])
  if _OUT.value:
    files.write_json(_OUT.value, [found.to_dict() for found in measured])


if __name__ == "__main__":
  cli.run(main, __doc__)
