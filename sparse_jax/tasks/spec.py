"""What a built-in task declares, before any tokenizer is known."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from sparse_jax.tasks import base, natural, templates
from sparse_jax.tasks import words as words_lib
from sparse_jax.utils import errors

MAX_DIFFICULTY = 8


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to state a task: templates by split, with their answers."""

  templates: Mapping[str, Sequence[templates.Template]]


def contrast(
  prompts: Mapping[str, Sequence[tuple[str, str]]], *answers: tuple[str, str]
) -> tuple[Variant, ...]:
  """Returns a variant of the prompts (side A, side B) for each of `answers`."""
  return tuple(
    Variant(
      {
        split: tuple(templates.Template(*sides, *pair) for sides in texts)
        for split, texts in prompts.items()
      }
    )
    for pair in answers
  )


def substitute(
  prompts: Mapping[str, Sequence[str]],
  sides: tuple[str, str],
  *answers: tuple[str, str],
) -> tuple[Variant, ...]:
  """As `contrast`, with the sides in place of the prompts' `~`."""
  return contrast(
    {
      split: [[text.replace("~", side) for side in sides] for text in texts]
      for split, texts in prompts.items()
    },
    *answers,
  )


@dataclasses.dataclass(frozen=True)
class Spec:
  """A built-in task.

  Attributes:
    rule: one sentence that says which answer is correct.
    variants: ways to state it; the first that a tokenizer can express is used.
    distractors: lines, by split, put before prompts when `difficulty` asks.
    words: the slots' words by kind and split.
    find_points: the rule on real code, or None.
    natural_reason: why there is none.
  """

  name: str
  rule: str
  variants: Sequence[Variant]
  distractors: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  words: templates.Words = dataclasses.field(
    default_factory=lambda: words_lib.WORDS
  )
  find_points: natural.Rule | None = None
  natural_reason: str = ""

  def make(self, tokenizer, difficulty: int = 0) -> base.Task:
    """Returns the task in one tokenizer's tokens.

    `difficulty` is the number of distracting lines before every prompt.

    Raises:
      InputError: if the task has no such difficulty.
      TaskNotExpressible: if the tokenizer expresses no variant.
    """
    if difficulty and not self.distractors:
      raise errors.bad_value(
        "difficulty", difficulty, f"0 for task {self.name!r}"
      )
    if not 0 <= difficulty <= MAX_DIFFICULTY:
      raise errors.bad_value(
        "difficulty", difficulty, f"from 0 to {MAX_DIFFICULTY}"
      )
    failure = None
    for variant in self.variants:
      generate = templates.Generator(
        variant.templates,
        _expressible_words(
          variant,
          _free_words(variant, self.distractors, self.words),
          tokenizer,
        ),
        self.distractors,
        difficulty,
      )
      try:
        answers = base.check_expressible(self.name, tokenizer, generate)
      except base.TaskNotExpressible as error:
        failure = failure or error
        continue
      return base.Task(
        name=self.name,
        rule=self.rule,
        answers=answers,
        tokenizer=tokenizer,
        generate=generate,
        find_points=self.find_points,
        natural_reason=self.natural_reason,
        max_difficulty=MAX_DIFFICULTY if self.distractors else 0,
      )
    raise failure


def _free_words(
  variant: Variant,
  distractors: Mapping[str, Sequence[str]],
  words: templates.Words,
) -> templates.Words:
  """Returns the words less those that some template spells out.

  Else a template of one split would hold a word of another's.
  """
  spelled = set()
  for text in itertools.chain(
    *distractors.values(),
    *(
      (t.prompt, t.counter_prompt, t.answer, t.counter_answer)
      for texts in variant.templates.values()
      for t in texts
    ),
  ):
    spelled |= templates.names(text)
  return {
    kind: {
      split: [word for word in options if word not in spelled]
      for split, options in table.items()
    }
    for kind, table in words.items()
  }


def _expressible_words(
  variant: Variant, words: templates.Words, tokenizer
) -> templates.Words:
  """Returns the words less those that no answer with a slot can take."""
  answers = {
    answer
    for texts in variant.templates.values()
    for template in texts
    for answer in (template.answer, template.counter_answer)
  }
  kept = dict(words)
  for answer in answers:
    for slot in templates.slots(answer):
      kind = templates.kind(slot)
      kept[kind] = {
        split: [
          word
          for word in options
          if tokenizer.single_token(templates.fill(answer, {slot: word}))
          is not None
        ]
        for split, options in words[kind].items()
      }
  # Too few are left as they are: the check then names what fails.
  enough = all(len(ws) > 1 for kind in kept.values() for ws in kind.values())
  return kept if enough else words
