"""Measures a saved circuit's faithfulness again: a regression test for a model.

  python -m experiments.verify --circuit=runs/quickstart/circuits/NAME
  python -m experiments.verify --circuit=reference --natural=false \\
    --controls=false

Of a directory that holds several circuits each is measured, and "reference" is
the shipped atlas. Held-out real prompts and controls need the model's corpus.

--engine=ray hands each circuit to a Ray cluster.

Exit status 0 if all that is stored reproduces within its interval, 1 if not,
2 if it cannot be measured. A circuit without stored measures gets them.

With --model=OTHER, of the same shape and another fingerprint (trained on,
fine-tuned, exported and read again), every claim is measured there: exit status
1 if one fails that held in the circuit's own model.
"""

import pathlib
import sys
import tempfile

from absl import flags

from experiments import cli, jobs
from sparse_jax import faithfulness, reference

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
_STORE = flags.DEFINE_bool(
  "store", True, "Whether to store measures where there are none yet."
)
_MODEL_PARALLEL = flags.DEFINE_integer(
  "model_parallel",
  1,
  "Devices that split a model which one does not hold.",
  lower_bound=1,
)
cli.require("circuit")


def main(overrides: list[str]) -> int:
  """Verifies as the flags say; returns the worst of the exit statuses."""
  del overrides  # The command has no config.
  directories = reference.find_circuits([_CIRCUIT.value], "--circuit")
  if jobs.ENGINE.value == "local":
    return max(verify(directory) for directory in directories)
  program = ["experiments.verify", *sys.argv[1:], "--engine=local"]
  todo = [
    jobs.Job(f"{number}_{d.name}", [*program, f"--circuit={d.absolute()}"])
    for number, d in enumerate(directories)
  ]
  statuses = []
  with tempfile.TemporaryDirectory() as logs:
    for ended in jobs.run(todo, pathlib.Path(logs)):
      print(ended.text, end="", flush=True)
      if ended.status != ended.exit_status:  # It could not say why.
        print(f"{ended.name}: status {ended.status}", file=sys.stderr)
      statuses.append(ended.exit_status)
  return max(statuses)


def verify(directory: pathlib.Path) -> int:
  """Returns 0 if what is stored with a circuit holds, 1 if not."""
  verified = faithfulness.verify(
    directory,
    _MODEL.value,
    task=_TASK.value,
    natural=_NATURAL.value,
    controls=_CONTROLS.value,
    model_parallel=_MODEL_PARALLEL.value,
  )
  core = verified.circuits["core"]
  if not verified.is_same:
    print(
      f"{directory} is of another model than {_MODEL.value},"
      f" {verified.model_fingerprint}, of the same shape: every claim is"
      " measured there"
    )
  for which, circuit in verified.circuits.items():
    print(
      f"{circuit.task}, {which}: {circuit.num_nodes} nodes,"
      f" {circuit.num_edges} edges"
    )
    print(faithfulness.summary(verified.again[which]))
  for name in verified.left_out:
    print(f"not measured again: {name}")
  wrong, right = (
    ("does not reproduce", "all that is stored reproduces")
    if verified.is_same
    else (
      "held before and fails here",
      "every claim that held before holds here",
    )
  )
  for line in verified.failures:
    print(f"{wrong}: {line}")
  if verified.failures:
    return 1
  if None in verified.stored.values() and _STORE.value:
    for which, circuit in verified.circuits.items():
      measured = verified.stored[which] or verified.again[which]
      circuit.metrics["faithfulness"] = measured
    core.save(directory, robust=verified.circuits.get("robust"))
    right = "no faithfulness was stored with it; now it is"
  print(right)
  return 0


if __name__ == "__main__":
  cli.run(main, __doc__)
