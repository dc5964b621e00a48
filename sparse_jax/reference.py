"""The reference model and its atlas of circuits, shipped with the package.

`sj.load_model("reference")` opens the model; docs/reference.md describes it.
"""

import pathlib

from sparse_jax.utils import files

NAME = "reference"
_ROOT = pathlib.Path(__file__).parent / "shipped"
MODEL, CIRCUITS = _ROOT / "model", _ROOT / "circuits"


def model_directory(name: files.PathLike) -> pathlib.Path:
  """Returns the directory of the shipped model, or of the one at a path."""
  return MODEL if name == NAME else pathlib.Path(name)


def circuits_directory(name: files.PathLike) -> pathlib.Path:
  """Returns the directory of the shipped circuits, or of those at a path."""
  return CIRCUITS if name == NAME else pathlib.Path(name)
