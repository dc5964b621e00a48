"""Which models are compared: width x density x seed, and variants of one."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from sparse_jax import config as config_lib
from sparse_jax.utils import errors

# The follow-up ablations of the paper: what differs from the sparse model of
# `variant_width` and `variant_density`. A new one is one line.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
  "activation_1": {"sparsity.activation_fraction": 1.0},
  "activation_1_2": {"sparsity.activation_fraction": 0.5},
  "activation_1_8": {"sparsity.activation_fraction": 0.125},
  "no_sink": {"model.sink": False},
  "no_bigram": {"model.bigram": "none"},
  "none_protected": {"sparsity.min_alive": 0},
}


def changes(variant: str) -> str:
  """Returns what a variant sets, as in "sink=False"; "" for no variant."""
  fields = VARIANTS.get(variant, {})
  return ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in fields.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierConfig:
  """A grid of models that share data, tasks and the search for circuits.

  Widths are `d_model`, steps those of the optimizer. `run` is what all share:
  data, shape, optimizer, pruning; each sets its own width, density, steps and
  seed.
  """

  run: config_lib.Config = dataclasses.field(default_factory=config_lib.Config)
  dense_widths: tuple[int, ...] = (16, 32, 64, 128)  # Without AbsTopK.
  sparse_widths: tuple[int, ...] = (128, 256)
  # Final share of nonzero block weights, for every sparse width that allows it:
  # `sparsity.min_alive` sets a least density.
  densities: tuple[float, ...] = (1 / 8, 1 / 16, 1 / 32, 1 / 64)
  dense_steps: int = 2000
  sparse_steps: int = 3000  # More: a sparse model needs more tokens.
  seeds: tuple[int, ...] = (0, 1)  # Of initialisation, data order and pruning.
  # Names, or "all"; a model is pruned on those it has learned.
  tasks: tuple[str, ...] = ("all",)
  variants: tuple[str, ...] = ()  # Of `VARIANTS`, trained with the first seed.
  # Variants that are trained with every seed: their models stand on the
  # frontier and may be its headline.
  contenders: tuple[str, ...] = ()
  variant_width: int = 128
  variant_density: float = 1 / 8
  # Whether to measure that of the circuits of the best sparse model's first
  # seed, on the tasks of its ratio.
  faithfulness: bool = True

  def __post_init__(self):
    def check(holds, accepted, *names):
      for name in names:
        if not holds(value := getattr(self, name)):
          raise errors.bad_value(name, value, accepted)

    once = lambda values: len(set(values)) == len(values)
    some = lambda values: values and once(values)
    lists = "dense_widths", "sparse_widths", "densities", "seeds"
    check(some, "one or more values, each once", *lists)
    check(lambda n: n >= 1, "at least 1", "dense_steps", "sparse_steps")
    check(once, "each name once", "variants", "contenders")
    densities = [("densities", density) for density in self.densities]
    for name, density in (
      *densities,
      ("variant_density", self.variant_density),
    ):
      if not 0 < density < 1:
        need = "above 0 and below 1, which is dense"
        raise errors.bad_value(name, density, need)
    for name in self.variants:
      if name not in VARIANTS:
        raise errors.unknown_name("variant", name, VARIANTS)
    for name in self.contenders:
      if name not in self.variants:
        accepted = f"names in variants={self.variants}"
        raise errors.bad_value("contenders", name, accepted)
    make_runs(self)  # Every run's own settings are checked at once.


@dataclasses.dataclass(frozen=True)
class Run:
  """One model of the grid, its variant a name in `VARIANTS`, or ""."""

  width: int
  density: float
  seed: int
  variant: str = ""

  @property
  def is_dense(self) -> bool:
    return self.density == 1

  @property
  def model(self) -> str:
    """Its name without the seed."""
    if self.is_dense:
      return f"dense_d{self.width}"
    variant = f"_{self.variant}" if self.variant else ""
    return f"sparse_d{self.width}_p{self.density:.4g}{variant}"

  @property
  def name(self) -> str:
    """Its name, and that of its directory."""
    return f"{self.model}_s{self.seed}"


def make_runs(config: FrontierConfig) -> tuple[list[Run], dict[str, str]]:
  """Returns the runs, first seed first, and by name why others are left out.

  Raises InputError if a width, or a variant, does not fit the shared settings.
  """
  shapes = [(width, 1.0) for width in config.dense_widths]
  shapes += itertools.product(config.sparse_widths, config.densities)
  wanted = [Run(*shape, seed) for seed in config.seeds for shape in shapes]
  wanted += [
    Run(config.variant_width, config.variant_density, seed, name)
    for name in config.variants
    for seed in config.seeds[: None if name in config.contenders else 1]
  ]
  (name, count), *_ = collections.Counter(r.name for r in wanted).most_common(1)
  if count > 1:
    need = "densities that differ in four significant digits"
    raise errors.bad_value("densities", name, need)
  kept, left_out = [], {}
  for run in wanted:
    try:
      run_config(config, run)
      kept.append(run)
    except errors.InputError as e:
      if run.is_dense or run.variant or "sparsity.density" not in str(e):
        raise
      left_out[run.name] = str(e)
  return kept, left_out


def run_config(
  config: FrontierConfig, run: Run, data: pathlib.Path | None = None
) -> config_lib.Config:
  """Returns a run's own settings; `data` is where the shared tokens are kept.

  Raises InputError naming the field that a run of this kind cannot have.
  """
  values = config_lib.to_config_dict(config.run)
  values.seed = run.seed
  values.model.d_model = run.width
  values.model.d_mlp = 0
  values.sparsity.density = run.density
  values.train.steps = config.sparse_steps
  if run.is_dense:
    values.sparsity.activation_fraction = 1.0
    values.train.steps = config.dense_steps
  if data is not None:
    values.data.directory = str(data)
  # A dotted name reaches into the groups.
  values.update_from_flattened_dict(VARIANTS.get(run.variant, {}))
  return config_lib.from_config_dict(values.to_dict())


def to_config_dict(config: FrontierConfig) -> ml_collections.ConfigDict:
  """Returns a grid as a mutable ConfigDict."""
  return ml_collections.ConfigDict(dataclasses.asdict(config))


def cost(config: config_lib.Config, vocab_size: int) -> float:
  """Returns a run's work, up to a factor, for estimates of the time it takes.

  Products, activations and the softmax over the vocabulary; their weights are
  read off the growth of the step (docs/performance.md), where the products of
  small models are the least of it.
  """
  d, n = config.model.d_model, config.model.n_layer
  token = 12 * n * d * d + 8_000 * n * d + vocab_size * (d + 300)
  tokens = config.train.batch_size * config.data.context_length
  return float(config.train.steps * tokens * token)
