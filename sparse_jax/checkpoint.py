"""Save and restore: model directories, training states, fingerprints."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from sparse_jax import config as config_lib
from sparse_jax import errors, files, released, rules
from sparse_jax import model as model_lib
from sparse_jax.data import tokenizer as tokenizer_lib

_FORMAT = "sparse_jax model 1"
_MEANS = "means.npz"


def fingerprint(model: model_lib.Model, params: model_lib.Params) -> str:
  """Returns a hash of the shape, the activation sparsity and all weights."""
  digest = hashlib.sha256()
  behaviour = {
    "model": config_lib.to_dict(model.config),
    "activation_fraction": model.sparsity.activation_fraction,
    "activation_sites": list(model.sparsity.activation_sites),
  }
  digest.update(json.dumps(behaviour, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(rules.path_name(path).encode())
    digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
  return "sha256:" + digest.hexdigest()


def save_model(
  directory: files.PathLike,
  model: model_lib.Model,
  params: model_lib.Params,
  tokenizer: tokenizer_lib.Tokenizer,
  run: config_lib.Config | None = None,
  means: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Writes a model directory: config.json, tokenizer.json, checkpoint/.

  A model directory that stood there is replaced when the new one is whole.

  Args:
    directory: where.
    model: the model.
    params: its parameters.
    tokenizer: its tokenizer.
    run: the configuration that trained it, kept for later commands.
    means: every node's mean over the pretraining distribution, per site
      `[layers, width]`: what pruning ablates with; written to means.npz.

  Raises:
    InputError: if the directory holds something else, or cannot be written.
  """
  with files.replace_directory(directory, "config.json") as new:
    # Arrays of one host: as JAX arrays they would have to be everybody's.
    arrays = jax.tree.map(np.asarray, params)
    try:
      with _silence(), _checkpointer() as checkpointer:
        checkpointer.save(new.absolute() / "checkpoint", arrays)
    except ValueError as e:  # TensorStore's, where others raise OSError.
      raise errors.InputError(
        f"cannot write {directory}: {_reason(e)}; need a writable directory"
        " with free space"
      ) from e
    tokenizer.save(new / "tokenizer.json")
    if means is not None:
      np.savez(new / _MEANS, **{n: np.asarray(m) for n, m in means.items()})
    files.write_json(
      new / "config.json",
      {
        "format": _FORMAT,
        "model": config_lib.to_dict(model.config),
        "sparsity": config_lib.to_dict(model.sparsity),
        "fingerprint": fingerprint(model, params),
        "run": config_lib.to_dict(run) if run else None,
      },
    )


