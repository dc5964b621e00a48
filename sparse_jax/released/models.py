"""The released models' directories: read, and written for other code.

A released directory holds `beeg_config.json` (the fields of the authors'
`GPTConfig`) and `final_model.pt` (a PyTorch state dict), or
`model.safetensors` with the same names. Layers become one stacked array a
parameter, PyTorch's `[out, in]` becomes `[in, out]`. Source of names, defaults
and meanings: `inference/gpt.py` of openai/circuit_sparsity.
"""

import dataclasses
import math
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
import tqdm
from absl import logging

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import transformer
from sparse_jax.released import torch_file
from sparse_jax.utils import errors, files

CONFIG = "beeg_config.json"
PYTORCH_WEIGHTS = "final_model.pt"
SAFETENSORS_WEIGHTS = "model.safetensors"

_REQUIRED = object()
# Every field with an effect that the released code declares or renames: its
# type and what it is where it is absent.
_FIELDS: Mapping[str, tuple[Any, Any]] = {
  "block_size": (int, _REQUIRED),
  "vocab_size": (int, _REQUIRED),
  "n_layer": (int, _REQUIRED),
  "n_head": (int, _REQUIRED),
  "d_model": (int, _REQUIRED),
  "d_head": (int | None, None),
  "d_mlp": (int | None, None),
  "n_mlp": (int | None, None),
  "bias": (bool, True),
  "ln_bias": (bool, True),
  "rms_norm": (bool, False),
  "residual_activation_type": (str, "identity"),
  "activation_type": (str, "gelu"),
  "afrac": (float | None, None),
  "afrac_loctypes": (str, "attn_in,attn_out,mlp_in,mlp_out"),
  "tied_unembed": (bool, True),
  "enable_bigram_table": (bool, False),
  "learnable_bigram_table": (bool, False),
  "d_pos_emb": (int | None, None),
  "sinusoidal_cat_pos_emb": (bool, False),
  "sink": (bool, False),
  "use_tied_aux_matrix": (bool, False),
}
# Fields without effect on what the model computes: what our exports say.
_EXPORTED: Mapping[str, Any] = {
  "dropout": 0.0,
  "dropout_cat_pos_emb": False,
  "debug_nans": False,
  "tokenizer_name": "tinypython_2k",
  "enable_sparse_kernels": False,
}
_KNOWN = {*_FIELDS, *_EXPORTED, "grad_checkpointing", "flash"}
_TYPE_NAMES = {
  int: "a whole number",
  int | None: "a whole number or null",
  float | None: "a number or null",
  bool: "true or false",
  str: "a string",
}
_LOCTYPES = [s.top_k for s in sites.SITES.values() if s.top_k]
_DTYPES = ("float32", "float16", "bfloat16")


def is_released(directory: files.PathLike) -> bool:
  """Returns whether a directory holds a released model's config."""
  return (pathlib.Path(directory) / CONFIG).is_file()


def read_fields(directory: files.PathLike) -> dict[str, Any]:
  """Returns the contents of `beeg_config.json`, unknown fields included."""
  path = pathlib.Path(directory) / CONFIG
  fields = files.read_json(path, "the config of a released model")
  if not isinstance(fields, dict):
    raise errors.InputError(
      f"{path}: holds a {type(fields).__name__}; need a JSON object"
    )
  return fields


