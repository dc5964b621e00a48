"""Prompts from templates: slots filled without repetition, seeded.

A template is code with slots such as `<name>` or `<name2>`. A slot takes a word
of its kind; equal slots take equal words, different ones different words. Kinds
are tables of words by split (`words.py`). The built-in tasks' templates are
TOML files in `prompts/`.
"""

import dataclasses
import functools
import math
import pathlib
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparse_jax.tasks.pairs import PairText

_SLOT = re.compile(r"<([a-z]+)\d*>")
_NAME = re.compile(r"[A-Za-z_]\w*")

# kind -> split -> words.
Words = Mapping[str, Mapping[str, Sequence[str]]]


def read(name: str) -> dict[str, Any]:
  """Returns what `prompts/NAME.toml` holds, its arrays as tuples."""
  path = pathlib.Path(__file__).parent / "prompts" / f"{name}.toml"
  return _as_tuples(tomllib.loads(path.read_text(encoding="utf-8")))


def _as_tuples(value):
  if isinstance(value, dict):
    return {key: _as_tuples(item) for key, item in value.items()}
  return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Template:
  """Two sides of a prompt, A and B, and what follows each, with slots."""

  prompt: str
  counter_prompt: str
  answer: str
  counter_answer: str

  @functools.cached_property
  def slots(self) -> tuple[str, ...]:
    """The slots of both sides, in order of appearance."""
    return slots(self.prompt + self.counter_prompt + self.answer)


def slots(text: str) -> tuple[str, ...]:
  """Returns the distinct slots of a text, in order."""
  return tuple(dict.fromkeys(m[0] for m in _SLOT.finditer(text)))


def names(text: str) -> set[str]:
  """Returns the words that a text spells out, outside its slots."""
  return set(_NAME.findall(_SLOT.sub(" ", text)))


def kind(slot: str) -> str:
  """Returns the kind of words a slot takes: `<name2>` takes names."""
  return _SLOT.fullmatch(slot)[1]


def fill(text: str, words: Mapping[str, str]) -> str:
  """Returns `text` with every slot replaced."""
  return _SLOT.sub(lambda m: words[m[0]], text)


@dataclasses.dataclass(frozen=True)
class Generator:
  """Yields a task's candidate pairs; every template gets the same share.

  Attributes:
    templates: by split.
    words: by kind and split.
    distractors: lines with slots, by split, that may stand before a prompt.
    num_distractors: how many do.
  """

  templates: Mapping[str, Sequence[Template]]
  words: Words
  distractors: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  num_distractors: int = 0

  def __call__(self, split: str, key: str) -> Iterator[PairText]:
    """Yields each combination of template and words once, in seeded order."""
    rng = random.Random(key)
    live = [
      self._fillings(i, template, split, rng)
      for i, template in enumerate(self.templates[split])
    ]
    rng.shuffle(live)
    while live:
      for stream in list(live):
        pair = next(stream, None)
        if pair is None:
          live.remove(stream)
        else:
          yield pair

  def _fillings(self, number, template, split, rng) -> Iterator[PairText]:
    choices = [self.words[kind(slot)][split] for slot in template.slots]
    for index in permutation(math.prod(map(len, choices)), rng):
      words = {}
      for slot, options in zip(template.slots, choices, strict=True):
        index, i = divmod(index, len(options))
        words[slot] = options[i]
      if len(set(words.values())) < len(words):
        continue
      indent = re.match(" *", template.prompt)[0]
      before = self._distract(split, rng, indent, set(words.values()))
      yield PairText(
        before + fill(template.prompt, words),
        before + fill(template.counter_prompt, words),
        fill(template.answer, words),
        fill(template.counter_answer, words),
        number,
      )

  def _distract(self, split, rng, indent: str, taken: set[str]) -> str:
    """Returns the distracting lines, in words the prompt does not use."""
    lines = []
    for _ in range(self.num_distractors):
      line = rng.choice(self.distractors[split])
      words = {}
      for slot in slots(line):
        free = [w for w in self.words[kind(slot)][split] if w not in taken]
        words[slot] = rng.choice(free)
        taken.add(words[slot])
      lines.append(f"{indent}{fill(line, words)}\n")
    return "".join(lines)


def permutation(n: int, rng: random.Random) -> Iterator[int]:
  """Yields 0 … n - 1 in random order, in memory for those drawn only."""
  moved = {}
  for last in range(n - 1, -1, -1):
    i = rng.randrange(last + 1)
    yield moved.get(i, i)
    moved[i] = moved.get(last, last)
    moved.pop(last, None)
