"""Where models and circuits lie: the shipped ones by name, others by path.

`sj.load_model("reference")` opens the shipped model; docs/reference.md
describes it.
"""

import pathlib
from collections.abc import Iterable

from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors, files

NAME = "reference"
_ROOT = pathlib.Path(__file__).parent / "shipped"
MODEL, CIRCUITS = _ROOT / "model", _ROOT / "circuits"


def model_directory(name: files.PathLike) -> pathlib.Path:
  """Returns the directory of the shipped model, or of the one at a path."""
  return MODEL if name == NAME else pathlib.Path(name)


def load_circuits(name: files.PathLike) -> dict[str, circuit_lib.Circuit]:
  """Returns the cores of a directory of circuit directories, by task.

  "reference" are the shipped ones. Raises InputError if there are none, or one
  is damaged.
  """
  directory = circuits_directory(name)
  found = _below(directory)
  if not found:
    raise errors.InputError(
      f"{directory} holds no circuits; need a directory of circuit directories"
    )
  circuits = map(circuit_lib.Circuit.load, found)
  return {circuit.task: circuit for circuit in circuits}


def find_circuits(
  paths: Iterable[str], flag: str = "--circuits"
) -> list[pathlib.Path]:
  """Returns the circuit directories that paths are or hold, each once.

  "reference" is the shipped atlas. Raises InputError, naming `flag`, if a path
  is no circuit directory and holds none.
  """
  directories: dict[pathlib.Path, pathlib.Path] = {}
  for path in map(circuits_directory, paths):
    inside = [path] if (path / "circuit.json").is_file() else []
    inside = inside or _below(path)
    if not inside:
      raise errors.InputError(
        f"{flag}={path}: no circuit.json there; need a circuit directory,"
        " or one that holds some"
      )
    for directory in inside:
      directories.setdefault(directory.resolve(), directory)
  return list(directories.values())


def _below(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the circuit directories in a directory, by name."""
  return sorted(path.parent for path in directory.glob("*/circuit.json"))


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


def model_beside(circuit: pathlib.Path) -> pathlib.Path:
  """Returns the model that a circuit directory most likely belongs to.

  Raises InputError if there is none nearby.
  """
  circuit = circuit.absolute()
  for parent in (circuit.parent, circuit.parent.parent):
    if (parent / "model" / "config.json").is_file():
      return parent / "model"
  raise errors.InputError(
    f"--model is missing, and there is no model/ beside {circuit.parent}; need"
    " the directory of the model that the circuit was cut from"
  )


def circuits_directory(name: files.PathLike) -> pathlib.Path:
  """Returns the directory of the shipped circuits, or of those at a path."""
  return CIRCUITS if name == NAME else pathlib.Path(name)
