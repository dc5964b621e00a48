"""Checkpoints of a training run."""

import contextlib
import copy
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from sparse_jax import sites
from sparse_jax.utils import errors, files, orbax_errors

_SUMS, _BESIDE = "sums", "beside"


class _DamagedError(Exception):
  """Why a checkpoint cannot be used."""


class TrainingCheckpoints:
  """The checkpoints of a run, newest last; each is whole or absent.

  The newest two are kept, and with `keep_every` also those of its multiples.
  Each has its arrays' checksums with it. All methods but `save` wait for what
  `save` has begun.
  """

  def __init__(self, directory: files.PathLike, keep_every: int = 0):
    self._directory = pathlib.Path(directory).absolute()
    with files.disk_errors(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=2,
      keep_period=keep_every or None,
    )
    self._begun: int | None = None  # The step that is being written.
    self._silence = contextlib.ExitStack()
    self._silence.enter_context(orbax_errors.silence())
    # Or the library would ask the newest checkpoint, which may be damaged.
    self._manager = ocp.CheckpointManager(
      self._directory,
      item_handlers=ocp.StandardCheckpointHandler(),
      options=options,
    )

  def save(self, step: int, state, beside: Any = None) -> None:
    """Begins to write the state after `step` steps, unless it is there already.

    Returns when state and `beside` are copied: both may change. `beside` is
    JSON that `beside(step)` returns. Raises InputError if this checkpoint, or
    the one begun before it, cannot be written.
    """
    self.wait()
    if step == self._manager.latest_step():
      return
    metadata = {_SUMS: checksums(state), _BESIDE: copy.deepcopy(beside)}
    with self._writing(step):
      self._manager.save(
        step, args=ocp.args.StandardSave(state), custom_metadata=metadata
      )
    self._begun = step

  def wait(self) -> None:
    """Returns when all that was begun is whole; raises as `save` does."""
    begun, self._begun = self._begun, None
    if begun is not None:
      with self._writing(begun):
        self._manager.wait_until_finished()

  def _writing(self, step: int):
    return orbax_errors.writing(f"checkpoint {step} in {self._directory}")

  def latest_step(self) -> int | None:
    """Returns the newest step, None without a checkpoint."""
    self.wait()
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Returns all steps, ascending."""
    self.wait()
    return list(self._manager.all_steps())

  def close(self) -> None:
    """Ends the threads that write; raises as `save` does."""
    with self._silence:
      try:
        self.wait()
      finally:
        self._manager.close()

  def beside(self, step: int) -> Any:
    """Returns what was saved beside a state, None if nothing was."""
    self.wait()
    return (self._manager.metadata(step).custom_metadata or {}).get(_BESIDE)

  def restore(self, state, step: int):
    """Returns a step's state in the shapes and the shardings of `state`.

    Raises InputError if it is damaged.
    """
    try:
      return self._restore(state, step)
    except _DamagedError as e:
      raise self._refused(step, e) from e

  def restore_newest(self, state) -> tuple[int, Any]:
    """Returns the newest step whose checkpoint is whole, and its state.

    What is damaged before it is moved to `damaged` beside the checkpoints, and
    a warning says so; (0, None) without any checkpoint. Raises InputError if
    none is whole.
    """
    reasons: dict[int, _DamagedError] = {}
    steps = sorted(self.steps(), reverse=True)
    for step in steps:
      try:
        restored = self._restore(state, step)
      except _DamagedError as e:
        reasons[step] = e
        continue
      for damaged, reason in reasons.items():
        self._set_aside(damaged, reason, step)
      if reasons:
        _await_others("damaged checkpoints are set aside")
        self._manager.reload()
      return step, restored
    if reasons:
      raise self._refused(steps[0], reasons[steps[0]])
    return 0, None

  def _restore(self, state, step: int):
    self.wait()
    try:
      args = ocp.args.StandardRestore(state)
      restored = self._manager.restore(step, args=args)
      metadata = self._manager.metadata(step).custom_metadata or {}
    except Exception as e:
      raise _DamagedError(type(e).__name__) from e
    # A library's checksums cover what it needs to find the arrays.
    saved = metadata.get(_SUMS)
    found = checksums(restored) if saved else {}
    for name, value in found.items():
      if saved.get(name) != value:
        raise _DamagedError(f"{name} has changed")
    return restored

  def _refused(self, step: int, reason: _DamagedError) -> errors.InputError:
    return errors.InputError(
      f"{self._directory / str(step)} is damaged or not a checkpoint of this"
      f" run ({reason}), and no earlier one is whole; remove"
      f" {self._directory} to start over, or choose another --workdir"
    )

  def _set_aside(self, step: int, reason: _DamagedError, used: int) -> None:
    aside = self._directory.parent / "damaged" / str(step)
    logging.warning(
      "checkpoint %s in %s is damaged (%s): going on from step %s; %s has what"
      " is left of it",
      *(step, self._directory, reason, used, aside),
    )
    if jax.process_index() == 0:
      with files.disk_errors(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        (self._directory / str(step)).rename(aside)


def _await_others(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def checksums(tree) -> Mapping[str, int]:
  """Returns a number for the bits of every array of a tree, by path.

  Any change of one entry changes it. It is a sum of integers, so that it is the
  same on every mesh, and no array is gathered for it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(_sums(tree))
  return {sites.path_name(path): int(leaf) for path, leaf in leaves}


@jax.jit
def _sums(tree):
  def leaf(x):
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    # Odd factors: times one of them, no difference of 32 bits becomes zero.
    factor = jnp.full(x.shape, 1, jnp.uint32)
    for axis in range(x.ndim):
      place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      factor += 2 * math.prod(x.shape[axis + 1 :]) * place
    return jnp.sum(bits.astype(jnp.uint32) * factor, dtype=jnp.uint32)

  return jax.tree.map(leaf, tree)
