"""Many mask trainings as one program, as many at once as memory allows.

Runs may differ in task, setting and seed; they share the weights. The number a
program holds is decided by the memory its compiled form asks for.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import host, metrics, prune
from sparse_jax import model as model_lib

_STEPS_PER_CALL = 25
# Of the memory that is free, so that what else goes on still fits.
_MEMORY_SHARE = 0.5


def stack(trees: Sequence[Any]) -> Any:
  """Returns pytrees of equal shapes as one, with a leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train_masks(
  model: model_lib.Model,
  params: model_lib.Params,
  config: config_lib.PruneConfig,
  settings: prune.Setting,
  means: prune.SiteArrays,
  sequences: prune.Sequences,
  seed: int,
  description: str,
  allowed: Mapping[str, np.ndarray] | None = None,
) -> prune.PruneState:
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
  at_once = total
  program = None
  done: list[prune.PruneState] = []
  finished = 0
  with metrics.progress_bar(total * config.steps, 0, description) as bar:
    while finished < total:
      at_once = min(at_once, total)
      rows = np.resize(
        np.arange(finished, min(finished + at_once, total)), at_once
      )
      part = jax.tree.map(lambda x, r=rows: x[r], (settings, means, sequences))
      try:
        if program is None:
          program, at_once = _fit_program(
            model, params, config, part, allowed, seed, at_once
          )
          continue
        states = _train(program, params, config, part, allowed, seed, bar)
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) or at_once == 1:
          raise
        at_once, program = at_once // 2, None
        continue
      count = min(at_once, total - finished)
      done.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], states))
      finished += count
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *done)


def _initial(model, config, settings, allowed):
  init = functools.partial(
    prune.init_prune, model.config, config.sites, steps=config.steps
  )
  states = jax.vmap(init)(settings)
  if allowed is None:
    return states
  closed = {
    name: jnp.where(allowed[name], tau, -1.0)
    for name, tau in states.tau.items()
  }
  return states._replace(tau=closed)


def _advance(model, config, allowed, states, params, means, batches, settings):
  """Several steps of all runs; `batches` fields are `[steps, runs, S, …]`."""
  step = jax.vmap(
    functools.partial(
      prune.prune_step,
      model,
      config.steps,
      site_costs=config.cost_of_site(),
      allowed=allowed,
    ),
    in_axes=(0, None, 0, 0, 0),
  )
  body = lambda s, batch: step(s, params, means, batch, settings)
  states, logs = jax.lax.scan(body, states, batches)
  return states, jax.tree.map(lambda x: x[-1], logs)


def _batches(config, sequences, seed, start, count):
  """Returns the batches of steps `start` on, the same rows for every run."""
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
  return prune.Sequences(*map(take, sequences))


def _compiled(model, params, config, part, allowed, seed):
  settings, means, sequences = part
  allowed = (
    None
    if allowed is None
    else {name: jnp.asarray(allowed[name]) for name in config.sites}
  )
  init = functools.partial(_initial, model, config, allowed=allowed)
  states = jax.eval_shape(init, settings)
  count = min(_STEPS_PER_CALL, config.steps)
  batches = jax.eval_shape(
    lambda s: _batches(config, s, seed, 0, count), sequences
  )
  advance = functools.partial(_advance, model, config, allowed)
  jitted = jax.jit(advance, donate_argnums=0)
  return jitted.lower(states, params, means, batches, settings).compile()


def _fit_program(model, params, config, part, allowed, seed, at_once):
  """Returns the program of as many runs as fit, and how many they are."""
  free = host.free_memory()
  while True:
    cut = jax.tree.map(lambda x, n=at_once: x[:n], part)
    program = _compiled(model, params, config, cut, allowed, seed)
    needed = program.memory_analysis()
    size = needed.temp_size_in_bytes + needed.argument_size_in_bytes
    if at_once == 1 or size <= _MEMORY_SHARE * free:
      init = jax.jit(functools.partial(_initial, model, config))
      return (init, program), at_once
    at_once = max(
      1, min(at_once - 1, int(at_once * _MEMORY_SHARE * free / size))
    )


def _train(program, params, config, part, allowed, seed, bar):
  init, advance = program
  settings, means, sequences = part
  allowed = (
    None
    if allowed is None
    else {name: jnp.asarray(allowed[name]) for name in config.sites}
  )
  states = init(settings, allowed)
  runs = len(settings.k_coef)
  count = min(_STEPS_PER_CALL, config.steps)
  for start in range(0, config.steps, count):
    # The last call is as long as the others; steps past the end change nothing.
    batches = _batches(config, sequences, seed, start, count)
    states, logs = advance(states, params, means, batches, settings)
    bar.set_postfix(
      loss=f"{float(jnp.min(logs['task_loss'])):.3f}",
      nodes=f"{int(jnp.min(logs['open_gates']))}",
      refresh=False,
    )
    bar.update(runs * min(count, config.steps - start))
  return states


def take(tree: Any, run: int) -> Any:
  """Returns one run's part of stacked states."""
  return jax.tree.map(lambda x: x[run], tree)
