"""A task's prompts as arrays, by split."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.tasks import base
from sparse_jax.tasks.pairs import SPLITS, Pairs, Prompts
from sparse_jax.utils import errors

_LENGTH_MULTIPLE = 16
# Fewer leave nothing to fit on, or nothing to tell a circuit by.
_MIN_PAIRS = 8


class Sequences(NamedTuple):
  """Both sides of task pairs, as int rows; row i pairs with row i + S/2."""

  tokens: jax.Array  # `[S, T]`, right-padded.
  positions: jax.Array  # `[S]`, of the last prompt token.
  correct: jax.Array  # `[S]`, the token of the correct answer.
  incorrect: jax.Array  # `[S]`, of the other one.
  groups: (
    jax.Array
  )  # `[S]`, of the template or file: what a bootstrap resamples.


def task_sequences(
  pairs: Pairs | Prompts, length: int | None = None
) -> Sequences:
  """Returns pairs or prompts as device arrays, padded to `length`."""
  arrays = *pairs.sequences(), pairs.groups
  sequences = Sequences(*map(jnp.asarray, arrays))
  missing = max(0, (length or 0) - sequences.tokens.shape[1])
  tokens = jnp.pad(sequences.tokens, ((0, 0), (0, missing)))
  return sequences._replace(tokens=tokens)


@dataclasses.dataclass(frozen=True)
class Splits:
  """A task's pairs, as sequences and by split with their texts."""

  train: Sequences  # Masks are fitted on these.
  validation: Sequences  # These choose size and run.
  test: Sequences  # The metrics are measured on these.
  pairs: Mapping[str, Pairs]


class TooFewPairs(errors.InputError):
  """A task has too few distinct pairs for pruning to mean anything."""


def split_pairs(
  task: base.Task, config: config_lib.PruneConfig, seed: int
) -> dict[str, Pairs]:
  """Returns the task's pairs for pruning, by split.

  A task that has fewer than the config asks for gives all it has; raises
  TooFewPairs if those of a split are fewer than `_MIN_PAIRS`, too.
  """
  wanted = _wanted(config)
  pairs = {
    split: task.pairs(split, count=count, seed=seed, at_most=True)
    for split, count in wanted.items()
  }
  if any(len(pairs[s]) < min(n, _MIN_PAIRS) for s, n in wanted.items()):
    counts = ", ".join(f"{len(pairs[s])} {s}" for s in wanted)
    fields = ", ".join(f"prune.num_{s}={n}" for s, n in wanted.items())
    raise TooFewPairs(
      f"task {task.name!r} has so few distinct pairs: {counts}; need at least"
      f" {_MIN_PAIRS} of each, or as many as {fields} ask for"
    )
  return pairs


def shortage(
  name: str, pairs: Mapping[str, Pairs], config: config_lib.PruneConfig
) -> str:
  """Returns one line on the splits that are smaller than asked for, or ""."""
  adjective = {"train": "training"}
  parts = [
    f"{len(pairs[split])} {adjective.get(split, split)} pairs instead of"
    f" the {count} that prune.num_{split} asks for"
    for split, count in _wanted(config).items()
    if len(pairs[split]) < count
  ]
  return f"task {name}: {', '.join(parts)}" if parts else ""


def _wanted(config: config_lib.PruneConfig) -> dict[str, int]:
  return {split: config.num_pairs(split) for split in SPLITS}


def make_splits(
  task: base.Task, config: config_lib.PruneConfig, seed: int
) -> Splits:
  """Returns the task's pairs for pruning; raises what `split_pairs` does."""
  pairs = split_pairs(task, config, seed)
  # One length for all splits and most tasks, so that programs are shared.
  longest = max(p.prompts.shape[1] for p in pairs.values())
  length = padded_length(longest)
  sequences = {s: task_sequences(p, length) for s, p in pairs.items()}
  return Splits(**sequences, pairs=pairs)


def padded_length(length: int, multiple: int = _LENGTH_MULTIPLE) -> int:
  """Returns the length that prompts of up to so many tokens are padded to.

  Few lengths, so that sets of prompts share programs.
  """
  return -(-length // multiple) * multiple


def first_pairs(sequences: Sequences, count: int) -> Sequences:
  """Returns both sides of the first pairs, at most `count`."""
  num_pairs = len(sequences.tokens) // 2
  count = min(count, num_pairs)
  rows = np.r_[0:count, num_pairs : num_pairs + count]
  return Sequences(*(x[rows] for x in sequences))


def spread_pairs(sequences: Sequences, count: int) -> Sequences:
  """Returns both sides of `count` pairs from all over, at most all of them."""
  num_pairs = len(sequences.tokens) // 2
  rows = np.linspace(0, num_pairs, min(count, num_pairs), False).astype(int)
  rows = np.concatenate([rows, rows + num_pairs])
  return Sequences(*(x[rows] for x in sequences))


def deal(sequences: Sequences, hands: int) -> Sequences:
  """Deals whole pairs to so many hands, each field `[hands, S/hands, …]`.

  Pairs that do not come out even are left out.
  """
  size = len(sequences.positions) // 2 // hands

  def dealt(x):
    sides = x.reshape(2, -1, *x.shape[1:])[:, : hands * size]
    sides = sides.reshape(2, hands, size, *x.shape[1:])
    return jnp.swapaxes(sides, 0, 1).reshape(hands, 2 * size, *x.shape[1:])

  return Sequences(*map(dealt, sequences))


def natural_prompts(
  task: base.Task, config: config_lib.Config, count: int = 64
) -> Prompts | None:
  """Returns up to `count` held-out real prompts, or None without a rule.

  `config` is what trained the model: its data source and held-out files.
  """
  if task.find_points is None:
    return None
  documents = sources.documents(config.data, "eval", progress=True)
  length = config.data.context_length
  return task.natural(documents, count, config.seed, length, progress=True)
