"""The released models' directories: read, and written for other code.

A released directory holds `beeg_config.json` (the fields of the authors'
`GPTConfig`) and `final_model.pt` (a PyTorch state dict), or
`model.safetensors` with the same names. Layers become one stacked array a
parameter, PyTorch's `[out, in]` becomes `[in, out]`. Source of names, defaults
and meanings: `inference/gpt.py` of openai/circuit_sparsity.
"""

import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from sparse_jax.utils import errors, files, host

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
# Fields that are ModelConfig's under another name.
_SAME: Mapping[str, str] = {
  "block_size": "context_length",
  "vocab_size": "vocab_size",
  "n_layer": "n_layer",
  "d_model": "d_model",
  "bias": "bias",
  "ln_bias": "norm_bias",
  "residual_activation_type": "residual_activation",
  "activation_type": "activation",
  "tied_unembed": "tied",
  "sink": "sink",
}
_TYPE_NAMES = {
  int: "a whole number",
  int | None: "a whole number or null",
  float | None: "a number or null",
  bool: "true or false",
  str: "a string",
}
_LOCTYPES = [s.top_k for s in sites.SITES.values() if s.top_k]
_DTYPES = ("float32", "float16", "bfloat16")
_ACTIVATIONS = ("gelu", "relu")
_SMALL_BYTES = 1 << 26  # Of a model that may be allocated without a look.


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
    if kind not in (int, int | None) or value is None:
      continue
    if not 1 <= value <= config_lib.MOST_SIZE:
      refuse(name, "a whole number from 1 to 2^31 - 1")

  f = types.SimpleNamespace(**{n: d for n, (_, d) in _FIELDS.items()} | fields)
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
  if f.activation_type not in _ACTIVATIONS:
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
    d_head=f.d_model // f.n_head,
    d_mlp=f.d_mlp or f.n_mlp or 4 * f.d_model,
    positions=positions,
    d_position=f.d_pos_emb or config_lib.ModelConfig().d_position,
    norm="rms" if f.rms_norm else "layer",
    bigram=bigram if f.enable_bigram_table else "none",
    **{ours: getattr(f, theirs) for theirs, ours in _SAME.items()},
  )
  loctypes = [*filter(None, map(str.strip, f.afrac_loctypes.split(",")))]
  for loctype in loctypes:
    if loctype not in _LOCTYPES:
      kind = "location in afrac_loctypes"
      raise errors.unknown_name(kind, loctype, _LOCTYPES)
  is_sparse = f.afrac is not None
  sparsity = config_lib.SparsityConfig(
    density=1.0,
    activation_fraction=float(f.afrac) if is_sparse else 1.0,
    activation_sites=tuple(
      site.name
      for site in sites.SITES.values()
      if is_sparse and site.top_k in loctypes
    ),
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
    **{theirs: getattr(c, ours) for theirs, ours in _SAME.items()},
    "block_size": c.context_length or 1024,
    "n_head": c.n_head,
    "d_head": c.d_head,
    "d_mlp": c.d_mlp,
    "rms_norm": c.norm == "rms",
    "afrac": sparsity.activation_fraction if is_sparse else None,
    "afrac_loctypes": ",".join(active) or _FIELDS["afrac_loctypes"][1],
    "enable_bigram_table": c.bigram != "none",
    "learnable_bigram_table": c.bigram == "learned",
    "d_pos_emb": c.d_position if c.concatenates_positions else None,
    "sinusoidal_cat_pos_emb": c.positions == "sinusoidal",
  }


def _check_format(config: config_lib.ModelConfig) -> None:
  """Raises InputError for a model that the released code cannot compute."""
  for name in config.set_options:
    if name != "norm_eps" or config.norm == "layer":
      found, need = getattr(config, name), config_lib.OPTIONS[name]
      need = f"{need!r}: the released format has no such option"
      raise errors.bad_value(f"model.{name}", found, need)
  if config.positions == "rotary":
    need = "no rotary positions: the released format has none"
    raise errors.bad_value("model.positions", config.positions, need)
  if config.activation not in _ACTIVATIONS:
    need = f"{' or '.join(_ACTIVATIONS)}, which the released format has"
    raise errors.bad_value("model.activation", config.activation, need)


_WTE = "transformer.wte.weight"
_WPE = "transformer.wpe.weight"
_LM_HEAD = "lm_head.weight"
_LOGIT_BIAS = "final_logits_bias"
_OUTSIDE = {
  sites.UNEMBED: _LM_HEAD,
  sites.LOGIT_BIAS: _LOGIT_BIAS,
  sites.BIGRAM: sites.BIGRAM,
}
_LEAVES = {"bias": "bias", "sink": "attn_imp.sink_logit"}  # Others: "weight".


def _tensor_name(path: str, layer: int) -> str:
  """Returns the released name of a parameter like `layers/mlp/c_fc/kernel`."""
  if path in _OUTSIDE:
    return _OUTSIDE[path]
  first, *modules, leaf = path.split("/")
  first = f"h.{layer}" if first == "layers" else first
  leaf = _LEAVES.get(leaf, "weight")
  return ".".join(["transformer", first, *modules, leaf])


