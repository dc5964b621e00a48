"""The reference model and its atlas of circuits, shipped with the package.

`sj.load_model("reference")` opens the model; docs/reference.md describes it.
"""

import pathlib

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
  found = sorted(path.parent for path in directory.glob("*/circuit.json"))
  if not found:
    raise errors.InputError(
      f"{directory} holds no circuits; need a directory of circuit directories"
    )
  circuits = map(circuit_lib.Circuit.load, found)
  return {circuit.task: circuit for circuit in circuits}


def circuits_directory(name: files.PathLike) -> pathlib.Path:
  """Returns the directory of the shipped circuits, or of those at a path."""
  return CIRCUITS if name == NAME else pathlib.Path(name)
