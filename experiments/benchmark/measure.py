"""The speed figures: ratios and shares, both sides measured in one run.

A measurement is a function that returns `Figure` records. What it compares runs
in turn, round after round, so that whatever else the machine does falls on
both; the figure is made of medians. Nothing here asserts a time: a figure says
whether it reached its mark.

Where the PyTorch peers (`peers.py`) are missing, their figures are left empty
and say why.
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

from experiments.benchmark import baseline_runs
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.model import top_k, transformer
from sparse_jax.pruning import batched
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.training import loop, transforms
from sparse_jax.utils import errors, host

_MASK_STEPS_PER_CALL = 2
_SAMPLES_A_ROUND = 3

Sampler = Callable[[], list[float]]  # Runs a few times, returns seconds each.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Shape of a training step.

  Attributes:
    n_layer: layers.
    d_model: residual width.
    batch_size: windows.
    length: tokens a window.
    vocab_size: tokens of the vocabulary.
    density: share of nonzero weights, the final one from the first step on.
    activation_fraction: share of channels AbsTopK keeps.
    kernels: as `train.kernels`.
  """

  n_layer: int = 2
  d_model: int = 128
  batch_size: int = 32
  length: int = 128
  vocab_size: int = 2048
  density: float = 0.1
  activation_fraction: float = 0.25
  kernels: str = "xla"

  def __str__(self) -> str:
    return (
      f"d_model {self.d_model}, {self.n_layer} layers,"
      f" {self.batch_size}×{self.length}"
    )

  @property
  def num_tokens(self) -> int:
    return self.batch_size * self.length

  def dense(self) -> "Shape":
    """Returns the shape without weight and activation sparsity."""
    return dataclasses.replace(self, density=1.0, activation_fraction=1.0)

  def config(self) -> config_lib.Config:
    """Returns a resolved run config of this shape.

    At densities where a unit's share is below the default `min_alive`, only
    that share is protected.
    """
    share = int(self.density * self.d_model)
    config = config_lib.Config(
      data=config_lib.DataConfig(context_length=self.length),
      model=config_lib.ModelConfig(n_layer=self.n_layer, d_model=self.d_model),
      sparsity=config_lib.SparsityConfig(
        density=self.density,
        activation_fraction=self.activation_fraction,
        min_alive=min(config_lib.SparsityConfig().min_alive, share),
        anneal_start=0.0,
        anneal_stop=0.0,
      ),
      train=config_lib.TrainConfig(
        batch_size=self.batch_size, kernels=self.kernels
      ),
    )
    return config_lib.resolve(config, self.vocab_size)

  def peer_flags(self) -> tuple[str, ...]:
    """Returns the flags that give the PyTorch training peer this shape."""
    flags = {
      "d_model": self.d_model,
      "layers": self.n_layer,
      "batch": self.batch_size,
      "length": self.length,
      "vocab": self.vocab_size,
      "density": self.density,
      "active": self.activation_fraction,
    }
    return tuple(f"--{name}={value}" for name, value in flags.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskShape:
  """Shape of a pruning step.

  Attributes:
    n_layer: layers.
    d_model: residual width.
    num_sequences: prompts a step, both sides of the pairs.
    length: tokens a prompt.
    vocab_size: tokens of the vocabulary.
    num_runs: mask trainings in one program.
  """

  n_layer: int = 2
  d_model: int = 128
  num_sequences: int = 32
  length: int = 24
  vocab_size: int = 2048
  num_runs: int = 16

  def __str__(self) -> str:
    return (
      f"d_model {self.d_model}, {self.n_layer} layers,"
      f" {self.num_sequences}×{self.length}"
    )

  def peer_flags(self) -> tuple[str, ...]:
    """Returns the flags that give the PyTorch pruning peer this shape."""
    flags = {
      "d_model": self.d_model,
      "layers": self.n_layer,
      "sequences": self.num_sequences,
      "length": self.length,
      "vocab": self.vocab_size,
    }
    return tuple(f"--{name}={value}" for name, value in flags.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """One measured figure beside its mark.

  Attributes:
    name: what is measured.
    shape: at which size.
    value: a ratio or a share; None if it could not be measured.
    mark: what it has to reach.
    at_most: whether the mark is an upper bound.
    note: why there is no value, or what else to know.
    details: what the value is made of; times are medians in seconds.
  """

  name: str
  shape: str
  value: float | None
  mark: float
  at_most: bool = False
  note: str = ""
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def reached(self) -> bool | None:
    """Whether the mark is reached; None if there is no value."""
    if self.value is None:
      return None
    return self.value <= self.mark if self.at_most else self.value >= self.mark

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return dataclasses.asdict(self) | {"reached": self.reached}


def interleave(
  samplers: Mapping[str, Sampler], rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
  """Runs every sampler in turn, `rounds` times.

  Returns:
    Median seconds by name; and by name why a peer has none.
  """
  samples: dict[str, list[float]] = {name: [] for name in samplers}
  failed: dict[str, str] = {}
  for _ in range(rounds):
    for name, sampler in samplers.items():
      if name in failed:
        continue
      try:
        samples[name] += sampler()
      except baseline_runs.PeerError as e:
        failed[name] = str(e)
  medians = {
    name: statistics.median(times)
    for name, times in samples.items()
    if name not in failed
  }
  return medians, failed


def _as_details(medians: Mapping[str, float]) -> dict[str, Any]:
  return {f"{name}_seconds": value for name, value in medians.items()}


def seconds(function: Callable[..., Any], *args) -> float:
  """Returns how long a call takes until its results are there."""
  start = time.perf_counter()
  jax.block_until_ready(function(*args))
  return time.perf_counter() - start


def jitted_sampler(function: Callable[..., Any], *args) -> Sampler:
  """Returns a sampler of a function, compiled and run once."""
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(*args))
  return lambda: [seconds(compiled, *args) for _ in range(_SAMPLES_A_ROUND)]


class TrainingStep:
  """A compiled training step and the state it goes on from.

  Attributes:
    config: resolved.
    state: after the steps taken so far.
    peak_bytes: arguments, results and temporaries at their peak, as the
      compiler has planned them.
  """

  def __init__(self, shape: Shape):
    self.config = shape.config()
    dtype = loop.compute_dtype(self.config.train.compute_dtype)
    model = transformer.Model(
      self.config.model,
      self.config.sparsity,
      dtype,
      kernels_lib.choose(self.config, dtype),
    )
    rng = jax.random.key(0)
    optimizer = transforms.sparse_adam(
      self.config, jax.eval_shape(model.init, rng)
    )
    init = functools.partial(loop.init_state, model, optimizer)
    self.state = jax.jit(init)(rng)
    self._windows = jax.random.randint(
      rng, (shape.batch_size, shape.length + 1), 0, shape.vocab_size
    )
    step = functools.partial(loop.train_step, model, optimizer)
    self._compiled = (
      jax.jit(step, donate_argnums=0).lower(self.state, self._windows).compile()
    )
    self.peak_bytes = peak_bytes(self._compiled)
    for _ in range(2):
      self._once()

  def _once(self) -> float:
    start = time.perf_counter()
    self.state, _ = self._compiled(self.state, self._windows)
    jax.block_until_ready(self.state)
    return time.perf_counter() - start

  def sample(self) -> list[float]:
    """Returns the seconds of a few steps."""
    return [self._once() for _ in range(_SAMPLES_A_ROUND)]


def training_steps(shapes: Sequence[Shape]) -> list[TrainingStep]:
  """Returns a step of each shape, compiled two at a time.

  A compilation is mostly one thread's work.
  """
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

  Two a weight and token in the forward pass, twice that in the backward pass;
  attention over the pairs of positions that the causal mask leaves. Weights
  count whether or not they are zero; lookups, norms and selection do not count.
  """
  model, length = config.model, config.data.context_length
  tokens = config.train.batch_size * length
  blocks = sum(n for n, _, _ in config_lib.block_units(model).values())
  weights = model.n_layer * blocks + model.vocab_size * model.d_model
  # Two products, of queries with keys and of weights with values.
  attention = model.n_layer * 2 * model.d_model * (length + 1) / 2
  return 3 * 2 * tokens * (weights + attention)


def largest_matrix(config: config_lib.Config) -> tuple[str, int]:
  """Returns path and bytes of the model's largest matrix.

  A parameter that is stacked over layers is one matrix a layer.
  """
  model = transformer.Model(config.model, config.sparsity)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = sites.path_name(path)
    matrix = leaf.shape[1:] if name.startswith("layers/") else leaf.shape
    if len(matrix) == 2:
      sizes[name] = math.prod(matrix) * leaf.dtype.itemsize
  name = max(sizes, key=sizes.__getitem__)
  return name, sizes[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMarks:
  """What a training step has to reach; None is not asked.

  Attributes:
    eager: tokens/s over the eager peer's.
    compiled: tokens/s over the compiled peer's.
    sparse_over_dense: time of the sparse step over the dense one's.
    matrix_share: model FLOP/s over those of a large matrix product.
    copies: memory above the dense step's, in copies of the largest matrix.
  """

  eager: float | None = 3.0
  compiled: float | None = 2.0
  sparse_over_dense: float = 1.15
  matrix_share: float | None = None
  copies: float = 2.0


def measure_step(
  shape: Shape,
  marks: StepMarks,
  product_width: int,
  peers: baseline_runs.Peers,
  rounds: int,
  peer_steps: int,
) -> list[Figure]:
  """Measures the training step of a shape against all it is compared with.

  Args:
    shape: of the step.
    marks: which figures, and what they have to reach.
    product_width: of the square matrices of the large product, in the dtype
      that the step computes in.
    peers: the PyTorch peers.
    rounds: of the interleaving.
    peer_steps: steps that a peer takes its own median of, each round.
  """
  sparse, dense = training_steps((shape, shape.dense()))
  samplers = {"sparse": sparse.sample, "dense": dense.sample}
  if marks.matrix_share is not None:
    dtype = loop.compute_dtype("auto")
    x = jnp.ones((product_width, product_width), dtype)
    samplers["product"] = jitted_sampler(lambda x: x @ x, x)
  flags = shape.peer_flags()
  if marks.eager is not None:
    samplers["eager"] = peers.sampler(
      baseline_runs.TRAIN_PEER, peer_steps, *flags
    )
  if marks.compiled is not None:
    samplers["compiled"] = peers.sampler(
      baseline_runs.TRAIN_PEER, peer_steps, "--compile", *flags
    )
  medians, failed = interleave(samplers, rounds)
  times = _as_details(medians)

  figures = []
  for name, mark in (("eager", marks.eager), ("compiled", marks.compiled)):
    if mark is not None:
      found = name in medians
      figures.append(
        Figure(
          name=f"training tokens/s over PyTorch, {name}",
          shape=str(shape),
          value=medians[name] / medians["sparse"] if found else None,
          mark=mark,
          note=failed.get(name, ""),
          details=times | {"tokens": shape.num_tokens},
        )
      )
  figures.append(
    Figure(
      name="time of the sparse step over the dense one's",
      shape=str(shape),
      value=medians["sparse"] / medians["dense"],
      mark=marks.sparse_over_dense,
      at_most=True,
      details=times,
    )
  )
  if marks.matrix_share is not None:
    flops = model_flops(sparse.config)
    rate = 2 * product_width**3 / medians["product"]
    figures.append(
      Figure(
        name=f"model FLOP/s over a {product_width}³ product's, {dtype.name}",
        shape=str(shape),
        value=flops / medians["sparse"] / rate,
        mark=marks.matrix_share,
        details=times
        | {"model_flops_a_step": flops, "product_flops_a_second": rate},
      )
    )
  path, size = largest_matrix(sparse.config)
  figures.append(
    Figure(
      name="peak memory above the dense step's, in largest matrices",
      shape=str(shape),
      value=(sparse.peak_bytes - dense.peak_bytes) / size,
      mark=marks.copies,
      at_most=True,
      details={
        "sparse_bytes": sparse.peak_bytes,
        "dense_bytes": dense.peak_bytes,
        "largest_matrix": path,
        "largest_matrix_bytes": size,
      },
    )
  )
  return figures


def measure_fused(shape: Shape, rounds: int) -> list[Figure]:
  """Measures the sparse step with fused kernels against the same without.

  And AbsTopK's mask alone, at the width of the neurons. Where the kernels do
  not run the figures are left empty and say why.
  """
  num_rows, width = shape.num_tokens, 4 * shape.d_model
  k = int(shape.activation_fraction * width)
  with_fused = dataclasses.replace(shape, kernels="fused")
  dtype = loop.compute_dtype("auto")
  step, mask = (
    functools.partial(Figure, name=name, shape=size, mark=1.0, at_most=True)
    for name, size in (
      ("time of the step with fused kernels over that without", str(shape)),
      (
        "time of AbsTopK's fused mask over XLA's",
        f"{num_rows}×{width}, k = {k}, {dtype.name}",
      ),
    )
  )
  try:
    fused = kernels_lib.choose(with_fused.config(), dtype)
  except errors.InputError as e:
    return [step(value=None, note=str(e)), mask(value=None, note=str(e))]

  x = jax.random.normal(jax.random.key(0), (num_rows, width), dtype)
  mask_sampler = lambda kernels: jitted_sampler(
    lambda x: kernels.top_k_mask(x, k), x
  )
  figures = []
  for figure, fused_sampler, xla_sampler in (
    (step, TrainingStep(with_fused).sample, TrainingStep(shape).sample),
    (mask, mask_sampler(fused), mask_sampler(kernels_lib.XLA)),
  ):
    medians, _ = interleave(
      {"fused": fused_sampler, "xla": xla_sampler}, rounds
    )
    value = medians["fused"] / medians["xla"]
    figures.append(figure(value=value, details=_as_details(medians)))
  return figures


def measure_kth(num_entries: int, rounds: int) -> list[Figure]:
  """Measures the k-th magnitude of a vector against a sort, k a tenth."""
  k = max(1, num_entries // 10)
  x = jax.random.normal(jax.random.key(0), (num_entries,))
  medians, _ = interleave(
    {
      "select": jitted_sampler(lambda x: top_k.kth_magnitude(x, k), x),
      "top_k": jitted_sampler(lambda x: jax.lax.top_k(jnp.abs(x), k)[0][-1], x),
    },
    rounds,
  )
  return [
    Figure(
      name="k-th magnitude, speed over lax.top_k",
      shape=f"{num_entries} entries, k = {k}",
      value=medians["top_k"] / medians["select"],
      mark=40.0,
      details=_as_details(medians),
    )
  ]


def measure_abs_top_k(num_rows: int, width: int, rounds: int) -> list[Figure]:
  """Measures AbsTopK of a quarter of the channels against a sort of the rows.

  The sort only finds magnitudes and their indices; AbsTopK also writes the
  result.
  """
  k = width // 4
  x = jax.random.normal(jax.random.key(0), (num_rows, width))
  medians, _ = interleave(
    {
      "select": jitted_sampler(lambda x: top_k.abs_top_k(x, k), x),
      "top_k": jitted_sampler(lambda x: jax.lax.top_k(jnp.abs(x), k), x),
    },
    rounds,
  )
  return [
    Figure(
      name="AbsTopK, speed over lax.top_k",
      shape=f"{num_rows}×{width}, k = {k}",
      value=medians["top_k"] / medians["select"],
      mark=10.0,
      details=_as_details(medians),
    )
  ]


def _mask_program(
  shape: MaskShape,
) -> tuple[batched.Program, transformer.Params, sequences_lib.Sequences]:
  """Returns the program that the search would train so many masks with.

  With its parameters and the batches of a call.
  """
  config = Shape(
    n_layer=shape.n_layer,
    d_model=shape.d_model,
    batch_size=1,
    length=shape.length,
    vocab_size=shape.vocab_size,
  ).config()
  model = transformer.Model(config.model, config.sparsity)
  params = jax.jit(model.init)(jax.random.key(0))
  settings = dataclasses.replace(
    config.prune,
    steps=_MASK_STEPS_PER_CALL,
    batch_size=shape.num_sequences // 2,
  )
  values = {
    "k_coef": settings.k_coefs[0],
    **{
      name: getattr(settings, name)
      for name in masks_lib.Hyperparameters._fields
      if name not in ("k_coef", "seed")
    },
  }
  many = masks_lib.Hyperparameters(
    **{name: jnp.full(shape.num_runs, value) for name, value in values.items()},
    seed=jnp.arange(shape.num_runs),
  )
  rng = np.random.default_rng(0)
  means = {
    name: jnp.asarray(
      0.02
      * rng.normal(
        size=(
          shape.num_runs,
          sites.num_rows(name, shape.n_layer),
          model.config.width(name),
        )
      ),
      jnp.float32,
    )
    for name in settings.sites
  }
  token = lambda *size: jnp.asarray(rng.integers(0, shape.vocab_size, size))
  rows = shape.num_runs, shape.num_sequences
  sequences = sequences_lib.Sequences(
    tokens=token(*rows, shape.length),
    positions=jnp.full(rows, shape.length - 1),
    correct=token(*rows),
    incorrect=token(*rows),
  )
  program = batched.compile_runs(
    model,
    params,
    settings,
    masks_lib.Run(many, means, sequences),
    0,
    None,
    shape.num_runs,
  )
  repeated = np.resize(np.arange(shape.num_runs), program.num_runs)
  batches = batched.draw_batches(
    settings,
    jax.tree.map(lambda x: x[repeated], sequences),
    0,
    0,
    program.num_steps,
  )
  return program, params, batches


def measure_mask_step(
  shape: MaskShape,
  mark: float,
  peers: baseline_runs.Peers,
  rounds: int,
  peer_steps: int,
) -> list[Figure]:
  """Measures mask-steps/s of many prunings in one program.

  Args:
    shape: of a step.
    mark: what it has to reach, over the peer that trains one mask at a time.
    peers: the PyTorch peers.
    rounds: of the interleaving.
    peer_steps: steps that the peer takes its own median of, each round.
  """
  program, params, batches = _mask_program(shape)
  states = program.init()

  def once() -> list[float]:
    nonlocal states
    start = time.perf_counter()
    states, _ = program.advance(states, params, batches)
    jax.block_until_ready(states)
    # Runs that only fill up the last group do not count.
    return [
      (time.perf_counter() - start) / (shape.num_runs * program.num_steps)
    ]

  once()
  samplers = {
    "mask_step": once,
    "eager": peers.sampler(
      baseline_runs.PRUNE_PEER, peer_steps, *shape.peer_flags()
    ),
  }
  medians, failed = interleave(samplers, rounds)
  found = "eager" in medians
  return [
    Figure(
      name="mask-steps/s over PyTorch, eager",
      shape=f"{shape}, {shape.num_runs} runs, {program.group} side by side",
      value=medians["eager"] / medians["mask_step"] if found else None,
      mark=mark,
      note=failed.get("eager", ""),
      details=_as_details(medians)
      | {
        "runs": shape.num_runs,
        "group": program.group,
        "peak_bytes": program.peak_bytes,
      },
    )
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run measures.

  Attributes:
    steps: training steps and their marks.
    masks: pruning steps.
    mask_mark: what those have to reach.
    fused: the step that is measured with and without fused kernels, if any.
    num_entries: of the k-th magnitude; 0 leaves selection out.
    rows: rows and width of AbsTopK.
    product_width: of the large matrix product.
    growth_base: the shape that growth varies around.
    growth_axes: values by axis.
    rounds: of every interleaving.
    peer_steps: steps a peer takes its median of, in each round.
  """

  steps: Sequence[tuple[Shape, StepMarks]]
  masks: Sequence[MaskShape] = ()
  mask_mark: float = 4.0
  fused: Shape | None = None
  num_entries: int = 4 << 20
  rows: tuple[int, int] = (4096, 1024)
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
  peer_steps: int = 2


def cpu_plan() -> Plan:
  """Returns what is asked of two CPU cores."""
  return Plan(
    steps=(
      (Shape(), StepMarks()),
      (
        Shape(n_layer=4, d_model=256, batch_size=16, length=256),
        StepMarks(matrix_share=0.45),
      ),
    ),
    masks=(
      MaskShape(),
      MaskShape(
        n_layer=4, d_model=256, num_sequences=128, length=64, num_runs=4
      ),
    ),
  )


def accelerator_plan() -> Plan:
  """Returns what is asked of one large accelerator, in bfloat16."""
  shape = Shape(n_layer=8, d_model=1024, batch_size=512, length=256)
  marks = StepMarks(eager=None, compiled=3.0, matrix_share=0.4)
  return Plan(
    steps=((shape, marks),),
    fused=shape,
    masks=(MaskShape(n_layer=4, d_model=256, num_sequences=128, length=64),),
    product_width=8192,
    growth_base=Shape(batch_size=64, length=256),
  )


def short_plan() -> Plan:
  """Returns every figure at minute shapes: a trial of the machinery."""
  shape = Shape(n_layer=1, d_model=32, batch_size=2, length=16, vocab_size=64)
  return Plan(
    steps=((shape, StepMarks(matrix_share=0.45)),),
    masks=(
      MaskShape(
        n_layer=1,
        d_model=32,
        num_sequences=4,
        length=8,
        vocab_size=64,
        num_runs=2,
      ),
    ),
    num_entries=4096,
    rows=(64, 64),
    product_width=64,
    growth_base=shape,
    growth_axes={"d_model": (16, 32), "density": (0.25, 1.0)},
    rounds=1,
    peer_steps=1,
  )


def measurements(
  plan: Plan, peers: baseline_runs.Peers
) -> Iterator[tuple[str, Callable[[], list[Figure]]]]:
  """Yields what is measured, in words, and the function that measures it."""
  for shape, marks in plan.steps:
    yield (
      f"step, {shape}",
      functools.partial(
        measure_step,
        shape,
        marks,
        plan.product_width,
        peers,
        plan.rounds,
        plan.peer_steps,
      ),
    )
  yield (
    "k-th magnitude",
    functools.partial(measure_kth, plan.num_entries, plan.rounds),
  )
  yield (
    "AbsTopK",
    functools.partial(measure_abs_top_k, *plan.rows, plan.rounds),
  )
  for mask_shape in plan.masks:
    yield (
      f"mask step, {mask_shape}",
      functools.partial(
        measure_mask_step,
        mask_shape,
        plan.mask_mark,
        peers,
        plan.rounds,
        plan.peer_steps,
      ),
    )
  if plan.fused:
    yield (
      f"fused kernels, {plan.fused}",
      functools.partial(measure_fused, plan.fused, plan.rounds),
    )


def environment(peers: baseline_runs.Peers) -> dict[str, Any]:
  """Returns machine and versions, PyTorch's with them."""
  found = host.environment()
  found["versions"]["torch"] = baseline_runs.torch_version(peers)
  return found


def table(figures: Sequence[Figure]) -> str:
  """Returns the figures as a Markdown table, reasons for diffs below it."""
  lines = ["| figure | size | mark | reached | |", "|---|---|---|---|---|"]
  notes: dict[str, None] = {}
  for f in figures:
    value = "not measured" if f.value is None else f"{f.value:.3g}"
    bound = "at most" if f.at_most else "at least"
    verdict = {True: "yes", False: "**no**", None: ""}[f.reached]
    lines.append(
      f"| {f.name} | {f.shape} | {bound} {f.mark:g} | {value} | {verdict} |"
    )
    if f.note:
      notes[f.note] = None
  return "\n".join([*lines, *(f"\n{note}" for note in notes)])
