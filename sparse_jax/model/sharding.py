"""One mesh and one table of shardings by parameter path.

Axes: `data` splits the batch, `model` splits matrices over their units. The
same train step runs on one CPU (a mesh of one), on forced host devices and over
processes started with `jax.distributed`. What is traced under `jax.set_mesh`
splits its work as the functions below say, and runs whole without a mesh.
"""

import atexit
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_jax import sites
from sparse_jax.utils import errors, host

# First match wins, on the end of the path, so that the optimizer's moments are
# split as their parameters are. Units (columns read, rows write) are split.
_SPECS = (
  (f"{sites.C_ATTN}|{sites.C_FC}", P(None, None, "model")),
  (f"{sites.ATTN_C_PROJ}|{sites.MLP_C_PROJ}", P(None, "model", None)),
  (r"layers/(attn/c_attn|mlp/c_fc)/bias", P(None, "model")),
  (f"{sites.EMBED}|{sites.UNEMBED}|{sites.BIGRAM}", P("model", None)),
)


# Where no connection breaks, a silent process counts as lost after so long.
_HEARTBEAT_SECONDS = 30


_KILLED = (
  "error: this process was killed, or JAX ended it because another process has"
  " ended or cannot be reached: start all of them again, the same commands"
  " resume"
)


def join_processes() -> None:
  """Joins the processes of a run; call it before the first computation.

  A cluster that JAX knows says who they are; without one the environment does:
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Where JAX's
  coordination service is the first to miss a process it calls abort(), after
  which a last line still says what to do.
  """
  atexit.register(host.tell_if_killed(_KILLED))
  numbers = {}
  for name in ("num_processes", "process_id"):
    variable = f"JAX_{name.upper()}"
    if (text := os.environ.get(variable)) is not None:
      if not text.isdecimal():
        raise errors.bad_value(variable, text, "a whole number")
      numbers[name] = int(text)
  try:
    jax.distributed.initialize(
      **numbers, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except ValueError as e:
    raise errors.InputError(
      f"cannot join other processes: {e} Need a cluster that JAX detects, or"
      " JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and a lower"
      " JAX_PROCESS_ID"
    ) from e


def make_mesh(
  model_parallel: int = 1,
  devices: Sequence[jax.Device] | None = None,
  field: str = "train.model_parallel",
) -> Mesh:
  """Returns the mesh `[data, model]` over devices, else all of all processes.

  Raises InputError, which names `field`, where `model` does not divide them.
  """
  count = len(devices or jax.devices())
  if count % model_parallel:
    need = f"a divisor of {count} devices"
    raise errors.bad_value(field, model_parallel, need)
  shape = (count // model_parallel, model_parallel)
  types = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(
    shape, ("data", "model"), axis_types=types, devices=devices
  )


def axis_size(name: str) -> int:
  """Returns an axis's size in the mesh of `jax.set_mesh`, 1 without one."""
  return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def mean_over_data(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function(params, batch)` as the mean of what its parts give.

  Each device along `data` takes its own part of the batch from beginning to
  end, loops of a length that the data decides included, and the results are
  added up once. XLA left to itself would wait for all devices in every pass of
  a top-k, and add up gradients once a part of an accumulated batch.
  """
  if axis_size("data") == 1:
    return function

  def local(params, batch):
    mean = lambda x: jax.lax.pmean(x, "data")
    return jax.tree.map(mean, function(params, batch))

  return jax.shard_map(
    local,
    in_specs=(P(), P("data")),
    out_specs=P(),
    axis_names={"data"},
    check_vma=False,  # `custom_vjp` and the loops' first values say nothing.
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of values that every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of `[batch, ...]` arrays."""
  return NamedSharding(mesh, P("data"))


def tree_shardings(mesh: Mesh, tree) -> Any:
  """Returns the sharding of every leaf of a train state, by parameter path.

  A dimension that its mesh axis does not divide stays whole.
  """

  def leaf_sharding(path, leaf):
    path = sites.path_name(path)
    matching = (s for regex, s in _SPECS if re.search(f"({regex})$", path))
    spec = next(matching, P())
    if len(spec) > len(leaf.shape) or any(
      axis and leaf.shape[dim] % mesh.shape[axis]
      for dim, axis in enumerate(spec)
    ):
      spec = P()
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def spread(params: Any, model_parallel: int = 1) -> Any:
  """Returns parameters on the mesh of this process's devices.

  What is computed with them runs over the mesh then: prunings and prompts are
  split along `data`. On one device they stay as they are.
  """
  shardings = local_shardings(params, model_parallel)
  if len(jax.local_devices()) == 1:
    return params
  return jax.device_put(params, shardings)


def local_shardings(params: Any, model_parallel: int) -> Any:
  """Returns where `spread` puts parameters, or their shapes."""
  devices = jax.local_devices()
  mesh = make_mesh(model_parallel, devices, "prune.model_parallel")
  return tree_shardings(mesh, params)


def mesh_of(params: Any) -> Mesh | None:
  """Returns the mesh that `spread` has put parameters on, if it has."""
  where = getattr(jax.tree.leaves(params)[0], "sharding", None)
  return where.mesh if isinstance(where, NamedSharding) else None


def beside(params: Any, batch: Any) -> Any:
  """Returns `[batch, ...]` arrays split over the mesh of the parameters.

  They stay as they are where there is none, or it does not divide them.
  """
  mesh = mesh_of(params)
  leaves = jax.tree.leaves(batch)
  if mesh is None or any(len(x) % mesh.shape["data"] for x in leaves):
    return batch
  return jax.device_put(batch, batch_sharding(mesh))


def on_all(params: Any, tree: Any) -> Any:
  """Returns values whole on every device that the parameters are on.

  What a jitted step returns is there, so that its first call and the next are
  one program.
  """
  mesh = mesh_of(params)
  own = getattr(jax.tree.leaves(params)[0], "sharding", None)
  return jax.device_put(tree, own if mesh is None else replicated(mesh))


def global_batch(mesh: Mesh, rows: np.ndarray) -> jax.Array:
  """Returns this process's rows of a batch as one global, sharded array."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
