"""Paired prompts and the task that emits them, checked against a tokenizer."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sparse_jax import errors

SPLITS = ("train", "validation", "test")

# How many candidates a request may look at before it gives up.
_TRIES_PER_PAIR = 50
_MIN_TRIES = 5_000
# Candidates looked at, per pair, to find pairs whose sides are equally long.
_EQUAL_LENGTH_TRIES = 4


class TaskNotExpressible(errors.InputError):
  """The tokenizer in use cannot state the task's answers as single tokens."""


@dataclasses.dataclass(frozen=True)
class PairText:
  """A datapoint as text: a prompt, its counterfactual and their next tokens."""

  prompt: str
  counter_prompt: str
  answer: str
  counter_answer: str


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Paired prompts. Side A's right answer is side B's wrong one.

  Attributes:
    prompts: int32 [N, T], side A, right-padded with 0.
    counter_prompts: int32 [N, T], side B.
    lengths: int32 [N], tokens of side A; its answer is predicted at length - 1.
    counter_lengths: int32 [N].
    answers: int32 [N], right for side A and wrong for side B.
    counter_answers: int32 [N], right for side B and wrong for side A.
    prompt_texts: side A as text, N strings.
    counter_texts: side B as text.
  """

  prompts: np.ndarray
  counter_prompts: np.ndarray
  lengths: np.ndarray
  counter_lengths: np.ndarray
  answers: np.ndarray
  counter_answers: np.ndarray
  prompt_texts: tuple[str, ...]
  counter_texts: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.lengths)

  def sequences(
    self,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stacks both sides; row i and row i + N are one pair.

    Returns:
      tokens [2N, T], positions of the answer's logits [2N], right answers [2N],
      wrong answers [2N]; all int32.
    """
    return (
      np.concatenate([self.prompts, self.counter_prompts]),
      np.concatenate([self.lengths, self.counter_lengths]) - 1,
      np.concatenate([self.answers, self.counter_answers]),
      np.concatenate([self.counter_answers, self.answers]),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """One-sided prompts harvested from real files.

  Attributes:
    tokens: int32 [N, T], right-padded with 0.
    lengths: int32 [N]; the answer is predicted at length - 1.
    right: int32 [N], the token that follows in the file.
    wrong: int32 [N], the task's other answer.
    names: the document each prompt comes from, N strings.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  right: np.ndarray
  wrong: np.ndarray
  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.lengths)

  def sequences(
    self,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens [N, T], positions [N], right [N], wrong [N]; int32."""
    return self.tokens, self.lengths - 1, self.right, self.wrong


# (split, seed text) -> candidate pairs, in a deterministic order.
Generator = Callable[[str, str], Iterator[PairText]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A two-way next-token choice, in one tokenizer's tokens.

  Attributes:
    name: the task's name, or a user file's stem.
    rule: one sentence that says which answer is right.
    answers: the answer texts; two, or more where they vary from pair to pair.
    tokenizer: encodes prompts and answers.
    generate: yields candidate pairs.
    find_points: the rule on real code (`natural.Rule`), or None.
    natural_reason: why there is no rule on real code; "" if there is one.
  """

  name: str
  rule: str
  answers: tuple[str, ...]
  tokenizer: object
  generate: Generator
  find_points: Callable | None = None
  natural_reason: str = ""

  def pairs(
    self,
    split: str,
    count: int,
    seed: int = 0,
    *,
    pad_to: int | None = None,
    truncate: bool = False,
  ) -> Pairs:
    """Returns `count` distinct pairs, the same for the same arguments.

    Both sides have the same number of tokens where enough such pairs exist.

    Args:
      split: "train", "validation" or "test"; the splits share nothing.
      count: number of pairs.
      seed: of the choice and order.
      pad_to: T; the longest prompt by default.
      truncate: cut prompts longer than `pad_to` from the left.

    Raises:
      InputError: on an unknown split, when fewer distinct pairs exist, or when
        a prompt is longer than `pad_to`.
    """
    if split not in SPLITS:
      raise errors.unknown_name("split", split, SPLITS)
    if count < 1:
      raise errors.bad_value("count", count, "at least 1")
    key = f"{self.name}/{split}/{seed}"
    chosen, _ = _choose(self.tokenizer, self.generate(split, key), count)
    if len(chosen) < count:
      raise errors.bad_value(
        "count",
        count,
        f"at most {len(chosen)}, the distinct {split} pairs of task"
        f" {self.name!r}",
      )
    return _stack(chosen, pad_to, truncate)

  def natural(
    self,
    documents: Iterable,
    count: int,
    seed: int = 0,
    context_length: int = 128,
  ) -> Prompts | None:
    """Returns up to `count` prompts from real files, or None without a rule.

    Args:
      documents: held-out documents, with `text` and `name`.
      count: most prompts to return; both answers are right equally often.
      seed: of the choice.
      context_length: most tokens of a prompt.
    """
    # Imported late: natural.py builds on this module's types.
    from sparse_jax.tasks import natural

    return natural.harvest(
      {self.name: self}, documents, count, seed, context_length
    )[self.name]


@dataclasses.dataclass(frozen=True)
class _Encoded:
  """A pair that passed every check, with its tokens."""

  text: PairText
  prompt: np.ndarray
  counter_prompt: np.ndarray
  answer: int
  counter_answer: int


def check_expressible(
  name: str, tokenizer, generate: Generator, count: int = 4
) -> tuple[str, ...]:
  """Checks that every split has pairs the tokenizer can state.

  Returns:
    The answer texts met, in order of appearance.

  Raises:
    TaskNotExpressible: naming the strings that are not single tokens or merge.
  """
  answers = {}
  for split in SPLITS:
    chosen, offending = _choose(
      tokenizer, generate(split, f"{name}/{split}/check"), count
    )
    if not chosen:
      listed = ", ".join(repr(o) for o in offending[:4]) or "no pairs at all"
      raise TaskNotExpressible(
        f"task {name!r} cannot be stated in this tokenizer"
        f" ({split} split): {listed}; need answers that are single tokens and"
        " do not merge with the prompt"
      )
    for pair in chosen:
      answers |= dict.fromkeys((pair.text.answer, pair.text.counter_answer))
  return tuple(answers)


def _choose(
  tokenizer, candidates: Iterator[PairText], count: int
) -> tuple[list[_Encoded], list[str]]:
  """Returns up to `count` valid distinct pairs and the strings that failed."""
  equal, unequal = [], []
  seen, offending, tried = set(), {}, 0
  while len(equal) < count and tried < max(_MIN_TRIES, _TRIES_PER_PAIR * count):
    if (
      tried >= _EQUAL_LENGTH_TRIES * count
      and len(equal) + len(unequal) >= count
    ):
      break
    batch = list(itertools.islice(candidates, count - len(equal) + 16))
    if not batch:
      break
    tried += len(batch)
    fresh = []
    for pair in batch:
      texts = {pair.prompt, pair.counter_prompt}
      if len(texts) == 2 and not texts & seen:
        seen |= texts
        fresh.append(pair)
    for pair in _encode(tokenizer, fresh, offending):
      same = len(pair.prompt) == len(pair.counter_prompt)
      (equal if same else unequal).append(pair)
  return (equal + unequal)[:count], list(offending)


def _encode(
  tokenizer, pairs: Sequence[PairText], offending: dict[str, None]
) -> Iterator[_Encoded]:
  """Yields the pairs whose answers are single tokens that do not merge."""
  ids = {}
  for pair in pairs:
    for text in (pair.answer, pair.counter_answer):
      if text not in ids:
        ids[text] = tokenizer.single_token(text)
        if ids[text] is None:
          offending[text] = None
  pairs = [
    p
    for p in pairs
    if None not in (ids[p.answer], ids[p.counter_answer])
    and p.answer != p.counter_answer
  ]
  texts = []
  for pair in pairs:
    for side in (pair.prompt, pair.counter_prompt):
      texts += [side, side + pair.answer, side + pair.counter_answer]
  encoded = tokenizer.encode_batch(texts)
  for i, pair in enumerate(pairs):
    tokens = encoded[6 * i : 6 * i + 6]
    ok = True
    for side in (0, 3):
      for offset, text in enumerate((pair.answer, pair.counter_answer), 1):
        want = [*tokens[side], ids[text]]
        if not len(tokens[side]) or not np.array_equal(
          tokens[side + offset], want
        ):
          offending[texts[6 * i + side] + text] = None
          ok = False
    if ok:
      yield _Encoded(
        pair, tokens[0], tokens[3], ids[pair.answer], ids[pair.counter_answer]
      )


def _stack(
  pairs: Sequence[_Encoded], pad_to: int | None, truncate: bool
) -> Pairs:
  sides = [p.prompt for p in pairs], [p.counter_prompt for p in pairs]
  longest = max(len(row) for side in sides for row in side)
  width = longest if pad_to is None else pad_to
  if width < longest:
    if not truncate:
      raise errors.bad_value(
        "pad_to", pad_to, f"at least {longest}, the longest prompt's tokens"
      )
    sides = tuple([row[-width:] for row in side] for side in sides)
  (prompts, lengths), (counters, counter_lengths) = (
    pad_rows(side, width) for side in sides
  )
  return Pairs(
    prompts=prompts,
    counter_prompts=counters,
    lengths=lengths,
    counter_lengths=counter_lengths,
    answers=np.array([p.answer for p in pairs], np.int32),
    counter_answers=np.array([p.counter_answer for p in pairs], np.int32),
    prompt_texts=tuple(p.text.prompt for p in pairs),
    counter_texts=tuple(p.text.counter_prompt for p in pairs),
  )


def pad_rows(
  rows: Sequence[Sequence[int]], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows right-padded with 0, int32 [N, width], and lengths [N]."""
  padded = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded, np.array([len(row) for row in rows], np.int32)
