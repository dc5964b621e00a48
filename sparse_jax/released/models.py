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

_ANY = object()
# Every field that the released code declares or renames, with its type.
_TYPES: Mapping[str, Any] = {
  "block_size": int,
  "vocab_size": int,
  "n_layer": int,
  "n_head": int,
  "d_head": int | None,
  "d_model": int,
  "d_mlp": int | None,
  "n_mlp": int | None,
  "bias": bool,
  "ln_bias": bool,
  "rms_norm": bool,
  "residual_activation_type": str,
  "activation_type": str,
  "afrac": float | None,
  "afrac_loctypes": str,
  "tied_unembed": bool,
  "enable_bigram_table": bool,
  "learnable_bigram_table": bool,
  "d_pos_emb": int | None,
  "sinusoidal_cat_pos_emb": bool,
  "sink": bool,
  "use_tied_aux_matrix": bool,
  # Without effect on what the model computes.
  "dropout": _ANY,
  "dropout_cat_pos_emb": _ANY,
  "debug_nans": _ANY,
  "tokenizer_name": _ANY,
  "enable_sparse_kernels": _ANY,
  "grad_checkpointing": _ANY,
  "flash": _ANY,
}
_REQUIRED = ("block_size", "vocab_size", "n_layer", "n_head", "d_model")
# Of absent fields.
_DEFAULTS: Mapping[str, Any] = {
  "d_head": None,
  "d_mlp": None,
  "n_mlp": None,
  "bias": True,
  "ln_bias": True,
  "rms_norm": False,
  "residual_activation_type": "identity",
  "activation_type": "gelu",
  "afrac": None,
  "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out",
  "tied_unembed": True,
  "enable_bigram_table": False,
  "learnable_bigram_table": False,
  "d_pos_emb": None,
  "sinusoidal_cat_pos_emb": False,
  "sink": False,
  "use_tied_aux_matrix": False,
}
# What a directory of ours says in the fields it has no other use for.
_EXPORTED: Mapping[str, Any] = {
  "dropout": 0.0,
  "dropout_cat_pos_emb": False,
  "debug_nans": False,
  "tokenizer_name": "tinypython_2k",
  "enable_sparse_kernels": False,
}
_SITE_OF_LOCTYPE = {s.top_k: s.name for s in sites.SITES.values() if s.top_k}
_DTYPES = ("float32", "float16", "bfloat16")


def is_released(directory: files.PathLike) -> bool:
  """Returns whether a directory holds a released model's config."""
  return (pathlib.Path(directory) / CONFIG).is_file()


