"""Checkpoints of a training run."""

import pathlib

import orbax.checkpoint as ocp

from sparse_jax.utils import errors, files, orbax_errors


class TrainingCheckpoints:
  """The checkpoints of a run, newest last; each is whole or absent."""

  def __init__(self, directory: files.PathLike, keep: int = 2):
    self._directory = pathlib.Path(directory).absolute()
    with files.disk_errors(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, enable_async_checkpointing=False
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)
    self.latest_step = self._manager.latest_step  # None without a checkpoint.
    self.close = self._manager.close

  def save(self, step: int, state) -> None:
    """Writes the state after `step` steps, unless it is there already."""
    if step == self.latest_step():
      return
    with orbax_errors.writing(f"checkpoint {step} in {self._directory}"):
      self._manager.save(step, args=ocp.args.StandardSave(state))
      self._manager.wait_until_finished()

  def restore(self, state):
    """Returns the newest state, in the shapes and shardings of `state`."""
    step = self.latest_step()
    try:
      with orbax_errors.silence():
        return self._manager.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as e:
      raise errors.InputError(
        f"{self._directory / str(step)} is damaged or not a checkpoint of"
        f" this run ({type(e).__name__}); remove it to resume from an"
        " earlier one, or choose another --workdir"
      ) from e
