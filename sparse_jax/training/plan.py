"""A dry run: what a training step takes, compiled for devices not at hand."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from sparse_jax import config as config_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.training import collectives, loop, memory
from sparse_jax.utils import tables

# What they change comes after memory and collectives are decided.
_QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


class Plan(NamedTuple):
  """A compiled step's needs.

  Attributes:
    num_params: over all devices
    mesh: devices by axis
    memory: bytes a device
    collectives: of a step
  """

  num_params: int
  mesh: dict[str, int]
  memory: memory.Estimate
  collectives: list[collectives.Collective]

  @property
  def text(self) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
    searches = [one for one in self.collectives if one.is_in_search]
    others = [one for one in self.collectives if not one.is_in_search]
    rows = [
      (where, kind, f"{count:,}", memory.amount(size))
      for where, found in (("step", others), ("pass of its searches", searches))
      for kind, (count, size) in sorted(collectives.total(found).items())
    ]
    return "\n".join(
      [
        f"{self.num_params / 1e9:.2f}B parameters, mesh {mesh}",
        self.memory.text,
        "",
        tables.markdown(("a", "collective", "times", "bytes a device"), rows),
      ]
    )


def dry_run(
  config: config_lib.Config, devices: Sequence[jax.Device] | None = None
) -> Plan:
  """Compiles a config's step for devices, else all, and makes no array.

  The vocabulary is `data.vocab_size`, since no text is read. Raises InputError
  for a batch or devices that the mesh does not divide.
  """
  config = config_lib.resolve(config, config.data.vocab_size)
  dtype = loop.compute_dtype(config.train.compute_dtype)
  model = transformer.Model(
    config.model, config.sparsity, dtype, remat=config.train.remat
  )
  mesh = sharding.make_mesh(config.train.model_parallel, devices)
  compiled = loop.compile_step(
    config, loop.next_token_objective(config, model), mesh, _QUICK
  )
  state = compiled.state
  return Plan(
    transformer.num_parameters(state.params),
    dict(mesh.shape),
    memory.estimate(compiled.step, state.params, state.opt_state),
    collectives.of_program(compiled.step),
  )
