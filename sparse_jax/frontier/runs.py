"""One run after another: train, check what was learned, prune, keep metrics.

A finished run has `run.json` and is skipped. Runs do not know of each other:
whoever starts them (`run_grid`, or a process each) says which.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sparse_jax import checkpoint, faithfulness, report, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokens as tokens_lib
from sparse_jax.faithfulness import pipeline
from sparse_jax.frontier import grid
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.training import loop
from sparse_jax.utils import errors, files, host

Result = dict[str, Any]  # What run.json holds.
FILE = "run.json"


def directory_of(workdir: pathlib.Path, run: grid.Run) -> pathlib.Path:
  """Returns a run's directory: that of its training, with circuits/ in it."""
  return workdir / "runs" / run.name


@dataclasses.dataclass(frozen=True)
class Status:
  """What has become of a grid's runs, in its order."""

  finished: list[Result]
  diverged: dict[str, str]  # By name, why training stopped.
  missing: list[str]  # Names of those not finished yet.
  left_out: dict[str, str]  # By name, why the shape forbids the density.

  @property
  def num_runs(self) -> int:
    return len(self.finished) + len(self.diverged) + len(self.missing)

  def summary(self) -> dict[str, Any]:
    """Returns what frontier.json says of it."""
    rest = {k: v for k, v in vars(self).items() if k != "finished"}
    return {"num_runs": self.num_runs, **rest}


def status(config: grid.FrontierConfig, workdir: files.PathLike) -> Status:
  """Reads what has become of a grid's runs.

  Raises InputError if one was made with other settings, naming the field.
  """
  workdir = pathlib.Path(workdir).absolute()
  wanted, left_out = grid.make_runs(config)
  found = Status([], {}, [], left_out)
  for run in wanted:
    path = directory_of(workdir, run) / FILE
    if not path.exists():
      found.missing.append(run.name)
      continue
    result = files.read_json(path, "a finished run of a frontier")
    if not isinstance(result, dict) or result.get("name") != run.name:
      raise errors.InputError(f"{path}: not run {run.name}; need its {FILE}")
    mine = _settings(config, run, workdir)
    if differs := config_lib.first_difference(mine, result.get("settings")):
      name, theirs, ours = differs
      raise errors.InputError(
        f"{path} was made with {name}={theirs!r}, this config has {ours!r};"
        " need the same config or another --workdir"
      )
    if "diverged" in result:
      found.diverged[run.name] = result["diverged"]
    else:
      found.finished.append(result)
  return found


def _settings(config, run, workdir):
  own = grid.run_config(config, run, workdir / "data")
  return config_lib.settings(own) | {"tasks": list(config.tasks)}


def run_grid(
  config: grid.FrontierConfig,
  workdir: files.PathLike,
  say: Callable[[str], None] = print,
) -> Status:
  """Trains and prunes every run that is not finished, one after another.

  `say` is told of those that diverge, and of what remains, line by line.
  """
  workdir = pathlib.Path(workdir).absolute()
  wanted, left_out = grid.make_runs(config)
  for name, reason in left_out.items():
    say(f"{name}: not in the grid, {reason}")
  status(config, workdir)  # Other settings are an error before any work.
  prepare_data(config, workdir)
  for number, run in enumerate(wanted, 1):
    so_far = status(config, workdir)
    if run.name not in so_far.missing:
      continue
    remaining = remaining_text(config, so_far)
    say(f"run {number} of {len(wanted)}: {run.name}; {remaining}")
    make_run(config, run.name, workdir, say)
  return status(config, workdir)


def make_run(
  config: grid.FrontierConfig,
  name: str,
  workdir: files.PathLike,
  say: Callable[[str], None] = print,
) -> None:
  """Trains and prunes one run of a grid, unless it is finished.

  The grid's data is prepared. Raises InputError for a name that it has not.
  """
  workdir = pathlib.Path(workdir).absolute()
  known = {run.name: run for run in grid.make_runs(config)[0]}
  if name not in known:
    raise errors.unknown_name("run", name, known)
  if name not in status(config, workdir).missing:
    return
  try:
    _train_and_prune(config, known[name], workdir)
  except loop.DivergedError as e:
    say(f"{name}: left out, {e}")


