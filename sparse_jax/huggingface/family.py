"""What a family of models is made of: its fields and where its tensors go."""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.huggingface import fields as fields_lib

# From a parameter, or one layer of it, to the view that a tensor fills.
View = Callable[[np.ndarray], np.ndarray]


class Slot(NamedTuple):
  """Where one tensor goes."""

  shape: tuple[int, ...]  # The tensor's, in the file.
  path: str  # The parameter's, such as `layers/mlp/c_fc/kernel`.
  view: View  # Of as many entries, in the tensor's order.


class Family(NamedTuple):
  """A family of models.

  Attributes:
    fields: those of `config.json` that matter.
    config: the model's shape, of the file's name and the checked fields; raises
      InputError for fields that contradict each other.
    prefix: may stand before every name below but `head`.
    slots: the tensors; `{}` in a name stands for the layer.
    buffers: tensors that may be there and are no weights.
    head: the unembedding's name.
  """

  fields: Mapping[str, fields_lib.Field]
  config: Callable[[str, types.SimpleNamespace], config_lib.ModelConfig]
  prefix: str
  slots: Callable[[config_lib.ModelConfig], dict[str, Slot]]
  buffers: tuple[str, ...]
  head: str


def same(x: np.ndarray) -> np.ndarray:
  """The view of a tensor that is laid out as the parameter is."""
  return x


def transposed(x: np.ndarray) -> np.ndarray:
  """The view of an `[out, in]` matrix; a bias is itself."""
  return x.T


def part(index: int, count: int = 3) -> View:
  """Returns the view of one of `count` equal blocks of outputs, `[out, in]`."""
  return lambda x: np.split(x, count, -1)[index].T


def norm(name: str, path: str, width: int) -> dict[str, Slot]:
  """Returns the two tensors of a LayerNorm at a path such as `ln_f`."""
  return {
    f"{name}.weight": Slot((width,), f"{path}/scale", same),
    f"{name}.bias": Slot((width,), f"{path}/bias", same),
  }


def linear(
  name: str,
  path: str,
  shape: tuple[int, int],
  view: View,
  has_bias: bool = True,
) -> dict[str, Slot]:
  """Returns the tensors of a linear map; `shape` is its matrix's in the file.

  The path is the kernel's.
  """
  found = {f"{name}.weight": Slot(shape, path, view)}
  if has_bias:
    # Their Conv1D is `[in, out]`, as our kernels are.
    width = shape[1] if view is same else shape[0]
    bias = path.removesuffix("kernel") + "bias"
    found[f"{name}.bias"] = Slot((width,), bias, view)
  return found


def dense(**fields) -> config_lib.ModelConfig:
  """Returns the shape of a model of LayerNorms without sink and bigrams."""
  return config_lib.ModelConfig(
    norm="layer", norm_bias=True, sink=False, bigram="none", **fields
  )