def read_fields(directory: files.PathLike) -> dict[str, Any]:
  """Returns the contents of `beeg_config.json`, unknown fields included.

  Raises:
    InputError: if the file is missing or no JSON object.
  """
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
  density of the weights, which is left at 1.

  Raises:
    InputError: if the file is missing or no JSON object, or a field is missing,
      of a wrong type, out of range or in contradiction to another one.
  """
  path = pathlib.Path(directory) / CONFIG
  fields = read_fields(directory)
  if unknown := sorted(set(fields) - set(_TYPES)):
    logging.warning(
      "%s: unknown fields %s are kept and have no effect",
      path,
      ", ".join(unknown),
    )
  return _describe(fields, str(path))


def _describe(
  fields: Mapping[str, Any], where: str
) -> tuple[config_lib.ModelConfig, config_lib.SparsityConfig]:
  def refuse(name, accepted):
    raise errors.bad_value(f"{where}: {name}", fields.get(name), accepted)

  for name in _REQUIRED:
    if name not in fields:
      raise errors.InputError(f"{where}: {name} is missing; need a number")
  for name, kind in _TYPES.items():
    if name in fields and not _is_of(fields[name], kind):
      refuse(name, _type_name(kind))
  get = {**_DEFAULTS, **fields}.get
  for name in (*_REQUIRED, "d_head", "d_mlp", "n_mlp", "d_pos_emb"):
    if get(name) is not None and get(name) < 1:
      refuse(name, "at least 1")

  d_model, n_head = get("d_model"), get("n_head")
  if d_model % n_head:
    refuse("n_head", f"a divisor of d_model={d_model}")
  if get("d_head") not in (None, d_model // n_head):
    refuse("d_head", f"d_model / n_head = {d_model} / {n_head}")
  if None not in (get("d_mlp"), get("n_mlp")) and get("d_mlp") != get("n_mlp"):
    refuse("n_mlp", f"the same as d_mlp={get('d_mlp')}")
  if get("use_tied_aux_matrix"):
    refuse("use_tied_aux_matrix", "false; such models are not supported")
  if get("sinusoidal_cat_pos_emb") and get("d_pos_emb") is None:
    refuse("sinusoidal_cat_pos_emb", "false, or d_pos_emb with it")
  if get("learnable_bigram_table") and not get("enable_bigram_table"):
    refuse("learnable_bigram_table", "false, or enable_bigram_table=true")
  if get("residual_activation_type") not in ("identity", "relu"):
    refuse("residual_activation_type", "'identity' or 'relu'")
  if get("activation_type") not in ("gelu", "relu"):
    refuse("activation_type", "'gelu' or 'relu'")
  if get("afrac") is not None and not 0 < get("afrac") <= 1:
    refuse("afrac", "null or a number above 0 and at most 1")
  loctypes = [x.strip() for x in get("afrac_loctypes").split(",") if x.strip()]
  for loctype in loctypes:
    if loctype not in _SITE_OF_LOCTYPE:
      unknown = errors.unknown_name(
        "location in afrac_loctypes", loctype, _SITE_OF_LOCTYPE
      )
      raise errors.InputError(f"{where}: {unknown}")
  try:
    return _build(get, loctypes)
  except errors.InputError as e:
    raise errors.InputError(f"{where}: {e}") from e


def _build(get: Callable[[str], Any], loctypes: list[str]):
  """Returns the two configs of fields that are each well-formed."""
  model = config_lib.ModelConfig(
    n_layer=get("n_layer"),
    d_model=get("d_model"),
    d_head=get("d_model") // get("n_head"),
    d_mlp=get("d_mlp") or get("n_mlp") or 4 * get("d_model"),
    vocab_size=get("vocab_size"),
    context_length=get("block_size"),
    positions=_positions(get),
    d_position=get("d_pos_emb") or config_lib.ModelConfig().d_position,
    norm="rms" if get("rms_norm") else "layer",
    norm_bias=get("ln_bias"),
    activation=get("activation_type"),
    bias=get("bias"),
    tied=get("tied_unembed"),
    sink=get("sink"),
    bigram=_bigram(get),
    residual_activation=get("residual_activation_type"),
  )
  is_sparse = get("afrac") is not None
  active = {_SITE_OF_LOCTYPE[x] for x in loctypes} if is_sparse else set()
  sparsity = config_lib.SparsityConfig(
    density=1.0,
    activation_fraction=float(get("afrac")) if is_sparse else 1.0,
    activation_sites=tuple(name for name in sites.SITES if name in active),
  )
  config_lib.check_activations(model, sparsity)
  return model, sparsity


def _positions(get: Callable[[str], Any]) -> str:
  if get("d_pos_emb") is None:
    return "learned"
  return "sinusoidal" if get("sinusoidal_cat_pos_emb") else "concatenated"


def _bigram(get: Callable[[str], Any]) -> str:
  if not get("enable_bigram_table"):
    return "none"
  return "learned" if get("learnable_bigram_table") else "fixed"


def _is_of(value, kind) -> bool:
  if kind is _ANY:
    return True
  if isinstance(value, bool):
    return kind is bool
  if isinstance(value, int) and kind == float | None:
    return True
  return isinstance(value, kind)


def _type_name(kind) -> str:
  names = {
    int: "a whole number",
    int | None: "a whole number or null",
    float | None: "a number or null",
    bool: "true or false",
    str: "a string",
  }
  return names[kind]


def config_fields(
  model: transformer.Model, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the contents of a `beeg_config.json` for a model.

  Args:
    model: the model.
    kept: fields of the file it came from; those that do not describe the model
      are taken over, unknown ones included.
  """
  c, sparsity = model.config, model.sparsity
  active = [
    site.top_k
    for site in sites.SITES.values()
    if site.name in sparsity.activation_sites
  ]
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
    "afrac_loctypes": (
      ",".join(active) if active else _DEFAULTS["afrac_loctypes"]
    ),
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
  """Returns the released name of a parameter.

  Args:
    path: its path, such as `layers/attn/c_attn/kernel`.
    layer: the layer, for a path below `layers`.
  """
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
  its place, so memory peaks little above the model's size.

  Args:
    directory: holds `beeg_config.json` and the weights.

  Raises:
    InputError: if a file is missing, damaged or refused; if a tensor is
      missing, not of this model, or has another shape, type or non-finite
      values. It names the file and the field or tensor.
  """
  directory = pathlib.Path(directory)
  model = transformer.Model(*read_config(directory))
  tensors = _Tensors.open(directory)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  tensors.check_names(model.config, shapes)
  total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  with tqdm.tqdm(
    desc=f"load {directory.name}", total=total, unit_scale=True, delay=2,
    leave=False,
  ) as bar:  # fmt: skip

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
  """A file of named tensors; each is taken once.

  Attributes:
    path: the file, for errors.
    names: tensors in it.
    take: returns a tensor, giving up what was held of it.
  """

  path: pathlib.Path
  names: frozenset[str]
  take: Callable[[str], np.ndarray]

  @classmethod
  def open(cls, directory: pathlib.Path) -> "_Tensors":
    """Opens a directory's weights."""
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
    """Returns a tensor, checked."""
    try:
      value = self.take(name)
    except (safetensors.SafetensorError, TypeError) as e:
      raise errors.InputError(
        f"{self.path}: tensor {name!r}: {e}; need {' or '.join(_DTYPES)}"
      ) from e
    if str(value.dtype) not in _DTYPES:
      raise errors.InputError(
        f"{self.path}: tensor {name!r} has type {value.dtype}; need"
        f" {' or '.join(_DTYPES)}"
      )
    if value.shape != shape:
      raise errors.InputError(
        f"{self.path}: tensor {name!r} has shape {value.shape}; need {shape}"
      )
    if not np.isfinite(value).all():
      raise errors.InputError(
        f"{self.path}: tensor {name!r} holds NaN or infinity; need finite"
        " numbers"
      )
    return value


