"""Prompts as text and as arrays: what a task emits."""

import dataclasses
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class PairText:
  """A datapoint as text: a prompt, its counterfactual and their next tokens."""

  prompt: str
  counter_prompt: str
  answer: str
  counter_answer: str
  template: int | None = None  # Which one it is an instance of.


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Paired prompts. Side A's correct answer is side B's incorrect one.

  Attributes:
    prompts: int32 [N, T], side A, right-padded with 0.
    counter_prompts: int32 [N, T], side B.
    lengths: int32 [N], tokens of side A; its answer is predicted at length - 1.
    counter_lengths: int32 [N].
    answers: int32 [N], correct for side A, incorrect for side B.
    counter_answers: int32 [N], correct for side B, incorrect for side A.
    prompt_texts: side A as text, N strings.
    counter_texts: side B as text.
    templates: int32 [N], which template each is an instance of; numbered
      through where they have none. Pairs of one template are alike: intervals
      resample templates.
  """

  prompts: np.ndarray
  counter_prompts: np.ndarray
  lengths: np.ndarray
  counter_lengths: np.ndarray
  answers: np.ndarray
  counter_answers: np.ndarray
  prompt_texts: tuple[str, ...]
  counter_texts: tuple[str, ...]
  templates: np.ndarray

  def __len__(self) -> int:
    """Number of pairs."""
    return len(self.lengths)

  def sequences(
    self,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stacks both sides; row i and row i + N are one pair.

    Returns:
      tokens [2N, T], positions of the answer's logits [2N], correct answers
      [2N], incorrect answers [2N]; all int32.
    """
    return (
      np.concatenate([self.prompts, self.counter_prompts]),
      np.concatenate([self.lengths, self.counter_lengths]) - 1,
      np.concatenate([self.answers, self.counter_answers]),
      np.concatenate([self.counter_answers, self.answers]),
    )

  def take(self, rows: np.ndarray) -> "Pairs":
    """Returns the pairs of those rows."""
    pick = lambda x: (
      tuple(x[i] for i in rows) if isinstance(x, tuple) else x[rows]
    )
    fields = (f.name for f in dataclasses.fields(self))
    return Pairs(**{name: pick(getattr(self, name)) for name in fields})

  @property
  def groups(self) -> np.ndarray:
    """Int32 [2N]: the template of each of `sequences`."""
    return np.tile(self.templates, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """One-sided prompts harvested from real files.

  Attributes:
    tokens: int32 [N, T], right-padded with 0.
    lengths: int32 [N]; the answer is predicted at length - 1.
    correct: int32 [N], the token that follows in the file.
    incorrect: int32 [N], the task's other answer.
    names: the document each prompt comes from, N strings.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  correct: np.ndarray
  incorrect: np.ndarray
  names: tuple[str, ...]

  def __len__(self) -> int:
    """Number of prompts."""
    return len(self.lengths)

  def sequences(
    self,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `Pairs.sequences`, of N one-sided prompts."""
    return self.tokens, self.lengths - 1, self.correct, self.incorrect

  @property
  def groups(self) -> np.ndarray:
    """Int32 [N]: which document each is from; prompts of one are alike."""
    number = {name: i for i, name in enumerate(dict.fromkeys(self.names))}
    return np.array([number[name] for name in self.names], np.int32)


def pad_rows(
  rows: Sequence[Sequence[int]], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows right-padded with 0, int32 [N, width], and lengths [N]."""
  padded = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded, np.array([len(row) for row in rows], np.int32)
