"""Trains a grid of dense and sparse models, prunes it, compares circuit sizes.

  python -m experiments.frontier --workdir=runs/frontier

The same command resumes and skips what is finished, and may be started on
several machines that share the workdir. Writes frontier.json, .csv and .html,
results.md, and the pictures frontier.png, tasks.png and followup.png.
"""

import os
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
_RUNS_ONLY = flags.DEFINE_bool(
  "runs_only", False, "Whether to write nothing down: a worker among several."
)
_PARENT = flags.DEFINE_integer(
  "parent", 0, "A worker's parent, with which it ends; 0 is none."
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
    workdir = pathlib.Path("runs", workdir.name)
  parts = ["python", "-m", "experiments.frontier", f"--config={config}"]
  docs = [f"--docs={_DOCS.value}"] if _DOCS.value else []
  return shlex.join([*parts, f"--workdir={workdir}", *docs, *overrides])


def run_grid(config: frontier.FrontierConfig, workdir: pathlib.Path) -> None:
  """Makes the runs that are not finished, in this process or in several."""
  on_cpu = jax.default_backend() == "cpu"
  count = _WORKERS.value or (len(workers.usable_cores()) if on_cpu else 1)
  say = lambda text: print(text, flush=True)
  before = frontier.status(config, workdir)
  total = len(before.missing)
  count = min(count, total)
  if count <= 1:
    frontier.run_grid(config, workdir, say)
    return
  frontier.prepare_data(config, workdir)
  remaining = frontier.remaining_text(config, before, count)
  logs = workdir / "logs"
  say(f"{remaining}; {count} processes, {logs} holds what they print")
  program = [sys.executable, "-m", "experiments.frontier", *sys.argv[1:]]
  workers.run_workers(
    [*program, "--workers=1", "--runs_only", f"--parent={os.getpid()}"],
    count,
    logs,
    total,
    lambda: total - len(frontier.status(config, workdir).missing),
  )


def main(overrides: list[str]) -> None:
  """Runs the grid as the flags say."""
  if _PARENT.value:
    workers.end_with(_PARENT.value)
  config = cli.load_config(_CONFIG.value, overrides, frontier.FrontierConfig)
  workdir = pathlib.Path(_WORKDIR.value)
  if not _REPORT.value:
    run_grid(config, workdir)
  if _RUNS_ONLY.value:
    return
  status = frontier.status(config, workdir)
  if not status.finished:
    raise errors.InputError(
      f"--workdir={workdir}: none of {status.num_runs} runs is finished; need a"
      " grid with a finished run, or this command without --report"
    )
  comparison = frontier.compare_runs(status.finished, config.contenders)
  comparison["grid"] = status.summary()
  shown = workdir, status.finished, comparison, command(overrides)
  write = lambda: frontier.write(*shown, host.environment(), _DOCS.value)
  write()
  if best := comparison["best"]:
    # After the rest is safe: faithfulness takes minutes.
    of_best = next(r for r in status.finished if r["model"] == best["model"])
    add_missing = config.faithfulness and not _REPORT.value
    comparison["criteria_of"] = of_best["name"]
    comparison["criteria"] = frontier.check_faithfulness(
      config, of_best, workdir, best["tasks"], add_missing
    )
    write()
  print(f"\n{frontier.headline(comparison)}\n")
  print(f"page: {workdir / 'frontier.html'}, text: {workdir / 'results.md'}")


if __name__ == "__main__":
  cli.run(main, __doc__, "dense_steps=500", frontier.FrontierConfig)
