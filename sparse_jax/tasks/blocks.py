"""Tasks about compound statements: how a header goes on and what follows it."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, Variant, contrast, substitute

WHILE_RETURN_TRUE = Spec(
  name="while_return_true",
  rule="`while True` opens a block, `return True` ends a line.",
  variants=substitute(
    {
      "train": (
        "def <function>(<name>):\n    ~ True",
        "def <function>(self, <name>):\n        ~ True",
        "    <name> = <name2>\n    ~ True",
        "        <name> = <function>()\n        ~ True",
      ),
      "validation": (
        "    <name> = <name2>.<function>()\n    ~ True",
        "    if <name>:\n        ~ True",
        "    <function>(<name>)\n    ~ True",
      ),
      "test": (
        "    self.<name> = <name2>\n    ~ True",
        "    with <name>:\n        ~ True",
        "    <name>.<function>()\n    ~ True",
      ),
    },
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
    {
      "train": (
        "    if <name>:\n        <name2> = <number>\n    ~",
        "    if <name>:\n        return <name2>\n    ~",
        "        if <name>:\n            <function>(<name2>)\n        ~",
        "    if <name> == <number>:\n        <name2> = <name3>\n    ~",
      ),
      "validation": (
        "    if not <name>:\n        <name2> = <number>\n    ~",
        "    if <name> is None:\n        return <name2>\n    ~",
        "    if <name> > <number>:\n        <function>(<name2>)\n    ~",
      ),
      "test": (
        "    if <name>.<name2>:\n        <name3> = <number>\n    ~",
        "    if <name> in <name2>:\n        return <name3>\n    ~",
        "    if <name> != <number>:\n        <function>(<name2>)\n    ~",
      ),
    },
    ("else", "elif"),
    (":\n", " not"),
    (":", " not"),
    (":\n", " "),
    (":", " "),
  ),
  find_points=natural_rules.branches,
)

# `~` stands for the statement, `%` for a closing parenthesis, where that is not
# part of the answer.
_WITH_AS_PROMPTS = {
  "train": (
    "    ~ open(<name>%",
    "    ~ <function>(<name>%",
    "        ~ <name>.<function>(<name2>%",
    "    ~ <function>(<name>, <name2>%",
  ),
  "validation": (
    "    ~ <name2>.open(<name>%",
    "        ~ os.fdopen(<name>%",
    "    ~ closing(<name>%",
  ),
  "test": (
    "    ~ self.open(<name>%",
    "    ~ self.<function>(<name>%",
    "    ~ io.open(<name>, <name2>%",
  ),
}


def _with_as(paren: str, answers: tuple[str, str]) -> tuple[Variant, ...]:
  prompts = {
    split: tuple(text.replace("%", paren) for text in texts)
    for split, texts in _WITH_AS_PROMPTS.items()
  }
  return substitute(prompts, ("with", "return"), answers)


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
  variants=contrast(
    {
      "train": (
        (
          "def <function>(<path>):\n    with",
          "def <function>(self):\n    with",
        ),
        (
          "def <function>(<path>):\n    <name> = <number>\n    with",
          "def <function>(self):\n    <name> = <number>\n    with",
        ),
        (
          "    def <function>(<path>, <name>):\n        with",
          "    def <function>(self, <name>):\n        with",
        ),
      ),
      "validation": (
        (
          "def <function>(<path>, <name>=None):\n    with",
          "def <function>(self, <name>=None):\n    with",
        ),
        (
          "def <function>(<path>):\n    <name> = []\n    with",
          "def <function>(self):\n    <name> = []\n    with",
        ),
      ),
      "test": (
        (
          "def <function>(<path>, *, <name>):\n    with",
          "def <function>(self, *, <name>):\n    with",
        ),
        (
          "def <function>(<path>):\n    <name> = {}\n    with",
          "def <function>(self):\n    <name> = {}\n    with",
        ),
      ),
    },
    (" open", " self"),
    (" o", " self"),
  ),
  natural_reason="methods open files as well, so the parameters do not decide",
)

FOR_WHILE = Spec(
  name="for_while",
  rule="`for` and a name go on with `in`, `while` with a comparison.",
  variants=substitute(
    {
      "train": (
        "    ~ <name>",
        "    <name2> = <number>\n    ~ <name>",
        "def <function>(<name2>):\n    ~ <name>",
      ),
      "validation": (
        "    <name2> = []\n    ~ <name>",
        "def <function>(<name2>, <name3>):\n    ~ <name>",
        "    <name2> = <name3>\n    ~ <name>",
      ),
      "test": (
        "    <name2> = {}\n    ~ <name>",
        "def <function>(self, <name2>):\n        ~ <name>",
        "    <name2> = <name3>.<name4>\n    ~ <name>",
      ),
    },
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
    {
      "train": (
        ("    <name> = <name2> if <name3>", "<name> = <name2>\nif <name3>"),
        (
          "    <name>[0] = <name2> if <name3>",
          "<name>[0] = <name2>\nif <name3>",
        ),
        ("    <name> = <number> if <name2>", "<name> = <number>\nif <name2>"),
      ),
      "validation": (
        (
          "    <name> = <name2>.<name3> if <name4>",
          "<name> = <name2>.<name3>\nif <name4>",
        ),
        (
          "    <name>.<name2> = <name3> if <name4>",
          "<name>.<name2> = <name3>\nif <name4>",
        ),
      ),
      "test": (
        ("    <name> += <name2> if <name3>", "<name> += <name2>\nif <name3>"),
        (
          "    self.<name> = <name2> if <name3>",
          "self.<name> = <name2>\nif <name3>",
        ),
      ),
    },
    (" else", ":\n"),
    (" else", ":"),
  ),
  find_points=natural_rules.ternaries,
)

IF_EQUALS = Spec(
  name="if_equals",
  rule="A name is compared after `if` and assigned at the start of a line.",
  variants=substitute(
    {
      "train": (
        "    ~<name>",
        "    <name2> = <number>\n    ~<name>",
        "    <function>()\n    ~<name>",
      ),
      "validation": (
        "    <function>(<name2>)\n    ~<name>",
        "for <name2> in <name3>:\n    ~<name>",
      ),
      "test": (
        "    <name2>.<function>()\n    ~<name>",
        "while <name2>:\n    ~<name>",
      ),
    },
    ("if ", "self."),
    (" ==", " ="),
  ),
  find_points=natural_rules.comparisons,
)

INDENT_FOR = Spec(
  name="indent_for",
  rule="A loop's header is followed by a deeper line, a statement is not.",
  variants=contrast(
    {
      "train": (
        ("    for <name> in <name2>:\n", "    return <name> in <name2>\n"),
        (
          "    <name3> = <number>\n    for <name> in <name2>:\n",
          "    <name3> = <number>\n    return <name> in <name2>\n",
        ),
        (
          "    for <name> in self.<name2>:\n",
          "    return <name> in self.<name2>\n",
        ),
      ),
      "validation": (
        (
          "    for <name> in range(<name2>):\n",
          "    yield <name> in range(<name2>)\n",
        ),
        (
          "    <name3>.<function>()\n    for <name> in <name2>:\n",
          "    <name3>.<function>()\n    <name> = not <name2>\n",
        ),
      ),
      "test": (
        (
          "    for <name> in <name2>.<name3>:\n",
          "    assert <name> in <name2>.<name3>\n",
        ),
        (
          "    <function>(<name3>)\n    for <name> in <name2>:\n",
          "    <function>(<name3>)\n    return <name> in <name2>\n",
        ),
      ),
    },
    # A space is left to the next word by pre-splitting tokenizers.
    (" " * 7, " " * 3),
    (" " * 8, " " * 4),
  ),
  find_points=natural_rules.indents,
)