def prepare_data(
  config: grid.FrontierConfig, workdir: files.PathLike
) -> tokens_lib.TokenData:
  """Makes the tokens that all runs share, or finds them.

  They are made once: later runs take them even if the source has changed.
  Raises InputError if it is too small, or a task of the grid is unknown.
  """
  directory = pathlib.Path(workdir).absolute() / "data"
  tokens = tokens_lib.prepare(
    config.run.data,
    directory,
    batch_size=config.run.train.batch_size,
    frozen=(directory / tokens_lib.MANIFEST).exists(),
  )
  tasks.make_tasks(config.tasks, tokens.tokenizer)
  return tokens


def remaining_text(
  config: grid.FrontierConfig, so_far: Status, processes: int = 1
) -> str:
  """Returns how many runs remain and about how long they will take.

  Each of the processes at work has the cores that a finished run had.
  """
  text = f"{len(so_far.missing)} of {so_far.num_runs} runs remain"
  if not so_far.finished:
    return text
  vocab_size = config.run.data.vocab_size
  costs = {
    run.name: grid.cost(grid.run_config(config, run), vocab_size)
    for run in grid.make_runs(config)[0]
  }
  seconds = sum(r["seconds"] for r in so_far.finished)
  rate = seconds / sum(costs[r["name"]] for r in so_far.finished)
  left = rate * sum(costs[name] for name in so_far.missing)
  return f"{text}, about {duration(left / processes)}"


def duration(seconds: float) -> str:
  """Returns seconds as a person says them: "3 min", "2.5 h"."""
  if seconds < 90:
    return f"{math.ceil(seconds)} s"
  minutes = seconds / 60
  return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _train_and_prune(config, run, workdir) -> None:
  """Trains one run, prunes it on the tasks it has learned, writes run.json.

  Stopped at any moment and called again, it goes on: training at its last
  checkpoint, the search at its journal.
  """
  directory = directory_of(workdir, run)
  own = grid.run_config(config, run, workdir / "data")
  result = dataclasses.asdict(run) | {"name": run.name, "model": run.model}
  result["settings"] = _settings(config, run, workdir)
  with _stopwatch(directory) as seconds:
    try:
      trained = loop.run(own, directory, frozen_data=True)
    except loop.DivergedError as e:
      # It would diverge again: only its file's removal makes it try again.
      files.write_json(directory / FILE, {**result, "diverged": str(e)})
      raise
    metrics = _prune(config, own, trained, directory)
  model, params = trained.model, trained.params
  result |= {
    "eval_loss": trained.eval_loss,
    "tokens": own.train.steps * own.train.batch_size * own.data.context_length,
    "nonzero_block_weights": loop.block_density(params),
    "model_fingerprint": fingerprint_lib.fingerprint(model, params),
    "seconds": seconds(),
    "tasks": metrics,
    "machine": host.environment()["machine"],
    "tokens_sha256": trained.data.manifest["sha256"][tokens_lib.TOKENS],
  }
  files.write_json(directory / FILE, result)


@contextlib.contextmanager
def _stopwatch(directory: pathlib.Path) -> Iterator[Callable[[], float]]:
  """Yields a run's seconds so far, those of stopped sessions included."""
  path = directory / "seconds"
  start = time.perf_counter()
  with contextlib.suppress(OSError, ValueError):
    start -= float(path.read_text())
  seconds = lambda: time.perf_counter() - start
  try:
    yield seconds
  finally:
    files.write_bytes(path, f"{seconds()}\n".encode())


