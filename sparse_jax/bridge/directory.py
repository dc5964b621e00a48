"""A bridge as one directory: both models, the maps between them, figures.

It holds `dense/` and `sparse/`, model directories like any other, `maps.npz`,
and `bridge.json` with the settings and the figures.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sparse_jax import checkpoint
from sparse_jax import config as config_lib
from sparse_jax.bridge import maps as maps_lib
from sparse_jax.bridge import objective
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import transformer
from sparse_jax.utils import arrays as arrays_lib
from sparse_jax.utils import errors, files

_FORMAT = "sparse_jax bridge 1"
_DESCRIPTION, _MAPS, DENSE, SPARSE = (
  "bridge.json",
  "maps.npz",
  "dense",
  "sparse",
)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["dense", "sparse", "maps"],
  meta_fields=["span"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """The parameters of a bridge, which jitted functions take as one argument.

  Attributes:
    span: the models they belong to.
    dense: the dense model's.
    sparse: the sparse model's.
    maps: of encoders and decoders, `[bridges, …]`.
  """

  span: objective.Span
  dense: transformer.Params
  sparse: transformer.Params
  maps: maps_lib.Maps


@dataclasses.dataclass(frozen=True, eq=False)
class Bridge:
  """A sparse model that explains a dense one.

  Attributes:
    span: the two models and the bridges' settings.
    arrays: their parameters.
    tokenizer: of both models.
    figures: how much of each model's state the other one's gives (`figures`).
  """

  span: objective.Span
  arrays: Arrays
  tokenizer: tokenizer_lib.Tokenizer
  figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    dense, sparse = self.span.dense.config, self.span.sparse.config
    return (
      f"Bridge({len(self.span.points)} bridges, d_model {dense.d_model} to"
      f" {sparse.d_model}, {sparse.n_layer} layers)"
    )

  @classmethod
  def load(cls, directory: files.PathLike) -> "Bridge":
    """Reads a bridge; raises InputError for what is missing or damaged."""
    directory = pathlib.Path(directory)
    path = directory / _DESCRIPTION
    described = files.read_json(path, "a bridge.json")
    found = described.get("format") if isinstance(described, dict) else None
    if found != _FORMAT:
      raise errors.bad_value(f"{path}: format", found, repr(_FORMAT))
    settings = config_lib.from_dict(
      config_lib.BridgeConfig, described.get("settings", {}), "bridge."
    )
    dense, of_dense = checkpoint.load_model(directory / DENSE)
    sparse, of_sparse = checkpoint.load_model(directory / SPARSE)
    span = objective.Span(dense, sparse, settings)
    arrays = Arrays(
      span, of_dense, of_sparse, _load_maps(directory / _MAPS, span)
    )
    tokenizer = checkpoint.load_tokenizer(directory / SPARSE)
    return cls(span, arrays, tokenizer, described.get("figures", {}))


def save(
  directory: files.PathLike,
  bridge: Bridge,
  config: config_lib.BridgeRunConfig,
  means: Mapping[str, Mapping[str, np.ndarray]],
  dense_run: config_lib.Config | None = None,
) -> None:
  """Writes a bridge's directory, in place of an earlier one.

  Args:
    directory: of the bridge.
    bridge: what is kept.
    config: that trained the sparse model.
    means: of both models' nodes, "dense" and "sparse", as `save_model` has it.
    dense_run: that trained the dense one, if it is known.
  """
  span, arrays = bridge.span, bridge.arrays
  with files.replace_directory(directory, _DESCRIPTION) as new:
    for name, model, params, run in (
      (DENSE, span.dense, arrays.dense, dense_run),
      (SPARSE, span.sparse, arrays.sparse, config.plain),
    ):
      checkpoint.save_model(
        new / name, model, params, bridge.tokenizer, run, means[name]
      )
    flat = traverse_util.flatten_dict(jax.device_get(arrays.maps), sep="/")
    np.savez(new / _MAPS, **flat)
    described = {
      "format": _FORMAT,
      "settings": config_lib.to_dict(config.bridge),
      "figures": bridge.figures,
    }
    files.write_json(new / _DESCRIPTION, described)


def _load_maps(path: pathlib.Path, span: objective.Span) -> maps_lib.Maps:
  shapes = jax.eval_shape(span.init_maps, jax.random.key(0))
  want = traverse_util.flatten_dict(shapes, sep="/")
  # A header for each beside what they hold.
  most_bytes = sum(4 * shape.size + 4096 for shape in want.values())
  what = "the maps that training has written"
  found = arrays_lib.read_npz(path, what, most_bytes)
  for name, shape in want.items():
    if name not in found or found[name].shape != shape.shape:
      got = found[name].shape if name in found else "missing"
      raise errors.InputError(f"{path}: {name} is {got}; need {shape.shape}")
  flat = {name: jnp.asarray(found[name]) for name in want}
  return traverse_util.unflatten_dict(flat, sep="/")
