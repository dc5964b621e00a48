"""Model directories: configuration, weights, tokenizer, mean activations.

Weights are an Orbax checkpoint, or compact (`model/compact.py`). "reference" in
place of a directory is the shipped model.
"""

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sparse_jax import config as config_lib
from sparse_jax import reference, sites
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.huggingface import models as huggingface_models
from sparse_jax.model import compact, sharding, transformer
from sparse_jax.model.fingerprint import fingerprint
from sparse_jax.released import models as released_models
from sparse_jax.tasks import means as tasks_means
from sparse_jax.utils import arrays as arrays_lib
from sparse_jax.utils import errors, files, orbax_errors

_FORMAT = "sparse_jax model 1"
_MEANS = "means.npz"
_MADE_FROM = "made_from"  # Which model and text, in means that were measured.


def save_model(
  directory: files.PathLike,
  model: transformer.Model,
  params: transformer.Params,
  tokenizer: tokenizer_lib.Tokenizer,
  run: config_lib.Config | None = None,
  means: Mapping[str, np.ndarray] | None = None,
  is_compact: bool = False,
) -> None:
  """Writes a model directory: config.json, tokenizer.json, checkpoint/.

  A complete new directory replaces an empty one or an earlier model's. `run`,
  the configuration that trained it, is kept for later commands, and `means`,
  the nodes' pretraining means per site `[layers, width]`, for pruning. A
  compact one holds weights.npz in place of checkpoint/, and raises InputError
  for parameters that `compact.rounded` would change.
  """
  with files.replace_directory(directory, "config.json") as new:
    # Orbax would expect every process to write its share of JAX arrays.
    arrays = jax.tree.map(np.asarray, params)
    if is_compact:
      compact.save(new / compact.WEIGHTS, arrays)
    else:
      _save_checkpoint(str(directory), new.absolute() / "checkpoint", arrays)
    tokenizer.save(new / "tokenizer.json")
    if means is not None:
      np.savez(new / _MEANS, **means)
    described = {
      "format": _FORMAT,
      "model": config_lib.to_dict(model.config),
      "sparsity": config_lib.to_dict(model.sparsity),
      "fingerprint": fingerprint(model, params),
      "run": config_lib.to_dict(run) if run else None,
    }
    files.write_json(new / "config.json", described)


