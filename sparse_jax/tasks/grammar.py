"""Harder prompts of a task: deeper, longer, behind distracting lines.

A task's test pairs are varied by rules that leave the answer as it is
(`prompts/stress.toml`), each as often as a `Shape` says.
"""

import dataclasses
import random
import re
from collections.abc import Mapping

from sparse_jax.tasks import base, templates
from sparse_jax.tasks import words as words_lib
from sparse_jax.utils import errors

# The most of each that a prompt gets.
LARGEST = {"depth": 4, "length": 8, "distractors": 4, "distance": 4}
_SPLIT = "test"
_PAIRS = 256
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Shape:
  """How far a prompt is from the task's own.

  Attributes:
    depth: calls opened around what decides, or levels of indentation.
    length: words, items or lines between what decides and the answer.
    distractors: lines before the prompt that look like the other answer.
    distance: plain lines between them and the prompt.
  """

  depth: int = 0
  length: int = 0
  distractors: int = 0
  distance: int = 0


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One side of a pair, varied; the answers are single tokens."""

  text: str
  tokens: tuple[int, ...]
  correct: int
  incorrect: int
  shape: Shape
  row: int  # Of the pair among the task's.
  side: int
  seed: int  # Of its words.


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
  """What may change in a task's prompts.

  Attributes:
    task: gives pairs, answers and the tokenizer.
    context_length: most tokens of a prompt.
    rules: the task's part of `prompts/stress.toml`.
    neutral: lines that say nothing.
    rows: its pairs, as (texts, answer tokens) of both sides.
  """

  task: base.Task
  context_length: int
  rules: Mapping[str, object]
  neutral: tuple[str, ...]
  rows: tuple[tuple[tuple[str, str], tuple[int, int]], ...]

  @property
  def largest(self) -> dict[str, int]:
    """The most of each of a shape's numbers; 0 where there is no rule."""
    needs = {"length": "longer", "distractors": "distractors"}
    return {
      name: most if needs.get(name, "sides") in {*self.rules, "sides"} else 0
      for name, most in LARGEST.items()
    }

  def draw(self, rng: random.Random, shape: Shape | None = None) -> Prompt:
    """Returns a random prompt, of a shape if one is given.

    Otherwise each of the shape's numbers is uniform up to its largest; prompts
    that do not fit the context are drawn again.
    """
    for _ in range(_TRIES):
      numbers = {k: rng.randint(0, most) for k, most in self.largest.items()}
      prompt = self.make(
        shape or Shape(**numbers),
        rng.randrange(len(self.rows)),
        rng.randrange(2),
        rng.randrange(1 << 30),
      )
      if prompt is not None:
        return prompt
    raise errors.InputError(
      f"task {self.task.name!r}: no prompt of {shape or 'any shape'} fits the"
      f" context of {self.context_length} tokens; need a model of a longer one"
    )

  def vary(self, prompt: Prompt, rng: random.Random) -> Prompt:
    """Returns a neighbour: one number of the shape, the pair or the words."""
    for _ in range(_TRIES):
      shape, row, seed = prompt.shape, prompt.row, prompt.seed
      what = rng.choice([*self.largest, "row", "seed"])
      if what == "row":
        row = rng.randrange(len(self.rows))
      elif what == "seed":
        seed = rng.randrange(1 << 30)
      else:
        number = getattr(shape, what) + rng.choice((-1, 1))
        number = min(max(number, 0), self.largest[what])
        shape = dataclasses.replace(shape, **{what: number})
      if found := self.make(shape, row, prompt.side, seed):
        return found
    return prompt

  def make(self, shape: Shape, row: int, side: int, seed: int) -> Prompt | None:
    """Returns a prompt, or None if it does not fit or an answer merges."""
    texts, answers = self.rows[row]
    text = self._fill(shape, texts, side, random.Random(seed))
    tokenizer = self.task.tokenizer
    tokens = tuple(map(int, tokenizer.encode(text)))
    if len(tokens) > self.context_length:
      return None
    for answer in answers:
      ended = tokenizer.encode(text + tokenizer.token_text(answer))
      if tuple(map(int, ended)) != (*tokens, answer):
        return None
    correct, incorrect = answers[side], answers[1 - side]
    return Prompt(text, tokens, correct, incorrect, shape, row, side, seed)

  def _fill(self, shape, texts, side, rng) -> str:
    text, taken = texts[side], templates.names("\n".join(texts))

    def lines(rules, count, indent=""):
      return "".join(
        f"{indent}{_filled(rng.choice(rules), rng, taken)}\n"
        for _ in range(count)
      )

    both = enumerate(zip(*texts, strict=False))
    decides = next(i for i, (a, b) in both if a != b)
    if "longer" in self.rules:
      longer = self.rules["longer"]
      if longer.endswith("\n"):
        start = text.rindex("\n") + 1
        indent = re.match(" *", text[start:])[0] + 4 * " "
        new = lines((longer.rstrip("\n"),), shape.length, indent)
        text, decides = text[:start] + new + text[start:], decides + len(new)
      else:
        text += "".join(
          _filled(longer, rng, taken) for _ in range(shape.length)
        )
    if "deeper" in self.rules:
      new = "".join(
        _filled(self.rules["deeper"], rng, taken) for _ in range(shape.depth)
      )
      text = text[:decides] + new + text[decides:]
    else:
      text = re.sub(r"^(?=.)", 4 * shape.depth * " ", text, flags=re.M)
    indent = re.match(" *", text)[0]
    before = lines(self.rules.get("distractors", ()), shape.distractors, indent)
    if "sides" in self.rules:
      before = before.replace("~", self.rules["sides"][1 - side])
    return before + lines(self.neutral, shape.distance, indent) + text


def _filled(text: str, rng: random.Random, taken: set[str]) -> str:
  """Returns a rule's text, its slots filled with words that are not taken."""
  words = {}
  for slot in templates.slots(text):
    options = words_lib.WORDS[templates.kind(slot)][_SPLIT]
    words[slot] = rng.choice([w for w in options if w not in taken] or options)
    taken.add(words[slot])
  return templates.fill(text, words)


def of_task(task: base.Task, context_length: int, seed: int = 0) -> Grammar:
  """Returns a task's grammar; raises InputError if it has none."""
  rules = templates.read("stress")
  if task.name not in rules:
    known = [name for name in rules if name != "neutral"]
    raise errors.bad_value("task", task.name, f"one of {', '.join(known)}")
  pairs = task.pairs(_SPLIT, _PAIRS, seed, at_most=True)
  rows = zip(
    zip(pairs.prompt_texts, pairs.counter_texts, strict=True),
    zip(pairs.answers.tolist(), pairs.counter_answers.tolist(), strict=True),
    strict=True,
  )
  return Grammar(
    task, context_length, rules[task.name], rules["neutral"], tuple(rows)
  )