def _prune(config, own, trained, directory) -> dict[str, dict[str, Any]]:
  """Prunes a trained model on the tasks it has learned; saves its circuits.

  Returns by task whether it is `learned`, the full model's validation loss and
  accuracy, and, if it is learned, the circuit's metrics.
  """
  model, params = trained.model, trained.params
  diffs = evaluation.make_difference_function(model, params)
  made, skipped = tasks.make_tasks(config.tasks, trained.data.tokenizer)
  metrics: dict[str, dict[str, Any]] = {
    name: {"learned": False, "reasons": [reason]}
    for name, reason in skipped.items()
  }
  for task in made:
    check = evaluation.check_learned(diffs, task, own.prune, own.seed)
    metrics[task.name] = {
      "learned": check.learned,
      "reasons": list(check.reasons),
      "full_model_loss": check.loss,
      "full_model_accuracy": check.accuracy,
    }
  learned = {task: True for task in made if metrics[task.name]["learned"]}
  if not learned:
    return metrics
  means = checkpoint.load_means(trained.model_directory)
  pipe = pipeline.Pipeline(
    model=model, params=params, means=means, config=own, faithfulness=False
  )
  with files.exclusive(directory):
    journal = directory / "search.journal"
    found = pipe.run(learned, directory / "circuits", journal)
    cores = {name: circuits.core for name, circuits in found.items()}
    for name, circuit in cores.items():
      metrics[name] |= circuit.metrics
    _write_page(directory, cores.values())
  return metrics


def learned_tasks(result: Result) -> list[str]:
  """Returns the tasks that a run was pruned on, in the order of its page."""
  return [name for name, m in result["tasks"].items() if m["learned"]]


def _write_page(directory: pathlib.Path, circuits: Iterable) -> None:
  title = f"Circuits of {directory.name}"
  tasks_shown = [{"core": circuit} for circuit in circuits]
  report.write_page(directory / "report.html", tasks_shown, title=title)


def check_faithfulness(
  config: grid.FrontierConfig,
  result: Result,
  workdir: files.PathLike,
  names: Sequence[str],
  add_missing: bool,
) -> dict[str, list[dict[str, Any]]]:
  """Returns the criteria of faithfulness of a finished run's circuits, by task.

  Circuits of which it is not known are measured, or, without `add_missing`,
  left out; `names` are tasks that the run passes.
  """
  workdir = pathlib.Path(workdir).absolute()
  run = grid.Run(*(result[k] for k in ("width", "density", "seed", "variant")))
  directory = directory_of(workdir, run)
  path_of = lambda name: directory / "circuits" / name
  learned = learned_tasks(result)
  saved = {n: circuit_lib.load_all(path_of(n)) for n in learned}
  circuits = {name: each["core"] for name, each in saved.items()}
  missing = [n for n in names if "faithfulness" not in circuits[n].metrics]
  if missing and add_missing:
    own = grid.run_config(config, run, workdir / "data")
    model, params = checkpoint.load_model(directory / "model")
    means = checkpoint.load_means(directory / "model")
    tokenizer = checkpoint.load_tokenizer(directory / "model")
    for task in tasks.make_tasks(config.tasks, tokenizer)[0]:
      if task.name not in missing:
        continue
      circuit = circuits[task.name]
      natural = sequences_lib.natural_prompts(task, own)
      options = faithfulness.FaithfulnessOptions(
        own.prune, means, own.seed, natural
      )
      measured = faithfulness.measure_all(
        model, params, {"core": circuit}, task, options
      )
      circuit.metrics["faithfulness"] = measured["core"]
      robust = saved[task.name].get("robust")
      circuit.save(path_of(task.name), robust=robust)
  _write_page(directory, circuits.values())
  found = {}
  for name in names:
    metrics = circuits[name].metrics
    if "faithfulness" in metrics:
      criteria = faithfulness.check_criteria(metrics["faithfulness"])
      found[name] = list(map(dataclasses.asdict, criteria))
  return found
