"""Checkpoints of a training run."""

import pathlib

import orbax.checkpoint as ocp

from sparse_jax.utils import errors, files, orbax_errors


class TrainingCheckpoints:
  """The checkpoints of a run, newest last; each is whole or absent.

  The newest two are kept, and with `keep_every` also those of its multiples.
  """

  def __init__(self, directory: files.PathLike, keep_every: int = 0):
    self._directory = pathlib.Path(directory).absolute()
    with files.disk_errors(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=2,
      keep_period=keep_every or None,
      enable_async_checkpointing=False,
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)
    self.latest_step = self._manager.latest_step  # None without a checkpoint.
    self.steps = self._manager.all_steps  # Ascending.
    self.close = self._manager.close

  def save(self, step: int, state) -> None:
    """Writes the state after `step` steps, unless it is there already."""
    if step == self.latest_step():
      return
    with orbax_errors.writing(f"checkpoint {step} in {self._directory}"):
      self._manager.save(step, args=ocp.args.StandardSave(state))
      self._manager.wait_until_finished()

  def restore(self, state, step: int | None = None):
    """Returns a step's state, or the newest, in the shapes of `state`.

    The shardings are those of `state`, too.
    """
    step = self.latest_step() if step is None else step
    try:
      with orbax_errors.silence():
        return self._manager.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as e:
      raise errors.InputError(
        f"{self._directory / str(step)} is damaged or not a checkpoint of"
        f" this run ({type(e).__name__}); remove it to resume from an"
        " earlier one, or choose another --workdir"
      ) from e
