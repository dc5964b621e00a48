"""What a built-in task declares, before any tokenizer is known."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from sparse_jax import errors
from sparse_jax.tasks import base, templates
from sparse_jax.tasks import words as words_lib


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to state a task: templates by split, with their answers."""

  templates: Mapping[str, Sequence[templates.Template]]


def substitute(
  prompts: Mapping[str, Sequence[str]],
  sides: tuple[str, str],
  answers: tuple[str, str],
) -> Variant:
  """Returns the variant whose sides put two texts in place of `~`."""
  return Variant(
    {
      split: tuple(
        templates.Template(
          text.replace("~", sides[0]), text.replace("~", sides[1]), *answers
        )
        for text in texts
      )
      for split, texts in prompts.items()
    }
  )


def contrast(
  prompts: Mapping[str, Sequence[tuple[str, str]]], answers: tuple[str, str]
) -> Variant:
  """Returns the variant of prompts written out as (side A, side B)."""
  return Variant(
    {
      split: tuple(templates.Template(*sides, *answers) for sides in texts)
      for split, texts in prompts.items()
    }
  )


@dataclasses.dataclass(frozen=True)
class Spec:
  """A built-in task.

  Attributes:
    name: the task's name.
    rule: one sentence that says which answer is right.
    variants: ways to state it; the first that a tokenizer can express is used.
    distractors: lines, by split, put before prompts when `difficulty` asks.
    words: the slots' words by kind and split.
    find_points: the rule on real code (`natural.Rule`), or None.
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
  find_points: Callable | None = None
  natural_reason: str = ""

  def make(self, tokenizer, difficulty: int = 0) -> base.Task:
    """Returns the task in one tokenizer's tokens.

    Args:
      tokenizer: encodes prompts and answers.
      difficulty: number of distracting lines before every prompt.

    Raises:
      InputError: if the task has no such difficulty.
      TaskNotExpressible: if the tokenizer expresses no variant.
    """
    if difficulty and not self.distractors:
      raise errors.bad_value(
        "difficulty", difficulty, f"0 for task {self.name!r}"
      )
    if not 0 <= difficulty <= 8:
      raise errors.bad_value("difficulty", difficulty, "from 0 to 8")
    failure = None
    for variant in self.variants:
      generate = templates.Generator(
        variant.templates, self.words, self.distractors, difficulty
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
      )
    raise failure
