"""Many mask trainings as one program over shared weights.

Runs may differ in task, hyperparameters and seed. The devices along a mesh's
`data` share them out and send each other nothing. Each trains its own in
groups, side by side; the memory that a group asks for decides how large it is.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_jax import config as config_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import host, progress

_STEPS_PER_CALL = 25
# Of the memory that is free, so that what else goes on still fits.
_MEMORY_SHARE = 0.5
# On CPU, where runs side by side win little and lose as soon as their
# temporaries leave the caches for good (docs/performance.md).
_CPU_BYTES = 512 << 20
_BY_RUN, _BY_STEP_AND_RUN = P("data"), P(None, "data")


def stack(trees: Sequence[Any]) -> Any:
  """Returns pytrees of equal shapes as one, with a leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train_masks(
  model: transformer.Model,
  params: transformer.Params,
  config: config_lib.PruneConfig,
  runs: masks_lib.Run,
  seed: int,
  description: str,
) -> masks_lib.PruneState:
  """Trains every run's masks.

  A run's result depends on its own part of `runs` and on `seed` alone, not on
  the runs beside it.

  Args:
    model: the frozen model.
    params: the model's; runs go over the mesh that they lie on.
    config: steps, batch size, sites and their costs.
    runs: each leaf `[runs, …]`; all have equally many pairs.
    seed: of the batches.
    description: for the progress bar.

  Returns:
    States on the host, each leaf `[runs, …]`.
  """
  total = len(runs.hyperparameters.seed)
  group = total
  program = None
  with progress.progress_bar(total * config.steps, 0, description) as bar:
    while True:
      try:
        program = program or compile_runs(
          model, params, config, runs, seed, group
        )
        states = _train(program, params, config, runs.sequences, seed, bar)
        break
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) or group == 1:
          raise
        group = (program.group if program else group) // 2
        program = None
        bar.reset()
  return jax.tree.map(lambda x: np.asarray(x)[:total], states)


class Program(NamedTuple):
  """A compiled training of runs.

  Attributes:
    init: returns the first states.
    advance: `(states, params, batches)` to states after several steps and logs.
    group: runs that a device trains side by side.
    num_runs: all runs, a multiple of `group` and of the devices along `data`;
      those past the real ones repeat.
    num_steps: steps a call.
    peak_bytes: temporaries and arguments, as the compiler plans them.
  """

  init: Callable[[], masks_lib.PruneState]
  advance: Callable[..., tuple[masks_lib.PruneState, dict[str, jax.Array]]]
  group: int
  num_runs: int
  num_steps: int
  peak_bytes: int


