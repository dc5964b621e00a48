"""Sparse training: a pure step, and the loop around it."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.experimental import multihost_utils

from sparse_jax import checkpoint, sites
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.data import tokens as tokens_lib
from sparse_jax.data import windows
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, sharding, transformer
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.model import loss as loss_lib
from sparse_jax.model import means as means_lib
from sparse_jax.training import checkpoints as checkpoints_lib
from sparse_jax.training import (
  memory,
  metric_log,
  rules,
  schedules,
  transforms,
)
from sparse_jax.utils import errors, files, host, progress, tables


class TrainState(flax.struct.PyTreeNode):
  """Everything a step reads and writes; `step` counts the updates so far."""

  step: jax.Array
  params: Any
  opt_state: Any


def init_state(
  model: transformer.Model,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
) -> TrainState:
  """Returns the state before the first step."""
  params = model.init(rng)
  return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def train_step(
  model: transformer.Model,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  windows_BxW: jax.Array,
  noise: Callable[[jax.Array], transformer.Hook] | None = None,
  num_parts: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of the recipe: pure, to be jitted by the caller.

  Windows are int `[B, L + 1]` tokens. Returns the new state, and scalars:
  `train_loss` before the update, in nats, and `grad_rms`, over all trained
  parameters, before normalising. `noise` gives the step's hook, if any.
  Gradients are those of `num_parts` parts of the batch, one after another.
  """
  hook = noise(state.step) if noise else None
  both = lambda params, rows: loss_and_gradients(
    model, params, rows, hook, num_parts
  )
  if noise is None:  # It moves channels to their mean over the whole batch.
    both = sharding.mean_over_data(both)
  loss, grads = both(state.params, windows_BxW)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  rule_of = rules.rule_tree(model.config, model.sparsity, grads)
  trained = jax.tree.map(lambda r, g: g if r.trained else None, rule_of, grads)
  metrics = {"train_loss": loss, "grad_rms": transforms.global_rms(trained)}
  state = TrainState(
    state.step + 1, optax.apply_updates(state.params, updates), opt_state
  )
  return state, metrics


def loss_and_gradients(
  model: transformer.Model,
  params: transformer.Params,
  windows_BxW: jax.Array,
  hook: transformer.Hook | None = None,
  num_parts: int = 1,
) -> tuple[jax.Array, transformer.Params]:
  """Returns the loss and its gradients, by `mean_over_parts`."""
  both = jax.value_and_grad(
    lambda p, rows: loss_lib.next_token_loss(model, p, rows, hook=hook)
  )
  return mean_over_parts(
    functools.partial(both, params), windows_BxW, num_parts
  )


def mean_over_parts(
  function: Callable[[jax.Array], Any], windows_BxW: jax.Array, num_parts: int
) -> Any:
  """Returns the mean of a function's results over equal parts of a batch.

  A part's activations are gone before the next one's are there.
  """
  if num_parts == 1:
    return function(windows_BxW)

  def add(total, rows_RxW):
    return jax.tree.map(jnp.add, total, function(rows_RxW)), None

  # Every device's own windows are dealt to all parts, so that none moves.
  parts_PxRxW = jnp.swapaxes(
    windows_BxW.reshape(-1, num_parts, windows_BxW.shape[-1]), 0, 1
  )
  shapes = jax.eval_shape(function, parts_PxRxW[0])
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, parts_PxRxW)
  return jax.tree.map(lambda x: x / num_parts, total)


def step_noise(
  train: config_lib.TrainConfig,
) -> Callable[[jax.Array], transformer.Hook] | None:
  """Returns the noise of a step as its hook, None where no step is noisy."""
  if not train.node_noise:
    return None
  first = train.noise_start * train.steps
  return lambda step: hooks.loosen(
    jax.random.key(step),
    jnp.where(step >= first, train.node_noise, 0.0),
    train.noise_share,
  )


