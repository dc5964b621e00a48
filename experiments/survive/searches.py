"""Searches and grids that are killed: no run is repeated, none is lost."""

import collections
import pathlib
import random
import shutil

import optuna

from experiments import cli
from experiments.survive import processes, training
from experiments.survive.outcome import Outcome
from sparse_jax import circuit as circuit_lib
from sparse_jax import frontier
from sparse_jax.frontier import runs as frontier_runs
from sparse_jax.pruning import search
from sparse_jax.utils import files

_TASK = "single_double_quote"
_RUNS, _ROBUST_RUNS = 12, 6
_PRUNE = (
  "steps=20 batch_size=4 round_size=2 num_seeds=2 num_train=16"
  " num_validation=16 num_test=16 edge_steps=4 outside_steps=4 behind_code=0.0"
  f" real_prompts=0.0 num_runs={_RUNS} num_robust_runs={_ROBUST_RUNS}"
).split()
_STATES = optuna.trial.TrialState


def prune(
  root: pathlib.Path, lab: training.Lab, kills: int, rng: random.Random
) -> Outcome:
  """Kills a search of one task's circuits; counts the runs of its studies."""
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir(parents=True)
  _ = lab.timing  # There is a model.

  def command(name: str) -> processes.Command:
    arguments = [
      f"--model={lab.root / 'undisturbed' / 'model'}",
      f"--tasks={_TASK}",
      f"--workdir={root / name}",
      "--unlearned",
      "--nofaithfulness",
      *(f"--config.prune.{setting}" for setting in _PRUNE),
    ]
    return processes.Command("prune", arguments, root / f"{name}.log")

  timing = processes.Timing.of(command("undisturbed"))
  finished: dict[str, set] = collections.defaultdict(set)

  def check() -> None:
    for name, trials in _trials(root / "killed").items():
      now = {(t.number, t.value) for t in trials if t.state == _STATES.COMPLETE}
      if finished[name] - now:
        raise command("killed").failed(f"lost {finished[name] - now} of {name}")
      finished[name] = now

  mine = command("killed")
  ended = processes.kill_again_and_again(mine, kills, timing, rng, check)
  mine.finish()
  check()
  wrong = []
  for name, count in (("core", _RUNS), ("robust", _ROBUST_RUNS)):
    wrong += _faults(_trials(root / "killed")[f"{_TASK}/{name}"], count, name)
  circuit = circuit_lib.load_all(root / "killed" / _TASK)["core"]
  if len(circuit.details["runs"]) != _RUNS:
    wrong.append(f"the circuit knows {len(circuit.details['runs'])} runs")
  total = _RUNS + _ROBUST_RUNS
  return Outcome(
    "SIGKILL, prune",
    kills,
    0 if wrong else kills,
    f"{total} runs wanted, {total} finished, none twice; {ended} starts ended"
    " first"
    if not wrong
    else "; ".join(wrong),
  )


def _trials(workdir) -> dict[str, list[optuna.trial.FrozenTrial]]:
  """Returns the trials of every study of a work directory, by its name."""
  path = workdir / "search.journal"
  if not path.exists():
    return {}
  # A copy: opening mends what a killed process has torn.
  shutil.copyfile(path, copy := path.with_suffix(".copy"))
  storage = search.open_storage(copy)
  return {
    study.study_name: optuna.load_study(
      study_name=study.study_name, storage=storage
    ).trials
    for study in optuna.get_all_study_summaries(storage)
  }


def _faults(trials, count: int, name: str) -> list[str]:
  """Returns what is wrong with a finished study, in words."""
  key = lambda t: (*sorted(t.params.items()), t.user_attrs.get("seed"))
  done = [key(t) for t in trials if t.state == _STATES.COMPLETE]
  faults = []
  if len(done) != count:
    faults.append(f"{name}: {len(done)} runs finished of {count}")
  if twice := len(done) - len(set(done)):
    faults.append(f"{name}: {twice} runs finished twice")
  for trial in trials:
    is_whole = trial.params.keys() == search.SPACE.keys()
    is_lost = trial.state == _STATES.FAIL and key(trial) not in done
    if trial.state == _STATES.RUNNING or (is_whole and is_lost):
      faults.append(f"{name}: run {trial.number} was lost")
  return faults


_GRID = '''"""A grid of seconds."""

import runpy

from sparse_jax import frontier
from sparse_jax.frontier import grid


def get_config():
  c = grid.to_config_dict(frontier.FrontierConfig())
  run = runpy.run_path(CONFIG)["get_config"]()
  c.run.update(run)
  c.dense_widths = (8,)
  c.sparse_widths = (16,)
  c.densities = (0.5,)
  c.dense_steps = 30
  c.sparse_steps = 30
  c.seeds = (0, 1)
  c.tasks = (TASK,)
  c.faithfulness = False
  return c
'''


def grid(
  root: pathlib.Path, lab: training.Lab, kills: int, rng: random.Random
) -> Outcome:
  """Kills a grid's only process; counts its cells and how often each ended."""
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir(parents=True)
  text = _GRID.replace("CONFIG", repr(str(lab.config)))
  (root / "grid.py").write_text(text.replace("TASK", repr(_TASK)))

  def command(name: str) -> processes.Command:
    workdir, config = root / name, root / "grid.py"
    flags = f"--workdir={workdir}", f"--config={config}", "--workers=1"
    log = root / f"{name}.log"
    return processes.Command("frontier", [*flags, "--runs_only"], log)

  timing = processes.Timing.of(command("undisturbed"))
  cells: dict[str, bytes] = {}

  def check() -> None:
    for path in sorted((root / "killed" / "runs").glob("*/run.json")):
      raw = path.read_bytes()
      if cells.setdefault(path.parent.name, raw) != raw:
        raise mine.failed(f"made {path.parent.name} twice")

  mine = command("killed")
  ended = processes.kill_again_and_again(mine, kills, timing, rng, check)
  mine.finish()
  check()
  config = cli.load_config(str(root / "grid.py"), (), frontier.FrontierConfig)
  status = frontier.status(config, root / "killed")
  wrong = [f"{name} is missing" for name in status.missing]
  for name in cells:
    mine_, want = (
      files.read_json(
        root / which / "runs" / name / frontier_runs.FILE, "a run of the grid"
      )
      for which in ("killed", "undisturbed")
    )
    if mine_["model_fingerprint"] != want["model_fingerprint"]:
      wrong.append(f"{name} has other weights")
  return Outcome(
    "SIGKILL, frontier",
    kills,
    0 if wrong else kills,
    f"{len(cells)} cells of {status.num_runs}, each made once, with the weights"
    f" of an undisturbed grid; {ended} starts ended first"
    if not wrong
    else "; ".join(wrong),
  )