def compile_runs(
  model: transformer.Model,
  params: transformer.Params,
  config: config_lib.PruneConfig,
  runs: masks_lib.Run,
  seed: int,
  group: int,
) -> Program:
  """Returns the program of the largest groups, at most `group`, that fit.

  Args:
    model: the frozen model.
    params: the model's.
    config: steps, batch size, sites and their costs.
    runs: each leaf `[runs, …]`.
    seed: of the batches.
    group: runs side by side at most, on a device.
  """
  mesh = sharding.mesh_of(params)
  num_shards = mesh.shape["data"] if mesh else 1
  total = len(runs.hyperparameters.seed)
  of_device = -(-total // num_shards)
  limit = _MEMORY_SHARE * host.free_memory()
  if jax.default_backend() == "cpu":
    limit = min(limit, _CPU_BYTES)
  num_steps = min(_STEPS_PER_CALL, config.steps)
  # What a step reads: other fields would compile the same program again.
  step_config = config_lib.PruneConfig(
    steps=config.steps,
    sites=config.sites,
    site_costs=config.site_costs,
    edge_cost=config.edge_cost,
    freeze_norms=config.freeze_norms,
    ablation_outside=config.ablation_outside,
    outside_weight=config.outside_weight,
    outside_sources=config.outside_sources,
    outside_draws=config.outside_draws,
    outside_life=config.outside_life,
    outside_ascents=config.outside_ascents,
    outside_per_example=config.outside_per_example,
    outside_momentum=config.outside_momentum,
    outside_rate=config.outside_rate,
  )
  while True:
    num_groups = -(-of_device // group)
    # As even as can be: the last group repeats as few runs as possible.
    group = -(-of_device // num_groups)
    rows = np.resize(np.arange(total), num_shards * num_groups * group)
    padded = jax.tree.map(lambda x, r=rows: x[r], runs)
    init = functools.partial(
      _initial, model, step_config, padded.hyperparameters, padded.allowed
    )
    batches = jax.eval_shape(
      lambda s: draw_batches(config, s, seed, 0, num_steps), padded.sequences
    )
    given = _place(mesh, padded._replace(sequences=None), _BY_RUN)
    shapes = (
      _describe(mesh, jax.eval_shape(init), _BY_RUN),
      jax.tree.map(_shape_of, params),
      jax.tree.map(_shape_of, given),
      _describe(mesh, batches, _BY_STEP_AND_RUN),
    )
    described, structure = jax.tree.flatten(shapes)
    compiled = _compiled(
      model, step_config, group, mesh, structure, tuple(described)
    )
    planned = compiled.memory_analysis()
    size = planned.temp_size_in_bytes + planned.argument_size_in_bytes
    if group == 1 or size <= limit:
      return Program(
        init=lambda: _place(mesh, init(), _BY_RUN),
        advance=lambda states, params, batches: compiled(
          states, params, given, _place(mesh, batches, _BY_STEP_AND_RUN)
        ),
        group=group,
        num_runs=len(rows),
        num_steps=num_steps,
        peak_bytes=size,
      )
    group = max(1, min(group - 1, int(group * limit / size)))


def _shape_of(x):
  """Returns what a program depends on of an array."""
  sharding = x.sharding if getattr(x, "committed", False) else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _place(mesh, tree, spec):
  """Returns arrays split over a mesh, as they are without one."""
  return (
    tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, spec))
  )


def _describe(mesh, shapes, spec):
  """Returns shapes as `_place` would split them."""
  if mesh is None:
    return shapes
  where = NamedSharding(mesh, spec)
  return jax.tree.map(lambda shape: shape.update(sharding=where), shapes)


@functools.lru_cache(maxsize=16)
def _compiled(model, config, group, mesh, structure, described):
  """Compiles once for all rounds and tasks of one shape."""
  args = jax.tree.unflatten(structure, described)
  context = jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
  with context:
    return _advance.lower(model, config, group, *args).compile()


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _initial(model, config, hyperparameters, allowed):
  init = functools.partial(masks_lib.init_prune, model.config, config)
  return jax.vmap(init)(hyperparameters, allowed)


@functools.partial(
  jax.jit, static_argnames=("model", "config", "group"), donate_argnums=3
)
def _advance(model, config, group, states, params, runs, batches):
  """Several steps of all runs; `batches` fields are `[steps, runs, S, …]`."""
  advance = functools.partial(_advance_own, model, config, group)
  if sharding.axis_size("data") > 1:
    advance = jax.shard_map(
      advance,
      in_specs=(_BY_RUN, P(), _BY_RUN, _BY_STEP_AND_RUN),
      out_specs=_BY_RUN,
      axis_names={"data"},
      check_vma=False,  # As in `sharding.mean_over_data`.
    )
  return advance(states, params, runs, batches)


def _advance_own(model, config, group, states, params, runs, batches):
  """As `_advance`, of the runs of one device."""

  def step(args):
    state, run = args
    return masks_lib.prune_step(model, config, state, params, run)

  def body(states, batch):
    given = runs._replace(sequences=batch)
    return jax.lax.map(step, (states, given), batch_size=group)

  states, logs = jax.lax.scan(body, states, batches)
  return states, jax.tree.map(lambda x: x[-1], logs)


def draw_batches(
  config: config_lib.PruneConfig,
  sequences: sequences_lib.Sequences,
  seed: int,
  start: int,
  count: int,
) -> sequences_lib.Sequences:
  """Returns batches of steps `start` on, each field `[steps, runs, S, …]`.

  Every run gets the same rows of its own pairs.
  """
  num_pairs = sequences.tokens.shape[1] // 2
  rows = np.stack(
    [
      draw_rows(num_pairs, config.batch_size, seed, step)
      for step in range(start, start + count)
    ]
  )
  take = lambda x: jnp.swapaxes(x[:, rows], 0, 1)
  return sequences_lib.Sequences(*map(take, sequences))


def draw_rows(num_pairs: int, size: int, seed: int, step: int) -> np.ndarray:
  """Returns a step's rows: both sides of `size` pairs, at most all of them.

  No pair comes again before all have come.
  """
  size = min(size, num_pairs)
  epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), num_pairs)
  orders = {
    e: np.random.default_rng((seed, e)).permutation(num_pairs)
    for e in np.unique(epoch)
  }
  rows = np.array([orders[e][i] for e, i in zip(epoch, place, strict=True)])
  return np.concatenate([rows, rows + num_pairs])


def _train(program, params, config, sequences, seed, bar):
  total = sequences.tokens.shape[0]
  rows = np.resize(np.arange(total), program.num_runs)
  sequences = jax.tree.map(lambda x: x[rows], sequences)
  states = program.init()
  for start in range(0, config.steps, program.num_steps):
    # The last call is as long as the others; steps past the end change nothing.
    batches = draw_batches(config, sequences, seed, start, program.num_steps)
    states, logs = program.advance(states, params, batches)
    bar.set_postfix(
      loss=f"{float(jnp.min(logs['task_loss'])):.3f}",
      nodes=f"{int(jnp.min(logs['open_gates']))}",
      refresh=False,
    )
    bar.update(total * min(program.num_steps, config.steps - start))
  return states


def take(tree: Any, run: int) -> Any:
  """Returns one run's part of stacked states."""
  return jax.tree.map(lambda x: x[run], tree)
