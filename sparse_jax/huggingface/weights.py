"""The safetensors files of a directory: one, or several with an index.

Names, shapes and types are known from the files' headers, which the library
holds against the files' sizes; a tensor is read when it is asked for.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from sparse_jax.utils import errors, files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")


class Weights(NamedTuple):
  """The named tensors of a directory."""

  path: pathlib.Path  # The file, or the index of several.
  opened: Mapping[str, Any]  # By tensor, the open file that holds it.
  path_of: Mapping[str, pathlib.Path]

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Raises InputError if a tensor is of another shape or no float."""
    try:
      header = self.opened[name].get_slice(name)
      found, dtype = tuple(header.get_shape()), header.get_dtype()
    except safetensors.SafetensorError as e:
      raise self._refuse(name, f"cannot be read: {e}", "a whole file") from e
    if found != shape:
      raise self._refuse(name, f"has shape {list(found)}", str(list(shape)))
    if dtype not in _DTYPES:
      raise self._refuse(name, f"has type {dtype}", ", ".join(_DTYPES))

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor; raises InputError unless every number is finite."""
    try:
      value = self.opened[name].get_tensor(name)
    except (safetensors.SafetensorError, TypeError) as e:
      raise self._refuse(name, f"cannot be read: {e}", "a whole file") from e
    if not np.isfinite(value).all():
      raise self._refuse(name, "holds NaN or infinity", "finite numbers")
    return value

  def _refuse(self, name, found, need) -> errors.InputError:
    return errors.InputError(
      f"{self.path_of[name]}: tensor {name!r} {found}; need {need}"
    )


def open_weights(directory: pathlib.Path) -> Weights:
  """Returns a directory's tensors, those of one file before an index's.

  Raises InputError if there are none, or a file is missing, cut short or none
  of safetensors; and for an index that names a file elsewhere.
  """
  path, index = directory / SINGLE, directory / INDEX
  if path.is_file():
    opened = _open(path)
    return _weights(
      path, {name: path for name in opened.keys()}, {path: opened}
    )
  if not index.is_file():
    raise errors.InputError(
      f"{directory} holds neither {SINGLE} nor {INDEX}; need the model's"
      " weights as safetensors"
    )
  path_of = _read_index(index)
  shards = {path: _open(path) for path in sorted(set(path_of.values()))}
  inside = {path: set(opened.keys()) for path, opened in shards.items()}
  for name, path in path_of.items():
    if name not in inside[path]:
      raise errors.InputError(
        f"{path}: tensor {name!r} is missing; need what {INDEX} lists"
      )
  return _weights(index, path_of, shards)


def _weights(path, path_of, shards) -> Weights:
  return Weights(path, {n: shards[p] for n, p in path_of.items()}, path_of)


def _open(path: pathlib.Path) -> Any:
  try:
    if not path.is_file():
      raise errors.InputError(f"{path} is missing; need what {INDEX} lists")
    return safetensors.safe_open(path, framework="numpy")
  except (safetensors.SafetensorError, OSError) as e:
    raise errors.InputError(
      f"{path}: {e}; need a whole safetensors file"
    ) from e


def _read_index(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns which file holds each tensor."""
  what = "an index of safetensors files"
  index = files.read_json(path, what)
  names = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(names, dict) or not names:
    raise errors.InputError(f"{path}: weight_map is no object; need {what}")
  for tensor, name in names.items():
    # A name alone: no file outside the directory is opened.
    is_name = isinstance(name, str) and not set("/\\\0") & set(name)
    if not is_name or not name.endswith(".safetensors"):
      raise errors.bad_value(
        f"{path}: weight_map[{tensor!r}]",
        name,
        "the name of a .safetensors file beside it",
      )
  return {tensor: path.parent / name for tensor, name in names.items()}
