"""The speed metrics: ratios and shares, both sides measured in one run.

What a measurement compares runs in turn, round after round, so that whatever
else the machine does slows both sides; a metric is made of medians and says
whether it reached its target. Without PyTorch, its metrics say why they have no
value.
"""

import concurrent.futures
import dataclasses
import functools
import math
import operator
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import torch_baselines
from sparse_jax import checkpoint, explain, programs, reference, sites, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.model import shrink, top_k, transformer
from sparse_jax.pruning import batched, masks
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks.sequences import Sequences
from sparse_jax.training import loop, transforms
from sparse_jax.utils import errors, tables

_SAMPLES_A_ROUND = 3
_COMPACT = "single_double_quote"  # The shipped circuit that is timed.

Sampler = Callable[[], list[float]]  # Runs a few times, returns seconds each.


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
    size = f"{self.batch_size}×{self.length}"
    return f"d_model {self.d_model}, {self.n_layer} layers, {size}"

  def config(self) -> config_lib.Config:
    """Returns a resolved run config; units keep no more than their share."""
    c = config_lib.to_config_dict()
    c.data.context_length = self.length
    c.model.update(n_layer=self.n_layer, d_model=self.d_model)
    c.sparsity.update(density=self.density, anneal_start=0.0, anneal_stop=0.0)
    c.sparsity.activation_fraction = self.activation_fraction
    share = int(self.density * self.d_model)
    c.sparsity.min_alive = min(c.sparsity.min_alive, share)
    c.train.update(batch_size=self.batch_size, kernels=self.kernels)
    return config_lib.resolve(config_lib.from_config_dict(c), self.vocab_size)

  def flags(self) -> tuple[str, ...]:
    """Returns the flags that give a PyTorch baseline this shape."""
    return tuple(
      f"--{name}={value}"
      for name, value in vars(self).items()
      if name not in ("kernels", "num_runs")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """What was measured, beside its target."""

  name: str
  shape: str
  value: float | None  # A ratio or a share; None if there is none.
  target: float
  at_most: bool = False
  note: str = ""  # Why there is no value, or what else to know.
  # What the value is made of; times are medians in seconds.
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def reached(self) -> bool | None:
    """Whether the target is reached; None if there is no value."""
    if self.value is None:
      return None
    holds = operator.le if self.at_most else operator.ge
    return holds(self.value, self.target)

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return dataclasses.asdict(self) | {"reached": self.reached}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTargets:
  """What a training step has to reach; None leaves a comparison out."""

  eager: float | None = 3.0  # Tokens/s over eager PyTorch's.
  compiled: float | None = 2.0  # Tokens/s over compiled PyTorch's.
  product_share: float | None = None  # FLOP/s over a large matrix product's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run measures."""

  steps: Sequence[tuple[Shape, StepTargets]] = ()
  masks: Sequence[Shape] = ()
  # Whose circuits of so many nodes are run alone.
  circuits: Sequence[Shape] = ()
  num_nodes: int = 64
  saved: Shape = Shape(length=64, activation_fraction=1 / 16)  # Quickstart's.
  circuit: str = ""  # A directory; the shipped quotes' without one.
  num_pairs: int = 128  # Of prompts, for that circuit and its model.
  fused: Shape | None = None  # Measured with and without fused kernels.
  num_entries: int = 4 << 20  # Of the k-th magnitude.
  rows: tuple[int, int] = (4096, 1024)  # Rows and width of AbsTopK.
  product_width: int = 2048
  growth_base: Shape = Shape(batch_size=8, length=64)
  # By the field of `growth_base` that varies.
  growth_axes: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=lambda: {
      "d_model": (64, 128, 256, 512, 1024),
      "density": (1 / 1024, 1 / 64, 1 / 8, 1.0),
      "n_layer": (1, 2, 4),
      "batch_size": (8, 16, 32),
    }
  )
  rounds: int = 3
  baseline_steps: int = 2  # That a baseline's median is of, in each round.


_LARGER = Shape(n_layer=4, d_model=256, batch_size=16, length=256)
_LARGER_MASK = dataclasses.replace(_LARGER, batch_size=128, length=64)
_CIRCUITS = tuple(
  Shape(d_model=256, batch_size=64, length=32, activation_fraction=fraction)
  for fraction in (1 / 4, 1 / 16, 1.0)
)
CPU = Plan(  # What is asked of two CPU cores.
  steps=((Shape(), StepTargets()), (_LARGER, StepTargets(product_share=0.45))),
  masks=(Shape(length=24), dataclasses.replace(_LARGER_MASK, num_runs=4)),
  circuits=_CIRCUITS,
)