def load_model(
  directory: files.PathLike,
) -> tuple[model_lib.Model, model_lib.Params]:
  """Returns (model, params) of a model directory, ours or a released one.

  Raises:
    InputError: if the directory or its checkpoint is missing, truncated or of
      another model; see also `released.load_model`.
  """
  directory = pathlib.Path(directory)
  if released.is_released(directory):
    return released.load_model(directory)
  described = _read_config(directory)
  model = model_lib.Model(
    config_lib.from_dict(config_lib.ModelConfig, described["model"], "model."),
    config_lib.from_dict(
      config_lib.SparsityConfig, described["sparsity"], "sparsity."
    ),
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = _restore(directory / "checkpoint", shapes)
  found = fingerprint(model, params)
  if found != described.get("fingerprint"):
    raise errors.InputError(
      f"{directory}: the checkpoint's fingerprint is {found}; config.json"
      f" needs {described.get('fingerprint')}"
    )
  return model, params


def load_means(directory: files.PathLike) -> dict[str, np.ndarray]:
  """Returns the pretraining means of a model directory, by site.

  Raises:
    InputError: if the directory has none, or they are damaged.
  """
  path = pathlib.Path(directory) / _MEANS
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except Exception as e:
    raise errors.InputError(
      f"{path}: {type(e).__name__}; need the nodes' means over the pretraining"
      " distribution, as training writes them"
    ) from e


def has_tokenizer(directory: files.PathLike) -> bool:
  """Returns whether a model directory holds a tokenizer."""
  names = ("tokenizer.json", tokenizer_lib.RELEASED_FILES[0])
  return any((pathlib.Path(directory) / name).is_file() for name in names)


def load_tokenizer(directory: files.PathLike) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer of a model directory, ours or a released one.

  Raises:
    InputError: if its files are missing or damaged.
  """
  directory = pathlib.Path(directory)
  path = directory / "tokenizer.json"
  if released.is_released(directory) and not path.is_file():
    return tokenizer_lib.Tokenizer.load_released(directory)
  return tokenizer_lib.Tokenizer.load(path)


def load_run(directory: files.PathLike) -> config_lib.Config | None:
  """Returns the configuration that trained a model, if it is known."""
  if released.is_released(directory):
    return None
  run = _read_config(pathlib.Path(directory)).get("run")
  return config_lib.from_config_dict(run) if run else None


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / "config.json"
  described = files.read_json(path, "the config.json of a model directory")
  if not isinstance(described, dict) or described.get("format") != _FORMAT:
    found = described.get("format") if isinstance(described, dict) else None
    raise errors.InputError(f"{path}: format={found!r}; need {_FORMAT!r}")
  for name in ("model", "sparsity", "fingerprint"):
    if name not in described:
      raise errors.InputError(
        f"{path} has no {name!r}; need what save_model wrote"
      )
  return described


@contextlib.contextmanager
def _silence() -> Iterator[None]:
  """Keeps Orbax from logging tracebacks of errors that we report ourselves."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def _reason(error: Exception) -> str:
  """Returns why a write failed: the system's words if it was the system."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else str(error)


def _checkpointer() -> ocp.StandardCheckpointer:
  """Returns a checkpointer that waits for no other process."""
  if jax.process_count() == 1:
    return ocp.StandardCheckpointer()
  index = jax.process_index()
  return ocp.StandardCheckpointer(
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=index,
      active_processes={index},
      barrier_sync_key_prefix=f"process_{index}",
    )
  )


def _restore(path: pathlib.Path, shapes) -> Any:
  """Returns the tree saved at `path`, which must have these shapes."""
  if not path.is_dir():
    raise errors.InputError(f"{path} is missing; need a checkpoint directory")
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes
  )
  try:
    with _silence(), _checkpointer() as checkpointer:
      saved = checkpointer.metadata(path.absolute()).item_metadata.tree
      found = {
        rules.path_name(p): tuple(m.shape)
        for p, m in jax.tree_util.tree_leaves_with_path(saved)
      }
      want = {
        rules.path_name(p): tuple(s.shape)
        for p, s in jax.tree_util.tree_leaves_with_path(shapes)
      }
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


class TrainingCheckpoints:
  """The checkpoints of a run, newest last; each is whole or absent."""

  def __init__(self, directory: files.PathLike, keep: int = 2):
    self._directory = pathlib.Path(directory).absolute()
    with files.disk_errors(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
      ),
    )

  def latest_step(self) -> int | None:
    """Returns the number of steps behind the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state) -> None:
    """Writes the state after `step` steps, unless it is there already."""
    if step == self._manager.latest_step():
      return
    try:
      with _silence():
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()
    except (OSError, ValueError) as e:
      raise errors.InputError(
        f"cannot write checkpoint {step} in {self._directory}: {_reason(e)};"
        " need a writable directory with free space"
      ) from e

  def restore(self, state):
    """Returns the newest state, in the shapes and shardings of `state`.

    Raises:
      InputError: if it is damaged or of another model.
    """
    step = self.latest_step()
    try:
      with _silence():
        return self._manager.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as e:
      raise errors.InputError(
        f"{self._directory / str(step)} is damaged or not a checkpoint of"
        f" this run ({type(e).__name__}); remove it to resume from an"
        " earlier one, or choose another --workdir"
      ) from e

  def close(self) -> None:
    """Waits for writes and releases the directory."""
    self._manager.close()
