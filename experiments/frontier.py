"""Trains a grid of dense and sparse models, prunes it, compares circuit sizes.

  python -m experiments.frontier --workdir=runs/frontier

The same command resumes and skips what is finished. --engine=ray hands the runs
to a Ray cluster whose nodes see the workdir. Writes frontier.json, .csv and
.html, results.md, and the pictures frontier.png, tasks.png and followup.png.
"""

import pathlib
import shlex
import sys

import jax
from absl import flags

from experiments import cli, jobs
from sparse_jax import frontier
from sparse_jax.utils import errors, files, host

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
  "Local processes that share the cores; 0 is one a core, 1 on accelerators.",
  lower_bound=0,
)
_REPORT = flags.DEFINE_bool(
  "report", False, "Whether only to write down what is finished."
)
_RUNS_ONLY = flags.DEFINE_bool(
  "runs_only", False, "Whether to write nothing down."
)
_RUN = flags.DEFINE_string(
  "run", None, "Only this run, of a grid whose tokens are made."
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
  """Makes the runs that are not finished, in this process or in others."""
  is_local = jobs.ENGINE.value == "local"
  count = _WORKERS.value
  if is_local and not count:  # On Ray this process leaves accelerators alone.
    on_cpu = jax.default_backend() == "cpu"
    count = len(host.usable_cores()) if on_cpu else 1
  say = lambda text: print(text, flush=True)
  before = frontier.status(config, workdir)
  count = min(count, len(before.missing))
  if not before.missing or (is_local and count == 1):
    frontier.run_grid(config, workdir, say)
    return
  frontier.prepare_data(config, workdir)
  logs = workdir / "logs"
  remaining = frontier.remaining_text(config, before, count or 1)
  say(f"{remaining}; {logs} holds what they print")
  program = ["experiments.frontier", *sys.argv[1:], "--engine=local"]
  todo = [jobs.Job(n, [*program, f"--run={n}"]) for n in before.missing]
  for ended in [end for end in jobs.run(todo, logs, count) if end.status]:
    raise ended.error(logs)


def main(overrides: list[str]) -> None:
  """Runs the grid as the flags say."""
  config = cli.load_config(_CONFIG.value, overrides, frontier.FrontierConfig)
  workdir = pathlib.Path(_WORKDIR.value)
  if _RUN.value:
    frontier.make_run(config, _RUN.value, workdir)
    return
  if not _REPORT.value:
    with files.exclusive(workdir):
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
