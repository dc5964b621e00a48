"""One cell after another: train, gate, prune, and keep what was measured.

A finished cell has `cell.json` and is skipped. Several processes, on one
machine or several, may share a directory: each takes cells no other holds.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparse_jax import checkpoint, faithfulness, report, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokens as tokens_lib
from sparse_jax.frontier import grid
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.pruning import search
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.training import loop
from sparse_jax.utils import errors, files, host

Result = dict[str, Any]  # What cell.json holds.
FILE = "cell.json"


def directory_of(workdir: pathlib.Path, cell: grid.Cell) -> pathlib.Path:
  """Returns a cell's directory: a training run's, and circuits/ beside it."""
  return workdir / "cells" / cell.name


def finished(
  config: grid.FrontierConfig, workdir: files.PathLike
) -> list[Result]:
  """Returns the finished cells of a grid, in its order.

  Raises:
    InputError: if one was made with other settings, naming the field.
  """
  found = _load_all(config, pathlib.Path(workdir).absolute()).values()
  return [r for r in found if r is not None and "diverged" not in r]


def _load_all(config, workdir) -> dict[str, Result | None]:
  """Returns every cell of the grid by name, as `load` does."""
  todo, _ = grid.make_cells(config)
  return {cell.name: load(config, cell, workdir) for cell in todo}


def outcome(
  config: grid.FrontierConfig, workdir: files.PathLike
) -> dict[str, Any]:
  """Returns what has become of the grid's cells, by name.

  `missing`: not finished yet. `diverged`: why training stopped. `left_out`: why
  the shape does not allow the density.
  """
  workdir = pathlib.Path(workdir).absolute()
  _, left_out = grid.make_cells(config)
  found = _load_all(config, workdir)
  return {
    "num_cells": len(found),
    "missing": [name for name, result in found.items() if result is None],
    "diverged": {
      name: result["diverged"]
      for name, result in found.items()
      if result and "diverged" in result
    },
    "left_out": left_out,
  }


def load(
  config: grid.FrontierConfig, cell: grid.Cell, workdir: pathlib.Path
) -> Result | None:
  """Returns a finished or diverged cell, or None if there is work left.

  Raises:
    InputError: if it was made with other settings, naming the field.
  """
  path = directory_of(workdir, cell) / FILE
  if not path.exists():
    return None
  result = files.read_json(path, "a finished cell of a frontier")
  if not isinstance(result, dict) or result.get("name") != cell.name:
    raise errors.InputError(f"{path}: not cell {cell.name}; need its cell.json")
  mine = _settings(config, cell, workdir)
  differs = config_lib.first_difference(mine, result.get("settings"))
  if differs:
    name, theirs, ours = differs
    raise errors.InputError(
      f"{path} was made with {name}={theirs!r}, this config has {ours!r}; need"
      " the same config or another --workdir"
    )
  return result


def _settings(config, cell, workdir):
  run = grid.run_config(config, cell, workdir / "data")
  return config_lib.settings(run) | {"tasks": list(config.tasks)}


def run(
  config: grid.FrontierConfig,
  workdir: files.PathLike,
  say: Callable[[str], None] = print,
) -> list[Result]:
  """Trains and prunes every cell that is not finished.

  Args:
    config: the grid.
    workdir: holds `data/` and `cells/NAME/`.
    say: told what remains, line by line.

  Returns:
    The finished cells, in the grid's order. Cells that another process works
    on, and cells whose training diverged, are missing; `say` was told.
  """
  workdir = pathlib.Path(workdir).absolute()
  wanted, left_out = grid.make_cells(config)
  for name, reason in left_out.items():
    say(f"{name}: not in the grid, {reason}")
  finished(config, workdir)  # Other settings are an error before any work.
  prepare_data(config, workdir)
  for number, cell in enumerate(wanted, 1):
    if load(config, cell, workdir) is not None:
      continue
    say(
      f"cell {number} of {len(wanted)}: {cell.name};"
      f" {remaining_text(config, workdir)}"
    )
    try:
      with files.exclusive(workdir / "claims" / cell.name):
        if load(config, cell, workdir) is None:
          run_cell(config, cell, workdir)
    except files.InUseError:
      say(f"{cell.name}: another process is at it")
    except loop.DivergedError as e:
      say(f"{cell.name}: left out, {e}")
  return finished(config, workdir)


def prepare_data(
  config: grid.FrontierConfig, workdir: files.PathLike
) -> tokens_lib.TokenData:
  """Makes the tokens that all cells share, or finds them.

  They are made once: later cells take them even if the source has changed.

  Raises:
    InputError: if the source is too small, or a task of the grid is unknown.
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
  config: grid.FrontierConfig, workdir: files.PathLike, processes: int = 1
) -> str:
  """Returns how many cells remain and about how long they will take.

  Args:
    config: the grid.
    workdir: its directory, with the tokens.
    processes: how many work on it, of what the finished cells had each.
  """
  workdir = pathlib.Path(workdir).absolute()
  todo, _ = grid.make_cells(config)
  vocab_size = config.run.data.vocab_size
  costs = {
    cell.name: grid.cost(grid.run_config(config, cell), vocab_size)
    for cell in todo
  }
  found = _load_all(config, workdir)
  diverged = {n for n, r in found.items() if r and "diverged" in r}
  costs = {name: c for name, c in costs.items() if name not in diverged}
  done = {n: r["seconds"] for n, r in found.items() if r and n in costs}
  text = f"{len(costs) - len(done)} of {len(todo)} cells remain"
  if not done:
    return text
  rate = sum(done.values()) / sum(costs[name] for name in done)
  left = sum(cost for name, cost in costs.items() if name not in done)
  return f"{text}, about {duration(rate * left / processes)}"


