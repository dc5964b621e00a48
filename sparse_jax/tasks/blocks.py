"""Tasks about compound statements: how a header goes on and what follows it.

A prompt is a task's own text behind an opening, some lines of code that do not
decide the answer. Openings number their slots from 5, other texts from 1.
"""

import re
from collections.abc import Mapping, Sequence

from sparse_jax.tasks import natural_rules, templates
from sparse_jax.tasks.spec import Spec, Variant, contrast, substitute

_PROMPTS = templates.read("blocks")

_BODIES = {
  split: _PROMPTS["functions"][split] + _PROMPTS["methods"][split]
  for split in _PROMPTS["functions"]
}


def _behind(
  openings: Mapping[str, Sequence[str]],
  texts: Mapping[str, Sequence[str | tuple[str, str]]],
) -> dict[str, tuple]:
  """Puts every text, or both sides of it, behind every opening of its split.

  The text's lines are indented as the opening's last line is.
  """

  def join(opening, text):
    if not isinstance(text, str):
      return tuple(join(opening, side) for side in text)
    indent = re.search(" *$", opening)[0]
    return opening + re.sub(r"\n(?=.)", f"\n{indent}", text)

  return {
    split: tuple(join(o, t) for o in openings[split] for t in texts[split])
    for split in texts
  }


WHILE_RETURN_TRUE = Spec(
  name="while_return_true",
  rule="`while True` opens a block, `return True` ends a line.",
  variants=substitute(
    _behind(_BODIES, dict.fromkeys(_BODIES, ("~ True",))),
    ("while", "return"),
    (":\n", "\n"),
    (":", "\n"),
  ),
  find_points=natural_rules.truths,
)

ELSE_ELIF = Spec(
  name="else_elif",
  rule="`else` is followed by a colon, `elif` by a condition.",
  variants=substitute(
    _behind(_BODIES, _PROMPTS["branches"]),
    ("else", "elif"),
    (":\n", " not"),
    (":", " not"),
    (":\n", " "),
    (":", " "),
  ),
  find_points=natural_rules.branches,
)


def _with_as(paren: str, answers: tuple[str, str]) -> tuple[Variant, ...]:
  texts = {
    split: tuple(call + paren for call in calls)
    for split, calls in _PROMPTS["calls"].items()
  }
  return substitute(_behind(_BODIES, texts), ("with", "return"), answers)


WITH_AS = Spec(
  name="with_as",
  rule="After a call, `with` names the result on the same line; `return` ends"
  " the line.",
  variants=_with_as(")", (" as", "\n")) + _with_as("", (")", ")\n")),
  find_points=natural_rules.calls,
)

WITH_OPEN = Spec(
  name="with_open",
  rule="A function of a path opens it, a method enters a part of itself.",
  variants=substitute(
    _behind(_PROMPTS["path_functions"], _PROMPTS["path_bodies"]),
    ("<path>", "self"),
    (" open", " self"),
    (" o", " self"),
  ),
  natural_reason="methods open files as well, so the parameters do not decide",
)

FOR_WHILE = Spec(
  name="for_while",
  rule="`for` and a name go on with `in`, `while` with a comparison.",
  variants=substitute(
    _behind(_BODIES, dict.fromkeys(_BODIES, ("~ <name>",))),
    ("for", "while"),
    (" in", " <"),
    (" in", " !="),
    (" in", ":"),
  ),
  find_points=natural_rules.loops,
)

IF_TERNARY = Spec(
  name="if_ternary",
  rule="`if` inside an expression needs `else`, at a line's start a colon.",
  variants=contrast(
    _behind(_BODIES, _PROMPTS["conditions"]),
    (" else", ":\n"),
    (" else", ":"),
  ),
  find_points=natural_rules.ternaries,
)

IF_EQUALS = Spec(
  name="if_equals",
  rule="A name is compared after `if` and assigned at the start of a line.",
  variants=substitute(
    _behind(
      _PROMPTS["methods"],
      {
        "train": (
          "~<name>",
          "~<name>.<name2>",
          "~<name>[<number>]",
          '~<name>["<noun>"]',
        ),
        "validation": ("~<name>", "~<name>.<name2>", "~<name>[<name2>]"),
        "test": ("~<name>", "~<name>.<name2>", "~<name>[-1]"),
      },
    ),
    ("if ", "self."),
    (" ==", " ="),
  ),
  find_points=natural_rules.comparisons,
)

INDENT_FOR = Spec(
  name="indent_for",
  rule="A loop's header is followed by a deeper line, a statement is not.",
  variants=contrast(
    _behind(_PROMPTS["functions"], _PROMPTS["lines"]),
    # A space is left to the next word by pre-splitting tokenizers.
    (" " * 7, " " * 3),
    (" " * 8, " " * 4),
  ),
  find_points=natural_rules.indents,
)
