"""Circuit directories as `--circuits` names them."""

import pathlib
from collections.abc import Iterable

from sparse_jax import circuit as circuit_lib
from sparse_jax import reference
from sparse_jax.utils import errors


def find(paths: Iterable[str], flag: str = "--circuits") -> list[pathlib.Path]:
  """Returns the circuit directories that paths are or hold, each once.

  "reference" is the shipped atlas.

  Raises:
    InputError: if a path is no circuit directory and holds none.
  """
  directories: dict[pathlib.Path, pathlib.Path] = {}
  for path in map(reference.circuits_directory, paths):
    inside = [path] if (path / "circuit.json").is_file() else []
    if not inside and path.is_dir():
      inside = sorted(p.parent for p in path.glob("*/circuit.json"))
    if not inside:
      raise errors.InputError(
        f"{flag}={path}: no circuit.json there; need a circuit directory,"
        " or one that holds some"
      )
    for directory in inside:
      directories.setdefault(directory.resolve(), directory)
  return list(directories.values())


def model_directory(circuit: pathlib.Path) -> pathlib.Path:
  """Returns the model that a circuit directory most likely belongs to.

  Raises:
    InputError: if there is none nearby.
  """
  circuit = circuit.absolute()
  for parent in (circuit.parent, circuit.parent.parent):
    if (parent / "model" / "config.json").is_file():
      return parent / "model"
  raise errors.InputError(
    f"--model is missing, and there is no model/ beside {circuit.parent}; need"
    " the directory of the model that the circuit was cut from"
  )


def load_named(
  directories: Iterable[pathlib.Path],
) -> dict[str, circuit_lib.Circuit]:
  """Returns every circuit of these directories, by `name_of`.

  Raises:
    InputError: if a circuit is damaged, or two have one name.
  """
  named: dict[str, circuit_lib.Circuit] = {}
  for directory in directories:
    for which, circuit in circuit_lib.load_all(directory).items():
      name = name_of(which, circuit)
      if name in named:
        raise errors.InputError(
          f"{directory}: another circuit of {name} comes before it; need one"
          " of a task"
        )
      named[name] = circuit
  return named


def name_of(which: str, circuit: circuit_lib.Circuit) -> str:
  """Returns `else_elif` for a task's core, `else_elif/robust` around it."""
  return circuit.task if which == "core" else f"{circuit.task}/{which}"
