"""Trains a grid of dense and sparse models, prunes it, compares circuit sizes.

  python -m experiments.frontier --workdir=runs/frontier

The same command resumes and skips what is finished, and may be started on
several machines that share the workdir. Writes frontier.json, .csv and .html,
results.md, and the pictures frontier, tasks and followup as .png and .svg.
"""

import dataclasses
import pathlib
import shlex
import sys

import jax
from absl import flags

from experiments import cli
from sparse_jax import frontier
from sparse_jax.frontier import workers
from sparse_jax.utils import errors, host

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A directory for the grid; the same one resumes."
)
_CONFIG = flags.DEFINE_string(
  "config",
  str(pathlib.Path(__file__).parent / "configs" / "frontier_tiny.py"),
  "Python file with get_config().",
)
_DOCS = flags.DEFINE_string(
  "docs", None, "Directory that also gets results.md and the pictures."
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  0,
  "Processes that share the cores; 0 is one a core, and 1 on accelerators.",
  lower_bound=0,
)
_REPORT = flags.DEFINE_bool(
  "report", False, "Whether only to write down what is finished."
)
_CELLS_ONLY = flags.DEFINE_bool(
  "cells_only", False, "Whether to write nothing down: a worker among several."
)
cli.require("workdir")


def command(overrides: list[str]) -> str:
  """Returns what a reader types to make the results again."""
  root = pathlib.Path(__file__).parent.parent
  config = pathlib.Path(_CONFIG.value).absolute()
  if config.is_relative_to(root):
    config = config.relative_to(root)
  workdir = pathlib.Path(_WORKDIR.value)
  if workdir.is_absolute():
    workdir = pathlib.Path("runs") / workdir.name
  parts = [
    "python",
    "-m",
    "experiments.frontier",
    f"--config={config}",
    f"--workdir={workdir}",
    *([f"--docs={_DOCS.value}"] if _DOCS.value else []),
    *overrides,
  ]
  return shlex.join(parts)


def run_cells(config: frontier.FrontierConfig, workdir: pathlib.Path) -> None:
  """Runs what is not finished, in this process or in several."""
  on_cpu = jax.default_backend() == "cpu"
  count = _WORKERS.value or (workers.default_count() if on_cpu else 1)
  num_missing = lambda: len(frontier.outcome(config, workdir)["missing"])
  total = num_missing()
  count = min(count, total)
  if count <= 1:
    say = lambda text: print(text, flush=True)
    frontier.run(config, workdir, say)
    return
  frontier.prepare_data(config, workdir)
  print(
    f"{frontier.remaining_text(config, workdir, count)}; {count} processes,"
    f" {workdir / 'logs'} holds what they print",
    flush=True,
  )
  workers.run_workers(
    [
      sys.executable,
      "-m",
      "experiments.frontier",
      *sys.argv[1:],
      "--workers=1",
      "--cells_only",
    ],
    count,
    workdir / "logs",
    total,
    lambda: total - num_missing(),
  )


def main(overrides: list[str]) -> int | None:
  """Runs the grid as the flags say."""
  config = cli.load_config(_CONFIG.value, overrides, frontier.FrontierConfig)
  workdir = pathlib.Path(_WORKDIR.value)
  if not _REPORT.value:
    run_cells(config, workdir)
  if _CELLS_ONLY.value:
    return None
  results = frontier.finished(config, workdir)
  if not results:
    found = frontier.outcome(config, workdir)
    raise errors.InputError(
      f"--workdir={workdir}: none of {found['num_cells']} cells is finished;"
      " need a grid with a finished cell, or a run without --report"
    )
  comparison = frontier.compare_cells(results, config.contenders)
  comparison["grid"] = frontier.outcome(config, workdir)
  write = lambda: frontier.write(
    workdir,
    results,
    comparison,
    command(overrides),
    host.environment(),
    _DOCS.value,
  )
  write()
  best = comparison["best"]
  if best:
    # After the rest is safe: evidence takes minutes.
    of_best = next(r for r in results if r["model"] == best["model"])
    measure = config.trust and not _REPORT.value
    comparison["verdicts_of"] = of_best["name"]
    verdicts = frontier.verdicts(
      config, of_best, workdir, best["tasks"], measure
    )
    comparison["verdicts"] = {
      task: [dataclasses.asdict(claim) for claim in found]
      for task, found in verdicts.items()
    }
    write()
  print(f"\n{frontier.headline(comparison)}\n")
  print(f"page: {workdir / 'frontier.html'}, text: {workdir / 'results.md'}")
  return None


if __name__ == "__main__":
  cli.run(main, __doc__, "dense_steps=500", frontier.FrontierConfig)
