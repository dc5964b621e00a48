"""A task's prompts as arrays, by split."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.tasks import base
from sparse_jax.tasks import pairs as pairs_lib

_LENGTH_MULTIPLE = 16


class Sequences(NamedTuple):
  """Both sides of task pairs, as rows; row i pairs with row i + S/2.

  Attributes:
    tokens: int `[S, T]`, right-padded.
    positions: int `[S]`, of the last prompt token: where the answer follows.
    correct: int `[S]`, the right answer's token.
    incorrect: int `[S]`, the other answer's token.
  """

  tokens: jax.Array
  positions: jax.Array
  correct: jax.Array
  incorrect: jax.Array


def task_sequences(
  pairs: pairs_lib.Pairs, length: int | None = None
) -> Sequences:
  """Returns both sides of the pairs as device arrays, padded to `length`."""
  sequences = Sequences(*map(jnp.asarray, pairs.sequences()))
  missing = max(0, (length or 0) - sequences.tokens.shape[1])
  tokens = jnp.pad(sequences.tokens, ((0, 0), (0, missing)))
  return sequences._replace(tokens=tokens)


@dataclasses.dataclass(frozen=True)
class Splits:
  """A task's pairs, as sequences.

  Attributes:
    train: pairs that masks are fitted on.
    validation: pairs that choose size and run.
    test: pairs that the figures are measured on.
    test_pairs: the same with their texts.
  """

  train: Sequences
  validation: Sequences
  test: Sequences
  test_pairs: pairs_lib.Pairs


def make_splits(
  task: base.Task, config: config_lib.PruneConfig, seed: int
) -> Splits:
  """Returns the task's pairs for pruning."""
  counts = {
    "train": config.num_train,
    "validation": config.num_validation,
    "test": config.num_test,
  }
  pairs = {s: task.pairs(s, count=n, seed=seed) for s, n in counts.items()}
  # One length for all splits and most tasks, so that programs are shared.
  longest = max(p.prompts.shape[1] for p in pairs.values())
  length = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
  sequences = {s: task_sequences(p, length) for s, p in pairs.items()}
  return Splits(**sequences, test_pairs=pairs["test"])


def first_pairs(sequences: Sequences, count: int) -> Sequences:
  """Returns both sides of the first pairs, at most `count`."""
  num_pairs = len(sequences.tokens) // 2
  count = min(count, num_pairs)
  rows = np.r_[0:count, num_pairs : num_pairs + count]
  return Sequences(*(x[rows] for x in sequences))


def natural_prompts(
  task: base.Task, config: config_lib.Config, count: int = 64
) -> pairs_lib.Prompts | None:
  """Returns held-out real prompts of a task, or None without a rule.

  Args:
    task: the task.
    config: what trained the model: its data source and held-out files.
    count: at most so many.
  """
  if task.find_points is None:
    return None
  return task.natural(
    sources.documents(config.data, "eval", progress=True),
    count,
    config.seed,
    config.data.context_length,
    progress=True,
  )