def duration(seconds: float) -> str:
  """Returns seconds as a person says them: "3 min", "2.5 h"."""
  if seconds < 90:
    return f"{math.ceil(seconds)} s"
  minutes = seconds / 60
  return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def run_cell(
  config: grid.FrontierConfig, cell: grid.Cell, workdir: pathlib.Path
) -> Result:
  """Trains one cell, prunes it on the tasks it has learned, writes cell.json.

  Stopped at any moment and called again, it goes on: training at its last
  checkpoint, the search at its journal.
  """
  directory = directory_of(workdir, cell)
  run_settings = grid.run_config(config, cell, workdir / "data")
  earlier = _seconds_so_far(directory)
  start = time.perf_counter()
  described = {
    **dataclasses.asdict(cell),
    "name": cell.name,
    "model": cell.model,
    "settings": _settings(config, cell, workdir),
  }
  with _counted(directory, earlier, start):
    try:
      trained = loop.run(run_settings, directory, frozen_data=True)
    except loop.DivergedError as e:
      # It would diverge again: only its file's removal makes it try again.
      files.write_json(directory / FILE, {**described, "diverged": str(e)})
      raise
    figures = prune_cell(config, run_settings, trained, directory)
  seconds = earlier + time.perf_counter() - start
  result = {
    **described,
    "eval_loss": trained.eval_loss,
    "tokens": run_settings.train.steps
    * run_settings.train.batch_size
    * run_settings.data.context_length,
    "nonzero_block_weights": loop.block_density(trained.params),
    "model_fingerprint": fingerprint_lib.fingerprint(
      trained.model, trained.params
    ),
    "seconds": seconds,
    "tasks": figures,
    "machine": host.environment()["machine"],
    "tokens_sha256": trained.data.manifest["sha256"][tokens_lib.TOKENS],
  }
  files.write_json(directory / FILE, result)
  return result


def _seconds_so_far(directory: pathlib.Path) -> float:
  with contextlib.suppress(OSError, ValueError):
    return float((directory / "seconds").read_text())
  return 0.0


@contextlib.contextmanager
def _counted(directory, earlier, start):
  """Adds up a cell's time over the sessions that were stopped."""
  try:
    yield
  finally:
    total = earlier + time.perf_counter() - start
    files.write_bytes(directory / "seconds", f"{total}\n".encode())


