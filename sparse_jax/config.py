"""Frozen, validated configuration: every default has its one home here.

Experiment files return an `ml_collections.ConfigDict` (`get_config()`), whole
or in part; `from_config_dict` completes it with the defaults below and checks
it. Fields set to a documented "0" are resolved from the data (`resolve`).
"""

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from sparse_jax import sites
from sparse_jax.utils import errors


def _check(ok: bool, name: str, value, accepted: str) -> None:
  if not ok:
    raise errors.bad_value(name, value, accepted)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  _check(value in choices, name, value, "one of " + ", ".join(choices))


def _check_fraction(name: str, value: float) -> None:
  _check(0 <= value <= 1, name, value, "a number from 0 to 1")


def _check_positive(name: str, value: float) -> None:
  _check(value > 0, name, value, "a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where tokens come from.

  Attributes:
    source: "python" (the interpreter's standard library and site-packages),
      "hf:NAME" (a Hugging Face dataset; needs the `hf` extra), the path of a
      text or .jsonl file, a directory, or a glob of files.
    text_field: field that holds the text, in JSONL and Hugging Face sources.
    max_megabytes: read at most this much text, documents in the order of their
      content hash; 0 reads everything.
    vocab_size: tokens of the byte-level BPE, end of text included.
    context_length: tokens the model predicts per window, in tokens.
    eval_fraction: share of documents held out, by content hash.
    directory: where tokens are kept and found again; "" is `WORKDIR/data`.
  """

  source: str = "python"
  text_field: str = "text"
  max_megabytes: float = 0.0
  vocab_size: int = 2048
  context_length: int = 256
  eval_fraction: float = 0.02
  directory: str = ""

  def __post_init__(self):
    _check(bool(self.source), "data.source", self.source, "a source")
    _check(
      self.max_megabytes >= 0,
      "data.max_megabytes",
      self.max_megabytes,
      "0 (no limit) or more",
    )
    _check(
      self.vocab_size >= 257,
      "data.vocab_size",
      self.vocab_size,
      "at least 257 (256 bytes and end of text)",
    )
    _check(
      self.context_length >= 1,
      "data.context_length",
      self.context_length,
      "at least 1",
    )
    _check(
      0 < self.eval_fraction < 1,
      "data.eval_fraction",
      self.eval_fraction,
      "a number between 0 and 1, both excluded",
    )


POSITIONS = ("none", "learned", "concatenated", "sinusoidal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Shape of the decoder (paper section 2; the authors' inference/gpt.py).

  Attributes:
    n_layer: number of layers.
    d_model: residual width.
    d_head: width of one head; there are `d_model / d_head` heads.
    d_mlp: hidden neurons; 0 is `4 * d_model`.
    vocab_size: tokens; 0 takes the tokenizer's number.
    context_length: longest input when positions are used; 0 takes
      `data.context_length`.
    positions: "none"; "learned", added to the token embedding; "concatenated",
      learned, `d_position` wide, joined to the input of c_attn and c_fc behind
      norms of their own; "sinusoidal", the same with fixed sinusoids.
    d_position: width of concatenated positions.
    norm: "rms" or "layer".
    norm_bias: whether a LayerNorm has a bias (RMSNorm never has).
    activation: "gelu" (exact) or "relu".
    bias: whether the four block matrices have biases.
    tied: whether the unembedding is the embedding, transposed.
    sink: one learnable logit a head in the softmax denominator.
    bigram: "learned", "fixed" or "none": a row of logits for the current token.
    residual_activation: "identity", or "relu" on the residual stream as it
      leaves each sublayer.
  """

  n_layer: int = 2
  d_model: int = 128
  d_head: int = 16
  d_mlp: int = 0
  vocab_size: int = 0
  context_length: int = 0
  positions: str = "none"
  d_position: int = 32
  norm: str = "rms"
  norm_bias: bool = True
  activation: str = "gelu"
  bias: bool = True
  tied: bool = False
  sink: bool = True
  bigram: str = "learned"
  residual_activation: str = "identity"

  def __post_init__(self):
    for name in ("n_layer", "d_model", "d_head", "d_position"):
      value = getattr(self, name)
      _check(value >= 1, f"model.{name}", value, "at least 1")
    for name in ("d_mlp", "vocab_size", "context_length"):
      value = getattr(self, name)
      _check(value >= 0, f"model.{name}", value, "0 (derived) or more")
    _check(
      self.d_model % self.d_head == 0,
      "model.d_model",
      self.d_model,
      f"a multiple of model.d_head={self.d_head}",
    )
    _check_choice("model.positions", self.positions, POSITIONS)
    _check_choice("model.norm", self.norm, ("rms", "layer"))
    _check_choice("model.activation", self.activation, ("gelu", "relu"))
    _check_choice("model.bigram", self.bigram, ("learned", "fixed", "none"))
    _check_choice(
      "model.residual_activation",
      self.residual_activation,
      ("identity", "relu"),
    )

  @property
  def n_head(self) -> int:
    return self.d_model // self.d_head

  @property
  def concatenates_positions(self) -> bool:
    return self.positions in ("concatenated", "sinusoidal")

  def width(self, site: str) -> int:
    """Returns the number of channels of a site."""
    d_mlp = self.d_mlp or 4 * self.d_model
    d_position = self.d_position if self.concatenates_positions else 0
    widths = {
      "d_model": self.d_model,
      "d_in": self.d_model + d_position,
      "d_attn": self.d_model,
      "d_mlp": d_mlp,
    }
    return widths[sites.SITES[site].width]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityConfig:
  """Which weights and activations are zero (paper section 2, train.py).

  Options named after a contradiction between the paper's text and the authors'
  script say which is which; the default is the script's unless noted.

  Attributes:
    density: final share of nonzero entries in every block matrix.
    activation_fraction: share of channels AbsTopK keeps; 1 is dense.
    activation_sites: where AbsTopK acts.
    min_alive: weights protected per unit (a neuron's or q/k/v channel's inputs,
      and its outputs).
    embedding_rule: density of embedding and unembedding. "equal": as the
      blocks (paper's text). "expanded": `density * expansion_factor`, linear in
      the block density while it is annealed (script). Default "equal", which
      needs no reference width.
    expansion_factor: EF, the width over the paper's base width of 256; read by
      "expanded" only.
    embedding_anneal: "smooth" (script) or "abrupt": dense until annealing ends,
      then final at once (the behaviour the authors report having kept).
    biases: "dense" (script) or "sparse" (paper's text: same density as blocks).
    anneal_start: share of training after which density starts to fall.
    anneal_stop: share of training at which it is final.
    anneal_shape: "linear" in the step, or "loglog": log density falls linearly
      in log step.
    anneal_exponent: e in `1 - (1 - t)^e`; 1 is linear.
  """

  density: float = 0.1
  activation_fraction: float = 0.25
  activation_sites: tuple[str, ...] = sites.LAYER_NODE_SITES
  min_alive: int = 4
  embedding_rule: str = "equal"
  expansion_factor: float = 1.0
  embedding_anneal: str = "smooth"
  biases: str = "dense"
  anneal_start: float = 0.01
  anneal_stop: float = 0.5
  anneal_shape: str = "linear"
  anneal_exponent: float = 1.0

  def __post_init__(self):
    _check(
      0 < self.density <= 1,
      "sparsity.density",
      self.density,
      "a number above 0 and at most 1",
    )
    _check(
      0 < self.activation_fraction <= 1,
      "sparsity.activation_fraction",
      self.activation_fraction,
      "a number above 0 and at most 1",
    )
    top_k_sites = [s.name for s in sites.SITES.values() if s.top_k]
    for name in self.activation_sites:
      if name not in top_k_sites:
        raise errors.unknown_name(
          "site in sparsity.activation_sites", name, top_k_sites
        )
    _check(
      self.min_alive >= 0,
      "sparsity.min_alive",
      self.min_alive,
      "0 or more",
    )
    _check_choice(
      "sparsity.embedding_rule", self.embedding_rule, ("equal", "expanded")
    )
    _check_positive("sparsity.expansion_factor", self.expansion_factor)
    _check_choice(
      "sparsity.embedding_anneal", self.embedding_anneal, ("smooth", "abrupt")
    )
    _check_choice("sparsity.biases", self.biases, ("dense", "sparse"))
    _check_fraction("sparsity.anneal_start", self.anneal_start)
    _check(
      self.anneal_start <= self.anneal_stop <= 1,
      "sparsity.anneal_stop",
      self.anneal_stop,
      f"a number from sparsity.anneal_start={self.anneal_start} to 1",
    )
    _check_choice(
      "sparsity.anneal_shape", self.anneal_shape, ("linear", "loglog")
    )
    _check_positive("sparsity.anneal_exponent", self.anneal_exponent)

  def num_active(self, site: str, width: int) -> int:
    """Returns how many of `width` channels AbsTopK keeps at a site."""
    if site not in self.activation_sites:
      return width
    return int(self.activation_fraction * width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Optimizer, schedule and loop.

  Attributes:
    steps: optimizer steps.
    batch_size: windows a step, over all processes.
    learning_rate: peak, before the density factor.
    warmup_fraction: share of the steps over which the rate rises from 0.
    scale_rate_by_density: multiply the rate by `sqrt(final / current density)`
      ("sharkfin", paper appendix; script).
    gradient: "normalize_rms" always divides by the global RMS (script);
      "clip_rms" divides only if it exceeds 1 (paper's text).
    adam_b1: decay of the first moment.
    adam_b2: decay of the second moment.
    adam_eps: ε, deliberately huge in the recipe.
    weight_decay: decoupled, times the current rate; matrices only.
    compute_dtype: "auto" is bfloat16 on accelerators and float32 on CPU.
    kernels: "fused" computes attention and AbsTopK by kernels for one GPU, in
      bfloat16, with a d_head that is a multiple of 8 and at most 120; results
      are the same up to rounding. "xla" runs everywhere.
    checkpoint_every: steps between checkpoints.
    log_every: steps between logged metrics.
    eval_every: steps between evaluations on held-out windows.
    eval_batches: batches an evaluation.
    model_parallel: devices along the mesh's `model` axis; the rest are `data`.
  """

  steps: int = 1500
  batch_size: int = 32
  learning_rate: float = 1.28e-2
  warmup_fraction: float = 0.01
  scale_rate_by_density: bool = True
  gradient: str = "normalize_rms"
  adam_b1: float = 0.9
  adam_b2: float = 0.95
  adam_eps: float = 0.1
  weight_decay: float = 0.1
  compute_dtype: str = "auto"
  kernels: str = "xla"
  checkpoint_every: int = 500
  log_every: int = 10
  eval_every: int = 250
  eval_batches: int = 8
  model_parallel: int = 1

  def __post_init__(self):
    for name in (
      "steps",
      "batch_size",
      "checkpoint_every",
      "log_every",
      "eval_every",
      "eval_batches",
      "model_parallel",
    ):
      value = getattr(self, name)
      _check(value >= 1, f"train.{name}", value, "at least 1")
    _check_positive("train.learning_rate", self.learning_rate)
    _check_fraction("train.warmup_fraction", self.warmup_fraction)
    _check_choice(
      "train.gradient", self.gradient, ("normalize_rms", "clip_rms")
    )
    for name in ("adam_b1", "adam_b2"):
      value = getattr(self, name)
      _check(0 <= value < 1, f"train.{name}", value, "from 0 to below 1")
    _check_positive("train.adam_eps", self.adam_eps)
    _check(
      self.weight_decay >= 0,
      "train.weight_decay",
      self.weight_decay,
      "0 or more",
    )
    _check_choice(
      "train.compute_dtype",
      self.compute_dtype,
      ("auto", "float32", "bfloat16"),
    )
    _check_choice("train.kernels", self.kernels, ("xla", "fused"))


ABLATIONS = ("mean_pretrain", "mean_task", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
  """Node-mask pruning (paper appendix A.5) and its small grid of runs.

  Attributes:
    steps: gradient steps a run.
    batch_size: pairs a step; each pair is two sequences.
    learning_rate: peak rate of AdamW on τ.
    warmup_fraction: share of the steps over which the rate rises (Table 2's
      centre; the paper's text has none: 0).
    beta2: second-moment decay (1 - inv_beta2).
    weight_decay: of AdamW on τ.
    temperature: T of the sigmoid surrogate.
    init_bias: mean of the initial τ.
    init_scale: standard deviation of the initial τ.
    k_coefs: cost of one open gate: the first runs' settings, one each; a value
      that stands there again is run with the next seed.
    num_runs: runs a task, those of `k_coefs` first; `search.SPACE` holds what
      the others are proposed from.
    num_seeds: how many of the runs repeat the best setting with other seeds.
    round_size: runs a task that are proposed at once.
    site_costs: such as "mlp.post_act=0.5": what an open gate of a site costs,
      in units of the coefficient; 1 where nothing is said.
    shift_answers: whether calibration fits a shift between the two answers
      beside the scale.
    edge_steps: gradient steps that learn which edges between the kept nodes
      are needed; 0 leaves that out.
    curve_targets: further target losses whose circuit sizes are reported.
    ablation: value of a closed node: its mean over the pretraining
      distribution, over the task's prompts, or zero.
    freeze_norms: whether a circuit runs with every RMS norm's scale held at the
      whole model's on the same prompt, so that no circuit can live on what
      ablation does to the norms (a variant of Drori's replication, 2026).
    sites: sites whose channels are gated.
    target_loss: task loss the discretised circuit has to reach, in nats.
    selection_margin: share of the target that validation pairs have to meet;
      below 1 it leaves room for the test pairs' other templates.
    loss_unit: what `target_loss` counts: "per_side" is the mean over the two
      sides of a pair; "per_pair" their sum, as the released files store it.
    num_train: training pairs.
    num_validation: pairs that choose the size and the run.
    num_test: pairs that the saved figures are measured on.
    mean_batches: batches of windows over which pretraining means are taken,
      once, when the model is trained.
  """

  steps: int = 400
  batch_size: int = 32
  learning_rate: float = 3e-2
  warmup_fraction: float = 0.05
  beta2: float = 0.95
  weight_decay: float = 1e-3
  temperature: float = 1.0
  init_bias: float = 0.1
  init_scale: float = 1e-2
  k_coefs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
  num_runs: int = 32
  num_seeds: int = 3
  round_size: int = 8
  site_costs: tuple[str, ...] = ()
  shift_answers: bool = False
  edge_steps: int = 200
  curve_targets: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
  ablation: str = "mean_pretrain"
  freeze_norms: bool = False
  sites: tuple[str, ...] = sites.LAYER_NODE_SITES
  target_loss: float = 0.15
  selection_margin: float = 1.0
  loss_unit: str = "per_side"
  num_train: int = 512
  num_validation: int = 128
  num_test: int = 128
  mean_batches: int = 16

  def __post_init__(self):
    for name in (
      "steps",
      "batch_size",
      "num_runs",
      "round_size",
      "num_train",
      "num_validation",
      "num_test",
      "mean_batches",
    ):
      value = getattr(self, name)
      _check(value >= 1, f"prune.{name}", value, "at least 1")
    for name in ("learning_rate", "temperature", "target_loss"):
      _check_positive(f"prune.{name}", getattr(self, name))
    _check_fraction("prune.warmup_fraction", self.warmup_fraction)
    _check(0 <= self.beta2 < 1, "prune.beta2", self.beta2, "from 0 to below 1")
    _check(
      len(self.k_coefs) > 0 and all(k >= 0 for k in self.k_coefs),
      "prune.k_coefs",
      self.k_coefs,
      "one or more numbers of at least 0",
    )
    _check(
      0 < self.selection_margin <= 1,
      "prune.selection_margin",
      self.selection_margin,
      "a number above 0 and at most 1",
    )
    _check(
      0 <= self.num_seeds < self.num_runs or self.num_seeds == 0,
      "prune.num_seeds",
      self.num_seeds,
      f"0 to below prune.num_runs={self.num_runs}",
    )
    _check(
      self.edge_steps >= 0, "prune.edge_steps", self.edge_steps, "0 or more"
    )
    _check(
      all(t > 0 for t in self.curve_targets),
      "prune.curve_targets",
      self.curve_targets,
      "positive numbers",
    )
    _check_choice("prune.ablation", self.ablation, ABLATIONS)
    _check_choice("prune.loss_unit", self.loss_unit, ("per_side", "per_pair"))
    _check(len(self.sites) > 0, "prune.sites", self.sites, "one or more sites")
    for name in self.sites:
      if name not in sites.NODE_SITES:
        raise errors.unknown_name("site in prune.sites", name, sites.NODE_SITES)

    self.cost_of_site()

  def cost_of_site(self) -> dict[str, float]:
    """Returns what `site_costs` says, by site."""
    costs = {}
    for text in self.site_costs:
      name, _, cost = text.partition("=")
      if name not in sites.NODE_SITES:
        raise errors.unknown_name(
          "site in prune.site_costs", name, sites.NODE_SITES
        )
      try:
        costs[name] = float(cost)
      except ValueError:
        costs[name] = math.nan
      _check(costs[name] >= 0, "prune.site_costs", text, "SITE=COST, 0 or more")
    return costs

  @property
  def target_per_side(self) -> float:
    """The target as a mean over the two sides, in nats."""
    return self.target_loss / (2 if self.loss_unit == "per_pair" else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole run.

  Attributes:
    seed: of initialisation, data order, tasks and pruning.
    data: where tokens come from.
    model: shape.
    sparsity: which weights and activations are zero.
    train: optimizer, schedule, loop.
    prune: node-mask pruning.
    tasks: tasks that the quickstart prunes; the first is its headline.
  """

  seed: int = 0
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  sparsity: SparsityConfig = SparsityConfig()
  train: TrainConfig = TrainConfig()
  prune: PruneConfig = PruneConfig()
  tasks: tuple[str, ...] = ("single_double_quote", "bracket_counting")

  def __post_init__(self):
    _check(
      0 <= self.seed < 2**32, "seed", self.seed, "a number from 0 to 2^32 - 1"
    )
    check_activations(self.model, self.sparsity)
    check_density(self.model, self.sparsity)


def check_activations(model: ModelConfig, sparsity: SparsityConfig) -> None:
  """Checks that AbsTopK keeps a channel at every site it acts on.

  Raises:
    InputError: naming the site, if it would keep none.
  """
  for site in sparsity.activation_sites:
    width = model.width(site)
    if sparsity.num_active(site, width) < 1:
      raise errors.bad_value(
        "sparsity.activation_fraction",
        sparsity.activation_fraction,
        f"at least 1/{width}, to keep one of the {width} channels of {site}",
      )


def check_density(model: ModelConfig, sparsity: SparsityConfig) -> None:
  """Checks that every block matrix keeps at least its protected weights.

  Raises:
    InputError: naming the matrix, if it would keep fewer.
  """
  for path, (numel, units, length) in block_units(model).items():
    kept = int(sparsity.density * numel)
    protected = units * min(sparsity.min_alive, length)
    if kept < protected:
      raise errors.bad_value(
        "sparsity.density",
        sparsity.density,
        f"at least {math.ceil(1e6 * protected / numel) / 1e6:g} for {path}:"
        f" sparsity.min_alive={sparsity.min_alive} protects {protected} of"
        f" {numel} weights, {kept} would be kept",
      )


def block_units(model: ModelConfig) -> dict[str, tuple[int, int, int]]:
  """Returns (entries, units, entries a unit) of one layer's block matrices.

  A unit is a neuron or a q/k/v channel: a column of the reading matrices, a row
  of the writing ones (`[in, out]`).
  """
  d, d_mlp = model.d_model, model.width("mlp.post_act")
  d_in = model.width("attn.act_in")
  return {
    sites.C_ATTN: (d_in * 3 * d, 3 * d, d_in),
    sites.ATTN_C_PROJ: (d * d, d, d),
    sites.C_FC: (d_in * d_mlp, d_mlp, d_in),
    sites.MLP_C_PROJ: (d_mlp * d, d_mlp, d),
  }


def resolve(config: Config, vocab_size: int) -> Config:
  """Returns the config with the model's derived fields filled in.

  Raises:
    InputError: if `model.vocab_size` was given and is not the tokenizer's.
  """
  model = config.model
  if model.vocab_size not in (0, vocab_size):
    raise errors.bad_value(
      "model.vocab_size",
      model.vocab_size,
      f"0 or the tokenizer's {vocab_size}",
    )
  model = dataclasses.replace(
    model,
    vocab_size=vocab_size,
    d_mlp=model.width("mlp.post_act"),
    context_length=model.context_length or config.data.context_length,
  )
  if model.positions != "none":
    _check(
      config.data.context_length <= model.context_length,
      "data.context_length",
      config.data.context_length,
      f"at most model.context_length={model.context_length}",
    )
  return dataclasses.replace(config, model=model)


def to_dict(config) -> dict[str, Any]:
  """Returns nested plain dicts, fit for JSON."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def settings(config: Config) -> dict[str, Any]:
  """Returns `to_dict` without what belongs to a machine: a run may be moved.

  That is where the tokens lie and which kernels compute.
  """
  values = to_dict(config)
  values["data"].pop("directory")
  values["train"].pop("kernels")
  return values


def first_difference(
  mine: Mapping[str, Any], theirs: Any
) -> tuple[str, Any, Any] | None:
  """Returns (field, their value, mine) of the first field that differs.

  Args:
    mine: nested dicts, as `to_dict` returns them.
    theirs: likewise, of another run; fields it lacks are None, others than mine
      are not looked at.
  """
  theirs = dict(_flat(theirs)) if isinstance(theirs, Mapping) else {}
  for name, value in _flat(mine):
    if theirs.get(name) != value:
      return name, theirs.get(name), value
  return None


def _flat(tree: Mapping[str, Any], prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def to_config_dict(config: Config | None = None) -> ml_collections.ConfigDict:
  """Returns a config (the defaults if None) as a mutable ConfigDict."""
  return ml_collections.ConfigDict(dataclasses.asdict(config or Config()))


def from_config_dict(overrides: Mapping[str, Any]) -> Config:
  """Returns the validated config that `overrides` makes of the defaults.

  Args:
    overrides: nested mappings, whole or partial.

  Raises:
    InputError: on an unknown field, a wrong type or a value out of range.
  """
  return from_dict(Config, overrides)


def from_dict(cls, values: Mapping[str, Any], prefix: str = ""):
  """Returns the dataclass `cls` built from nested mappings, checked."""
  if not isinstance(values, Mapping | ml_collections.ConfigDict):
    raise errors.bad_value(prefix.rstrip("."), values, "a group of fields")
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for name, value in dict(values.items()).items():
    if name not in hints:
      raise errors.unknown_name(
        "field", prefix + str(name), [prefix + known for known in hints]
      )
    if dataclasses.is_dataclass(hints[name]):
      kwargs[name] = from_dict(hints[name], value, f"{prefix}{name}.")
    else:
      kwargs[name] = _coerce(prefix + name, hints[name], value)
  return cls(**kwargs)


def _coerce(name: str, kind, value):
  """Returns `value` as `kind`, accepting only conversions that lose nothing."""
  if isinstance(kind, types.GenericAlias):
    item = typing.get_args(kind)[0]
    if isinstance(value, (list, tuple)):
      return tuple(_coerce(name, item, v) for v in value)
    raise errors.bad_value(name, value, f"a list of {item.__name__}")
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if is_number and abs(value) <= sys.float_info.max:
    if kind is float:
      return float(value)
    if kind is int and value == int(value):
      return int(value)
  if kind in (bool, str) and isinstance(value, kind):
    return value
  accepted = {int: "a whole number", float: "a finite number"}
  raise errors.bad_value(name, value, accepted.get(kind, kind.__name__))
