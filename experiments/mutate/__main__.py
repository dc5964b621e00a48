"""Reads mutated files of every kind that comes from others.

  python -m experiments.mutate --count=10000

Half of the inputs have bytes changed, half what the bytes mean. Readers may
return or refuse in one line; they may not crash, hang, run code, open other
files or need much memory. The same command goes on where it was; what goes
wrong is kept in WORKDIR/failures. Exit status 1 if anything did.
docs/reliability.md has results.
"""

import collections
import pathlib
from typing import Any

from absl import flags

from experiments import cli
from experiments.mutate import inputs, worker
from sparse_jax.utils import errors, files, progress, tables

_COUNT = flags.DEFINE_integer(
  "count", 10_000, "Inputs of each kind.", lower_bound=1
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/mutate", "A directory for counts and failures."
)
_ONLY = flags.DEFINE_string("only", "", "Only kinds with this in their name.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the mutations.")
_FIRST = flags.DEFINE_integer(
  "first", None, "Reads --count inputs from this one and keeps no counts."
)

GOOD = ("read", "refused")
BAD = ("crash", "hang", "execution", "memory")
_EVERY = 200  # Inputs between two writings of the counts.


def read_kind(
  name: str, seed: int, count: int, root: pathlib.Path
) -> dict[str, Any]:
  """Reads a kind's inputs that are not read yet; returns its counts."""
  file = root / f"{name.replace(' ', '_')}.json"
  state = {"seed": seed, "done": 0, "megabytes": 0.0, "failures": []}
  state |= {outcome: 0 for outcome in (*GOOD, *BAD)}
  if file.exists():
    found = files.read_json(file, "the counts of earlier mutations")
    if found.get("seed") == seed:
      state = found
  with progress.progress_bar(
    max(count, state["done"]), state["done"], name
  ) as bar:
    for result in worker.run(name, seed, state["done"], count):
      state["done"] = result.number + 1
      state[result.outcome] += 1
      state["megabytes"] = max(state["megabytes"], result.megabytes)
      if result.outcome in BAD:
        _keep(root, name, seed, result)
        state["failures"].append(result[:3])
      if state["done"] % _EVERY == 0 or result.outcome in BAD:
        files.write_json(file, state)
      bar.update()
  files.write_json(file, state)
  return state


def _keep(root, name, seed, result) -> None:
  directory = root / "failures" / name.replace(" ", "_") / str(result.number)
  worker.write(directory, inputs.make(name, seed, result.number))
  text = f"{result.outcome}: {result.text}\n"
  files.write_bytes(directory / "found.txt", text.encode("utf-8", "replace"))


def main(overrides: list[str]) -> int:
  """Reads what the flags say, prints the table."""
  del overrides
  known = ", ".join(inputs.KINDS)
  names = [name for name in inputs.KINDS if _ONLY.value in name]
  if not names:
    raise errors.bad_value("--only", _ONLY.value, f"a part of: {known}")
  first, count, seed = _FIRST.value, _COUNT.value, _SEED.value
  if first is not None:
    found = collections.Counter()
    for name in names:
      for result in worker.run(name, seed, first, first + count):
        found[result.outcome] += 1
        print(f"{name} {result.number}: {result.outcome} {result.text}")
    return int(any(found[outcome] for outcome in BAD))
  root = pathlib.Path(_WORKDIR.value)
  with files.exclusive(root):
    states = {name: read_kind(name, seed, count, root) for name in names}
  header = "kind", "inputs", *GOOD, *BAD, "peak MB"
  rows = [
    (
      name,
      *(f"{state[key]:,}" for key in ("done", *GOOD, *BAD)),
      f"{state['megabytes']:.0f}",
    )
    for name, state in states.items()
  ]
  print(tables.markdown(header, rows))
  return int(any(state[key] for state in states.values() for key in BAD))


if __name__ == "__main__":
  cli.run(main, __doc__)
