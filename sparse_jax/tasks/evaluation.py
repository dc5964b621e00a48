"""How well a model does a task: loss and accuracy, with their spread."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import learned
from sparse_jax.tasks.logit_difference import logit_difference
from sparse_jax.tasks.sequences import Sequences, split_pairs
from sparse_jax.utils import bootstrap

_ROWS = 64
_MIN_WIDTH = 16
_RESAMPLES = 2000

DifferenceFunction = Callable[[Sequences], np.ndarray]


_logit_difference = jax.jit(logit_difference, static_argnames="model")


class Estimate(NamedTuple):
  """A mean with its 90% bootstrap interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Score:
  """A model's metrics on one set of prompts."""

  count: int  # Of pairs, or one-sided prompts.
  num_groups: int  # What the bootstrap resamples: pairs, or files.
  loss: Estimate  # The task loss, in nats.
  accuracy: Estimate  # Share of sides whose correct answer has more logit.

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    metrics = {"count": self.count, "num_groups": self.num_groups}
    for name in ("loss", "accuracy"):
      value, *interval = getattr(self, name)
      metrics |= {name: value, f"{name}_interval": interval}
    return metrics


def make_difference_function(
  model: transformer.Model, params: transformer.Params
) -> DifferenceFunction:
  """Returns a function of sequences that gives their logit differences `[S]`.

  Batches have a few fixed shapes, so that all tasks share compiled programs.
  """
  positions = model.config.positions != "none"
  limit = model.config.context_length if positions else None

  def diffs(sequences: Sequences) -> np.ndarray:
    sequences = Sequences(*map(np.asarray, sequences))
    result = np.empty(len(sequences.positions), np.float32)
    for width, rows in _batches(sequences.positions, limit):
      # A short batch repeats its rows; a causal model does not see what is cut
      # or padded behind the answer's position.
      padded = np.resize(rows, _ROWS)
      tokens = np.zeros((_ROWS, width), np.int32)
      part = sequences.tokens[padded, :width]
      tokens[:, : part.shape[1]] = part
      batch = Sequences(tokens, *(x[padded] for x in sequences[1:]))
      result[rows] = _logit_difference(model, params, batch)[: len(rows)]
    return result

  return diffs


def _batches(
  positions: np.ndarray, limit: int | None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (width, rows) with rows of about that length, at most `_ROWS`."""
  widths = np.array([_width(int(n) + 1, limit) for n in positions], int)
  for width in np.unique(widths):
    rows = np.flatnonzero(widths == width)
    for start in range(0, len(rows), _ROWS):
      yield int(width), rows[start : start + _ROWS]


def _width(length: int, limit: int | None) -> int:
  width = max(_MIN_WIDTH, 1 << (length - 1).bit_length())
  return width if limit is None or length > limit else min(width, limit)


def score_pairs(
  difference_function: DifferenceFunction, pairs: tasks_lib.Pairs, seed: int = 0
) -> Score:
  """Returns the metrics on at least one pair; the bootstrap resamples pairs."""
  diff_S = difference_function(Sequences(*pairs.sequences()))
  groups = np.tile(np.arange(len(pairs)), 2)
  return score_differences(diff_S, groups, len(pairs), seed)


def score_prompts(
  difference_function: DifferenceFunction,
  prompts: tasks_lib.Prompts,
  seed: int = 0,
) -> Score:
  """Returns the metrics on natural prompts, at least one."""
  diff_S = difference_function(Sequences(*prompts.sequences()))
  # By file: prompts of one file are alike.
  return score_differences(diff_S, prompts.names, len(prompts), seed)


def score_differences(
  diff_S: np.ndarray, groups: Sequence[Hashable], count: int, seed: int
) -> Score:
  """Returns loss and accuracy of logit differences `[S]`, S at least 1.

  Sequences of one of the S labels `groups` are resampled together; `count` is
  what the score reports as its number of pairs or prompts.
  """
  diff_S = np.asarray(diff_S, np.float64)
  return Score(
    count=count,
    num_groups=len(set(groups)),
    loss=mean_estimate(np.logaddexp(0, -diff_S), groups, seed),
    accuracy=mean_estimate(diff_S > 0, groups, seed),
  )


def mean_estimate(
  values: np.ndarray, groups: Sequence[Hashable], seed: int
) -> Estimate:
  """Returns a mean of S >= 1 values with its 90% interval over groups."""
  return ratio_estimate(values, np.ones(len(values)), groups, seed)


def ratio_estimate(
  num_S: np.ndarray, den_S: np.ndarray, groups: Sequence[Hashable], seed: int
) -> Estimate:
  """Returns sum(num) / sum(den) with its 90% bootstrap interval over groups.

  Args:
    num_S: S at least 1.
    den_S: not negative, of a sum above 0.
    groups: S labels; sequences of one label are resampled together.
    seed: of the resampling.
  """
  labels = {label: i for i, label in enumerate(dict.fromkeys(groups))}
  index_S = np.array([labels[label] for label in groups])
  count = len(labels)
  num_G, den_G = (np.bincount(index_S, x, count) for x in (num_S, den_S))
  times_RxG = np.random.default_rng(seed).multinomial(
    count, np.full(count, 1 / count), _RESAMPLES
  )
  den_R = times_RxG @ den_G
  drawn_R = (times_RxG @ num_G)[den_R > 0] / den_R[den_R > 0]
  value = float(np.sum(num_G) / np.sum(den_G))
  return Estimate(value, *bootstrap.interval(drawn_R))


def check_learned(
  difference_function: DifferenceFunction,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  seed: int,
) -> learned.LearnedCheck:
  """Returns whether the full model does the task well enough to prune it.

  Measured on validation pairs: test pairs are for the saved metrics alone.
  Raises `sequences.TooFewPairs` if any split has too few.
  """
  pairs = split_pairs(task, config, seed)["validation"]
  score = score_pairs(difference_function, pairs)
  return learned.LearnedCheck(
    score.loss.value, score.accuracy.value, config.target_per_side
  )