def _read_parameter(
  tensors: _Tensors, path: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns a parameter, float32, from its tensors."""
  out = _aligned_empty(shape)
  stacked = path.startswith("layers/")
  names = _tensor_names(path, shape[0])
  for row, name in zip(out if stacked else [out], names, strict=True):
    if name == tensor_name(sites.LOGIT_BIAS, None) and name not in (
      tensors.names
    ):
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

  Every key that the authors' `GPT` of the same config has is there, float32: a
  tied unembedding twice, and a position table of zeros in a model that has no
  positions.
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
  `load_model` gives the same logits. An earlier export is replaced when the new
  one is whole.

  Args:
    directory: new, empty or an earlier export.
    model: the model.
    params: its parameters.
    tokenizer: written beside them as `tokenizer.json`, if given.
    kept: fields of the `beeg_config.json` that the model came from
      (`read_fields`); see `config_fields`.

  Raises:
    InputError: if the directory holds something else or cannot be written.
  """
  with files.replace_directory(directory, SAFETENSORS_WEIGHTS) as new:
    try:
      safetensors.numpy.save_file(
        state_dict(model, params),
        new / SAFETENSORS_WEIGHTS,
        metadata={"format": "pt"},
      )
    except safetensors.SafetensorError as e:
      raise errors.InputError(
        f"cannot write {directory}: {e}; need a writable directory with free"
        " space"
      ) from e
    (new / SAFETENSORS_WEIGHTS).chmod(0o644)
    files.write_json(new / CONFIG, config_fields(model, kept))
    if tokenizer is not None:
      tokenizer.save(new / "tokenizer.json")
