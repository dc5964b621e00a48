"""Training a sparse model and its bridges beside a frozen dense model."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_jax import checkpoint, sites
from sparse_jax import config as config_lib
from sparse_jax.bridge import directory as directory_lib
from sparse_jax.bridge import figures, objective
from sparse_jax.data import windows
from sparse_jax.model import fingerprint, hooks, transformer
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.training import loop, schedules, transforms
from sparse_jax.utils import errors, files


def run(
  config: config_lib.BridgeRunConfig,
  dense_directory: files.PathLike,
  workdir: files.PathLike,
  on_log: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> directory_lib.Bridge:
  """Trains to the end, and saves `WORKDIR/bridge`; resumes as `loop.run` does.

  The tokenizer is the dense model's. Raises InputError where the models do not
  fit, and whatever `loop.run` raises.
  """
  workdir = pathlib.Path(workdir)
  dense, dense_params = checkpoint.load_model(dense_directory)
  tokenizer = checkpoint.load_tokenizer(dense_directory)
  is_foreign = checkpoint.is_foreign(dense_directory)
  dense_means = None if is_foreign else checkpoint.load_means(dense_directory)
  check_fits(config, dense)
  vocab_size = dense.config.vocab_size
  config = dataclasses.replace(
    config_lib.resolve(config, vocab_size),
    data=dataclasses.replace(config.data, vocab_size=vocab_size),
  )
  groups = {
    "bridge": config_lib.to_dict(config.bridge),
    "dense": fingerprint.fingerprint(dense, dense_params),
  }
  opened = loop.opened(config, workdir, tokenizer=tokenizer, groups=groups)
  with opened as (data, checkpoints):
    dtype = loop.compute_dtype(config.train.compute_dtype)
    kernels = kernels_lib.choose(config, dtype, jax.device_count())
    span = objective.Span(
      dataclasses.replace(dense, dtype=dtype),
      transformer.Model(config.model, config.sparsity, dtype, kernels),
      config.bridge,
    )
    goal = make_objective(span, config, dense_params)
    params, _ = loop.fit(config, goal, workdir, data, checkpoints, on_log)
    span = objective.Span(
      dense,
      transformer.Model(config.model, config.sparsity),
      config.bridge,
    )
    params = loop.on_one_device(params)
    batches = functools.partial(
      windows.eval_batches,
      context_length=config.data.context_length,
      batch_size=config.train.batch_size,
    )
    train = batches(data.train, num_batches=config.prune.mean_batches)
    held_out = batches(data.eval, num_batches=config.train.eval_batches)
    maps = figures.plain_maps(span, params, dense_params, train)
    params = {**params, "maps": maps}
    found = figures.figures(span, params, dense_params, train, held_out)
    arrays = directory_lib.Arrays(
      span, dense_params, params["sparse"], params["maps"]
    )
    bridge = directory_lib.Bridge(span, arrays, tokenizer, found)
    if jax.process_index() == 0:
      means_of = functools.partial(loop.pretraining_means, config, data=data)
      if dense_means is None:
        dense_means = means_of(span.dense, dense_params)
      directory_lib.save(
        workdir / "bridge",
        bridge,
        config,
        {"dense": dense_means, "sparse": means_of(span.sparse, arrays.sparse)},
        checkpoint.load_run(dense_directory),
      )
    return bridge


def check_fits(
  config: config_lib.BridgeRunConfig, dense: transformer.Model
) -> None:
  """Raises InputError for a sparse model that the dense one cannot teach."""
  need = dense.config.n_layer
  if config.model.n_layer != need:
    accepted = f"{need}, the dense model's depth"
    raise errors.bad_value("model.n_layer", config.model.n_layer, accepted)
  length = config.data.context_length
  limit = dense.config.context_length
  if dense.config.positions != "none" and length > limit:
    accepted = f"at most {limit}, the dense model's context"
    raise errors.bad_value("data.context_length", length, accepted)


def make_objective(
  span: objective.Span,
  config: config_lib.BridgeRunConfig,
  dense: transformer.Params,
) -> loop.Objective:
  """Returns what `loop.fit` trains.

  A sparse model with a bigram table starts from the dense one's, if that has
  one: it lies behind every bridge, and no circuit has a part in it.
  """

  def init_params(rng):
    sparse = span.sparse.init(rng)
    shared = {sites.BIGRAM} & sparse.keys() & dense.keys()
    return {
      "sparse": sparse | {name: jnp.asarray(dense[name]) for name in shared},
      "maps": span.init_maps(jax.random.fold_in(rng, 1)),
    }

  optimizer = make_optimizer(
    config, jax.eval_shape(init_params, jax.random.key(0))
  )

  def init(rng):
    params = init_params(rng)
    step = jnp.zeros([], jnp.int32)
    return loop.TrainState(step, params, optimizer.init(params))

  def evaluate(params, windows_BxW, dense):
    losses = objective.all_losses(span, params, dense, windows_BxW)
    return {"loss": objective.weighted(span.settings, losses), **means(losses)}

  return loop.Objective(
    init=init,
    step=functools.partial(train_step, span, optimizer, config.train),
    evaluate=evaluate,
    constants=dense,
    decoder=lambda params: params["sparse"],
  )


def train_step(
  span: objective.Span,
  optimizer: optax.GradientTransformation,
  train: config_lib.TrainConfig,
  state: loop.TrainState,
  windows_BxW: jax.Array,
  dense: transformer.Params,
) -> tuple[loop.TrainState, dict[str, jax.Array]]:
  """One step: pure. Returns the new state and scalars before the update."""
  noise = loop.step_noise(train)
  hook = noise(state.step) if noise else hooks.identity
  losses, gradients = loop.mean_over_parts(
    lambda rows: objective.loss_and_gradients(
      span, state.params, dense, rows, hook
    ),
    windows_BxW,
    train.accumulate,
  )
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  metrics = {
    "train_loss": objective.weighted(span.settings, losses),
    "grad_rms": transforms.global_rms(gradients),
    **means(losses),
  }
  params = optax.apply_updates(state.params, updates)
  return loop.TrainState(state.step + 1, params, opt_state), metrics


def means(losses: objective.Losses) -> dict[str, jax.Array]:
  """Returns every loss as a mean over bridges."""
  return {name: jnp.mean(value) for name, value in losses.items()}


def make_optimizer(
  config: config_lib.BridgeRunConfig, shapes: objective.Params
) -> optax.GradientTransformation:
  """Returns the recipe's optimizer for the decoder, Adam for the bridges."""
  of_maps = dataclasses.replace(
    config.train,
    learning_rate=config.bridge.learning_rate,
    scale_rate_by_density=False,
  )
  rate = schedules.learning_rate(of_maps, config.sparsity)
  return transforms.by_branch(
    sparse=transforms.sparse_adam(config, shapes["sparse"]),
    maps=optax.adam(transforms.lookup(rate)),
  )
