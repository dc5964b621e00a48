"""Many mask trainings as one program over shared weights.

Runs may differ in task, setting and seed. They go through a program in groups
that are trained side by side; how large a group is, is decided by the memory
that the compiled program asks for.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import host, progress

_STEPS_PER_CALL = 25
# Of the memory that is free, so that what else goes on still fits.
_MEMORY_SHARE = 0.5
# On CPU, where runs side by side win little and lose as soon as their
# temporaries leave the caches for good (docs/performance.md).
_CPU_BYTES = 512 << 20


def stack(trees: Sequence[Any]) -> Any:
  """Returns pytrees of equal shapes as one, with a leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train_masks(
  model: transformer.Model,
  params: transformer.Params,
  config: config_lib.PruneConfig,
  settings: masks_lib.Hyperparameters,
  means: hooks.SiteArrays,
  sequences: sequences_lib.Sequences,
  seed: int,
  description: str,
  allowed: Mapping[str, np.ndarray] | None = None,
) -> masks_lib.PruneState:
  """Trains every run's masks.

  A run's result depends on its own setting, data and `seed` alone, not on the
  runs beside it.

  Args:
    model: the frozen model.
    params: its parameters.
    config: steps, batch size, sites and their costs.
    settings: each field `[runs]`.
    means: ablation values, per site `[runs, layers, width]`.
    sequences: training pairs, each field `[runs, 2 * pairs, …]`.
    seed: of the batches.
    description: for the progress bar.
    allowed: per site `[layers, width]` bool, nodes that may be open.

  Returns:
    States on the host, each leaf `[runs, …]`.
  """
  total = len(settings.k_coef)
  group = total
  program = None
  with progress.progress_bar(total * config.steps, 0, description) as bar:
    while True:
      try:
        program = program or compile_runs(
          model,
          params,
          config,
          (settings, means, sequences),
          seed,
          allowed,
          group,
        )
        states = _train(program, params, config, sequences, seed, bar)
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
    group: runs that are trained side by side.
    num_runs: all runs, a multiple of `group`; those past the real ones repeat.
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
  parts: tuple[
    masks_lib.Hyperparameters, hooks.SiteArrays, sequences_lib.Sequences
  ],
  seed: int,
  allowed: Mapping[str, np.ndarray] | None,
  group: int,
) -> Program:
  """Returns the program of the largest groups, at most `group`, that fit.

  Args:
    model: the frozen model.
    params: its parameters.
    config: steps, batch size, sites and their costs.
    parts: settings, ablation values and sequences, each leaf `[runs, …]`.
    seed: of the batches.
    allowed: per site `[layers, width]` bool, nodes that may be open.
    group: runs side by side at most.
  """
  total = len(parts[0].k_coef)
  limit = _MEMORY_SHARE * host.free_memory()
  if jax.default_backend() == "cpu":
    limit = min(limit, _CPU_BYTES)
  if allowed is not None:
    allowed = {name: jnp.asarray(allowed[name]) for name in config.sites}
  num_steps = min(_STEPS_PER_CALL, config.steps)
  while True:
    num_groups = -(-total // group)
    # As even as can be: the last group repeats as few runs as possible.
    group = -(-total // num_groups)
    rows = np.resize(np.arange(total), num_groups * group)
    settings, means, sequences = jax.tree.map(lambda x, r=rows: x[r], parts)
    init = functools.partial(_initial, model, config, settings, allowed)
    batches = jax.eval_shape(
      lambda s: draw_batches(config, s, seed, 0, num_steps), sequences
    )
    advance = functools.partial(_advance, model, config, allowed, group)
    compiled = (
      jax.jit(advance, donate_argnums=0)
      .lower(jax.eval_shape(init), params, means, batches, settings)
      .compile()
    )
    planned = compiled.memory_analysis()
    size = planned.temp_size_in_bytes + planned.argument_size_in_bytes
    if group == 1 or size <= limit:
      return Program(
        init=jax.jit(init),
        advance=lambda states, params, batches: compiled(
          states, params, means, batches, settings
        ),
        group=group,
        num_runs=len(rows),
        num_steps=num_steps,
        peak_bytes=size,
      )
    group = max(1, min(group - 1, int(group * limit / size)))


def _initial(model, config, settings, allowed):
  init = functools.partial(
    masks_lib.init_prune, model.config, config.sites, steps=config.steps
  )
  states = jax.vmap(init)(settings)
  if allowed is None:
    return states
  closed = {
    name: jnp.where(allowed[name], tau, -1.0)
    for name, tau in states.tau.items()
  }
  return states._replace(tau=closed)


def _advance(
  model, config, allowed, group, states, params, means, batches, settings
):
  """Several steps of all runs; `batches` fields are `[steps, runs, S, …]`."""

  def step(args):
    state, mean, batch, setting = args
    return masks_lib.prune_step(
      model,
      config.steps,
      state,
      params,
      mean,
      batch,
      setting,
      site_costs=config.cost_of_site(),
      allowed=allowed,
      freeze_norms=config.freeze_norms,
    )

  def body(states, batch):
    return jax.lax.map(step, (states, means, batch, settings), batch_size=group)

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
  size = min(config.batch_size, num_pairs)
  rows = np.stack(
    [
      np.random.default_rng((seed, step)).choice(num_pairs, size, False)
      for step in range(start, start + count)
    ]
  )
  rows = np.concatenate([rows, rows + num_pairs], 1)
  take = lambda x: jnp.swapaxes(x[:, rows], 0, 1)
  return sequences_lib.Sequences(*map(take, sequences))


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
