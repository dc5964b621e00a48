"""A task: pairs that a tokenizer can state, and its rule on real code."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sparse_jax.tasks import natural
from sparse_jax.tasks.pairs import SPLITS, Pairs, PairText, Prompts, pad_rows
from sparse_jax.utils import errors

# How many candidates a request may look at before it gives up.
_TRIES_PER_PAIR = 50
_MIN_TRIES = 5_000
_CHECK_TRIES = 300
# Pairs of unequal sides are used if fewer than one in this many is equal.
_EQUAL_LENGTH_TRIES = 4


class TaskNotExpressible(errors.InputError):
  """The tokenizer in use cannot state the task's answers as single tokens."""


# (split, seed text) -> candidate pairs, in a deterministic order.
Generator = Callable[[str, str], Iterator[PairText]]
# (split, pairs) -> those that `Task.pairs` returns.
Augment = Callable[[str, Pairs], Pairs]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A two-way next-token choice, in one tokenizer's tokens.

  Attributes:
    rule: one sentence that says which answer is correct.
    answers: the two answer texts, side A's first; more, as examples, where they
      vary from pair to pair.
    natural_reason: why there is no rule on real code (`find_points`).
    max_difficulty: most distracting lines that `make_task` puts before prompts.
    augment: what `pairs` adds to the generator's, such as real prompts.
  """

  name: str
  rule: str
  answers: tuple[str, ...]
  tokenizer: object
  generate: Generator
  find_points: natural.Rule | None = None
  natural_reason: str = ""
  max_difficulty: int = 0
  augment: Augment = lambda split, pairs: pairs

  def pairs(
    self,
    split: str,
    count: int,
    seed: int = 0,
    *,
    pad_to: int | None = None,
    truncate: bool = False,
    at_most: bool = False,
  ) -> Pairs:
    """Returns `count` distinct pairs, the same for the same arguments.

    Both sides have the same number of tokens where enough such pairs exist. The
    splits share nothing. Raises InputError where fewer pairs exist and, with
    `at_most`, where none does. `pad_to` is T, the longest prompt's tokens by
    default; `truncate` cuts longer prompts from the left.
    """
    if split not in SPLITS:
      raise errors.unknown_name("split", split, SPLITS)
    if count < 1:
      raise errors.bad_value("count", count, "at least 1")
    candidates = self.generate(split, f"{self.name}/{split}/{seed}")
    limit = max(_MIN_TRIES, _TRIES_PER_PAIR * count)
    choice = _choose(self.tokenizer, candidates, count, limit)
    if len(choice.pairs) < (1 if at_most else count):
      accepted = (
        f"at most {len(choice.pairs)}, the distinct {split} pairs of task"
        f" {self.name!r} that the tokenizer can state"
      )
      if not choice.exhausted:
        accepted += f" in {choice.tried} candidates"
      raise errors.bad_value("count", count, accepted)
    return self.augment(split, _stack(choice.pairs, pad_to, truncate))

  def natural(
    self,
    documents: Iterable,
    count: int,
    seed: int = 0,
    context_length: int = 128,
    progress: bool = False,
  ) -> Prompts | None:
    """Returns up to `count` prompts as `natural.harvest` does."""
    args = documents, count, seed, context_length, progress
    return natural.harvest([self], *args)[self.name]


class _Choice(NamedTuple):
  """Valid pairs, the strings that failed, and how the search ended."""

  pairs: Sequence["_Encoded"]
  offending: Sequence[str]
  tried: int
  exhausted: bool


@dataclasses.dataclass(frozen=True)
class _Encoded:
  """A pair that passed every check, with its tokens."""

  text: PairText
  prompt: np.ndarray
  counter_prompt: np.ndarray
  answer: int
  counter_answer: int


def check_expressible(
  name: str, tokenizer, generate: Generator
) -> tuple[str, ...]:
  """Returns answers of pairs that the tokenizer states, in order of appearance.

  Raises TaskNotExpressible if there are none in a split.
  """
  answers = {}
  for split in SPLITS:
    candidates = generate(split, f"{name}/{split}/check")
    choice = _choose(tokenizer, candidates, 4, _CHECK_TRIES)
    if not choice.pairs:
      # Messages squeeze spaces.
      shown = lambda t: repr(t) if t.strip(" ") else f"' ' * {len(t)}"
      listed = ", ".join(map(shown, choice.offending[:4])) or "no pairs at all"
      raise TaskNotExpressible(
        f"task {name!r} cannot be stated in this tokenizer"
        f" ({split} split): {listed}; need answers that are single tokens and"
        " do not merge with the prompt"
      )
    for pair in choice.pairs:
      answers |= dict.fromkeys((pair.text.answer, pair.text.counter_answer))
  return tuple(answers)


def count_stated(
  tokenizer, pairs: Sequence[PairText]
) -> tuple[int, Sequence[str]]:
  """Returns how many pairs can be stated, and what prevents the others.

  These are answers of several tokens, and prompts with an answer that merges.
  """
  most = len(pairs) + 1
  choice = _choose(tokenizer, iter(pairs), most, most)
  return len(choice.pairs), choice.offending


def _choose(tokenizer, candidates, count: int, limit: int) -> _Choice:
  """Returns up to `count` valid distinct pairs among `limit` candidates."""
  equal, unequal = [], []
  seen, offending, tried, batch = set(), {}, 0, [None]
  while batch and len(equal) < count and tried < limit:
    rare = len(equal) * _EQUAL_LENGTH_TRIES < tried
    if len(equal) + len(unequal) >= count and rare:
      break
    batch = list(itertools.islice(candidates, count - len(equal) + 16))
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
  return _Choice((equal + unequal)[:count], list(offending), tried, not batch)


def _encode(tokenizer, pairs, offending: dict) -> Iterator[_Encoded]:
  """Yields the pairs whose answers are single tokens that do not merge."""
  answers = {a: None for p in pairs for a in (p.answer, p.counter_answer)}
  ids = {text: tokenizer.single_token(text) for text in answers}
  offending |= {text: None for text in answers if ids[text] is None}
  pairs = [
    p
    for p in pairs
    if None not in (ids[p.answer], ids[p.counter_answer])
    and p.answer != p.counter_answer
  ]
  texts = [
    side + end
    for pair in pairs
    for side in (pair.prompt, pair.counter_prompt)
    for end in ("", pair.answer, pair.counter_answer)
  ]
  encoded = tokenizer.encode_batch(texts)
  for i, pair in enumerate(pairs):
    answers = ids[pair.answer], ids[pair.counter_answer]
    # Many comparisons of short rows: bytes cost a fifth of what arrays do.
    rows = [row.tobytes() for row in encoded[6 * i : 6 * i + 6]]
    ends = [np.uint32(answer).tobytes() for answer in answers]
    merged = [
      texts[6 * i + side + j]
      for side in (0, 3)
      for j in (1, 2)
      if not rows[side] or rows[side + j] != rows[side] + ends[j - 1]
    ]
    offending |= dict.fromkeys(merged)
    if not merged:
      yield _Encoded(pair, encoded[6 * i], encoded[6 * i + 3], *answers)


def _stack(pairs: Sequence[_Encoded], pad_to, truncate: bool) -> Pairs:
  sides = [p.prompt for p in pairs], [p.counter_prompt for p in pairs]
  longest = max(map(len, sides[0] + sides[1]))
  width = longest if pad_to is None else pad_to
  if width < longest and not truncate:
    accepted = f"at least {longest}, the longest prompt's tokens"
    raise errors.bad_value("pad_to", pad_to, accepted)
  (prompts, lengths), (counters, counter_lengths) = (
    pad_rows([row[-width:] for row in side], width) for side in sides
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
    templates=np.array(
      [
        i if p.text.template is None else p.text.template
        for i, p in enumerate(pairs)
      ],
      np.int32,
    ),
  )
