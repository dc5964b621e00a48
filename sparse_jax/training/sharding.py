"""One mesh and one table of shardings by parameter path.

Axes: `data` splits the batch, `model` splits matrices over their units. The
same train step runs on one CPU (a mesh of one), on forced host devices and over
processes started with `jax.distributed`.
"""

import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_jax import sites
from sparse_jax.utils import errors

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


def join_processes() -> None:
  """Joins the processes of a run; call it before the first computation.

  A cluster that JAX knows says who they are; without one the environment does:
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
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


def make_mesh(model_parallel: int = 1) -> Mesh:
  """Returns the mesh `[data, model]` over all devices of all processes."""
  count = jax.device_count()
  if count % model_parallel:
    need = f"a divisor of {count} devices"
    raise errors.bad_value("train.model_parallel", model_parallel, need)
  shape = (count // model_parallel, model_parallel)
  types = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(shape, ("data", "model"), axis_types=types)


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


def global_batch(mesh: Mesh, rows: np.ndarray) -> jax.Array:
  """Returns this process's rows of a batch as one global, sharded array."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
