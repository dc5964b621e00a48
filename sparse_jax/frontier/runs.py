"""One run after another: train, check what was learned, prune, keep metrics.

A finished run has `run.json` and is skipped. Several processes, on one machine
or several, may share a directory: each takes runs that no other holds.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
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
  """What has become of a grid's runs, in its order.

  Attributes:
    diverged: by name, why training stopped.
    missing: names of those not finished yet.
    left_out: by name, why the shape does not allow the density.
  """

  finished: list[Result]
  diverged: dict[str, str]
  missing: list[str]
  left_out: dict[str, str]

  @property
  def num_runs(self) -> int:
    return len(self.finished) + len(self.diverged) + len(self.missing)

  def summary(self) -> dict[str, Any]:
    """Returns what frontier.json says of it."""
    names = "num_runs", "missing", "diverged", "left_out"
    return {name: getattr(self, name) for name in names}


def status(config: grid.FrontierConfig, workdir: files.PathLike) -> Status:
  """Reads what has become of a grid's runs; errors are those of `load`."""
  workdir = pathlib.Path(workdir).absolute()
  wanted, left_out = grid.make_runs(config)
  found = Status([], {}, [], left_out)
  for run in wanted:
    result = load(config, run, workdir)
    if result is None:
      found.missing.append(run.name)
    elif "diverged" in result:
      found.diverged[run.name] = result["diverged"]
    else:
      found.finished.append(result)
  return found


def load(
  config: grid.FrontierConfig, run: grid.Run, workdir: pathlib.Path
) -> Result | None:
  """Returns a finished or diverged run, or None if there is work left.

  Raises InputError if it was made with other settings, naming the field.
  """
  path = directory_of(workdir, run) / FILE
  if not path.exists():
    return None
  result = files.read_json(path, "a finished run of a frontier")
  if not isinstance(result, dict) or result.get("name") != run.name:
    raise errors.InputError(f"{path}: not run {run.name}; need its {FILE}")
  mine = _settings(config, run, workdir)
  if differs := config_lib.first_difference(mine, result.get("settings")):
    name, theirs, ours = differs
    raise errors.InputError(
      f"{path} was made with {name}={theirs!r}, this config has {ours!r}; need"
      " the same config or another --workdir"
    )
  return result


def _settings(config, run, workdir):
  own = grid.run_config(config, run, workdir / "data")
  return config_lib.settings(own) | {"tasks": list(config.tasks)}


