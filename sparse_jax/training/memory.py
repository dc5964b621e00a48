"""What a compiled step takes of a device's memory, known before it runs."""

import dataclasses
import math
from typing import Any

import jax

from sparse_jax.utils import errors


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes a device, from the compiled program's own plan.

  Attributes:
    params: the parameters' share of one device
    optimizer: the optimizer state's
    temporary: activations, gradients and what else lives within a step
    total: all that is held at once, a batch included
  """

  params: int
  optimizer: int
  temporary: int
  total: int

  @property
  def text(self) -> str:
    parts = ("parameters", self.params), ("optimizer state", self.optimizer)
    parts = (*parts, ("activations and gradients", self.temporary))
    shown = ", ".join(f"{amount(size)} of {name}" for name, size in parts)
    return f"memory a device: {shown}; {amount(self.total)} in all"

  def check_fits(self, free: int) -> None:
    """Raises InputError where `free` bytes a device are too few."""
    if self.total > free:
      raise errors.InputError(
        f"a training step takes {amount(self.total)} a device and"
        f" {amount(free)} are free; need a smaller train.batch_size or model,"
        " a larger train.accumulate, or more devices"
      )


def estimate(compiled: jax.stages.Compiled, params: Any, opt_state: Any):
  """Returns the `Estimate` of a step, None where the backend has no plan.

  The step takes and gives back parameters and optimizer state, whose leaves are
  shapes with shardings.
  """
  plan = compiled.memory_analysis()
  if plan is None:
    return None
  total = plan.argument_size_in_bytes + plan.output_size_in_bytes
  total += plan.temp_size_in_bytes - plan.alias_size_in_bytes
  return Estimate(
    _bytes(params), _bytes(opt_state), plan.temp_size_in_bytes, total
  )


def _bytes(tree: Any) -> int:
  """Returns what one device holds of a tree of sharded arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def amount(size: float) -> str:
  """Returns a number of bytes as text: 12.3 MB."""
  for unit in ("B", "kB", "MB", "GB"):
    if size < 1000 or unit == "GB":
      return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1000
  raise AssertionError
