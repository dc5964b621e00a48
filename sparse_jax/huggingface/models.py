"""Model directories of Hugging Face, by family, as models of ours.

Of a directory `config.json` and the safetensors files are read, as data:
nothing in it is executed. Every tensor's name, shape and type is checked
against the files' headers before memory is taken for one.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.huggingface import fields as fields_lib
from sparse_jax.huggingface.family import Family, Slot, same
from sparse_jax.huggingface.gpt2 import GPT2
from sparse_jax.huggingface.gpt_neo import GPT_NEO
from sparse_jax.huggingface.gpt_neox import GPT_NEOX
from sparse_jax.huggingface.weights import Weights, open_weights
from sparse_jax.model import transformer
from sparse_jax.utils import errors, files, host

CONFIG = "config.json"
# By `model_type`.
FAMILIES: Mapping[str, Family] = {
  "gpt2": GPT2,
  "gpt_neox": GPT_NEOX,
  "gpt_neo": GPT_NEO,
}
# All channels, all weights: nothing is cut.
DENSE = config_lib.SparsityConfig(
  density=1.0, activation_fraction=1.0, activation_sites=()
)


def is_huggingface(directory: files.PathLike) -> bool:
  """Returns whether a directory's config names a Hugging Face family."""
  try:
    fields = json.loads((pathlib.Path(directory) / CONFIG).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  is_theirs = isinstance(fields, dict) and "model_type" in fields
  return is_theirs and "format" not in fields  # Ours say which.


def read_config(
  directory: files.PathLike,
) -> tuple[Family, config_lib.ModelConfig]:
  """Returns the family and the shape that `config.json` describes.

  Raises InputError for an unknown family; for a field that is missing, of a
  wrong type or out of range; and for one that would make it another model.
  """
  path = pathlib.Path(directory) / CONFIG
  fields = files.read_json(path, "the config of a Hugging Face model")
  name = fields.get("model_type") if isinstance(fields, dict) else None
  if not isinstance(name, str) or name not in FAMILIES:
    raise errors.bad_value(
      f"{path}: model_type", name, "one of " + ", ".join(FAMILIES)
    )
  family, where = FAMILIES[name], str(path)
  known = {**fields_lib.COMMON, **family.fields}
  read = fields_lib.read(where, fields, known)
  try:
    return family, family.config(where, read)
  except errors.InputError as e:
    if str(e).startswith(where):
      raise
    raise errors.InputError(f"{where}: {e}") from e


def load_model(
  directory: files.PathLike,
) -> tuple[transformer.Model, transformer.Params]:
  """Returns (model, params) of a Hugging Face directory, params float32.

  float16 and bfloat16 are widened. Raises InputError, which names the file and
  the field or tensor, if one is missing, damaged, not finite or of another
  model.
  """
  directory = pathlib.Path(directory)
  family, config = read_config(directory)
  weights = open_weights(directory)
  if config.n_layer > len(weights.opened):
    raise errors.InputError(
      f"{weights.path} holds {len(weights.opened)} tensors; need those of the"
      f" {config.n_layer} layers that {CONFIG} describes"
    )
  slots = _slots(family, config, weights)
  _check_names(family, config, weights, set(slots))
  for name, (_, slot) in slots.items():
    weights.check(name, slot.shape)
  model = transformer.Model(config, DENSE)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda s: host.aligned_empty(s.shape), shapes)
  params[sites.LOGIT_BIAS][...] = 0  # They have none.
  by_path = {
    sites.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  total = transformer.num_parameters(shapes)
  how = {"unit_scale": True, "delay": 2, "leave": False}
  with tqdm.tqdm(desc=f"load {directory.name}", total=total, **how) as bar:
    for name, (layer, slot) in slots.items():
      leaf = by_path[slot.path]
      view = slot.view(leaf if layer is None else leaf[layer])
      view[...] = weights.read(name).reshape(view.shape)
      bar.update(view.size)
  if config.tied and family.head in weights.opened:
    _check_tied(family, weights, by_path[sites.EMBED])
  return model, jax.device_put(params, jax.local_devices()[0])


def _slots(
  family: Family, config: config_lib.ModelConfig, weights: Weights
) -> dict[str, tuple[int | None, Slot]]:
  """Returns (layer, slot) of every tensor by its name in the files."""
  prefix = _prefix(family, weights)
  slots = {}
  for name, slot in family.slots(config).items():
    in_layers = "{}" in name
    for layer in range(config.n_layer) if in_layers else (None,):
      slots[prefix + name.format(layer)] = layer, slot
  if not config.tied:
    shape = config.vocab_size, config.d_model
    slots[family.head] = None, Slot(shape, sites.UNEMBED, same)
  return slots


def _prefix(family: Family, weights: Weights) -> str:
  """Returns what stands before the names: files of bare models lack it."""
  has_prefix = any(n.startswith(family.prefix) for n in weights.opened)
  return family.prefix if has_prefix else ""


def _check_names(
  family: Family,
  config: config_lib.ModelConfig,
  weights: Weights,
  want: set[str],
) -> None:
  """Checks that the files have this model's tensors and no others."""
  found, prefix = set(weights.opened), _prefix(family, weights)
  if missing := sorted(want - found):
    raise errors.InputError(
      f"{weights.path}: tensor {missing[0]!r} is missing ({len(missing)} in"
      f" all); need every tensor of the model that {CONFIG} describes"
    )
  buffers = {
    prefix + name.format(layer)
    for name in family.buffers
    for layer in range(config.n_layer)
  }
  if extra := sorted(found - want - buffers - {family.head}):
    raise errors.InputError(
      f"{weights.path}: tensor {extra[0]!r} ({len(extra)} in all) is not of the"
      f" model that {CONFIG} describes; need its tensors only"
    )


def _check_tied(family: Family, weights: Weights, embed_VxD: Any) -> None:
  weights.check(family.head, embed_VxD.shape)
  head_VxD = weights.read(family.head).astype(np.float32)
  if not np.array_equal(head_VxD, embed_VxD):
    raise errors.InputError(
      f"{weights.path}: tensor {family.head!r} is not the embedding; need equal"
      " ones, or tie_word_embeddings=false"
    )