def run_grid(
  config: grid.FrontierConfig,
  workdir: files.PathLike,
  say: Callable[[str], None] = print,
) -> Status:
  """Trains and prunes every run that is not finished.

  Runs that another process works on stay missing; `say` is told of them, of
  those that diverge, and of what remains, line by line.
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
    try:
      with files.exclusive(workdir / "locks" / run.name):
        if load(config, run, workdir) is None:
          train_and_prune(config, run, workdir)
    except files.InUseError:
      say(f"{run.name}: another process is at it")
    except loop.DivergedError as e:
      say(f"{run.name}: left out, {e}")
  return status(config, workdir)


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
  cost = lambda own: grid.cost(own, config.run.data.vocab_size)
  costs = {
    run.name: cost(grid.run_config(config, run))
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


def train_and_prune(
  config: grid.FrontierConfig, run: grid.Run, workdir: pathlib.Path
) -> None:
  """Trains one run, prunes it on the tasks it has learned, writes run.json.

  Stopped at any moment and called again, it goes on: training at its last
  checkpoint, the search at its journal.
  """
  directory = directory_of(workdir, run)
  own = grid.run_config(config, run, workdir / "data")
  result = {
    **dataclasses.asdict(run),
    "name": run.name,
    "model": run.model,
    "settings": _settings(config, run, workdir),
  }
  with _stopwatch(directory) as seconds:
    try:
      trained = loop.run(own, directory, frozen_data=True)
    except loop.DivergedError as e:
      # It would diverge again: only its file's removal makes it try again.
      files.write_json(directory / FILE, {**result, "diverged": str(e)})
      raise
    metrics = prune(config, own, trained, directory)
  result |= {
    "eval_loss": trained.eval_loss,
    "tokens": own.train.steps * own.train.batch_size * own.data.context_length,
    "nonzero_block_weights": loop.block_density(trained.params),
    "model_fingerprint": fingerprint_lib.fingerprint(
      trained.model, trained.params
    ),
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
  earlier = 0.0
  with contextlib.suppress(OSError, ValueError):
    earlier = float(path.read_text())
  start = time.perf_counter()
  seconds = lambda: earlier + time.perf_counter() - start
  try:
    yield seconds
  finally:
    files.write_bytes(path, f"{seconds()}\n".encode())


def prune(
  config: grid.FrontierConfig,
  own: config_lib.Config,
  trained: loop.Trained,
  directory: pathlib.Path,
) -> dict[str, dict[str, Any]]:
  """Prunes a trained model on the tasks it has learned; saves its circuits.

  Returns by task whether it is `learned`, the full model's validation loss and
  accuracy, and, if it is learned, the circuit's metrics.
  """
  difference_function = evaluation.make_difference_function(
    trained.model, trained.params
  )
  made, skipped = tasks.make_tasks(config.tasks, trained.data.tokenizer)
  metrics: dict[str, dict[str, Any]] = {
    name: {"learned": False, "reasons": [reason]}
    for name, reason in skipped.items()
  }
  for task in made:
    check = evaluation.check_learned(
      difference_function, task, own.prune, own.seed
    )
    metrics[task.name] = {
      "learned": check.learned,
      "reasons": list(check.reasons),
      "full_model_loss": check.loss,
      "full_model_accuracy": check.accuracy,
    }
  learned = {task: True for task in made if metrics[task.name]["learned"]}
  if not learned:
    return metrics
  pipe = pipeline.Pipeline(
    model=trained.model,
    params=trained.params,
    means=checkpoint.load_means(trained.model_directory),
    config=own,
    faithfulness=False,
  )
  with files.exclusive(directory):
    circuits = pipe.run(learned, directory / "circuits", journal=directory)
    for name, circuit in circuits.items():
      metrics[name] |= circuit.metrics
    write_page(directory, list(circuits))
  return metrics


def learned_tasks(result: Result) -> list[str]:
  """Returns the tasks that a run was pruned on, in the order of its page."""
  return [name for name, m in result["tasks"].items() if m["learned"]]


def write_page(directory: pathlib.Path, names: Sequence[str]) -> None:
  """Writes report.html of a run's saved circuits."""
  load = lambda name: circuit_lib.Circuit.load(directory / "circuits" / name)
  title = f"Circuits of {directory.name}"
  report.write_page(
    directory / "report.html", list(map(load, names)), title=title
  )


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
  runs = {run.name: run for run in grid.make_runs(config)[0]}
  run = runs[result["name"]]
  directory = directory_of(workdir, run)
  own = grid.run_config(config, run, workdir / "data")
  tokenizer = checkpoint.load_tokenizer(directory / "model")
  by_name = {t.name: t for t in tasks.make_tasks(config.tasks, tokenizer)[0]}
  found = {}
  for name in names:
    path = directory / "circuits" / name
    circuit = circuit_lib.Circuit.load(path)
    if "faithfulness" not in circuit.metrics:
      if not add_missing:
        continue
      _add_faithfulness(own, directory / "model", circuit, by_name[name])
      circuit.save(path)
    criteria = faithfulness.check_criteria(circuit.metrics["faithfulness"])
    found[name] = [dataclasses.asdict(criterion) for criterion in criteria]
  write_page(directory, learned_tasks(result))
  return found


def _add_faithfulness(own, model_directory, circuit, task):
  model, params = checkpoint.load_model(model_directory)
  options = faithfulness.FaithfulnessOptions(
    own.prune,
    checkpoint.load_means(model_directory),
    own.seed,
    sequences_lib.natural_prompts(task, own),
  )
  circuit.metrics["faithfulness"] = faithfulness.measure_faithfulness(
    model, params, circuit, task, options
  )