_LARGE = Shape(n_layer=8, d_model=1024, batch_size=512, length=256)
ACCELERATOR = Plan(  # What is asked of one large accelerator, in bfloat16.
  steps=((_LARGE, StepTargets(eager=None, compiled=3.0, product_share=0.4)),),
  fused=_LARGE,
  masks=(_LARGER_MASK,),
  circuits=_CIRCUITS,
  product_width=8192,
  growth_base=Shape(batch_size=64, length=256),
)

_TINY = Shape(
  n_layer=1, d_model=32, batch_size=2, length=16, vocab_size=64, num_runs=2
)
SHORT = Plan(  # Every metric at tiny shapes: a trial of the machinery.
  steps=((_TINY, StepTargets(product_share=0.45)),),
  masks=(dataclasses.replace(_TINY, batch_size=4, length=8),),
  circuits=(_TINY,),
  num_nodes=8,
  saved=_TINY,
  num_pairs=1,
  num_entries=4096,
  rows=(64, 64),
  product_width=64,
  growth_base=_TINY,
  growth_axes={"d_model": (16, 32), "density": (0.25, 1.0)},
  rounds=1,
  baseline_steps=1,
)


class Timed(NamedTuple):
  """Median seconds by name, and by name why a baseline has none."""

  medians: dict[str, float]
  failed: dict[str, str]

  def metric(
    self, name, shape, ratio, target, scale=1.0, at_most=False, **details
  ) -> Metric:
    """Returns the metric of a `ratio` "a/b" of two medians, times `scale`."""
    over, under = map(self.medians.get, names := ratio.split("/"))
    seconds = {f"{key}_seconds": value for key, value in self.medians.items()}
    return Metric(
      name=name,
      shape=str(shape),
      value=scale * over / under if over and under else None,
      target=target,
      at_most=at_most,
      note=self.failed.get(names[0], ""),
      details=seconds | details,
    )


def interleave(samplers: Mapping[str, Sampler], rounds: int) -> Timed:
  """Times in turn, round after round; a baseline that fails drops out."""
  samples: dict[str, list[float]] = {name: [] for name in samplers}
  failed: dict[str, str] = {}
  for _ in range(rounds):
    for name in list(samples):
      try:
        samples[name] += samplers[name]()
      except torch_baselines.BaselineError as e:
        failed[name] = str(e)
        del samples[name]
  medians = {name: statistics.median(times) for name, times in samples.items()}
  return Timed(medians, failed)


