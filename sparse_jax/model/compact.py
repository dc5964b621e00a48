"""Weights in few bytes: 16-bit values of what is not zero, and where it is.

A model that is to be stored so is rounded first (`rounded`), before anything is
measured on it: then what is read back is the model that was measured, bit for
bit.
"""

import io
import math
import pathlib
from typing import Any

import jax
import numpy as np

from sparse_jax import sites
from sparse_jax.utils import arrays as arrays_lib
from sparse_jax.utils import errors, files

WEIGHTS = "weights.npz"


def rounded(params: Any) -> Any:
  """Returns the parameters with every value rounded to a float16's.

  Raises InputError for values that no float16 is near: beyond 65,504.
  """

  def leaf(path, x):
    with np.errstate(over="ignore"):
      near = np.asarray(x, np.float32).astype(np.float16)
    if not np.all(np.isfinite(near)):
      raise errors.InputError(
        f"parameter {sites.path_name(path)} goes up to {np.abs(x).max():g};"
        " need values that a float16 holds, at most 65,504"
      )
    return near.astype(np.float32) + 0  # No zero keeps a sign.

  return jax.tree_util.tree_map_with_path(leaf, params)


def save(path: files.PathLike, params: Any) -> None:
  """Writes rounded parameters: values and, where some are zero, a bit each.

  Raises InputError for parameters that are not rounded.
  """
  arrays = {}
  for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name, leaf = sites.path_name(leaf_path), np.asarray(leaf)
    values = leaf.astype(np.float16)
    has_sign = np.any(np.signbit(leaf) & (leaf == 0))
    if has_sign or not np.array_equal(values.astype(leaf.dtype), leaf):
      raise errors.InputError(
        f"parameter {name} has values that a float16 does not keep; need what"
        " compact.rounded returns"
      )
    is_kept = values != 0
    if is_kept.all():
      arrays[name] = values
    else:
      arrays[name] = values[is_kept]
      arrays[f"{name}:kept"] = np.packbits(is_kept)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  files.write_bytes(path, buffer.getvalue())


def load(path: files.PathLike, shapes: Any) -> Any:
  """Returns float32 parameters of these shapes.

  Raises InputError for a file that holds other parameters, or is damaged.
  """
  path = pathlib.Path(path)
  leaves = jax.tree.leaves(shapes)
  # A value and a bit for each weight, and two headers for each parameter.
  most_bytes = sum(2 * s.size + s.size // 8 + 4096 for s in leaves)
  what = "the weights that compact.save wrote"
  arrays = arrays_lib.read_npz(path, what, most_bytes)

  def leaf(leaf_path, shape):
    return _leaf(path, sites.path_name(leaf_path), shape.shape, arrays)

  params = jax.tree_util.tree_map_with_path(leaf, shapes)
  if arrays:
    raise errors.InputError(
      f"{path} also holds {sorted(arrays)[0]}; need the parameters of this"
      " model alone"
    )
  return params


def _leaf(path, name, shape, arrays) -> np.ndarray:
  """Takes one parameter out of `arrays`."""
  size = math.prod(shape)
  values, bits = arrays.pop(name, None), arrays.pop(f"{name}:kept", None)
  is_whole = values is not None and values.dtype == np.float16
  if is_whole and bits is None:
    is_whole, kept = values.size == size, ...
  elif is_whole:
    # Nothing of a shape's size is made before the file has shown as much.
    is_whole = bits.dtype == np.uint8 and bits.shape == (-(-size // 8),)
    if is_whole:
      kept = np.unpackbits(bits, count=size).astype(bool).reshape(shape)
      is_whole = values.size == kept.sum()
  if not is_whole or not np.isfinite(values).all():
    raise errors.InputError(
      f"{path}: parameter {name} is missing or damaged; need finite 16-bit"
      f" values of shape {shape}"
    )
  result = np.zeros(shape, np.float32)
  result[kept] = (
    values.reshape(-1) if bits is not None else values.reshape(shape)
  )
  return result
