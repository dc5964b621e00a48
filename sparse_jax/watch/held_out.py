"""Held-out code on which a model is watched: half to fit, half to test."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.data import sources
from sparse_jax.faithfulness import agreement
from sparse_jax.tasks import base, natural
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.tasks.pairs import Prompts
from sparse_jax.utils import progress
from sparse_jax.watch.monitor import Monitor

_WINDOWS_AT_ONCE = 64
# Prompts of one circuit that a document gives at most.
_MOST = 8


class Labelled(NamedTuple):
  """Prompts with the token that followed in the file."""

  rows: list[np.ndarray]
  following: np.ndarray  # `[B]`.
  groups: np.ndarray  # `[B]`, of one document; these are alike.


def halves(
  documents: Iterable[sources.Document],
) -> tuple[list[sources.Document], list[sources.Document]]:
  """Returns the documents as two halves, by a bit of their hash."""
  found: tuple[list, list] = ([], [])
  for document in documents:
    # Neither the start, which orders them, nor the end, which holds them out.
    found[int(document.digest[24], 16) % 2].append(document)
  return found


def anywhere(
  monitor: Monitor,
  documents: Sequence[sources.Document],
  count: int,
  num_windows: int,
) -> dict[str, Labelled]:
  """Returns prompts of any kind to which a circuit applies, by circuit.

  Windows of the model's context are cut wherever its likeliest next token is an
  answer, in their second half; at most `count` prompts a circuit, from at most
  `num_windows`, as many of every document.
  """
  length = monitor.context_length
  rows = {name: ([], [], []) for name in monitor.answers}
  answers = {n: np.unique(pairs) for n, pairs in monitor.answers.items()}
  windows = _windows(monitor, documents, length + 1, num_windows)
  with progress.progress_bar(num_windows, 0, "held-out windows") as bar:
    for group_W, window_WxT in windows:
      top_WxT = np.asarray(
        _likeliest(monitor.model, monitor.params, window_WxT[:, :-1])
      )
      for name, found in rows.items():
        hits_WxT = np.isin(top_WxT, answers[name])
        hits_WxT[:, : length // 2] = False
        for w, t in np.argwhere(hits_WxT):
          # Of one document, one behind the other.
          taken = found[2][-_MOST:].count(group_W[w])
          if len(found[0]) < count and taken < _MOST:
            found[0].append(window_WxT[w, : t + 1])
            found[1].append(window_WxT[w, t + 1])
            found[2].append(group_W[w])
      bar.update(len(np.unique(window_WxT, axis=0)))
      if all(len(found[0]) == count for found in rows.values()):
        break
  return {
    name: Labelled(found[0], np.array(found[1], int), np.array(found[2], int))
    for name, found in rows.items()
  }


def _windows(
  monitor: Monitor, documents, size: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (document numbers, windows of so many tokens), equally many.

  Every document gives as many, if it is long enough, evenly spaced: prompts of
  one document are alike.
  """
  found = []
  each = -(-count // max(1, len(documents)))
  for group, document in enumerate(documents):
    ids = np.asarray(monitor.tokenizer.encode(document.text), np.int32)
    whole = len(ids) // size
    places = np.unique(np.linspace(0, whole - 1, min(whole, each)).astype(int))
    found += [(group, ids[size * i : size * (i + 1)]) for i in places]
  found = found[:count]
  for start in range(0, len(found), _WINDOWS_AT_ONCE):
    some = found[start : start + _WINDOWS_AT_ONCE]
    # A short batch repeats its last window.
    some += some[-1:] * (_WINDOWS_AT_ONCE - len(some))
    groups, windows = zip(*some, strict=True)
    yield np.array(groups), np.array(windows)


@functools.partial(jax.jit, static_argnames="model")
def _likeliest(model, params, tokens):
  return jnp.argmax(model.apply(params, tokens), -1)


def decisions(
  monitor: Monitor,
  tasks: Mapping[str, base.Task],
  documents: Sequence[sources.Document],
  count: int,
) -> dict[str, Labelled]:
  """Returns prompts where a file takes the task's own decision, by circuit.

  `tasks` are by circuit; those without a rule on real code are left out.
  """
  own = {task.name: task for task in tasks.values()}
  length = monitor.context_length
  found = natural.harvest(own.values(), documents, count, 0, length, True)
  numbers = {document.name: i for i, document in enumerate(documents)}
  return {
    name: _labelled(found[task.name], numbers)
    for name, task in tasks.items()
    if found[task.name] is not None
  }


def _labelled(prompts: Prompts, numbers: Mapping[str, int]) -> Labelled:
  rows = [
    row[:length]
    for row, length in zip(prompts.tokens, prompts.lengths, strict=True)
  ]
  groups = np.array([numbers[name] for name in prompts.names], int)
  return Labelled(rows, prompts.correct, groups)


def corrupted(prompts: Labelled, vocab_size: int, seed: int = 0) -> Labelled:
  """Returns the prompts with a share of their tokens drawn at random.

  What followed in the file still counts as right.
  """
  if not prompts.rows:
    return prompts
  lengths = np.array([len(row) for row in prompts.rows])
  tokens = np.zeros((len(lengths), lengths.max()), np.int32)
  for i, row in enumerate(prompts.rows):
    tokens[i, : len(row)] = row
  zeros = np.zeros_like(lengths)
  sequences = sequences_lib.Sequences(tokens, lengths - 1, zeros, zeros, zeros)
  drawn = np.asarray(agreement.corrupted(sequences, vocab_size, seed).tokens)
  rows = [row[:n] for row, n in zip(drawn, lengths, strict=True)]
  return prompts._replace(rows=rows)