def load_model(
  directory: files.PathLike, model_parallel: int = 1
) -> tuple[transformer.Model, transformer.Params]:
  """Returns (model, params) of a model directory.

  It is ours, a released one, or a Hugging Face one of a family that
  `huggingface.models` knows. "reference" is the shipped model. With
  `model_parallel` above 1 the parameters are as `sharding.spread` puts them;
  those of our checkpoints are on no device whole, others are on the way.

  Raises InputError if it or its checkpoint is missing, truncated or of another
  model.
  """
  directory = reference.model_directory(directory)
  _check_is_model(directory)
  if released_models.is_released(directory):
    model, params = released_models.load_model(directory)
    return model, _split(params, model_parallel)
  if huggingface_models.is_huggingface(directory):
    model, params = huggingface_models.load_model(directory)
    return model, _split(params, model_parallel)
  described = _read_config(directory)
  read = config_lib.from_dict
  model = transformer.Model(
    read(config_lib.ModelConfig, described["model"], "model."),
    read(config_lib.SparsityConfig, described["sparsity"], "sparsity."),
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  if (directory / compact.WEIGHTS).is_file():
    params = jax.device_put(compact.load(directory / compact.WEIGHTS, shapes))
    params = _split(params, model_parallel)
  else:
    params = _restore(directory / "checkpoint", shapes, model_parallel)
  found, need = fingerprint(model, params), described["fingerprint"]
  if found != need:
    raise errors.InputError(
      f"{directory}: the checkpoint's fingerprint is {found}; config.json"
      f" needs {need}"
    )
  return model, params


def _split(params, model_parallel: int):
  return (
    sharding.spread(params, model_parallel) if model_parallel > 1 else params
  )


def is_foreign(directory: files.PathLike) -> bool:
  """Returns whether a model directory is of another project's format."""
  directory = reference.model_directory(directory)
  return any(
    is_theirs(directory)
    for is_theirs in (
      released_models.is_released,
      huggingface_models.is_huggingface,
    )
  )


def load_means(directory: files.PathLike) -> dict[str, np.ndarray]:
  """Returns the pretraining means of a model directory, by site."""
  return arrays_lib.read_npz(
    reference.model_directory(directory) / _MEANS,
    "the nodes' means over the pretraining distribution, as training writes"
    " them",
  )


def find_means(
  directory: files.PathLike,
  model: transformer.Model,
  params: transformer.Params,
  kept: files.PathLike,
  config: config_lib.Config | None = None,
) -> Mapping[str, np.ndarray]:
  """Returns a model directory's means, measured if a foreign one has none.

  That takes minutes, on the text of `config.data`; a file `kept` has them for
  the next time. Without a config those of any text are taken from there, and
  what has to be measured is not kept. Raises InputError for a directory of ours
  without means, since its training text is not to be guessed.
  """
  stored = reference.model_directory(directory) / _MEANS
  if stored.exists() or not is_foreign(directory):
    return load_means(directory)
  made_from = {"model_fingerprint": fingerprint(model, params)}
  if config is not None:
    made_from["data"] = config_lib.to_dict(config.data)
    made_from["windows"] = config.prune.mean_batches * config.train.batch_size
  if (means := _kept_means(kept, made_from)) is not None:
    return means
  tokenizer = load_tokenizer(directory)
  measured = tasks_means.measured_means(
    model, params, tokenizer, config or config_lib.Config()
  )
  means = jax.device_get(measured)
  if config is not None:
    buffer = io.BytesIO()
    np.savez(buffer, **means, **{_MADE_FROM: json.dumps(made_from)})
    files.write_bytes(kept, buffer.getvalue())
  return means


def _kept_means(path: files.PathLike, made_from: Mapping[str, Any]):
  """Returns the means kept in a file if it says that they are these."""
  try:
    arrays = arrays_lib.read_npz(path, "means of an earlier search")
    theirs = json.loads(str(arrays.pop(_MADE_FROM)))
    is_same = all(theirs[name] == value for name, value in made_from.items())
    return arrays if is_same else None
  except (KeyError, TypeError, ValueError):  # InputError is a ValueError.
    return None


def has_tokenizer(directory: files.PathLike) -> bool:
  """Returns whether a model directory holds a tokenizer."""
  names = ("tokenizer.json", tokenizer_lib.RELEASED_FILES[0])
  root = reference.model_directory(directory)
  return any((root / name).is_file() for name in names)


def load_tokenizer(directory: files.PathLike) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer of a model directory of any kind."""
  directory = reference.model_directory(directory)
  _check_is_model(directory)
  path = directory / "tokenizer.json"
  if released_models.is_released(directory) and not path.is_file():
    return tokenizer_lib.Tokenizer.load_released(directory)
  if huggingface_models.is_huggingface(directory):
    _, config = huggingface_models.read_config(directory)
    return tokenizer_lib.Tokenizer.load(path, config.vocab_size)
  return tokenizer_lib.Tokenizer.load(path)


def load_run(directory: files.PathLike) -> config_lib.Config | None:
  """Returns the configuration that trained a model, if it is known."""
  directory = reference.model_directory(directory)
  if is_foreign(directory):
    return None
  run = _read_config(directory).get("run")
  return config_lib.from_config_dict(run) if run else None


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / "config.json"
  described = files.read_json(path, "the config.json of a model directory")
  found = described.get("format") if isinstance(described, dict) else None
  if found != _FORMAT:
    families = ", ".join(huggingface_models.FAMILIES)
    raise errors.InputError(
      f"{path}: format={found!r}; need {_FORMAT!r}, or a Hugging Face config of"
      f" model_type {families}"
    )
  for name in ("model", "sparsity", "fingerprint"):
    if name not in described:
      raise errors.InputError(
        f"{path} has no {name!r}; need what save_model wrote"
      )
  return described


def _check_is_model(directory: pathlib.Path) -> None:
  """Raises InputError for what is easily taken for a model directory."""
  inside = directory / "model"
  found = None
  if directory.is_file():
    found = "is a file; need a model directory"
  elif (directory / "circuit.json").is_file():
    found = "holds a circuit, which Circuit.load reads; need a model directory"
  elif (inside / "config.json").is_file():
    found = f"is no model directory; did you mean {inside}?"
  if found:
    raise errors.InputError(f"{directory} {found}")


def _save_checkpoint(shown: str, path: pathlib.Path, arrays) -> None:
  with orbax_errors.writing(shown), _checkpointer() as checkpointer:
    checkpointer.save(path, arrays)


def _checkpointer() -> ocp.StandardCheckpointer:
  """Returns a checkpointer that waits for no other process."""
  if jax.process_count() == 1:
    return ocp.StandardCheckpointer()
  index = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=f"process_{index}",
  )
  return ocp.StandardCheckpointer(multiprocessing_options=options)


def _restore(path: pathlib.Path, shapes, model_parallel: int = 1) -> Any:
  """Returns the tree saved at `path`, which must have these shapes."""
  if not path.is_dir():
    raise errors.InputError(f"{path} is missing; need a checkpoint directory")
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  where = jax.tree.map(lambda _: device, shapes)
  if model_parallel > 1:
    where = sharding.local_shardings(shapes, model_parallel)
  target = jax.tree.map(lambda s, to: s.update(sharding=to), shapes, where)
  shape_of = lambda tree: {
    sites.path_name(p): tuple(leaf.shape)
    for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  try:
    with orbax_errors.silence(), _checkpointer() as checkpointer:
      saved = checkpointer.metadata(path.absolute()).item_metadata.tree
      found, want = shape_of(saved), shape_of(shapes)
      for name in sorted(found.keys() | want.keys()):
        if found.get(name) != want.get(name):
          raise errors.InputError(
            f"{path}: parameter {name} has shape {found.get(name)}; need"
            f" {want.get(name)}"
          )
      return checkpointer.restore(path.absolute(), target)
  except errors.InputError:
    raise
  except Exception as e:
    raise errors.InputError(
      f"{path} is damaged or not a checkpoint of this model"
      f" ({type(e).__name__}); need the directory that save_model wrote"
    ) from e