def time_call(function: Callable[..., Any], *args) -> tuple[float, Any]:
  """Returns the seconds of a call, and its result once it is computed."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return time.perf_counter() - start, result


def jitted_sampler(function: Callable[..., Any], *args) -> Sampler:
  """Returns a sampler of a function, compiled and run once."""
  once = functools.partial(time_call, jax.jit(function), *args)
  once()
  return lambda: [once()[0] for _ in range(_SAMPLES_A_ROUND)]


class TrainingStep:
  """A compiled training step and the state it goes on from."""

  def __init__(self, shape: Shape):
    self.config = config = shape.config()
    dtype = loop.compute_dtype(config.train.compute_dtype)
    kernels = kernels_lib.choose(config, dtype)
    model = transformer.Model(config.model, config.sparsity, dtype, kernels)
    rng = jax.random.key(0)
    optimizer = transforms.sparse_adam(config, jax.eval_shape(model.init, rng))
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
      call = self._compiled, self.state, self._windows
      seconds, (self.state, _) = time_call(*call)
      times.append(seconds)
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
) -> Iterator[Metric]:
  """Measures the training step of a shape against all it is compared with."""
  no_sparsity = {"density": 1.0, "activation_fraction": 1.0}
  shapes = shape, dataclasses.replace(shape, **no_sparsity)
  sparse, dense = training_steps(shapes)
  samplers = {"sparse": sparse.sample, "dense": dense.sample}
  width, dtype = plan.product_width, loop.compute_dtype("auto")
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
  tokens = shape.batch_size * shape.length
  for torch, target in over_torch.items():
    name = f"training tokens/s over PyTorch, {torch}"
    ratio = f"{torch}/sparse"
    yield timed.metric(name, shape, ratio, target, tokens=tokens)
  name = "time of the sparse step over the dense one's"
  yield timed.metric(name, shape, "sparse/dense", 1.15, at_most=True)
  if targets.product_share is not None:
    flops, product_flops = model_flops(sparse.config), 2 * width**3
    yield timed.metric(
      f"model FLOP/s over a {width}³ product's, {dtype.name}",
      shape,
      "product/sparse",
      targets.product_share,
      scale=flops / product_flops,
      model_flops_a_step=flops,
      product_flops_a_second=product_flops / timed.medians["product"],
    )
  path, size = largest_matrix(sparse.config)
  yield Metric(
    name="peak memory above the dense step's, in largest matrices",
    shape=str(shape),
    value=(sparse.peak_bytes - dense.peak_bytes) / size,
    target=2.0,
    at_most=True,
    details={
      "sparse_bytes": sparse.peak_bytes,
      "dense_bytes": dense.peak_bytes,
      "largest_matrix": path,
      "largest_matrix_bytes": size,
    },
  )


def time_functions(
  plan: Plan, size: tuple[int, ...], dtype=jnp.float32, **functions
) -> Timed:
  """Times functions of one array of random numbers."""
  x = jax.random.normal(jax.random.key(0), size, dtype)
  samplers = {name: jitted_sampler(f, x) for name, f in functions.items()}
  return interleave(samplers, plan.rounds)


def measure_fused(plan: Plan, shape: Shape) -> Iterator[Metric]:
  """Measures the sparse step with fused kernels against the same without.

  And AbsTopK's mask alone, at the width of the neurons. Where the kernels do
  not run, the metrics have no value and say why.
  """
  num_rows, width = shape.batch_size * shape.length, 4 * shape.d_model
  k = int(shape.activation_fraction * width)
  with_fused = dataclasses.replace(shape, kernels="fused")
  dtype = loop.compute_dtype("auto")
  try:
    fused = kernels_lib.choose(with_fused.config(), dtype)
  except errors.InputError as e:
    steps = alone = Timed({}, {"fused": str(e)})
  else:
    samplers = {"fused": TrainingStep(with_fused).sample}
    samplers["xla"] = TrainingStep(shape).sample
    steps = interleave(samplers, plan.rounds)
    size = num_rows, width
    xla_mask = lambda x: kernels_lib.XLA.top_k_mask(x, k)
    fused_mask = lambda x: fused.top_k_mask(x, k)
    alone = time_functions(plan, size, dtype, fused=fused_mask, xla=xla_mask)
  name = "time of the step with fused kernels over that without"
  yield steps.metric(name, shape, "fused/xla", 1.0, at_most=True)
  name = "time of AbsTopK's fused mask over XLA's"
  size = f"{num_rows}×{width}, k = {k}, {dtype.name}"
  yield alone.metric(name, size, "fused/xla", 1.0, at_most=True)


def measure_kth(plan: Plan) -> Iterator[Metric]:
  """Measures the k-th magnitude of a vector against a sort, k a tenth."""
  n = plan.num_entries
  k = max(1, n // 10)
  select = lambda x: top_k.kth_magnitude(x, k)
  sort = lambda x: jax.lax.top_k(jnp.abs(x), k)[0][-1]
  timed = time_functions(plan, (n,), select=select, top_k=sort)
  name, size = "k-th magnitude, speed over lax.top_k", f"{n} entries, k = {k}"
  yield timed.metric(name, size, "top_k/select", 40.0)


def measure_abs_top_k(plan: Plan) -> Iterator[Metric]:
  """Measures AbsTopK of a quarter of the channels against a sort of the rows.

  The sort finds magnitudes and indices; AbsTopK also writes the result.
  """
  num_rows, width = plan.rows
  k = width // 4
  select = lambda x: top_k.abs_top_k(x, k)
  sort = lambda x: jax.lax.top_k(jnp.abs(x), k)
  timed = time_functions(plan, plan.rows, select=select, top_k=sort)
  name, size = "AbsTopK, speed over lax.top_k", f"{num_rows}×{width}, k = {k}"
  yield timed.metric(name, size, "top_k/select", 10.0)


def _mask_program(
  shape: Shape,
) -> tuple[batched.Program, transformer.Params, Sequences]:
  """Returns the search's program, with its parameters and a call's batches."""
  config = dataclasses.replace(shape, batch_size=1).config()
  model = transformer.Model(config.model, config.sparsity)
  params = jax.jit(model.init)(jax.random.key(0))
  n, pairs = shape.num_runs, shape.batch_size // 2
  # The baseline's step: closed nodes at their means.
  prune = dataclasses.replace(config.prune.core, steps=2, batch_size=pairs)
  hyperparameters = masks.Hyperparameters.from_config(
    prune, k_coef=prune.k_coefs[0], seed=np.arange(n)
  )
  rng = np.random.default_rng(0)
  means = {}
  for name in prune.sites:
    size = n, *model.config.site_shape(name)
    means[name] = jnp.asarray(rng.normal(0, 0.02, size), jnp.float32)
  token = lambda *size: jnp.asarray(rng.integers(0, shape.vocab_size, size))
  rows = n, shape.batch_size
  sequences = Sequences(
    tokens=token(*rows, shape.length),
    positions=jnp.full(rows, shape.length - 1),
    correct=token(*rows),
    incorrect=token(*rows),
    groups=jnp.zeros(rows, jnp.int32),
  )
  allowed = {name: jnp.ones(mean.shape, bool) for name, mean in means.items()}
  runs = masks.Run(hyperparameters, means, sequences, allowed)
  program = batched.compile_runs(model, params, prune, runs, 0, n)
  repeated = np.resize(np.arange(n), program.num_runs)
  sequences = jax.tree.map(lambda x: x[repeated], sequences)
  batches = batched.draw_batches(prune, sequences, 0, 0, program.num_steps)
  return program, params, batches


def measure_mask_step(
  plan: Plan, baselines: torch_baselines.Baselines, shape: Shape
) -> Iterator[Metric]:
  """Measures mask-steps/s of many prunings; PyTorch trains one at a time."""
  program, params, batches = _mask_program(shape)
  states = program.init()

  def once() -> list[float]:
    nonlocal states
    seconds, (states, _) = time_call(program.advance, states, params, batches)
    # Runs that only fill up the last group do not count.
    return [seconds / (shape.num_runs * program.num_steps)]

  once()
  script, steps = torch_baselines.PRUNE, plan.baseline_steps
  eager = baselines.sampler(script, steps, *shape.flags())
  timed = interleave({"mask_step": once, "eager": eager}, plan.rounds)
  yield timed.metric(
    "mask-steps/s over PyTorch, eager",
    f"{shape}, {shape.num_runs} runs, {program.group} side by side",
    "eager/mask_step",
    4.0,
    runs=shape.num_runs,
    group=program.group,
    peak_bytes=program.peak_bytes,
  )


def random_circuit(
  shape: Shape, num_nodes: int
) -> tuple[mask_evaluator.MaskEvaluator, dict[str, np.ndarray]]:
  """Returns a random model of that density on random prompts, and a mask."""
  config = shape.config()
  model = transformer.Model(config.model, config.sparsity)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda w: w * (rng.random(w.shape) < (shape.density if w.ndim > 2 else 1)),
    jax.jit(model.init)(jax.random.key(0)),
  )
  shapes = {name: config.model.site_shape(name) for name in config.prune.sites}
  means = {
    name: jnp.asarray(rng.normal(0, 0.02, size), jnp.float32)
    for name, size in shapes.items()
  }
  token = lambda *size: jnp.asarray(rng.integers(0, shape.vocab_size, size))
  rows = shape.batch_size
  answers = jnp.tile(jnp.array([[0, 1]]), (rows, 1))
  prompts = Sequences(
    tokens=token(rows, shape.length),
    positions=jnp.asarray(rng.integers(0, shape.length, rows)),
    correct=answers[:, 0],
    incorrect=answers[:, 1],
    groups=jnp.zeros(rows, jnp.int32),
  )
  evaluator = mask_evaluator.MaskEvaluator(model, params, means, prompts)
  order = rng.permutation(evaluator.num_nodes)
  kept = masks.masks_of_order(evaluator.shapes, order, [num_nodes])
  return evaluator, {name: mask[0] for name, mask in kept.items()}


def measure_circuit(plan: Plan, shape: Shape) -> Iterator[Metric]:
  """Measures a circuit as a program of its own against the gated model.

  That program is the most that slicing can win: it holds the circuit and its
  rivals alone, without padding to widths that circuits could share.
  """
  evaluator, mask = random_circuit(shape, plan.num_nodes)
  prompts = evaluator.sequences
  start = time.perf_counter()
  program = shrink.shrink(
    evaluator.model, evaluator.params, mask, evaluator.means, answers=(0, 1)
  )

  def difference():
    logits = np.asarray(program(prompts.tokens, prompts.positions))[:, 0]
    return logits[:, 0] - logits[:, 1]

  found = difference()
  compiling = time.perf_counter() - start
  error = np.max(np.abs(found - evaluator.logit_difference(mask)))
  sample = lambda f: lambda: [time_call(f)[0] for _ in range(_SAMPLES_A_ROUND)]
  samplers = {
    "gated": sample(lambda: evaluator.logit_difference(mask)),
    "sliced": sample(difference),
  }
  timed = interleave(samplers, plan.rounds)
  yield timed.metric(
    "circuits/s, sliced over gated",
    f"{shape}, AbsTopK {shape.activation_fraction:g}, {plan.num_nodes} nodes",
    "gated/sliced",
    5.0,
    largest_error=float(error),
    num_rivals=program.num_rivals,
    compiling_seconds=compiling,
  )


def measure_compact(plan: Plan) -> Iterator[Metric]:
  """Measures a core as a program against its model, prompts/s.

  Both give logits at the last token of the same prompts: the model those of all
  tokens, the program those of its answers.
  """
  shipped = reference.find_circuits([reference.NAME])
  directory = plan.circuit or next(d for d in shipped if d.name == _COMPACT)
  circuit = circuit_lib.Circuit.load(directory)
  where = reference.model_beside(pathlib.Path(directory))
  model, params = checkpoint.load_model(where)
  params = jax.tree.map(jnp.asarray, params)
  tokenizer = checkpoint.load_tokenizer(where)
  answers = programs.find_answers(explain.answer_pairs(circuit), tokenizer)
  program = circuit.compact(params, answers.tokens)
  pairs = tasks.make_task(circuit.task, tokenizer).pairs("test", plan.num_pairs)
  tokens, positions, *_ = map(np.asarray, pairs.sequences())

  @jax.jit
  def whole(params, tokens, positions):
    x_BxD = model.residual(params, tokens, None, positions)[:, 0]
    last_B = tokens[jnp.arange(len(tokens)), positions]
    return model.unembed(params, x_BxD, last_B)

  runs = {
    "model": lambda: np.asarray(whole(params, tokens, positions)),
    "jax": lambda: np.asarray(program(tokens, positions)),
    "numpy": lambda: program.numpy(tokens, positions),
  }
  for run in runs.values():
    run()
  sample = lambda f: lambda: [time_call(f)[0] for _ in range(_SAMPLES_A_ROUND)]
  timed = interleave({n: sample(run) for n, run in runs.items()}, plan.rounds)
  size = "×".join(map(str, tokens.shape))
  shape = f"{circuit.task}, {circuit.num_nodes} nodes, {size}"
  for name, label in (("jax", "JAX"), ("numpy", "NumPy")):
    yield timed.metric(
      f"prompts/s, circuit over its model, {label}",
      shape,
      f"model/{name}",
      20.0,
    )


def measurements(
  plan: Plan, baselines: torch_baselines.Baselines
) -> Iterator[tuple[str, Callable[[], Iterator[Metric]]]]:
  """Yields what is measured, in words, and the function that measures it."""
  call = functools.partial
  for shape, targets in plan.steps:
    yield f"step, {shape}", call(measure_step, plan, baselines, shape, targets)
  yield "k-th magnitude", call(measure_kth, plan)
  yield "AbsTopK", call(measure_abs_top_k, plan)
  for shape in plan.masks:
    yield f"mask step, {shape}", call(measure_mask_step, plan, baselines, shape)
  for shape in plan.circuits:
    fraction = shape.activation_fraction
    yield f"circuit, AbsTopK {fraction:g}", call(measure_circuit, plan, shape)
  yield "circuit over its model", call(measure_compact, plan)
  if plan.fused:
    yield f"fused kernels, {plan.fused}", call(measure_fused, plan, plan.fused)


def table(metrics: Sequence[Metric]) -> str:
  """Returns the metrics as a Markdown table, notes below it."""
  rows = [
    (
      m.name,
      m.shape,
      f"{'at most' if m.at_most else 'at least'} {m.target:g}",
      "not measured" if m.value is None else f"{m.value:.3g}",
      {True: "yes", False: "**no**", None: ""}[m.reached],
    )
    for m in metrics
  ]
  text = tables.markdown(("metric", "size", "target", "measured", ""), rows)
  notes = dict.fromkeys(m.note for m in metrics if m.note)
  return "\n".join([text, *(f"\n{note}" for note in notes)])
