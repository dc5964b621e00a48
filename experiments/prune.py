"""Searches the smallest circuit of every task that a model has learned.

  python -m experiments.prune --model=runs/quickstart/model --tasks=all \
    --workdir=runs/circuits

The same command again resumes and repeats nothing. Writes a circuit directory
per task, with its evidence, circuits.csv, circuits.json, curves.png and a page,
report.html.
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, faithfulness, report, tasks
from sparse_jax import config as config_lib
from sparse_jax.pruning import search
from sparse_jax.pruning import table as table_lib
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files

_MODEL = flags.DEFINE_string("model", None, "Model directory.")
_TASKS = flags.DEFINE_list(
  "tasks", ["all"], "Task names or files of pairs, with commas, or all."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where circuits and the search's journal go."
)
_CONFIG = flags.DEFINE_string(
  "config", None, "Python file with get_config(); the model's own by default."
)
_STORAGE = flags.DEFINE_string(
  "storage",
  None,
  "Optuna URL, or a journal file, that several machines may share.",
)
_BELOW_GATE = flags.DEFINE_bool(
  "below_gate", False, "Also prune tasks the model has not learned; marked."
)
_FAITHFULNESS = flags.DEFINE_bool(
  "faithfulness", True, "Whether every circuit gets its evidence: minutes each."
)


def load_config(
  model_directory: str, path: str | None, overrides: list[str]
) -> config_lib.Config:
  """Returns the run's config: a file's, or the one that trained the model."""
  if path is not None:
    return cli.load_config(path, overrides)
  run = checkpoint.load_run(model_directory)
  return cli.override(run or config_lib.Config(), overrides)


def main(overrides: list[str]) -> int | None:
  """Runs the search as the flags say."""
  for name in ("model", "workdir"):
    if not getattr(flags.FLAGS, name):
      raise errors.InputError(f"--{name} is missing; need a directory")
  # Real prompts are looked for in what the model was not trained on, if known.
  has_run = checkpoint.load_run(_MODEL.value) is not None
  config = load_config(_MODEL.value, _CONFIG.value, overrides)
  workdir = pathlib.Path(_WORKDIR.value)
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  means = checkpoint.load_means(_MODEL.value)
  found, skipped = tasks.make_tasks(_TASKS.value, tokenizer)
  difference_function = evaluation.make_difference_function(model, params)
  chosen, learned = [], {}
  for task in found:
    verdict = evaluation.check_learned(
      difference_function, task, config.prune, config.seed
    )
    learned[task.name] = verdict.learned
    if verdict.learned or _BELOW_GATE.value:
      chosen.append(task)
    else:
      skipped[task.name] = "not learned: " + "; ".join(verdict.reasons)
  for name, reason in skipped.items():
    print(f"{name}: not pruned, {reason}")
  if not chosen:
    print("no task is left; --below_gate prunes what is not learned, marked")
    return 1

  by_name = {task.name: task for task in chosen}

  def save(circuit):
    circuit.metrics["learned"] = learned[circuit.task]
    if _FAITHFULNESS.value:
      task = by_name[circuit.task]
      circuit.metrics["faithfulness"] = faithfulness.measure_faithfulness(
        model,
        params,
        circuit,
        task,
        faithfulness.FaithfulnessOptions(
          config.prune,
          means,
          config.seed,
          sequences_lib.natural_prompts(task, config) if has_run else None,
        ),
      )
    circuit.save(workdir / circuit.task)

  with files.exclusive(workdir):
    circuits = search.find_circuits(
      model,
      params,
      chosen,
      config.prune,
      means,
      config.seed,
      workdir=workdir,
      storage=_STORAGE.value,
      on_circuit=save,
    )
    rows = [table_lib.row(circuit) for circuit in circuits.values()]
    table_lib.write(workdir, rows, skipped)
    table_lib.plot_curves(workdir / "curves.png", circuits.values())
    report.write_page(
      workdir / "report.html",
      [
        report.from_directory(workdir / name, d_head=model.config.d_head)
        for name in circuits
      ],
      title="Circuits",
    )
  print(f"\n{table_lib.text(rows)}")
  if _FAITHFULNESS.value:
    for name, circuit in circuits.items():
      print(
        f"\n{name}\n{faithfulness.summary(circuit.metrics['faithfulness'])}"
      )
  print(f"\nreport: {workdir / 'report.html'}")
  return None


if __name__ == "__main__":
  cli.run(main, __doc__)
