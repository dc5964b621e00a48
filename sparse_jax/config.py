"""Frozen, validated configuration: every default has its one home here.

Experiment files return an `ml_collections.ConfigDict` (`get_config()`), whole
or in part; `from_config_dict` completes it with the defaults below and checks
it. Fields set to a documented "0" are resolved from the data (`resolve`).
"""

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from sparse_jax import sites
from sparse_jax.utils import errors


class Accepted(NamedTuple):
  """What a field may hold: the words of the error, and the test."""

  text: str
  holds: Callable[[Any], bool]


NO_WINDOW = 2**30  # More keys than any input has.
_TOO_LARGE = 2**63  # Products of two still fit a float.
MOST_SIZE = 2**31 - 1  # Of a dimension in others' files: four still fit int64.

AT_LEAST_1 = Accepted("at least 1", lambda x: x >= 1)
NOT_NEGATIVE = Accepted("0 or more", lambda x: x >= 0)
DERIVED = Accepted("0 (derived) or more", lambda x: x >= 0)
NO_LIMIT = Accepted("0 (no limit) or more", lambda x: x >= 0)
POSITIVE = Accepted("a number above 0", lambda x: x > 0)
BETWEEN = Accepted(
  "a number between 0 and 1, both excluded", lambda x: 0 < x < 1
)
BYTES_AND_END = Accepted(
  "at least 257 (256 bytes and end of text)", lambda x: x >= 257
)
SEED = Accepted("a number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32)
FRACTION = Accepted("a number from 0 to 1", lambda x: 0 <= x <= 1)
COSTS = Accepted(
  "one or more numbers of at least 0",
  lambda ks: len(ks) > 0 and all(k >= 0 for k in ks),
)
ALL_POSITIVE = Accepted("positive numbers", lambda xs: all(x > 0 for x in xs))
SOME_SITES = Accepted("one or more sites", lambda names: len(names) > 0)
WINDOWS = Accepted(
  "whole numbers from 0 (no limit) to 2^30",
  lambda xs: all(0 <= x <= NO_WINDOW for x in xs),
)
BELOW_1 = Accepted("from 0 to below 1", lambda x: 0 <= x < 1)
DENSITY = Accepted("a number above 0 and at most 1", lambda x: 0 < x <= 1)


def one_of(*choices: str) -> Accepted:
  """Accepts these words."""
  return Accepted("one of " + ", ".join(choices), lambda x: x in choices)


def field(default: Any, accepted: Accepted) -> Any:
  """Declares a field of a config that its type alone does not check."""
  return dataclasses.field(default=default, metadata={"accepted": accepted})


def option(default: Any, accepted: Accepted | None = None) -> Any:
  """Declares a field that older files lack, where its default is meant.

  A model's fingerprint leaves it out where it has its default, so that older
  fingerprints stand.
  """
  metadata = {"accepted": accepted, "is_option": True}
  return dataclasses.field(default=default, metadata=metadata)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def _group(cls):
  """Makes a frozen dataclass; its docstring says what each field means.

  A field's metadata holds that as `doc`, for `--helpfull` to print.
  """
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  entries = re.findall(r"^    (\w+): (.+(?:\n      .+)*)", cls.__doc__, re.M)
  docs = {name: " ".join(doc.split()) for name, doc in entries}
  for f in dataclasses.fields(cls):
    f.metadata = {"doc": docs.get(f.name, ""), **f.metadata}
  return cls


class _Checked:
  """Checks every field against what its declaration accepts."""

  def __post_init__(self):
    prefix = type(self).__name__.removesuffix("Config").lower()
    for f in dataclasses.fields(self):
      value, accepted = getattr(self, f.name), f.metadata.get("accepted")
      if accepted and not accepted.holds(value):
        name = f"{prefix}.{f.name}" if prefix else f.name
        raise errors.bad_value(name, value, accepted.text)


def _check_sites(name: str, found: Iterable[str], known: Iterable[str]) -> None:
  for site in found:
    if site not in known:
      raise errors.unknown_name(f"site in {name}", site, known)


@_group
class DataConfig(_Checked):
  """Where tokens come from.

  Attributes:
    source: "python" (the standard library and site-packages of the
      interpreter), "hf:NAME" (a Hugging Face dataset; needs the `hf` extra),
      the path of a text or .jsonl file, a directory, or a glob of files
    text_field: of JSONL and Hugging Face sources
    max_megabytes: most text read, documents in the order of their content hash;
      0 is all
    clean: whether .py files that are generated, tables, copies of packages or
      very long are left out (`data/cleaning.py`)
    vocab_size: tokens of the byte-level BPE, end of text included
    context_length: tokens predicted a window
    eval_fraction: share of documents held out, by content hash
    directory: where tokens are kept; "" is `WORKDIR/data`
  """

  source: str = field("python", Accepted("a source", bool))
  text_field: str = "text"
  max_megabytes: float = field(0.0, NO_LIMIT)
  clean: bool = True
  vocab_size: int = field(2048, BYTES_AND_END)
  context_length: int = field(256, AT_LEAST_1)
  eval_fraction: float = field(0.02, BETWEEN)
  directory: str = ""


@_group
class ModelConfig(_Checked):
  """Shape of the decoder (paper section 2; the authors' inference/gpt.py).

  Attributes:
    n_layer: number of layers
    d_model: residual width
    d_head: width of one head; there are `d_model / d_head` heads
    d_mlp: hidden neurons; 0 is `4 * d_model`
    vocab_size: tokens; 0 takes the tokenizer's number
    context_length: longest input when positions are used; 0 takes
      `data.context_length`
    positions: "learned", added to the token embedding; "concatenated", learned,
      `d_position` wide, joined to the input of c_attn and c_fc behind norms of
      their own; "sinusoidal", the same with fixed sinusoids; "rotary" turns
      queries and keys by where they are
    d_position: width of concatenated positions
    rotary_share: share of each head that rotary positions turn, its first
      channels
    rotary_base: the slowest pair of channels turns by about 1 / rotary_base
      radians a position, the fastest by 1
    norm: RMSNorm or LayerNorm
    norm_bias: whether a LayerNorm has a bias
    norm_eps: what a LayerNorm adds to the variance
    activation: of the MLP; gelu is the exact one, gelu_tanh GPT-2's
    bias: whether the four block matrices have biases
    attention_bias: which of attention's two matrices have them where bias is
      set: "all", only the "output" one, or "none"
    scale_scores: whether scores are divided by the root of d_head
    windows: by layer, how many keys a query sees, its own the last; 0 is all;
      empty is all everywhere
    parallel: whether a layer's MLP reads what its attention reads, not what
      that has written
    tied: whether embedding and unembedding share weights
    sink: whether each head's softmax has a learnable sink
    bigram: a row of logits for the current token
    residual_activation: acts on the residual stream as it leaves each sublayer
  """

  n_layer: int = field(2, AT_LEAST_1)
  d_model: int = field(128, AT_LEAST_1)
  d_head: int = field(16, AT_LEAST_1)
  d_mlp: int = field(0, DERIVED)
  vocab_size: int = field(0, DERIVED)
  context_length: int = field(0, DERIVED)
  positions: str = field(
    "none", one_of("none", "learned", "concatenated", "sinusoidal", "rotary")
  )
  d_position: int = field(32, AT_LEAST_1)
  rotary_share: float = option(1.0, DENSITY)
  rotary_base: float = option(10000.0, POSITIVE)
  norm: str = field("rms", one_of("rms", "layer"))
  norm_bias: bool = True
  norm_eps: float = option(1e-5, POSITIVE)
  activation: str = field("gelu", one_of("gelu", "gelu_tanh", "relu"))
  bias: bool = True
  attention_bias: str = option("all", one_of("all", "output", "none"))
  scale_scores: bool = option(True)
  windows: tuple[int, ...] = option((), WINDOWS)
  parallel: bool = option(False)
  tied: bool = False
  sink: bool = True
  bigram: str = field("learned", one_of("learned", "fixed", "none"))
  residual_activation: str = field("identity", one_of("identity", "relu"))

  def __post_init__(self):
    super().__post_init__()
    if self.d_model % self.d_head:
      need = f"a multiple of model.d_head={self.d_head}"
      raise errors.bad_value("model.d_model", self.d_model, need)
    if self.positions == "rotary" and (
      self.rotary_width < 2 or self.rotary_width % 2
    ):
      need = (
        f"an even number of model.d_head={self.d_head} channels, at least 2"
      )
      raise errors.bad_value("model.rotary_share", self.rotary_share, need)
    if len(self.windows) not in (0, self.n_layer):
      need = f"none, or one for each of model.n_layer={self.n_layer} layers"
      raise errors.bad_value("model.windows", self.windows, need)

  @property
  def n_head(self) -> int:
    return self.d_model // self.d_head

  @property
  def rotary_width(self) -> int:
    """How many channels of a head rotary positions turn."""
    return int(self.d_head * self.rotary_share)

  @property
  def set_options(self) -> dict[str, Any]:
    """The options that are not at their default, by name."""
    values = {name: getattr(self, name) for name in OPTIONS}
    return {n: value for n, value in values.items() if value != OPTIONS[n]}

  @property
  def concatenates_positions(self) -> bool:
    return self.positions in ("concatenated", "sinusoidal")

  def width(self, site: str) -> int:
    """Returns the number of channels of a site."""
    d_position = self.d_position if self.concatenates_positions else 0
    return {
      "d_model": self.d_model,
      "d_in": self.d_model + d_position,
      "d_attn": self.d_model,
      "d_mlp": self.d_mlp or 4 * self.d_model,
    }[sites.SITES[site].width]

  def site_shape(self, site: str) -> tuple[int, int]:
    """Returns the shape of a site's `[layers, width]` arrays."""
    return sites.num_rows(site, self.n_layer), self.width(site)


# Every `option` of a model, and its default.
OPTIONS: Mapping[str, Any] = {
  f.name: f.default
  for f in dataclasses.fields(ModelConfig)
  if f.metadata.get("is_option")
}


@_group
class SparsityConfig(_Checked):
  """Which weights and activations are zero (paper section 2, train.py).

  Where the paper's text and the authors' script contradict each other, the
  field says which choice is whose; the default is the script's unless noted.

  Attributes:
    density: final share of nonzero entries in every block matrix
    activation_fraction: share of channels AbsTopK keeps; 1 is dense
    activation_sites: where AbsTopK acts
    min_alive: weights protected at the inputs, and outputs, of a neuron or qkv
      channel
    embedding_rule: density of embedding and unembedding: "equal" to the blocks'
      (paper's text; it needs no reference width); "expanded", times
      expansion_factor, linear in the block density while that is annealed
      (script)
    expansion_factor: EF, d_model over the paper's base of 256, for
      embedding_rule=expanded
    embedding_anneal: "smooth" (script), or "abrupt": dense until annealing
      ends, then final at once (the behaviour the authors report having kept)
    biases: "dense" (script), or "sparse": the density of the blocks (paper's
      text)
    anneal_start: share of training after which density starts to fall
    anneal_stop: share of training at which it is final
    anneal_shape: "linear" in the step, or "loglog": log density falls linearly
      in log step
    anneal_exponent: e in `1 - (1 - t)^e`; 1 is linear
  """

  density: float = field(0.1, DENSITY)
  activation_fraction: float = field(0.25, DENSITY)
  activation_sites: tuple[str, ...] = sites.LAYER_NODE_SITES
  min_alive: int = field(4, NOT_NEGATIVE)
  embedding_rule: str = field("equal", one_of("equal", "expanded"))
  expansion_factor: float = field(1.0, POSITIVE)
  embedding_anneal: str = field("smooth", one_of("smooth", "abrupt"))
  biases: str = field("dense", one_of("dense", "sparse"))
  anneal_start: float = field(0.01, FRACTION)
  anneal_stop: float = 0.5
  anneal_shape: str = field("linear", one_of("linear", "loglog"))
  anneal_exponent: float = field(1.0, POSITIVE)

  def __post_init__(self):
    super().__post_init__()
    known = [s.name for s in sites.SITES.values() if s.top_k]
    _check_sites("sparsity.activation_sites", self.activation_sites, known)
    if not self.anneal_start <= self.anneal_stop <= 1:
      need = f"a number from sparsity.anneal_start={self.anneal_start} to 1"
      raise errors.bad_value("sparsity.anneal_stop", self.anneal_stop, need)

  def num_active(self, site: str, width: int) -> int:
    """Returns how many of `width` channels AbsTopK keeps at a site."""
    if site not in self.activation_sites:
      return width
    return int(self.activation_fraction * width)


@_group
class TrainConfig(_Checked):
  """Optimizer, schedule and loop.

  Attributes:
    steps: optimizer steps
    batch_size: windows a step, over all processes
    accumulate: parts of a batch that are computed one after another: memory
      for activations falls with it, the update stays the same
    remat: whether the backward pass computes each layer's activations again
      instead of keeping them: a third more work, the update stays the same
    learning_rate: peak, before the density factor
    warmup_fraction: share of the steps over which the rate rises from 0
    scale_rate_by_density: multiply the rate by `sqrt(final / current density)`
      ("sharkfin", paper appendix; script)
    gradient: "normalize_rms" always divides by the global RMS (script);
      "clip_rms" divides only if it exceeds 1 (paper's text)
    adam_b1: decay of the first moment
    adam_b2: decay of the second moment
    adam_eps: ε, deliberately huge in the recipe
    weight_decay: decoupled, times the current rate; matrices only
    node_noise: share of the steps in which random channels are moved part of
      the way to their mean (`hooks.loosen`)
    noise_share: largest share of a site's channels that such a step moves
    noise_start: share of training before which no step is noisy
    compute_dtype: "auto" is bfloat16 on accelerators and float32 on CPU
    kernels: "xla" runs everywhere; "fused" computes attention and AbsTopK by
      kernels for one GPU, in bfloat16, with a d_head that is a multiple of 8
      and at most 120; results are the same up to rounding
    checkpoint_every: steps between checkpoints
    keep_every: multiples of so many steps whose checkpoints are kept for good;
      0 keeps the newest two alone
    log_every: steps between logged metrics
    eval_every: steps between evaluations on held-out windows
    eval_batches: batches an evaluation
    model_parallel: devices along the mesh's `model` axis; the rest are `data`
  """

  steps: int = field(1500, AT_LEAST_1)
  batch_size: int = field(32, AT_LEAST_1)
  accumulate: int = field(1, AT_LEAST_1)
  remat: bool = False
  learning_rate: float = field(1.28e-2, POSITIVE)
  warmup_fraction: float = field(0.01, FRACTION)
  scale_rate_by_density: bool = True
  gradient: str = field("normalize_rms", one_of("normalize_rms", "clip_rms"))
  adam_b1: float = field(0.9, BELOW_1)
  adam_b2: float = field(0.95, BELOW_1)
  adam_eps: float = field(0.1, POSITIVE)
  weight_decay: float = field(0.1, NOT_NEGATIVE)
  node_noise: float = field(0.0, FRACTION)
  noise_share: float = field(0.2, FRACTION)
  noise_start: float = field(0.0, FRACTION)
  compute_dtype: str = field("auto", one_of("auto", "float32", "bfloat16"))
  kernels: str = field("xla", one_of("xla", "fused"))
  checkpoint_every: int = field(500, AT_LEAST_1)
  keep_every: int = field(0, NOT_NEGATIVE)
  log_every: int = field(10, AT_LEAST_1)
  eval_every: int = field(250, AT_LEAST_1)
  eval_batches: int = field(8, AT_LEAST_1)
  model_parallel: int = field(1, AT_LEAST_1)


ABLATIONS = ("mean_pretrain", "mean_task", "zero")
OUTSIDE = ("plain", "stochastic", "adversarial")


@_group
class PruneConfig(_Checked):
  """Node-mask pruning (paper appendix A.5) and its small grid of runs.

  Attributes:
    steps: gradient steps a run
    batch_size: pairs a step; each pair is two sequences
    learning_rate: peak rate of AdamW on τ
    warmup_fraction: share of the steps over which the rate rises (Table 2;
      paper's text: 0)
    beta2: second-moment decay (1 - inv_beta2)
    weight_decay: of AdamW on τ
    temperature: T of the sigmoid surrogate
    init_bias: mean of the initial τ
    init_scale: standard deviation of the initial τ
    k_coefs: cost of an open gate, a run each; one given again runs with another
      seed
    num_runs: runs a task: those of k_coefs, then proposals from `search.SPACE`
    robust_k_coefs: the same for the robust circuit, which costs more nodes
    num_robust_runs: runs of its search, none of them for seeds
    model_parallel: devices along the mesh's `model` axis, for models that one
      does not hold; prunings and prompts are split over the rest
    num_seeds: how many of the runs repeat the best hyperparameters with other
      seeds
    round_size: runs a task that are proposed at once
    site_costs: such as "mlp.post_act=0.5": what an open gate of a site costs,
      in units of the coefficient; 1 where nothing is said
    edge_cost: what an edge between open gates costs, in the same units
    shift_answers: whether calibration fits a shift between the two answers
      beside the scale
    edge_steps: gradient steps that learn which edges are essential; 0 leaves
      that out
    edge_k_coefs: cost of an open edge, a training each; the fewest edges that
      meet the target are kept
    curve_targets: further target losses whose circuit sizes are reported
    ablation: value of a closed node: its mean over the pretraining
      distribution, over the task's prompts, or zero
    ablation_outside: what closed nodes do while masks are trained: "plain"
      holds them at their ablation value (paper); "stochastic" leaves each on
      by a uniform share r, anew every step; "adversarial" by an r that climbs
      the loss
    outside_weight: share of the loss that is taken under r; the rest is plain
    outside_sources: adversarial r's, kept from step to step; each sees its part
      of a batch
    outside_momentum: decay of the running mean of slopes that an adversary
      climbs by
    outside_life: steps after which an adversary's r starts anew, each in turn
    outside_ascents: sign steps that an r takes on every batch, from a start of
      its own and by passes of its own; 0 keeps it from step to step instead
    outside_per_example: whether every prompt then has an r of its own
    outside_draws: uniform r's that see a part beside them, drawn anew every
      step; a closed path that is partly on has a gradient, one that is shut
      twice has none
    outside_rate: length of an adversary's sign step while masks are trained
    outside_steps: steps of the adversary that sizes are decided against; the
      claim's are `faithfulness.robustness.STEPS`
    outside_stride: length of each of them: a few long ones find what many short
      ones do
    freeze_norms: whether a circuit runs with every RMS norm's scale held at the
      whole model's on the same prompt, so that no circuit can live on what
      ablation does to the norms (a variant of Drori's replication, 2026)
    sites: sites whose channels are gated
    target_loss: task loss the binarized circuit has to reach, in nats
    target_accuracy_lost: most accuracy that a robust circuit loses to the worst
      ablation outside it, of the whole model's
    target_share: share of these targets that a circuit may take on validation
      prompts; the rest is room for templates that are harder than those
    loss_unit: what `target_loss` counts: "per_side" is the mean over the two
      sides of a pair; "per_pair" their sum, as the released files store it
    num_train: distinct training pairs; 0 is as many as the steps take, so that
      each is seen once
    behind_code: share of training pairs that stand behind lines of the files
      that the model was trained on
    real_prompts: share of training pairs that are the task's decisions in those
      files
    num_validation: pairs that choose the size and the run
    num_test: pairs that the saved metrics are measured on
    mean_batches: batches of windows that give the pretraining means, after
      training
  """

  steps: int = field(400, AT_LEAST_1)
  batch_size: int = field(32, AT_LEAST_1)
  learning_rate: float = field(3e-2, POSITIVE)
  warmup_fraction: float = field(0.05, FRACTION)
  beta2: float = field(0.95, BELOW_1)
  weight_decay: float = 1e-3
  temperature: float = field(1.0, POSITIVE)
  init_bias: float = 0.1
  init_scale: float = 1e-2
  k_coefs: tuple[float, ...] = field((3e-4, 1e-3, 3e-3), COSTS)
  num_runs: int = field(32, AT_LEAST_1)
  robust_k_coefs: tuple[float, ...] = field((2e-5, 5e-5, 1e-4), COSTS)
  num_robust_runs: int = field(8, AT_LEAST_1)
  model_parallel: int = field(1, AT_LEAST_1)
  num_seeds: int = 3
  round_size: int = field(8, AT_LEAST_1)
  site_costs: tuple[str, ...] = ()
  edge_cost: float = field(0.0, NOT_NEGATIVE)
  shift_answers: bool = False
  edge_steps: int = field(200, NOT_NEGATIVE)
  edge_k_coefs: tuple[float, ...] = field((1e-3,), COSTS)
  curve_targets: tuple[float, ...] = field(
    (0.05, 0.1, 0.15, 0.2, 0.3, 0.5), ALL_POSITIVE
  )
  ablation: str = field("mean_pretrain", one_of(*ABLATIONS))
  ablation_outside: str = field("adversarial", one_of(*OUTSIDE))
  outside_weight: float = field(0.8, FRACTION)
  outside_sources: int = field(1, NOT_NEGATIVE)
  outside_momentum: float = field(0.5, BELOW_1)
  outside_life: int = field(40, AT_LEAST_1)
  outside_ascents: int = field(0, NOT_NEGATIVE)
  outside_per_example: bool = False
  outside_draws: int = field(1, NOT_NEGATIVE)
  outside_rate: float = field(0.1, POSITIVE)
  outside_steps: int = field(12, AT_LEAST_1)
  outside_stride: float = field(0.5, POSITIVE)
  freeze_norms: bool = False
  sites: tuple[str, ...] = field(sites.LAYER_NODE_SITES, SOME_SITES)
  target_loss: float = field(0.15, POSITIVE)
  target_accuracy_lost: float = field(0.1, POSITIVE)
  target_share: float = field(1.0, DENSITY)
  loss_unit: str = field("per_side", one_of("per_side", "per_pair"))
  num_train: int = field(0, NOT_NEGATIVE)
  behind_code: float = field(0.5, FRACTION)
  real_prompts: float = field(0.25, BELOW_1)
  num_validation: int = field(128, AT_LEAST_1)
  num_test: int = field(128, AT_LEAST_1)
  mean_batches: int = field(16, AT_LEAST_1)

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.num_seeds < self.num_runs:
      need = f"0 to below prune.num_runs={self.num_runs}"
      raise errors.bad_value("prune.num_seeds", self.num_seeds, need)
    _check_sites("prune.sites", self.sites, sites.NODE_SITES)
    self.cost_of_site()
    if self.outside_per_example and not self.outside_ascents:
      need = "false where prune.outside_ascents=0: batches share no prompts"
      raise errors.bad_value("prune.outside_per_example", True, need)

  def cost_of_site(self) -> dict[str, float]:
    """Returns what `site_costs` says, by site."""
    costs = {}
    for text in self.site_costs:
      name, _, cost = text.partition("=")
      _check_sites("prune.site_costs", [name], sites.NODE_SITES)
      try:
        costs[name] = float(cost)
      except ValueError:
        costs[name] = math.nan
      if not costs[name] >= 0:
        raise errors.bad_value("prune.site_costs", text, "SITE=COST, 0 or more")
    return costs

  @property
  def num_r(self) -> int:
    """How many r's train a mask: the adversary's, then the uniform ones."""
    if self.ablation_outside == "plain":
      return 0
    return self.num_sources + self.outside_draws

  @property
  def num_sources(self) -> int:
    """How many of them climb the loss."""
    adversarial = self.ablation_outside == "adversarial"
    return self.outside_sources if adversarial else 0

  @property
  def core(self) -> "PruneConfig":
    """The settings of the search inside the robust circuit."""
    return dataclasses.replace(self, ablation_outside="plain")

  @property
  def robust(self) -> "PruneConfig":
    """The settings of the search for the robust circuit."""
    return dataclasses.replace(
      self,
      k_coefs=self.robust_k_coefs,
      num_runs=self.num_robust_runs,
      num_seeds=0,
    )

  def num_pairs(self, split: str) -> int:
    """Returns how many pairs of a split are asked for."""
    count = getattr(self, f"num_{split}")
    return count or self.steps * self.batch_size

  @property
  def target_per_side(self) -> float:
    """The target as a mean over the two sides, in nats."""
    return self.target_loss / (2 if self.loss_unit == "per_pair" else 1)


@_group
class Config(_Checked):
  """A whole run.

  Attributes:
    seed: of initialisation, data order, tasks and pruning
    tasks: tasks that the quickstart prunes; the first is its headline
  """

  seed: int = field(0, SEED)
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  sparsity: SparsityConfig = SparsityConfig()
  train: TrainConfig = TrainConfig()
  prune: PruneConfig = PruneConfig()
  tasks: tuple[str, ...] = ("single_double_quote", "bracket_counting")

  def __post_init__(self):
    super().__post_init__()
    check_activations(self.model, self.sparsity)
    check_density(self.model, self.sparsity)


@_group
class BridgeConfig(_Checked):
  """Bridges between a dense model and a sparse one, and their losses.

  "Encode" is from the dense state to the sparse model's, "decode" the way back.
  The losses of all bridges are added up (paper, section on bridges; its
  coefficients are not published, those of Drori 2026 are all 1).

  Attributes:
    activation_fraction: share of channels that an encoder's AbsTopK keeps
    learning_rate: peak of the bridges' own Adam; the schedule is the model's,
      without the density factor
    cross_entropy: coefficient of the sparse model's own loss
    distillation: of KL(dense, sparse model)
    nmse_encode: of the error of encoded states over the variance of the sparse
      model's
    nmse_decode: of the error of decoded states over the variance of the dense
      model's
    kl_encode: of KL(dense, hybrid pass), sparse model from an encoded state on
    kl_decode: the same for the dense model from a decoded state on
  """

  activation_fraction: float = field(0.25, DENSITY)
  learning_rate: float = field(3e-3, POSITIVE)
  cross_entropy: float = field(1.0, NOT_NEGATIVE)
  distillation: float = field(0.0, NOT_NEGATIVE)
  nmse_encode: float = field(1.0, NOT_NEGATIVE)
  nmse_decode: float = field(1.0, NOT_NEGATIVE)
  kl_encode: float = field(1.0, NOT_NEGATIVE)
  kl_decode: float = field(1.0, NOT_NEGATIVE)


@_group
class BridgeRunConfig(Config):
  """A whole run of a sparse model beside a dense one.

  Attributes:
    bridge: the bridges and the losses
  """

  bridge: BridgeConfig = BridgeConfig()

  @property
  def plain(self) -> Config:
    """What of it any model's training has."""
    fields = dataclasses.fields(Config)
    return Config(**{f.name: getattr(self, f.name) for f in fields})


def check_activations(model: ModelConfig, sparsity: SparsityConfig) -> None:
  """Raises InputError for a site where AbsTopK would keep no channel."""
  for site in sparsity.activation_sites:
    width = model.width(site)
    if sparsity.num_active(site, width) < 1:
      raise errors.bad_value(
        "sparsity.activation_fraction",
        sparsity.activation_fraction,
        f"at least 1/{width}, to keep one of the {width} channels of {site}",
      )


def check_density(model: ModelConfig, sparsity: SparsityConfig) -> None:
  """Raises InputError for a matrix that keeps fewer than it protects."""
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
  """Returns the config with the model's derived fields filled in."""
  model = config.model
  if model.vocab_size not in (0, vocab_size):
    need = f"0 or the tokenizer's {vocab_size}"
    raise errors.bad_value("model.vocab_size", model.vocab_size, need)
  model = dataclasses.replace(
    model,
    vocab_size=vocab_size,
    d_mlp=model.width("mlp.post_act"),
    context_length=model.context_length or config.data.context_length,
  )
  length = config.data.context_length
  if model.positions != "none" and length > model.context_length:
    need = f"at most model.context_length={model.context_length}"
    raise errors.bad_value("data.context_length", length, need)
  return dataclasses.replace(config, model=model)


def to_dict(config) -> dict[str, Any]:
  """Returns nested plain dicts, fit for JSON."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


# Fields of `train` that fit a step to the machine: the run stays the same.
ELSEWHERE = ("kernels", "accumulate", "remat", "model_parallel")


def settings(config: Config) -> dict[str, Any]:
  """Returns `to_dict` without what may differ on another machine."""
  values = to_dict(config)
  values["data"].pop("directory")
  for name in ELSEWHERE:
    values["train"].pop(name)
  values["prune"].pop("model_parallel")
  return values


def first_difference(
  mine: Mapping[str, Any], theirs: Any
) -> tuple[str, Any, Any] | None:
  """Returns (field, their value, mine) of the first field that differs.

  A field that theirs lacks counts as None, an option as its default; one that
  mine lacks is not compared.
  """
  theirs = dict(_flat(theirs)) if isinstance(theirs, Mapping) else {}
  defaults = {f"model.{n}": value for n, value in OPTIONS.items()}
  theirs = json.loads(json.dumps(defaults)) | theirs
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
  """Returns the `Config` of nested mappings, whole or partial."""
  return from_dict(Config, overrides)


def from_dict(cls, values: Mapping[str, Any], prefix: str = ""):
  """Returns the dataclass `cls` of nested mappings; what they lack is default.

  Raises InputError on an unknown field, a wrong type or a value out of range.
  """
  if not isinstance(values, Mapping | ml_collections.ConfigDict):
    raise errors.bad_value(prefix.rstrip("."), values, "a group of fields")
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for name, value in dict(values.items()).items():
    if name not in hints:
      known = [prefix + hint for hint in hints]
      raise errors.unknown_name("field", f"{prefix}{name}", known)
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
      if abs(value) >= _TOO_LARGE:
        raise errors.bad_value(name, value, "a whole number below 2^63")
      return int(value)
  if kind in (bool, str) and isinstance(value, kind):
    return value
  accepted = {int: "a whole number", float: "a finite number"}
  raise errors.bad_value(name, value, accepted.get(kind, kind.__name__))