def prune_cell(
  config: grid.FrontierConfig,
  run_settings: config_lib.Config,
  trained: loop.Trained,
  directory: pathlib.Path,
) -> dict[str, dict[str, Any]]:
  """Returns the figures of every task, by name; saves circuits and a page.

  A task has `learned`, the full model's validation loss and accuracy, and, if
  it is learned, its circuit's figures.
  """
  difference_function = evaluation.make_difference_function(
    trained.model, trained.params
  )
  made, skipped = tasks.make_tasks(config.tasks, trained.data.tokenizer)
  settings = run_settings.prune
  figures: dict[str, dict[str, Any]] = {
    name: {"learned": False, "reasons": [reason]}
    for name, reason in skipped.items()
  }
  learned = []
  for task in made:
    verdict = evaluation.check_learned(
      difference_function, task, settings, run_settings.seed
    )
    figures[task.name] = {
      "learned": verdict.learned,
      "reasons": list(verdict.reasons),
      "full_model_loss": verdict.loss,
      "full_model_accuracy": verdict.accuracy,
    }
    if verdict.learned:
      learned.append(task)
  if not learned:
    return figures

  def save(circuit):
    circuit.metrics["learned"] = True
    circuit.save(directory / "circuits" / circuit.task)
    figures[circuit.task] |= circuit.metrics

  with files.exclusive(directory):
    search.find_circuits(
      trained.model,
      trained.params,
      learned,
      settings,
      checkpoint.load_means(trained.model_directory),
      run_settings.seed,
      workdir=directory,
      on_circuit=save,
    )
    write_page(directory, [t.name for t in learned], run_settings.model.d_head)
  return figures


def learned_tasks(result: Result) -> list[str]:
  """Returns the tasks that a cell was pruned on, in the order of its page."""
  return [name for name, f in result["tasks"].items() if f["learned"]]


def write_page(
  directory: pathlib.Path, names: Sequence[str], d_head: int
) -> None:
  """Writes report.html of a cell's circuits."""
  report.write_page(
    directory / "report.html",
    [
      report.from_directory(directory / "circuits" / name, d_head=d_head)
      for name in names
    ],
    title=f"Circuits of {directory.name}",
  )


def verdicts(
  config: grid.FrontierConfig,
  result: Result,
  workdir: files.PathLike,
  names: Sequence[str],
  measure: bool,
) -> dict[str, list[faithfulness.Criterion]]:
  """Returns what is claimed of a cell's circuits and whether it holds, by task.

  Evidence that a circuit already has is not measured again.

  Args:
    config: the grid.
    result: the finished cell.
    workdir: of the grid.
    names: tasks that the cell passes.
    measure: whether circuits that have no evidence get it.
  """
  workdir = pathlib.Path(workdir).absolute()
  fields = {f.name: result[f.name] for f in dataclasses.fields(grid.Cell)}
  cell = grid.Cell(**fields)
  directory = directory_of(workdir, cell)
  settings = grid.run_config(config, cell, workdir / "data")
  tokenizer = checkpoint.load_tokenizer(directory / "model")
  made, _ = tasks.make_tasks(config.tasks, tokenizer)
  by_name = {task.name: task for task in made}
  found = {}
  for name in names:
    path = directory / "circuits" / name
    circuit = circuit_lib.Circuit.load(path)
    if "faithfulness" not in circuit.metrics:
      if not measure:
        continue
      _add_evidence(settings, directory, circuit, by_name[name])
      circuit.save(path)
    found[name] = faithfulness.check_criteria(circuit.metrics["faithfulness"])
  write_page(directory, learned_tasks(result), settings.model.d_head)
  return found


def _add_evidence(settings, directory, circuit, task):
  model, params = checkpoint.load_model(directory / "model")
  with_what = faithfulness.FaithfulnessOptions(
    settings.prune,
    checkpoint.load_means(directory / "model"),
    settings.seed,
    sequences_lib.natural_prompts(task, settings),
  )
  circuit.metrics["faithfulness"] = faithfulness.measure_faithfulness(
    model, params, circuit, task, with_what
  )
