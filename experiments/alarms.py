"""Fits alarms on held-out code, and asks on other code what they are worth.

  python -m experiments.alarms --out=alarms.json
  python -m experiments.alarms --fit --model=runs/quickstart/model \\
    --circuits=runs/quickstart/circuits

Thresholds are fitted on one half of the model's held-out files. On the other:
AUROC of each alarm for the model's errors, beside what needs no circuit, and
the monitor's rate over the model's own. `--fit` keeps the thresholds with the
circuits, `--thresholds` in a file.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from sparse_jax import checkpoint, reference, watch
from sparse_jax import circuit as circuit_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.data import sources
from sparse_jax.utils import errors, files, progress, tables
from sparse_jax.watch import held_out, speed, thresholds, value

_MODEL = flags.DEFINE_string("model", reference.NAME, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_RATE = flags.DEFINE_float(
  "rate", 0.05, "The largest share of false alarms, of each alarm.", 0, 0.5
)
_COUNT = flags.DEFINE_integer(
  "count", 1000, "Prompts of each kind, for each circuit.", 1
)
_WINDOWS = flags.DEFINE_integer(
  "windows", 4096, "Windows of each half that are searched for them.", 1
)
_FIT = flags.DEFINE_bool(
  "fit", False, "Whether to keep the thresholds with the circuits."
)
_THRESHOLDS = flags.DEFINE_string(
  "thresholds", None, "File to write all thresholds to."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")

_ROUNDS = 3
_MOST_DOCUMENTS = 4000
_SPEED_PROMPTS = 128


def held_out_halves(model_directory: str):
  """Returns the two halves of the model's held-out documents.

  Raises InputError if the model does not say what it was trained on.
  """
  config = checkpoint.load_run(model_directory)
  if config is None:
    raise errors.InputError(
      f"--model={model_directory} does not say what it was trained on; need a"
      " model whose config.json has a run"
    )
  documents = sources.documents(config.data, "eval", True)
  return held_out.halves(itertools.islice(documents, _MOST_DOCUMENTS))


def ruled_tasks(
  circuits: Mapping[str, circuit_lib.Circuit], tokenizer
) -> dict[str, tasks_lib.Task]:
  """Returns the tasks that have a rule on real code, by circuit."""
  found = {}
  for name, circuit in circuits.items():
    if circuit.task in tasks_lib.TASK_NAMES:
      task = tasks_lib.make_task(circuit.task, tokenizer)
      if task.find_points is not None:
        found[name] = task
  return found


def measure_rates(monitor, code, prompts) -> dict[str, Any]:
  """Returns the monitor's speed on code as it comes, and where all applies."""
  length = monitor.context_length
  decode = monitor.tokenizer.decode
  text = "".join(document.text for document in code)
  ids = monitor.tokenizer.encode(text[: 16 * _SPEED_PROMPTS * length])
  pieces = [ids[i : i + length] for i in range(0, len(ids), length)]
  busy = [row for found in prompts.values() for row in found.rows]
  kinds = {"code": pieces[:_SPEED_PROMPTS], "applies": busy[:_SPEED_PROMPTS]}
  return {
    kind: speed.throughput(monitor, list(map(decode, rows)), _ROUNDS)
    for kind, rows in kinds.items()
    if rows
  }


def worth_text(found: Mapping[str, Any]) -> str:
  """Returns AUROC of every score, a row a circuit and kind of prompt."""
  scores = (*thresholds.ALARMS, *value.BASELINES)
  rows = []
  for name, kinds in found.items():
    for kind, of in kinds.items():
      cells = [f"{of['num_errors']} of {of['num_applies']}"]
      for score in scores:
        auroc = of["auroc"][score]
        cells.append(
          auroc
          and f"{auroc['value']:.2f} [{auroc['low']:.2f}, {auroc['high']:.2f}]"
        )
      rows.append((name, kind, *cells))
  return tables.text(("circuit", "prompts", "errors", *scores), rows, (0, 1))


def sounds_text(found: Mapping[str, Any]) -> str:
  """Returns how often alarms sound, on errors and on the rest."""
  alarms = (*thresholds.ALARMS, "any")
  share = lambda x: tables.MISSING if x is None else f"{x:.1%}"
  both = lambda of: f"{share(of['errors'])} / {share(of['right'])}"
  rows = [
    (name, kind, *(both(of["sounds"][alarm]) for alarm in alarms))
    for name, kinds in found.items()
    for kind, of in kinds.items()
  ]
  return tables.text(("circuit", "prompts", *alarms), rows, (0, 1))


def main(overrides: list[str]) -> None:
  """Fits, asks and reports."""
  del overrides  # The command has no config.
  directories = reference.find_circuits(_CIRCUITS.value)
  circuits = reference.load_named(directories)
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  monitor = watch.Monitor(model, params, circuits, tokenizer)
  first, second = held_out_halves(_MODEL.value)
  search = _COUNT.value, _WINDOWS.value
  tasks = ruled_tasks(circuits, tokenizer)
  prompts, others = (
    {
      "anywhere": held_out.anywhere(monitor, half, *search),
      "decisions": held_out.decisions(monitor, tasks, half, search[0]),
    }
    for half in (first, second)
  )
  for kind in ("anywhere", "decisions"):
    others[f"{kind}, corrupted"] = {
      name: held_out.corrupted(found, model.config.vocab_size)
      for name, found in others[kind].items()
    }
  fitted, found = {}, {}
  with progress.progress_bar(len(circuits), 0, "circuits") as bar:
    for name, circuit in circuits.items():
      cases = {
        kind: value.examine(monitor, name, of[name])
        for kind, of in prompts.items()
        if name in of
      }
      usual = value.fit(circuit, monitor.answers[name], cases, _RATE.value)
      if usual is None:
        print(f"{name}: applies to no held-out prompt, so it has no thresholds")
      else:
        fitted[name] = usual
        residuals = [of.residual for of in cases.values()]
        stream = value.usual_stream(np.concatenate(residuals))
        found[name] = {
          kind: value.worth(
            value.examine(monitor, name, of[name]), usual, stream
          )
          for kind, of in others.items()
          if name in of
        }
      bar.update()
  circuits = thresholds.attach(
    circuits, {name: usual.to_dict() for name, usual in fitted.items()}
  )
  monitor = watch.Monitor(model, params, circuits, tokenizer)
  rates = measure_rates(monitor, second, others["anywhere"])
  print(
    f"AUROC for the model's errors, with 90% intervals\n{worth_text(found)}"
  )
  print(f"\nalarms on errors / on the rest\n{sounds_text(found)}\n")
  for kind, of in rates.items():
    print(
      f"{kind}: {of['ratio']:.2f} of the model's own prompts/s, with"
      f" {of['readings_per_prompt']:.2f} readings a prompt"
    )
  if _FIT.value:
    for directory in directories:
      usual = {
        which: circuits[reference.name_of(which, c)].details.get("watch")
        for which, c in circuit_lib.load_all(directory).items()
      }
      files.write_json(directory / circuit_lib.WATCH, usual)
  if _THRESHOLDS.value:
    stored = {name: usual.to_dict() for name, usual in fitted.items()}
    files.write_json(_THRESHOLDS.value, stored)
  if _OUT.value:
    written = {"rate": _RATE.value, "worth": found, "throughput": rates}
    written["limits"] = {n: dict(u.limits) for n, u in fitted.items()}
    written["num_prompts"] = {n: u.num_prompts for n, u in fitted.items()}
    files.write_json(_OUT.value, written)


if __name__ == "__main__":
  cli.run(main, __doc__)
