"""The speed metrics: ratios and shares, both sides measured in one run.

A measurement is a function that returns `Metric` records. What it compares runs
in turn, round after round, so that whatever else the machine does slows both
sides; a metric is made of medians. Nothing here asserts a time: a metric says
whether it reached its target.

Without PyTorch its metrics have no value, and a note says why.
"""

import concurrent.futures
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import torch_baselines
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.model import top_k, transformer
from sparse_jax.pruning import batched, masks
from sparse_jax.tasks.sequences import Sequences
from sparse_jax.training import loop, transforms
from sparse_jax.utils import errors

_MASK_STEPS_PER_CALL = 2
_SAMPLES_A_ROUND = 3

Sampler = Callable[[], list[float]]  # Runs a few times, returns seconds each.
Timed = tuple[dict[str, float], dict[str, str]]  # As `interleave` returns.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Shape of a training step or of a mask step."""

  n_layer: int = 2
  d_model: int = 128
  batch_size: int = 32  # Windows, or prompts: both sides of the pairs.
  length: int = 128
  vocab_size: int = 2048
  density: float = 0.1  # The final one from the first step on.
  activation_fraction: float = 0.25
  kernels: str = "xla"
  num_runs: int = 16  # Mask trainings in one program.

  def __str__(self) -> str:
    return (
      f"d_model {self.d_model}, {self.n_layer} layers,"
      f" {self.batch_size}×{self.length}"
    )

  def config(self) -> config_lib.Config:
    """Returns a resolved run config; units keep no more than their share."""
    share = int(self.density * self.d_model)
    sparsity = config_lib.SparsityConfig(
      density=self.density,
      activation_fraction=self.activation_fraction,
      min_alive=min(config_lib.SparsityConfig().min_alive, share),
      anneal_start=0.0,
      anneal_stop=0.0,
    )
    config = config_lib.Config(
      data=config_lib.DataConfig(context_length=self.length),
      model=config_lib.ModelConfig(n_layer=self.n_layer, d_model=self.d_model),
      sparsity=sparsity,
      train=config_lib.TrainConfig(
        batch_size=self.batch_size, kernels=self.kernels
      ),
    )
    return config_lib.resolve(config, self.vocab_size)

  def flags(self) -> tuple[str, ...]:
    """Returns the flags that give a PyTorch baseline this shape."""
    return tuple(
      f"--{name}={value}"
      for name, value in vars(self).items()
      if name not in ("kernels", "num_runs")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """What was measured, beside its target.

  Attributes:
    details: what the value is made of; times are medians in seconds.
  """

  name: str
  shape: str
  value: float | None  # A ratio or a share; None if there is none.
  target: float
  at_most: bool = False
  note: str = ""  # Why there is no value, or what else to know.
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def reached(self) -> bool | None:
    """Whether the target is reached; None if there is no value."""
    if self.value is None:
      return None
    if self.at_most:
      return self.value <= self.target
    return self.value >= self.target

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return dataclasses.asdict(self) | {"reached": self.reached}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTargets:
  """What a training step has to reach; None leaves a comparison out."""

  eager: float | None = 3.0  # Tokens/s over eager PyTorch's.
  compiled: float | None = 2.0  # Tokens/s over compiled PyTorch's.
  sparse_over_dense: float = 1.15  # Of their times.
  product_share: float | None = None  # FLOP/s over a large matrix product's.
  copies: float = 2.0  # Memory above the dense step's, in largest matrices.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run measures.

  Attributes:
    growth_axes: values by the field of `growth_base` that varies.
    baseline_steps: steps that a baseline's own median is of, in each round.
  """

  steps: Sequence[tuple[Shape, StepTargets]] = ()
  masks: Sequence[Shape] = ()
  mask_target: float = 4.0  # Mask-steps/s over eager PyTorch's.
  fused: Shape | None = None  # Measured with and without fused kernels.
  num_entries: int = 4 << 20  # Of the k-th magnitude.
  rows: tuple[int, int] = (4096, 1024)  # Rows and width of AbsTopK.
  product_width: int = 2048
  growth_base: Shape = Shape(batch_size=8, length=64)
  growth_axes: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=lambda: {
      "d_model": (64, 128, 256, 512, 1024),
      "density": (1 / 1024, 1 / 64, 1 / 8, 1.0),
      "n_layer": (1, 2, 4),
      "batch_size": (8, 16, 32),
    }
  )
  rounds: int = 3
  baseline_steps: int = 2


_LARGER = Shape(n_layer=4, d_model=256, batch_size=16, length=256)
_LARGER_MASK = dataclasses.replace(_LARGER, batch_size=128, length=64)
CPU = Plan(  # What is asked of two CPU cores.
  steps=(
    (Shape(), StepTargets()),
    (_LARGER, StepTargets(product_share=0.45)),
  ),
  masks=(Shape(length=24), dataclasses.replace(_LARGER_MASK, num_runs=4)),
)

_LARGE = Shape(n_layer=8, d_model=1024, batch_size=512, length=256)
ACCELERATOR = Plan(  # What is asked of one large accelerator, in bfloat16.
  steps=((_LARGE, StepTargets(eager=None, compiled=3.0, product_share=0.4)),),
  fused=_LARGE,
  masks=(_LARGER_MASK,),
  product_width=8192,
  growth_base=Shape(batch_size=64, length=256),
)

_TINY = Shape(
  n_layer=1, d_model=32, batch_size=2, length=16, vocab_size=64, num_runs=2
)
SHORT = Plan(  # Every metric at tiny shapes: a trial of the machinery.
  steps=((_TINY, StepTargets(product_share=0.45)),),
  masks=(dataclasses.replace(_TINY, batch_size=4, length=8),),
  num_entries=4096,
  rows=(64, 64),
  product_width=64,
  growth_base=_TINY,
  growth_axes={"d_model": (16, 32), "density": (0.25, 1.0)},
  rounds=1,
  baseline_steps=1,
)


def interleave(samplers: Mapping[str, Sampler], rounds: int) -> Timed:
  """Returns median seconds by name, and by name why a baseline has none."""
  samples: dict[str, list[float]] = {name: [] for name in samplers}
  failed: dict[str, str] = {}
  for _ in range(rounds):
    for name in list(samples):
      try:
        samples[name] += samplers[name]()
      except torch_baselines.BaselineError as e:
        failed[name] = str(e)
        del samples[name]
  return {n: statistics.median(times) for n, times in samples.items()}, failed


def _ratio(
  timed: Timed, over: str, under: str, scale=1.0, details=None, **fields
) -> Metric:
  """Returns the metric of one median time over another, times `scale`."""
  medians, failed = timed
  has_both = over in medians and under in medians
  seconds = {f"{name}_seconds": value for name, value in medians.items()}
  return Metric(
    value=scale * medians[over] / medians[under] if has_both else None,
    note=failed.get(over, ""),
    details=seconds | (details or {}),
    **fields,
  )


def jitted_sampler(function: Callable[..., Any], *args) -> Sampler:
  """Returns a sampler of a function, compiled and run once."""
  compiled = jax.jit(function)

  def once() -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    return time.perf_counter() - start

  once()
  return lambda: [once() for _ in range(_SAMPLES_A_ROUND)]


class TrainingStep:
  """A compiled training step and the state it goes on from."""

  def __init__(self, shape: Shape):
    self.config = config = shape.config()
    dtype = loop.compute_dtype(config.train.compute_dtype)
    kernels = kernels_lib.choose(config, dtype)
    model = transformer.Model(config.model, config.sparsity, dtype, kernels)
    rng = jax.random.key(0)
    shapes = jax.eval_shape(model.init, rng)
    optimizer = transforms.sparse_adam(config, shapes)
    init = functools.partial(loop.init_state, model, optimizer)
    self.state = jax.jit(init)(rng)
    size = shape.batch_size, shape.length + 1
    self._windows = jax.random.randint(rng, size, 0, shape.vocab_size)
    step = functools.partial(loop.train_step, model, optimizer)
    jitted = jax.jit(step, donate_argnums=0)
    self._compiled = jitted.lower(self.state, self._windows).compile()
    self.peak_bytes = peak_bytes(self._compiled)
    self.sample(2)

  def sample(self, count: int = _SAMPLES_A_ROUND) -> list[float]:
    """Returns the seconds of a few steps."""
    times = []
    for _ in range(count):
      start = time.perf_counter()
      self.state, _ = self._compiled(self.state, self._windows)
      jax.block_until_ready(self.state)
      times.append(time.perf_counter() - start)
    return times


def training_steps(shapes: Sequence[Shape]) -> list[TrainingStep]:
  """Returns a step of each shape; a compilation is mostly one thread's work."""
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return list(pool.map(TrainingStep, shapes))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns the memory a compiled program plans for; donated arrays once."""
  plan = compiled.memory_analysis()
  return (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )


def model_flops(config: config_lib.Config) -> float:
  """Returns the floating-point operations of a training step's products.

  Two a weight and token in the forward pass, twice that in the backward pass,
  zero weights included; lookups, norms and selection do not count.
  """
  model, length = config.model, config.data.context_length
  blocks = sum(n for n, _, _ in config_lib.block_units(model).values())
  weights = model.n_layer * blocks + model.vocab_size * model.d_model
  # Two products, of queries with keys and of weights with values.
  attention = model.n_layer * 2 * model.d_model * (length + 1) / 2
  return 3 * 2 * config.train.batch_size * length * (weights + attention)


def largest_matrix(config: config_lib.Config) -> tuple[str, int]:
  """Returns path and bytes of the model's largest matrix, in one layer."""
  model = transformer.Model(config.model, config.sparsity)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = sites.path_name(path)
    matrix = leaf.shape[name.startswith("layers/") :]
    if len(matrix) == 2:
      sizes[name] = math.prod(matrix) * leaf.dtype.itemsize
  return max(sizes.items(), key=lambda item: item[1])


def measure_step(
  plan: Plan,
  baselines: torch_baselines.Baselines,
  shape: Shape,
  targets: StepTargets,
) -> list[Metric]:
  """Measures the training step of a shape against all it is compared with."""
  no_sparsity = {"density": 1.0, "activation_fraction": 1.0}
  sparse, dense = training_steps(
    (shape, dataclasses.replace(shape, **no_sparsity))
  )
  samplers = {"sparse": sparse.sample, "dense": dense.sample}
  width = plan.product_width
  dtype = loop.compute_dtype("auto")
  if targets.product_share is not None:
    x = jnp.ones((width, width), dtype)
    samplers["product"] = jitted_sampler(lambda x: x @ x, x)
  over_torch = {"eager": targets.eager, "compiled": targets.compiled}
  over_torch = {k: v for k, v in over_torch.items() if v is not None}
  for name in over_torch:
    more = ["--compile"] if name == "compiled" else []
    samplers[name] = baselines.sampler(
      torch_baselines.TRAIN, plan.baseline_steps, *more, *shape.flags()
    )
  timed = interleave(samplers, plan.rounds)

  ratio = functools.partial(_ratio, timed, shape=str(shape))
  metrics = [
    ratio(
      name,
      "sparse",
      name=f"training tokens/s over PyTorch, {name}",
      target=target,
      details={"tokens": shape.batch_size * shape.length},
    )
    for name, target in over_torch.items()
  ]
  metrics.append(
    ratio(
      "sparse",
      "dense",
      name="time of the sparse step over the dense one's",
      target=targets.sparse_over_dense,
      at_most=True,
    )
  )
  if targets.product_share is not None:
    flops, product_flops = model_flops(sparse.config), 2 * width**3
    metrics.append(
      ratio(
        "product",
        "sparse",
        scale=flops / product_flops,
        name=f"model FLOP/s over a {width}³ product's, {dtype.name}",
        target=targets.product_share,
        details={
          "model_flops_a_step": flops,
          "product_flops_a_second": product_flops / timed[0]["product"],
        },
      )
    )
  path, size = largest_matrix(sparse.config)
  metrics.append(
    Metric(
      name="peak memory above the dense step's, in largest matrices",
      shape=str(shape),
      value=(sparse.peak_bytes - dense.peak_bytes) / size,
      target=targets.copies,
      at_most=True,
      details={
        "sparse_bytes": sparse.peak_bytes,
        "dense_bytes": dense.peak_bytes,
        "largest_matrix": path,
        "largest_matrix_bytes": size,
      },
    )
  )
  return metrics


def measure_fused(plan: Plan, shape: Shape) -> list[Metric]:
  """Measures the sparse step with fused kernels against the same without.

  And AbsTopK's mask alone, at the width of the neurons. Where the kernels do
  not run, the metrics have no value and say why.
  """
  num_rows, width = shape.batch_size * shape.length, 4 * shape.d_model
  k = int(shape.activation_fraction * width)
  with_fused = dataclasses.replace(shape, kernels="fused")
  dtype = loop.compute_dtype("auto")
  at_most_1 = {"target": 1.0, "at_most": True}
  step = at_most_1 | {
    "name": "time of the step with fused kernels over that without",
    "shape": str(shape),
  }
  mask = at_most_1 | {
    "name": "time of AbsTopK's fused mask over XLA's",
    "shape": f"{num_rows}×{width}, k = {k}, {dtype.name}",
  }
  try:
    fused = kernels_lib.choose(with_fused.config(), dtype)
  except errors.InputError as e:
    return [Metric(value=None, note=str(e), **m) for m in (step, mask)]

  x = jax.random.normal(jax.random.key(0), (num_rows, width), dtype)
  mask_sampler = lambda kernels: jitted_sampler(
    lambda x: kernels.top_k_mask(x, k), x
  )
  metrics = []
  for fields, fused_sampler, xla_sampler in (
    (step, TrainingStep(with_fused).sample, TrainingStep(shape).sample),
    (mask, mask_sampler(fused), mask_sampler(kernels_lib.XLA)),
  ):
    samplers = {"fused": fused_sampler, "xla": xla_sampler}
    timed = interleave(samplers, plan.rounds)
    metrics.append(_ratio(timed, "fused", "xla", **fields))
  return metrics


def _over_top_k(rounds, size, select, sort, **fields) -> list[Metric]:
  x = jax.random.normal(jax.random.key(0), size)
  samplers = {
    "select": jitted_sampler(select, x),
    "top_k": jitted_sampler(sort, x),
  }
  return [_ratio(interleave(samplers, rounds), "top_k", "select", **fields)]


def measure_kth(plan: Plan) -> list[Metric]:
  """Measures the k-th magnitude of a vector against a sort, k a tenth."""
  n = plan.num_entries
  k = max(1, n // 10)
  return _over_top_k(
    plan.rounds,
    (n,),
    lambda x: top_k.kth_magnitude(x, k),
    lambda x: jax.lax.top_k(jnp.abs(x), k)[0][-1],
    name="k-th magnitude, speed over lax.top_k",
    shape=f"{n} entries, k = {k}",
    target=40.0,
  )


def measure_abs_top_k(plan: Plan) -> list[Metric]:
  """Measures AbsTopK of a quarter of the channels against a sort of the rows.

  The sort finds magnitudes and indices; AbsTopK also writes the result.
  """
  num_rows, width = plan.rows
  k = width // 4
  return _over_top_k(
    plan.rounds,
    plan.rows,
    lambda x: top_k.abs_top_k(x, k),
    lambda x: jax.lax.top_k(jnp.abs(x), k),
    name="AbsTopK, speed over lax.top_k",
    shape=f"{num_rows}×{width}, k = {k}",
    target=10.0,
  )


def _mask_program(
  shape: Shape,
) -> tuple[batched.Program, transformer.Params, Sequences]:
  """Returns the search's program, with its parameters and a call's batches."""
  config = dataclasses.replace(shape, batch_size=1).config()
  model = transformer.Model(config.model, config.sparsity)
  params = jax.jit(model.init)(jax.random.key(0))
  prune = dataclasses.replace(
    config.prune,
    steps=_MASK_STEPS_PER_CALL,
    batch_size=shape.batch_size // 2,
  )
  n = shape.num_runs
  hyperparameters = masks.Hyperparameters.from_config(
    prune, k_coef=prune.k_coefs[0], seed=np.arange(n)
  )
  rng = np.random.default_rng(0)
  means = {}
  for name in prune.sites:
    layers = sites.num_rows(name, shape.n_layer)
    values = rng.normal(size=(n, layers, model.config.width(name)))
    means[name] = jnp.asarray(0.02 * values, jnp.float32)
  token = lambda *size: jnp.asarray(rng.integers(0, shape.vocab_size, size))
  rows = n, shape.batch_size
  sequences = Sequences(
    tokens=token(*rows, shape.length),
    positions=jnp.full(rows, shape.length - 1),
    correct=token(*rows),
    incorrect=token(*rows),
  )
  runs = masks.Run(hyperparameters, means, sequences)
  program = batched.compile_runs(model, params, prune, runs, 0, None, n)
  repeated = np.resize(np.arange(n), program.num_runs)
  sequences = jax.tree.map(lambda x: x[repeated], sequences)
  batches = batched.draw_batches(prune, sequences, 0, 0, program.num_steps)
  return program, params, batches


def measure_mask_step(
  plan: Plan, baselines: torch_baselines.Baselines, shape: Shape
) -> list[Metric]:
  """Measures mask-steps/s of many prunings; PyTorch trains one at a time."""
  program, params, batches = _mask_program(shape)
  states = program.init()

  def once() -> list[float]:
    nonlocal states
    start = time.perf_counter()
    states, _ = program.advance(states, params, batches)
    jax.block_until_ready(states)
    # Runs that only fill up the last group do not count.
    steps = shape.num_runs * program.num_steps
    return [(time.perf_counter() - start) / steps]

  once()
  eager = baselines.sampler(
    torch_baselines.PRUNE, plan.baseline_steps, *shape.flags()
  )
  timed = interleave({"mask_step": once, "eager": eager}, plan.rounds)
  details = {"runs": shape.num_runs, "group": program.group}
  return [
    _ratio(
      timed,
      "eager",
      "mask_step",
      name="mask-steps/s over PyTorch, eager",
      shape=f"{shape}, {shape.num_runs} runs, {program.group} side by side",
      target=plan.mask_target,
      details=details | {"peak_bytes": program.peak_bytes},
    )
  ]


def measurements(
  plan: Plan, baselines: torch_baselines.Baselines
) -> Iterator[tuple[str, Callable[[], list[Metric]]]]:
  """Yields what is measured, in words, and the function that measures it."""
  call = functools.partial
  for shape, targets in plan.steps:
    yield f"step, {shape}", call(measure_step, plan, baselines, shape, targets)
  yield "k-th magnitude", call(measure_kth, plan)
  yield "AbsTopK", call(measure_abs_top_k, plan)
  for shape in plan.masks:
    yield f"mask step, {shape}", call(measure_mask_step, plan, baselines, shape)
  if plan.fused:
    yield f"fused kernels, {plan.fused}", call(measure_fused, plan, plan.fused)


def table(metrics: Sequence[Metric]) -> str:
  """Returns the metrics as a Markdown table, notes below it."""
  lines = ["| metric | size | target | measured | |", "|---|---|---|---|---|"]
  for m in metrics:
    value = "not measured" if m.value is None else f"{m.value:.3g}"
    bound = "at most" if m.at_most else "at least"
    reached = {True: "yes", False: "**no**", None: ""}[m.reached]
    lines.append(
      f"| {m.name} | {m.shape} | {bound} {m.target:g} | {value} | {reached} |"
    )
  notes = dict.fromkeys(m.note for m in metrics if m.note)
  return "\n".join([*lines, *(f"\n{note}" for note in notes)])