def compute_dtype(name: str) -> jnp.dtype:
  """Returns the dtype of `train.compute_dtype`."""
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run leaves; the model computes in float32, the loss is in nats."""

  config: config_lib.Config
  model: transformer.Model
  params: transformer.Params
  data: tokens_lib.TokenData
  eval_loss: float
  model_directory: pathlib.Path


class DivergedError(errors.InputError):
  """The loss became NaN or infinite."""


class Interrupted(Exception):
  """The run was asked to stop, and left a checkpoint.

  `signal_number` is SIGINT or SIGTERM, also where another process got it.
  """

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.signal_number = signal_number


class LostProcessError(errors.InputError):
  """Another process of the run has ended."""


@contextlib.contextmanager
def _lost_processes(workdir: pathlib.Path) -> Iterator[None]:
  """Says what to do where a computation fails that other processes share."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if jax.process_count() == 1:
      raise
    reason = str(e).strip().partition("\n")[0][:200]
    raise LostProcessError(
      f"a step over {jax.process_count()} processes failed ({reason}); another"
      " process has ended or cannot be reached: start all of them again, the"
      f" same commands with --workdir={workdir} resume"
    ) from e


def run(
  config: config_lib.Config,
  workdir: files.PathLike,
  frozen_data: bool = False,
  on_log: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Trained:
  """Trains to the end, from the newest checkpoint in `workdir` if there is one.

  A run that is killed at any moment and called again ends with the same
  parameters, bit for bit on CPU. `frozen_data` takes the tokens in
  `data.directory` even if their source has changed since. `on_log` is called
  with every row of metrics.jsonl as it is written.

  Raises InputError if the work directory belongs to another configuration or to
  a running process, or the data is too small; LostProcessError if another
  process of the run has ended; DivergedError if a loss is not finite;
  Interrupted after SIGINT or SIGTERM, once a checkpoint is written.
  """
  workdir = pathlib.Path(workdir)
  dtype = compute_dtype(config.train.compute_dtype)
  kernels = kernels_lib.choose(config, dtype, jax.device_count())
  with opened(config, workdir, frozen_data) as (data, checkpoints):
    config = config_lib.resolve(config, data.tokenizer.vocab_size)
    model = transformer.Model(
      config.model, config.sparsity, dtype, kernels, config.train.remat
    )
    params, held_out = fit(
      config,
      next_token_objective(config, model),
      workdir,
      data,
      checkpoints,
      on_log,
    )
    model = transformer.Model(config.model, config.sparsity)
    params = on_one_device(params)
    directory = workdir / "model"
    if jax.process_index() == 0:
      means = pretraining_means(config, model, params, data)
      checkpoint.save_model(
        directory, model, params, data.tokenizer, config, means
      )
    return Trained(config, model, params, data, held_out["loss"], directory)


@contextlib.contextmanager
def opened(
  config: config_lib.Config,
  workdir: pathlib.Path,
  frozen_data: bool = False,
  tokenizer: tokenizer_lib.Tokenizer | None = None,
  groups: Mapping[str, Any] | None = None,
) -> Iterator[tuple[tokens_lib.TokenData, checkpoints_lib.TrainingCheckpoints]]:
  """Yields the tokens and the checkpoints of a run, which holds its directory.

  A `tokenizer` makes the tokens in place of one learned from the text.
  `groups` are settings of the run beside those of plain training.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(files.exclusive(workdir))
    _claim(config, workdir, groups or {})
    checkpoints = checkpoints_lib.TrainingCheckpoints(
      workdir / "checkpoints", config.train.keep_every
    )
    stack.enter_context(_lost_processes(workdir))
    stack.callback(checkpoints.close)
    frozen = frozen_data or checkpoints.latest_step() is not None
    yield _prepare_data(config, workdir, frozen, tokenizer), checkpoints


def on_one_device(params: Any) -> Any:
  """Returns sharded parameters whole, on this process's first device."""
  if jax.process_count() > 1:
    params = multihost_utils.process_allgather(params, tiled=True)
  return jax.device_put(params, jax.local_devices()[0])


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a run trains: pure functions, which `fit` compiles and shards.

  Attributes:
    init: a key -> the `TrainState` before the first step
    step: (state, windows, constants) -> (state, scalars); one is `train_loss`
    evaluate: (params, windows, constants) -> scalars; one is `loss`
    constants: arrays that steps read and never change
    decoder: params -> the decoder's, whose densities are logged
  """

  init: Callable[[jax.Array], TrainState]
  step: Callable[[TrainState, jax.Array, Any], tuple[TrainState, Any]]
  evaluate: Callable[[Any, jax.Array, Any], dict[str, jax.Array]]
  constants: Any = ()
  decoder: Callable[[Any], transformer.Params] = lambda params: params


def next_token_objective(
  config: config_lib.Config, model: transformer.Model
) -> Objective:
  """Returns plain training of a resolved config: the recipe's step and loss."""
  shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
  optimizer = transforms.sparse_adam(config, shapes)
  step = functools.partial(
    train_step,
    model,
    optimizer,
    noise=step_noise(config.train),
    num_parts=config.train.accumulate,
  )
  loss = functools.partial(loss_lib.next_token_loss, model)
  return Objective(
    init=functools.partial(init_state, model, optimizer),
    step=lambda state, windows_BxW, _: step(state, windows_BxW),
    evaluate=lambda params, windows_BxW, _: {"loss": loss(params, windows_BxW)},
  )


class CompiledStep(NamedTuple):
  """A step for one mesh.

  Attributes:
    step: `(state, windows, constants)` to the next state and metrics; the state
      is donated
    state: the state's shapes and shardings
    init: returns the state before the first step
  """

  step: jax.stages.Compiled
  state: TrainState
  init: Callable[[], TrainState]


def compile_step(
  config: config_lib.Config,
  objective: Objective,
  mesh: jax.sharding.Mesh,
  compiler_options: Mapping[str, Any] | None = None,
) -> CompiledStep:
  """Compiles a resolved config's step, without any array.

  Raises InputError for a batch that the mesh and `train.accumulate` do not
  divide.
  """
  train = config.train
  size, num_parts = mesh.shape["data"], train.accumulate
  if train.batch_size % (size * num_parts):
    need = f"a multiple of the {size} devices that split it"
    if num_parts > 1:
      need += f" times train.accumulate={num_parts}"
    raise errors.bad_value("train.batch_size", train.batch_size, need)
  rng = jax.eval_shape(jax.random.key, 0)
  shapes = jax.eval_shape(objective.init, rng)
  shardings = sharding.tree_shardings(mesh, shapes)
  place = lambda shape, where: shape.update(sharding=where)
  shapes = jax.tree.map(place, shapes, shardings)
  constants = jax.eval_shape(lambda: objective.constants)
  constants = jax.tree.map(
    place, constants, sharding.tree_shardings(mesh, constants)
  )
  batch_sharding = sharding.batch_sharding(mesh)
  window = train.batch_size, config.data.context_length + 1
  batch_shape = jax.ShapeDtypeStruct(window, jnp.int32, sharding=batch_sharding)
  replicated = sharding.replicated(mesh)
  step = jax.jit(
    objective.step, out_shardings=(shardings, replicated), donate_argnums=0
  )
  with jax.set_mesh(mesh):
    lowered = step.lower(shapes, batch_shape, constants)
    compiled = lowered.compile(compiler_options)
  start = lambda: jax.jit(objective.init, out_shardings=shardings)(
    jax.random.key(config.seed)
  )
  return CompiledStep(compiled, shapes, start)


def fit(
  config: config_lib.Config,
  objective: Objective,
  workdir: pathlib.Path,
  data: tokens_lib.TokenData,
  checkpoints: checkpoints_lib.TrainingCheckpoints,
  on_log: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> tuple[Any, dict[str, float]]:
  """Returns the final parameters and what `evaluate` says of them.

  Goes on from the newest checkpoint; raises as `run` does.
  """
  train = config.train
  process, num_processes = jax.process_index(), jax.process_count()

  # ------------------------------- Mesh, step and state ---------------------
  mesh = sharding.make_mesh(train.model_parallel)
  step_fn, state_shapes, init = compile_step(config, objective, mesh)
  shardings = jax.tree.map(lambda shape: shape.sharding, state_shapes)
  batch_sharding = sharding.batch_sharding(mesh)
  replicated = sharding.replicated(mesh)
  constants = jax.device_get(objective.constants)
  constants = jax.device_put(
    constants, sharding.tree_shardings(mesh, constants)
  )
  of_step = state_shapes.params, state_shapes.opt_state
  if needed := memory.estimate(step_fn, *of_step):
    needed.check_fits(host.free_memory())
  start, state = checkpoints.restore_newest(state_shapes)
  if start:
    message = f"resuming {workdir} from step {start} of {train.steps}"
  else:
    state = init()
    checkpoints_lib.checksums(state)  # Compiled here, for no step to wait.
    message = density_table(config, objective.decoder(state_shapes.params))
  if process == 0:
    print(message, *([needed.text] if needed else []), sep="\n", flush=True)

  # ------------------------------- Loss and batches -------------------------
  evaluate_fn = jax.jit(
    objective.evaluate,
    in_shardings=(shardings.params, batch_sharding, None),
    out_shardings=replicated,
  )
  batches = windows.train_batches(
    data.train,
    context_length=config.data.context_length,
    batch_size=train.batch_size,
    seed=config.seed,
    process_index=process,
    process_count=num_processes,
  )
  all_held_out = _eval_batches(config, data.eval, train.eval_batches)
  my_held_out = np.split(all_held_out, num_processes, 1)[process]

  def evaluate(params) -> dict[str, float]:
    parts = (sharding.global_batch(mesh, rows) for rows in my_held_out)
    found = [jax.device_get(evaluate_fn(params, p, constants)) for p in parts]
    mean = lambda name: float(np.mean([float(of[name]) for of in found]))
    return {name: mean(name) for name in found[0]}

  if start >= train.steps:
    return state.params, evaluate(state.params)

  # ------------------------------- Steps ------------------------------------
  rates = schedules.learning_rate(train, config.sparsity)
  tokens_per_step = train.batch_size * config.data.context_length
  writer = metric_log.MetricWriter(workdir, start) if process == 0 else None
  bar = progress.progress_bar(train.steps, start, "training")
  iterator = windows.iterate(batches, start)
  unread: list[Mapping[str, jax.Array]] = []  # Metrics of the last steps.
  # Of steps since the last row: a resumed run's next one averages them too.
  unlogged: list[Mapping[str, float]] = []
  if start:
    unlogged += checkpoints.beside(start) or ()
  held_out: dict[str, float] = {}
  clock, timed = time.perf_counter(), start

  def check_finite(step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      if not math.isfinite(value):
        kept = checkpoints.latest_step()
        good = f"step {kept}" if kept else "none yet"
        raise DivergedError(
          f"training stopped at step {step}: {name}={value}; last good"
          f" checkpoint in {workdir / 'checkpoints'}: {good}; need a lower"
          f" train.learning_rate than {train.learning_rate}, or other data"
        )

  try:
    with _stop_signals() as received:
      for step in range(start + 1, train.steps + 1):
        batch = sharding.global_batch(mesh, next(iterator))
        state, metrics = step_fn(state, batch, constants)
        unread.append(metrics)
        is_last = step == train.steps
        stops = _any_process(bool(received))
        saves = step % train.checkpoint_every == 0 or is_last or stops
        evaluates = step % train.eval_every == 0 or is_last
        logs = step % train.log_every == 0 or evaluates
        # The device works on this step while the host reads the one before.
        while len(unread) > (0 if logs or saves else 1):
          values = {k: float(v) for k, v in unread.pop(0).items()}
          check_finite(step - len(unread), values)
          unlogged.append(values)
          bar.update()
        if evaluates or saves:
          # A step's loss is from before its update; what is kept must work.
          held_out = evaluate(state.params)
          check_finite(step, {f"eval_{k}": v for k, v in held_out.items()})
        if logs:
          seconds = time.perf_counter() - clock
          mean = lambda name: float(np.mean([row[name] for row in unlogged]))
          decoder = objective.decoder(state.params)
          row = {
            "tokens": step * tokens_per_step,
            **{name: mean(name) for name in unlogged[0]},
            "learning_rate": float(rates[step - 1]),
            "density": block_density(decoder),
            "tokens_per_second": (step - timed) * tokens_per_step / seconds,
          }
          if evaluates:
            row |= {f"eval_{name}": value for name, value in held_out.items()}
          if writer:
            shares = densities(decoder) if evaluates else None
            writer.write(step, row, shares)
            on_log({"step": step, **row})
          shown = {"loss": row["train_loss"], "density": row["density"]}
          if held_out:
            shown["eval"] = held_out["loss"]
          bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()})
          unlogged.clear()
          clock, timed = time.perf_counter(), step
        if saves:
          # Written while the next steps run, of which each may be the last.
          checkpoints.save(step, state, unlogged)
        if is_last or stops:
          checkpoints.wait()
        if stops and not is_last:
          raise Interrupted(
            f"interrupted at step {step} of {train.steps}; checkpoint saved;"
            f" the same command with --workdir={workdir} resumes",
            received[0] if received else signal.SIGTERM,
          )
  finally:
    bar.close()
    if writer:
      writer.close()
  return state.params, held_out


def pretraining_means(
  config: config_lib.Config,
  model: transformer.Model,
  params: transformer.Params,
  data: tokens_lib.TokenData,
) -> dict[str, jax.Array]:
  """Returns every node site's mean over training text, `[layers, width]`."""
  batches = _eval_batches(config, data.train, config.prune.mean_batches)
  return means_lib.mean_activations(model, params, batches[:, :, :-1])


def _eval_batches(config, tokens, num_batches) -> np.ndarray:
  return windows.eval_batches(
    tokens,
    context_length=config.data.context_length,
    batch_size=config.train.batch_size,
    num_batches=num_batches,
  )


def _any_process(flag: bool) -> bool:
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
  """Yields a list that is empty until SIGINT or SIGTERM comes.

  A second signal acts as usual, so that a hanging run can still be stopped.
  """
  received: list[int] = []
  with contextlib.ExitStack() as old_handlers:

    def handler(number, frame):
      del frame
      received.append(number)
      old_handlers.close()

    # Elsewhere Python allows no handlers: the run cannot be stopped early.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        old = signal.signal(number, handler)
        old_handlers.callback(signal.signal, number, old)
    yield received


def _claim(
  config: config_lib.Config, workdir: pathlib.Path, groups: Mapping[str, Any]
) -> None:
  """Writes the run's config, or checks that it is the one found."""
  path = workdir / "config.json"
  names = ("seed", "data", "model", "sparsity", "train")
  mine = {k: v for k, v in config_lib.settings(config).items() if k in names}
  mine |= groups
  if not path.exists():
    if jax.process_index() == 0:
      files.write_json(path, mine)
    return
  found = files.read_json(path, "a run's config")
  if not isinstance(found, dict):
    raise errors.InputError(f"{path} holds no fields; need a run's config")
  if differs := config_lib.first_difference(mine, found):
    name, theirs, ours = differs
    raise errors.InputError(
      f"{workdir} belongs to a run with {name}={theirs!r}, this config has"
      f" {ours!r}; need the same config or another --workdir"
    )


def _prepare_data(config, workdir, frozen, tokenizer) -> tokens_lib.TokenData:
  """Prepares in one process while the others wait, then opens in all."""
  prepare = functools.partial(
    tokens_lib.prepare,
    config.data,
    pathlib.Path(config.data.directory or workdir / "data"),
    batch_size=config.train.batch_size,
    tokenizer=tokenizer,
  )
  if jax.process_count() == 1:
    return prepare(frozen=frozen)
  if jax.process_index() == 0:
    prepare(frozen=frozen)
  multihost_utils.sync_global_devices("data is prepared")
  return prepare(frozen=True, progress=False)


def densities(params: transformer.Params) -> dict[str, float]:
  """Returns the share of nonzero entries of every parameter, by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return {p: float(jnp.count_nonzero(x)) / x.size for p, x in flat.items()}


def block_density(params: transformer.Params) -> float:
  """Returns the share of nonzero entries over all block matrices."""
  paths = {kind.matrix for kind in sites.EDGE_KINDS}
  kernels = [edges_lib.parameter(params, path) for path in paths]
  nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels)
  return nonzero / sum(kernel.size for kernel in kernels)


def density_table(config: config_lib.Config, shapes) -> str:
  """Returns the table of every parameter's final density, for the start."""
  flat = functools.partial(traverse_util.flatten_dict, sep="/")
  kept = flat(transforms.kept_tree(config, shapes))
  rows = []
  for path, leaf in flat(shapes).items():
    count = leaf.size
    if of := kept[path]:
      count = int(of.table[-1]) * (leaf.shape[0] if of.is_stacked else 1)
    shape = "x".join(map(str, leaf.shape))
    rows.append((path, shape, f"{count:,}", f"{count / leaf.size:.4f}"))
  header = "parameter", "shape", "nonzero at the end", "density"
  return tables.text(header, rows)
