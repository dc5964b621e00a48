"""Kills runs at random moments and compares the bits.

  python -m experiments.survive --kills=50

Trains a tiny model undisturbed, then again under SIGKILL, SIGTERM, a full disk,
damaged checkpoints, jumping clocks, a second launch and the death of one of two
processes; then kills searches, bridges and grids and counts their runs. Writes
survive.json; exit status 1 if anything was lost. docs/reliability.md has
results.
"""

import pathlib
import random

from absl import flags

from experiments import cli
from experiments.survive import pairs, processes, searches, training
from sparse_jax.utils import errors, files, tables

_KILLS = flags.DEFINE_integer(
  "kills", 50, "SIGKILLs in a row of the training.", lower_bound=1
)
_SEARCH_KILLS = flags.DEFINE_integer(
  "search_kills", 20, "SIGKILLs of search, bridge and grid.", lower_bound=1
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/survive", "A directory for the runs and survive.json."
)
_ONLY = flags.DEFINE_string(
  "only", "", "Only the scenarios that have this in their name."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")


def main(overrides: list[str]) -> int:
  """Runs the scenarios, prints the table and writes the file."""
  del overrides
  root = pathlib.Path(_WORKDIR.value).absolute()
  with files.exclusive(root):
    processes.prepare(root / "compiled")
    kills, fewer = _KILLS.value, _SEARCH_KILLS.value
    few = max(1, kills // 10)
    lab = training.Lab(root / "training")
    scenarios = {
      "kill": lambda rng: training.killed(lab, kills, rng),
      "terminate": lambda rng: training.terminated(lab, few, rng),
      "full": lambda rng: training.out_of_space(lab),
      "corrupt": lambda rng: training.corrupted(lab),
      "clock": lambda rng: training.clock_jumps(lab, few, rng),
      "twice": lambda rng: training.launched_twice(lab),
      "pair": lambda rng: pairs.one_of_two(root / "pair"),
      "prune": lambda rng: searches.prune(root / "prune", lab, fewer, rng),
      "bridge": lambda rng: training.killed(
        training.bridge_lab(root / "bridge", lab), fewer, rng
      ),
      "frontier": lambda rng: searches.grid(root / "grid", lab, fewer, rng),
    }
    names = ", ".join(scenarios)
    scenarios = {n: s for n, s in scenarios.items() if _ONLY.value in n}
    if not scenarios:
      raise errors.bad_value("--only", _ONLY.value, f"a part of: {names}")
    outcomes = []
    for name, scenario in scenarios.items():
      rng = random.Random(f"{_SEED.value} {name}")
      outcomes.append(scenario(rng))
      rows = [vars(outcome) for outcome in outcomes]
      files.write_json(root / "survive.json", {"outcomes": rows})
      print(f"{name}: {outcomes[-1].detail}", flush=True)
  header = "what was done", "times", "survived"
  rows = [(o.name, str(o.tried), str(o.survived)) for o in outcomes]
  print(f"\n{tables.text(header, rows)}")
  return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
  cli.run(main, __doc__)
