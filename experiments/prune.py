"""Searches the smallest circuit of every task that a model has learned.

  python -m experiments.prune --model=runs/quickstart/model --tasks=all \\
    --workdir=runs/circuits

The same command again resumes and repeats nothing. --engine=ray hands each task
to a Ray cluster whose nodes see the workdir. Writes a circuit directory per
task, circuits.csv, circuits.json, curves.png and a page, report.html.

A released or a Hugging Face model comes without the means that closed nodes
take: they are measured on the text of config.data, this machine's Python files
by default, and kept in means.npz.
"""

import dataclasses
import pathlib
import shutil
import sys

from absl import flags

from experiments import cli, jobs
from sparse_jax import checkpoint, faithfulness, report, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import pipeline
from sparse_jax.pruning import table as table_lib
from sparse_jax.utils import files, host

_MODEL = flags.DEFINE_string("model", None, "A model directory.")
_TASKS = flags.DEFINE_list("tasks", ["all"], cli.TASKS_HELP)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A directory for circuits and the search's journal."
)
_CONFIG = flags.DEFINE_string(
  "config", None, "Python file with get_config(); the model's own by default."
)
_STORAGE = flags.DEFINE_string(
  "storage",
  None,
  "Optuna URL, or a journal file, that several machines may share.",
)
_UNLEARNED = flags.DEFINE_bool(
  "unlearned", False, "Also prune tasks the model has not learned; marked."
)
_FAITHFULNESS = flags.DEFINE_bool(
  "faithfulness", True, "Whether to measure faithfulness: minutes a circuit."
)
_CONTROLS = flags.DEFINE_bool(
  "controls", True, "Whether that includes the controls: four more prunings."
)
cli.require("model", "workdir")


def main(overrides: list[str]) -> int | None:
  """Runs the search as the flags say."""
  trained = checkpoint.load_run(_MODEL.value)
  config = cli.load_config(_CONFIG.value, overrides, default=trained)
  workdir = pathlib.Path(_WORKDIR.value)
  page = workdir / "report.html"
  model, params = checkpoint.load_model(
    _MODEL.value, config.prune.model_parallel
  )
  # Foreign models' are measured once there is something to prune.
  is_foreign = checkpoint.is_foreign(_MODEL.value)
  means = {} if is_foreign else checkpoint.load_means(_MODEL.value)
  pipe = pipeline.Pipeline(
    model=model,
    params=params,
    means=means,
    config=config,
    faithfulness=_FAITHFULNESS.value,
    controls=_CONTROLS.value,
    # Only where the files are known that the model was not trained on.
    natural=trained is not None,
  )
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  made, skipped = tasks.make_tasks(_TASKS.value, tokenizer)
  unlearned = [task.name for task in made] if _UNLEARNED.value else ()
  learned, reasons = pipe.choose(made, unlearned)
  skipped |= reasons
  for name, reason in skipped.items():
    print(f"{name}: not pruned, {reason}", flush=True)
  if not learned:
    print("no task is left; --unlearned prunes what is not learned, marked")
    return 1
  with files.exclusive(workdir):
    if is_foreign:
      whose = _MODEL.value, model, params
      means = checkpoint.find_means(*whose, workdir / "means.npz", config)
      pipe = dataclasses.replace(pipe, means=means)
    if jobs.ENGINE.value == "ray":
      search_in_jobs([task.name for task in learned], tokenizer, workdir)
    storage = _STORAGE.value or workdir / "search.journal"
    found = pipe.run(learned, workdir, storage)
    rows = [table_lib.row(*circuits) for circuits in found.values()]
    table_lib.write(workdir, rows, skipped)
    cores = [circuits.core for circuits in found.values()]
    table_lib.plot_curves(workdir / "curves.png", cores)
    saved = [circuit_lib.load_all(workdir / name) for name in found]
    report.write_page(page, saved, title="Circuits")
  print(f"\n{table_lib.text(rows)}")
  if _FAITHFULNESS.value:
    for name, circuits in found.items():
      for which, circuit in circuits._asdict().items():
        if circuit is not None:
          print(f"\n{name}, {which} circuit")
          print(faithfulness.summary(circuit.metrics["faithfulness"]))
  print(f"\ncompiled {host.compiled()}")
  print(f"report: {page}")
  return None


def search_in_jobs(names: list[str], tokenizer, workdir: pathlib.Path) -> None:
  """Fills the work directory with circuits that jobs find, a task each."""
  # A task of one's own is known by its file.
  own = [text for text in _TASKS.value if text != "all"]
  given = {tasks.make_task(text, tokenizer).name: text for text in own}
  program = ["experiments.prune", *sys.argv[1:], "--engine=local"]
  todo = []
  for name in names:
    directory = workdir / "jobs" / name
    with files.disk_errors(directory):
      directory.mkdir(parents=True, exist_ok=True)
      if (means := workdir / "means.npz").exists():
        shutil.copyfile(means, directory / means.name)
    text = given.get(name, name)
    own_flags = f'--tasks="{text}"', f"--workdir={directory}"
    todo.append(jobs.Job(name, [*program, *own_flags]))
  logs = workdir / "logs"
  ended = list(jobs.run(todo, logs))
  for job in ended:
    if job.status == 0:
      found = workdir / "jobs" / job.name / job.name
      shutil.copytree(found, workdir / job.name, dirs_exist_ok=True)
  for job in ended:
    if job.status:
      raise job.error(logs)


if __name__ == "__main__":
  cli.run(main, __doc__, "prune.num_runs=8")