def _views(params: transformer.Params) -> dict[str, np.ndarray]:
  """Returns views of the parameters, by name and as laid out in a file."""
  views = {}
  for key_path, value in jax.tree_util.tree_leaves_with_path(params):
    path = sites.path_name(key_path)
    rows = value if path.startswith("layers/") else [value]
    for layer, row in enumerate(rows):
      # A kernel is `[in, out]` here and `[out, in]` there.
      row = row.T if path.endswith("/kernel") else row
      views[_tensor_name(path, layer)] = row
  return views


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
  weights = _open_weights(directory)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  _check_size(weights.path, transformer.num_parameters(shapes))
  params = jax.tree.map(lambda s: host.aligned_empty(s.shape), shapes)
  views = _views(params)
  _check_names(weights, set(views), model.config)
  total = transformer.num_parameters(shapes)
  how = {"unit_scale": True, "delay": 2, "leave": False}
  with tqdm.tqdm(desc=f"load {directory.name}", total=total, **how) as bar:
    for name, view in views.items():
      is_absent = name == _LOGIT_BIAS and name not in weights.names
      view[...] = 0 if is_absent else weights.read(name, view.shape)
      bar.update(view.size)
  if model.config.tied and _LM_HEAD in weights.names:
    head_VxD = weights.read(_LM_HEAD, views[_WTE].shape)
    if not np.array_equal(head_VxD.astype(np.float32), views[_WTE]):
      raise errors.InputError(
        f"{weights.path}: tensor {_LM_HEAD!r} differs from {_WTE!r}; need equal"
        " ones, or tied_unembed=false"
      )
  return model, jax.device_put(params, jax.local_devices()[0])


def _check_size(path: pathlib.Path, count: int) -> None:
  """Checks that a file is no fraction of the model that it is to fill."""
  size = path.stat().st_size
  if 4 * count > max(8 * size, _SMALL_BYTES):
    raise errors.InputError(
      f"{path} has {size} bytes; need those of the {count} parameters that"
      f" {CONFIG} describes"
    )


class _Weights(NamedTuple):
  """A file of named tensors; `take` gives up what was held of one."""

  path: pathlib.Path
  names: frozenset[str]
  take: Callable[[str], np.ndarray]

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor, checked."""
    need = " or ".join(_DTYPES)
    try:
      value = self.take(name)
      if str(value.dtype) not in _DTYPES:
        found = f"has type {value.dtype}"
      elif value.shape != shape:
        found, need = f"has shape {value.shape}", shape
      elif not np.isfinite(value).all():
        found, need = "holds NaN or infinity", "finite numbers"
      else:
        return value
    except (safetensors.SafetensorError, TypeError) as e:
      found = f"cannot be read: {e}"
    raise errors.InputError(
      f"{self.path}: tensor {name!r} {found}; need {need}"
    )


def _open_weights(directory: pathlib.Path) -> _Weights:
  path = directory / PYTORCH_WEIGHTS
  if path.is_file():
    state = torch_file.load_state_dict(path)
    return _Weights(path, frozenset(state), state.pop)
  path = directory / SAFETENSORS_WEIGHTS
  if not path.is_file():
    raise errors.InputError(
      f"{directory} holds neither {PYTORCH_WEIGHTS} nor"
      f" {SAFETENSORS_WEIGHTS}; need one of them beside {CONFIG}"
    )
  try:
    opened = safetensors.safe_open(path, framework="numpy")
    return _Weights(path, frozenset(opened.keys()), opened.get_tensor)
  except (safetensors.SafetensorError, OSError) as e:
    raise errors.InputError(
      f"{path}: {e}; need a whole safetensors file"
    ) from e


def _check_names(
  weights: _Weights, want: set[str], config: config_lib.ModelConfig
) -> None:
  """Checks that the file has this model's tensors and no others."""
  # Buffers of the released code: a constant, and its slow attention's mask.
  masks = {f"transformer.h.{i}.attn.bias" for i in range(config.n_layer)}
  optional = masks | {_LOGIT_BIAS} | ({_LM_HEAD} if config.tied else set())
  if missing := sorted(want - weights.names - optional):
    raise errors.InputError(
      f"{weights.path}: tensor {missing[0]!r} is missing ({len(missing)} in"
      f" all); need every tensor of the model that {CONFIG} describes"
    )
  if extra := sorted(weights.names - want - optional):
    raise errors.InputError(
      f"{weights.path}: tensor {extra[0]!r} ({len(extra)} in all) is not of the"
      f" model that {CONFIG} describes; need its tensors only"
    )


def state_dict(
  model: transformer.Model, params: transformer.Params
) -> dict[str, np.ndarray]:
  """Returns a model's tensors as the released code names and lays them out.

  All keys of the authors' `GPT` of the same config, float32: a tied unembedding
  twice, and a position table of zeros in a model that has no positions.
  """
  views = _views(jax.tree.map(lambda p: np.asarray(p, np.float32), params))
  tensors = {n: np.ascontiguousarray(view) for n, view in views.items()}
  if model.config.tied:
    tensors[_LM_HEAD] = tensors[_WTE]
  if model.config.positions == "none":
    shape = config_fields(model)["block_size"], model.config.d_model
    tensors[_WPE] = np.zeros(shape, np.float32)
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
  `tokenizer.json`; `kept` is as in `config_fields`. Raises InputError for a
  model with options that the format does not have.
  """
  _check_format(model.config)
  with files.replace_directory(directory, SAFETENSORS_WEIGHTS) as new:
    path = new / SAFETENSORS_WEIGHTS
    tensors = state_dict(model, params)
    try:
      safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:
      raise files.cannot_write(directory, str(e)) from e
    path.chmod(0o644)
    files.write_json(new / CONFIG, config_fields(model, kept))
    if tokenizer is not None:
      tokenizer.save(new / "tokenizer.json")