def read_config(
  directory: files.PathLike,
) -> tuple[config_lib.ModelConfig, config_lib.SparsityConfig]:
  """Returns the shape and the activation sparsity of a released model.

  Fields that are not known are named in a warning. The file does not state the
  density of the weights, which is left at 1. Raises InputError if a field is
  missing, of a wrong type, out of range or in contradiction to another one.
  """
  where = pathlib.Path(directory) / CONFIG
  fields = read_fields(directory)
  if unknown := ", ".join(sorted(set(fields) - _KNOWN)):
    message = "%s: unknown fields %s are kept and have no effect"
    logging.warning(message, where, unknown)

  def refuse(name, accepted):
    raise errors.bad_value(f"{where}: {name}", fields.get(name), accepted)

  for name, (kind, default) in _FIELDS.items():
    if name not in fields and default is _REQUIRED:
      raise errors.InputError(f"{where}: {name} is missing; need a number")
    if name in fields and not _is_of(fields[name], kind):
      refuse(name, _TYPE_NAMES[kind])
    value = fields.get(name, default)
    if kind in (int, int | None) and value is not None and value < 1:
      refuse(name, "at least 1")

  defaults = {name: default for name, (_, default) in _FIELDS.items()}
  f = types.SimpleNamespace(**(defaults | fields))
  if f.d_model % f.n_head:
    refuse("n_head", f"a divisor of d_model={f.d_model}")
  if f.d_head not in (None, f.d_model // f.n_head):
    refuse("d_head", f"d_model / n_head = {f.d_model} / {f.n_head}")
  if None not in (f.d_mlp, f.n_mlp) and f.d_mlp != f.n_mlp:
    refuse("n_mlp", f"the same as d_mlp={f.d_mlp}")
  if f.use_tied_aux_matrix:
    refuse("use_tied_aux_matrix", "false; such models are not supported")
  if f.sinusoidal_cat_pos_emb and f.d_pos_emb is None:
    refuse("sinusoidal_cat_pos_emb", "false, or d_pos_emb with it")
  if f.learnable_bigram_table and not f.enable_bigram_table:
    refuse("learnable_bigram_table", "false, or enable_bigram_table=true")
  if f.residual_activation_type not in ("identity", "relu"):
    refuse("residual_activation_type", "'identity' or 'relu'")
  if f.activation_type not in ("gelu", "relu"):
    refuse("activation_type", "'gelu' or 'relu'")
  if f.afrac is not None and not 0 < f.afrac <= 1:
    refuse("afrac", "null or a number above 0 and at most 1")
  try:
    return _build(f)
  except errors.InputError as e:
    raise errors.InputError(f"{where}: {e}") from e


def _build(f: types.SimpleNamespace):
  """Returns the two configs of fields that are each well-formed."""
  positions = "learned"
  if f.d_pos_emb is not None:
    positions = "sinusoidal" if f.sinusoidal_cat_pos_emb else "concatenated"
  bigram = "learned" if f.learnable_bigram_table else "fixed"
  model = config_lib.ModelConfig(
    n_layer=f.n_layer,
    d_model=f.d_model,
    d_head=f.d_model // f.n_head,
    d_mlp=f.d_mlp or f.n_mlp or 4 * f.d_model,
    vocab_size=f.vocab_size,
    context_length=f.block_size,
    positions=positions,
    d_position=f.d_pos_emb or config_lib.ModelConfig().d_position,
    norm="rms" if f.rms_norm else "layer",
    norm_bias=f.ln_bias,
    activation=f.activation_type,
    bias=f.bias,
    tied=f.tied_unembed,
    sink=f.sink,
    bigram=bigram if f.enable_bigram_table else "none",
    residual_activation=f.residual_activation_type,
  )
  loctypes = [*filter(None, map(str.strip, f.afrac_loctypes.split(",")))]
  for loctype in loctypes:
    if loctype not in _LOCTYPES:
      kind = "location in afrac_loctypes"
      raise errors.unknown_name(kind, loctype, _LOCTYPES)
  active = [] if f.afrac is None else loctypes
  all_sites = sites.SITES.values()
  sparsity = config_lib.SparsityConfig(
    density=1.0,
    activation_fraction=1.0 if f.afrac is None else float(f.afrac),
    activation_sites=tuple(s.name for s in all_sites if s.top_k in active),
  )
  config_lib.check_activations(model, sparsity)
  return model, sparsity


def _is_of(value, kind) -> bool:
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, int | kind if kind == float | None else kind)


