"""How well a model does a task: loss and accuracy, with their spread."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.tasks import learned
from sparse_jax.tasks.logit_difference import logit_difference
from sparse_jax.tasks.sequences import Sequences, split_pairs, task_sequences
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
  num_groups: int  # What the bootstrap resamples: templates, or files.
  loss: Estimate  # The task loss, in nats.
  accuracy: Estimate  # Share of sides whose correct answer has more logit.

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return {
      "count": self.count,
      "num_groups": self.num_groups,
      "loss": self.loss.value,
      "loss_interval": self.loss[1:],
      "accuracy": self.accuracy.value,
      "accuracy_interval": self.accuracy[1:],
    }


def make_difference_function(
  model: transformer.Model, params: transformer.Params
) -> DifferenceFunction:
  """Returns a function of sequences that gives their logit differences `[S]`.

  Batches have a few fixed shapes, so that all tasks share compiled programs.
  """
  has_positions = model.config.positions != "none"
  limit = model.config.context_length if has_positions else None

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
      batch = sharding.beside(params, batch)
      result[rows] = _logit_difference(model, params, batch)[: len(rows)]
    return result

  return diffs


def _batches(
  positions: np.ndarray, limit: int | None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (width, rows) with rows of about that length, at most `_ROWS`."""
  widths = np.array([padded_width(int(n) + 1, limit) for n in positions], int)
  for width in np.unique(widths):
    rows = np.flatnonzero(widths == width)
    for start in range(0, len(rows), _ROWS):
      yield int(width), rows[start : start + _ROWS]


def padded_width(length: int, limit: int | None = None) -> int:
  """Returns the width that a prompt is padded to, so that few programs serve.

  The next power of two, but no more than a limit that the prompt keeps to.
  """
  width = max(_MIN_WIDTH, 1 << (length - 1).bit_length())
  return width if limit is None or length > limit else min(width, limit)


def score(
  difference_function: DifferenceFunction,
  prompts: tasks_lib.Pairs | tasks_lib.Prompts,
  seed: int = 0,
) -> Score:
  """Returns the metrics on at least one pair, or one natural prompt.

  The bootstrap resamples templates, or files.
  """
  diff_S = difference_function(task_sequences(prompts))
  return score_differences(diff_S, prompts.groups, len(prompts), seed)


def score_model(
  model: transformer.Model,
  params: transformer.Params,
  prompts: tasks_lib.Pairs | tasks_lib.Prompts,
) -> Score:
  """Returns the whole model's metrics on at least one pair, or prompt."""
  return score(make_difference_function(model, params), prompts)


def score_differences(
  diff_S: np.ndarray, groups: Sequence[Hashable], count: int, seed: int
) -> Score:
  """Returns loss and accuracy of logit differences `[S]`, S at least 1.

  Sequences of one of the S labels `groups` are resampled together; `count` is
  what the score reports as its number of pairs or prompts.
  """
  diff_S = np.asarray(diff_S, np.float64)
  loss_S, is_right_S = np.logaddexp(0, -diff_S), diff_S > 0
  mean = lambda x_S: ratio_estimate(x_S, np.ones(len(x_S)), groups, seed)
  return Score(count, len(set(groups)), mean(loss_S), mean(is_right_S))


def ratio_estimate(
  num_S: np.ndarray, den_S: np.ndarray, groups: Sequence[Hashable], seed: int
) -> Estimate:
  """Returns sum(num) / sum(den) with its 90% bootstrap interval over groups.

  S is at least 1, `den_S` not negative and of a sum above 0; sequences of one
  of the S labels `groups` are resampled together.
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
  found = score(difference_function, pairs)
  reached = found.loss.value, found.accuracy.value
  return learned.LearnedCheck(*reached, config.target_per_side)