def config_fields(
  model: transformer.Model, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the contents of a `beeg_config.json` for a model.

  Of `kept`, the fields of the file it came from, those that do not describe the
  model are taken over, unknown ones included.
  """
  c, sparsity = model.config, model.sparsity
  all_sites = sites.SITES.values()
  active = [s.top_k for s in all_sites if s.name in sparsity.activation_sites]
  is_sparse = bool(active) and sparsity.activation_fraction < 1
  return {
    **_EXPORTED,
    **(kept or {}),
    "block_size": c.context_length or 1024,
    "vocab_size": c.vocab_size,
    "n_layer": c.n_layer,
    "n_head": c.n_head,
    "d_head": c.d_head,
    "d_model": c.d_model,
    "d_mlp": c.d_mlp,
    "bias": c.bias,
    "ln_bias": c.norm_bias,
    "rms_norm": c.norm == "rms",
    "residual_activation_type": c.residual_activation,
    "activation_type": c.activation,
    "afrac": sparsity.activation_fraction if is_sparse else None,
    "afrac_loctypes": ",".join(active) or _FIELDS["afrac_loctypes"][1],
    "tied_unembed": c.tied,
    "enable_bigram_table": c.bigram != "none",
    "learnable_bigram_table": c.bigram == "learned",
    "d_pos_emb": c.d_position if c.concatenates_positions else None,
    "sinusoidal_cat_pos_emb": c.positions == "sinusoidal",
    "sink": c.sink,
  }


_RELEASED_LEAF = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
  "sink": "attn_imp.sink_logit",
}
_WTE = "transformer.wte.weight"
_WPE = "transformer.wpe.weight"
_LM_HEAD = "lm_head.weight"


def tensor_name(path: str, layer: int | None) -> str:
  """Returns the released name of a parameter like `layers/mlp/c_fc/kernel`."""
  special = {sites.LOGIT_BIAS: "final_logits_bias", sites.BIGRAM: path}
  if path in special:
    return special[path]
  first, *modules, leaf = path.split("/")
  if first == "layers":
    head = ["transformer", "h", str(layer)]
  else:
    head = [first] if path == sites.UNEMBED else ["transformer", first]
  return ".".join([*head, *modules, _RELEASED_LEAF[leaf]])


def _tensor_names(path: str, n_layer: int) -> list[str]:
  """Returns the names of the tensors that one parameter holds."""
  if path.startswith("layers/"):
    return [tensor_name(path, layer) for layer in range(n_layer)]
  return [tensor_name(path, None)]


def load_model(
  directory: files.PathLike,
) -> tuple[transformer.Model, transformer.Params]:
  """Returns (model, params) of a released directory, params float32.

  Weights come from `final_model.pt`, or else from `model.safetensors`; float16
  and bfloat16 are widened. Every tensor goes from the mapped file straight to
  its place, so memory peaks little above the model's size. Raises InputError,
  which names the file and the field or tensor, if a file is missing, damaged or
  refused, or a tensor is missing, not of this model or not finite.
  """
  directory = pathlib.Path(directory)
  model = transformer.Model(*read_config(directory))
  tensors = _Tensors.open(directory)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  tensors.check_names(model.config, shapes)
  total = transformer.num_parameters(shapes)
  how = {"unit_scale": True, "delay": 2, "leave": False}
  with tqdm.tqdm(desc=f"load {directory.name}", total=total, **how) as bar:

    def parameter(path, shape):
      value = _read_parameter(tensors, sites.path_name(path), shape.shape)
      bar.update(value.size)
      return jax.device_put(value, jax.local_devices()[0])

    params = jax.tree_util.tree_map_with_path(parameter, shapes)
  if model.config.tied and _LM_HEAD in tensors.names:
    _check_tied(tensors, np.asarray(params["wte"]["embedding"]))
  return model, params


@dataclasses.dataclass(frozen=True)
class _Tensors:
  """A file of named tensors; `take` gives up what was held of one."""

  path: pathlib.Path
  names: frozenset[str]
  take: Callable[[str], np.ndarray]

  @classmethod
  def open(cls, directory: pathlib.Path) -> "_Tensors":
    path = directory / PYTORCH_WEIGHTS
    if path.is_file():
      state = torch_file.load_state_dict(path)
      return cls(path, frozenset(state), state.pop)
    path = directory / SAFETENSORS_WEIGHTS
    if not path.is_file():
      raise errors.InputError(
        f"{directory} holds neither {PYTORCH_WEIGHTS} nor"
        f" {SAFETENSORS_WEIGHTS}; need one of them beside {CONFIG}"
      )
    try:
      opened = safetensors.safe_open(path, framework="numpy")
      return cls(path, frozenset(opened.keys()), opened.get_tensor)
    except (safetensors.SafetensorError, OSError) as e:
      raise errors.InputError(
        f"{path}: {e}; need a whole safetensors file"
      ) from e

  def check_names(self, config: config_lib.ModelConfig, shapes) -> None:
    """Checks that the file has this model's tensors and no others."""
    want = {
      name
      for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
      for name in _tensor_names(sites.path_name(path), config.n_layer)
    }
    # Buffers of the released code: a constant, and its slow attention's mask.
    optional = {tensor_name(sites.LOGIT_BIAS, None)} | {
      f"transformer.h.{layer}.attn.bias" for layer in range(config.n_layer)
    }
    if config.tied:
      optional.add(_LM_HEAD)
    if missing := sorted(want - self.names - optional):
      raise errors.InputError(
        f"{self.path}: tensor {missing[0]!r} is missing ({len(missing)} in"
        f" all); need every tensor of the model that {CONFIG} describes"
      )
    if extra := sorted(self.names - want - optional):
      raise errors.InputError(
        f"{self.path}: tensor {extra[0]!r} ({len(extra)} in all) is not of the"
        f" model that {CONFIG} describes; need its tensors only"
      )

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:

    def refuse(found, need):
      where = f"{self.path}: tensor {name!r}"
      return errors.InputError(f"{where} {found}; need {need}")

    types_needed = " or ".join(_DTYPES)
    try:
      value = self.take(name)
    except (safetensors.SafetensorError, TypeError) as e:
      raise refuse(f"cannot be read: {e}", types_needed) from e
    if str(value.dtype) not in _DTYPES:
      raise refuse(f"has type {value.dtype}", types_needed)
    if value.shape != shape:
      raise refuse(f"has shape {value.shape}", shape)
    if not np.isfinite(value).all():
      raise refuse("holds NaN or infinity", "finite numbers")
    return value


def _read_parameter(
  tensors: _Tensors, path: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns a parameter, float32, from its tensors."""
  out = _aligned_empty(shape)
  stacked = path.startswith("layers/")
  names = _tensor_names(path, shape[0])
  for row, name in zip(out if stacked else [out], names, strict=True):
    if path == sites.LOGIT_BIAS and name not in tensors.names:
      row[...] = 0
      continue
    # A kernel is `[in, out]` here and `[out, in]` there.
    row = row.T if path.endswith("/kernel") else row
    row[...] = tensors.read(name, row.shape)
  return out


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
  """Returns a float32 array that `jax.device_put` takes over without a copy."""
  alignment = 64  # Bytes; what XLA's CPU backend asks of a borrowed buffer.
  size = 4 * math.prod(shape)
  raw = np.empty(size + alignment, np.uint8)
  start = -raw.ctypes.data % alignment
  return raw[start : start + size].view(np.float32).reshape(shape)


def _check_tied(tensors: _Tensors, embedding_VxD: np.ndarray) -> None:
  head_VxD = tensors.read(_LM_HEAD, embedding_VxD.shape)
  if not np.array_equal(head_VxD.astype(np.float32), embedding_VxD):
    raise errors.InputError(
      f"{tensors.path}: tensor {_LM_HEAD!r} differs from {_WTE!r}; need equal"
      " ones, or tied_unembed=false"
    )


def state_dict(
  model: transformer.Model, params: transformer.Params
) -> dict[str, np.ndarray]:
  """Returns a model's tensors as the released code names and lays them out.

  All keys of the authors' `GPT` of the same config, float32: a tied unembedding
  twice, and a position table of zeros in a model that has no positions.
  """
  c = model.config
  tensors = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = sites.path_name(key_path)
    value = np.asarray(leaf, np.float32)
    rows = value if path.startswith("layers/") else [value]
    names = _tensor_names(path, c.n_layer)
    for name, row in zip(names, rows, strict=True):
      row = row.T if path.endswith("/kernel") else row
      tensors[name] = np.ascontiguousarray(row)
  if c.tied:
    tensors[_LM_HEAD] = tensors[_WTE]
  if c.positions == "none":
    length = config_fields(model)["block_size"]
    tensors[_WPE] = np.zeros((length, c.d_model), np.float32)
  return tensors


def save_model(
  directory: files.PathLike,
  model: transformer.Model,
  params: transformer.Params,
  tokenizer: tokenizer_lib.Tokenizer | None = None,
  kept: Mapping[str, Any] | None = None,
) -> None:
  """Writes `beeg_config.json` and `model.safetensors`.

  The authors' class and other readers of their format load the result;
  `load_model` gives the same logits. The directory is new, empty or an earlier
  export, which is replaced when the new one is whole. A tokenizer is written as
  `tokenizer.json`; `kept` is as in `config_fields`.
  """
  with files.replace_directory(directory, SAFETENSORS_WEIGHTS) as new:
    path = new / SAFETENSORS_WEIGHTS
    tensors = state_dict(model, params)
    try:
      safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:
      need = "a writable directory with free space"
      raise errors.InputError(
        f"cannot write {directory}: {e}; need {need}"
      ) from e
    path.chmod(0o644)
    files.write_json(new / CONFIG, config_fields(model, kept))
    if tokenizer is not None:
      tokenizer.save(new / "tokenizer.json")
