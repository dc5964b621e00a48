"""Tasks about compound statements: how a header goes on and what follows it.

A prompt is a task's own text behind an opening, some lines of code that do not
decide the answer. Openings number their slots from 5, other texts from 1.
"""

import re
from collections.abc import Mapping, Sequence

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, Variant, contrast, substitute

# Openings that go on at four columns, in a function.
_FUNCTIONS = {
  "train": (
    "    ",
    "    <name5> = <number5>\n    ",
    "    <name5> = <name6>.<function5>(<name7>)\n    ",
    "def <function5>(<name5>):\n    ",
    "def <function5>(<name5>, <name6>=None):\n    <name7> = []\n    ",
    'def <function5>():\n    """Handle the <noun5> of each <noun6>."""\n    ',
    "    if not <name5>:\n        return None\n    ",
    "    # Skip the <adjective5> <noun5>.\n    ",
    "import re\n\n\ndef <function5>(<name5>, <name6>):\n    ",
    '    <name5>["<noun5>"] = <name6>\n    ',
    "    global <name5>\n    <name5> = True\n    ",
    '    assert isinstance(<name5>, str), "<adjective5> <noun5>"\n    ',
    "@pytest.fixture\ndef <function5>(<name5>):\n    ",
    '    The <noun5> of each <noun6>.\n    """\n    ',
    "    for <name5> in <name6>:\n        <name5>.<function5>()\n    ",
  ),
  "validation": (
    "    <name5> = <name6>[<number5>]\n    ",
    "    <name5>.<function5>()\n    ",
    "def <function5>(<name5>, *, <name6>):\n    ",
    "    # <adjective5> <noun5> only\n    ",
    "    if <name5> < 0:\n        raise TypeError(<name6>)\n    ",
    'def <function5>(*<name5>):\n    """Walk every <noun5>."""\n    ',
    "    from itertools import chain\n    <name5> = None\n    ",
    "    <name5>, <name6> = <name7>\n    ",
  ),
  "test": (
    "    <name5> = <function5>()\n    ",
    "    <function5>(<name5>, <number5>)\n    ",
    "def <function5>(<name5>=False, **<name6>):\n    ",
    "    # see <noun5>\n    ",
    "    if <name5> in <name6>:\n        del <name6>[<name5>]\n    ",
    'def <function5>():\n    """Perform one <adjective5> <noun5>."""\n    ',
    "    import shlex\n    <name5> = {}\n    ",
    "    <name5> = <name6> or <name7>\n    ",
  ),
}

# Openings that go on at eight or twelve columns, in a method.
_METHODS = {
  "train": (
    "                continue\n            ",
    "            <name5> += 1\n            ",
    "    def <function5>(self):\n        ",
    "    def <function5>(self, <name5>):\n        <name6> = []\n        ",
    "    @property\n    def <name5>(self):\n        ",
    "class <class5>(<class6>):\n    def <function5>(self, <name5>):\n        ",
    "        self.<name5> = <name6>\n        ",
    "        super().__init__(<name5>)\n        ",
    "    try:\n        ",
    '        print("<adjective5> <noun5>:", <name5>)\n        ',
    "        for <name5> in <name6>:\n            ",
    "        if <name5> is None:\n            <name5> = <name6>\n        ",
    "        self.<function5>(<name5>, <name6>=<name7>)\n        ",
    "    except KeyError:\n        ",
    "        elif <name5>:\n            ",
  ),
  "validation": (
    "        <name5> = self.<name6>\n        ",
    "    def <function5>(self, *<name5>):\n        ",
    "        with self.<name5>:\n            ",
    "    @cached_property\n    def <name5>(self):\n        ",
    "        <name5>.append(<name6>)\n        ",
    "        while <name5>:\n            ",
    "    except OSError:\n        <name5> = None\n        ",
    "        if self.<name5>:\n            return <name6>\n        ",
  ),
  "test": (
    "        <name5> = <class5>(self, <name6>)\n        ",
    "    def <function5>(self, <name5>=<number5>):\n        ",
    "        if <name5>.<name6>:\n            ",
    "    @override\n    def <function5>(self):\n        ",
    "        self.<name5>.extend(<name6>)\n        ",
    "        else:\n            ",
    "    except IndexError:\n        <name5> = []\n        ",
    "        if not self.<name5>:\n            break\n        ",
  ),
}

_BODIES = {split: _FUNCTIONS[split] + _METHODS[split] for split in _FUNCTIONS}


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

_BRANCHES = {
  "train": (
    "if <name>:\n    <name2> = <number>\n~",
    "if <name>:\n    return <name2>\n~",
    "if <name> == <number>:\n    <name2> = <name3>\n~",
    "if <name>:\n    <function>(<name2>, <name3>)\n~",
    "if <name> is not None:\n    <name>.<function>()\n~",
    "if <name> and <name2>:\n    <name3> = <name2>\n~",
    "if isinstance(<name>, str):\n    <name2> = <name>\n~",
    'if <name> == "<noun>":\n    <name2> = <name3>\n~',
    "if <name>.<name2>:\n    <function>()\n    continue\n~",
    "if len(<name>) > <number>:\n    raise ValueError(<name2>)\n~",
  ),
  "validation": (
    "if not <name>:\n    <name2> = <number>\n~",
    "if <name> is None:\n    return <name2>\n~",
    "if <name> > <number>:\n    <function>(<name2>)\n~",
    'if <name> != "<noun>":\n    <name2> = <name3>\n~',
    "if <name> or <name2>:\n    <name>.<function>()\n~",
  ),
  "test": (
    "if <name>.<name2>:\n    <name3> = <number>\n~",
    "if <name> in <name2>:\n    return <name3>\n~",
    "if <name> != <number>:\n    <function>(<name2>)\n~",
    'if <name>.startswith("<noun>"):\n    <name2> = <name3>\n~',
    "if callable(<name>):\n    <name2> = <name>()\n~",
  ),
}

ELSE_ELIF = Spec(
  name="else_elif",
  rule="`else` is followed by a colon, `elif` by a condition.",
  variants=substitute(
    _behind(_BODIES, _BRANCHES),
    ("else", "elif"),
    (":\n", " not"),
    (":", " not"),
    (":\n", " "),
    (":", " "),
  ),
  find_points=natural_rules.branches,
)

# Calls whose result a block can enter, less the closing parenthesis.
_CALLS = {
  "train": (
    "~ open(<name>",
    "~ <function>(<name>, <name2>",
    "~ <name>.<function>(<name2>.<name3>",
    "~ gzip.open(<name>, encoding=<name2>",
    "~ <class>(<name>, <number>",
    '~ open("<noun>.csv", <name>',
    "~ <name>.<name2>.<function>(<name3>",
    "~ Popen(<name>, stdout=<name2>",
  ),
  "validation": (
    "~ <name>.open(<name2>",
    "~ os.fdopen(<name>, <name2>",
    "~ closing(<name>",
    "~ codecs.open(<name>, errors=<name2>.<name3>",
    "~ <class>.<function>(<name>, <number>",
  ),
  "test": (
    "~ io.open(<name>, <name2>",
    "~ <name>.open(<name2>, newline=<name3>",
    "~ urlopen(<name>.<name2>",
    "~ <function>(<name>",
    "~ <class>(<name>, <name2>, <number>",
  ),
}


def _with_as(paren: str, answers: tuple[str, str]) -> tuple[Variant, ...]:
  texts = {
    split: tuple(call + paren for call in calls)
    for split, calls in _CALLS.items()
  }
  return substitute(_behind(_BODIES, texts), ("with", "return"), answers)


WITH_AS = Spec(
  name="with_as",
  rule="After a call, `with` names the result on the same line; `return` ends"
  " the line.",
  variants=_with_as(")", (" as", "\n")) + _with_as("", (")", ")\n")),
  find_points=natural_rules.calls,
)

# `~` stands for the first parameter.
_PATH_FUNCTIONS = {
  "train": (
    "def <function>(~):\n    ",
    "def <function>(~, <name>) -> None:\n    ",
    "    def <function>(~, <name>=None):\n        ",
    "    def <function>(~, <name>, <name2>=<number>):\n        ",
    "    @contextmanager\n    def <function>(~):\n        ",
  ),
  "validation": (
    "def <function>(~, <name>, <name2>):\n    ",
    "def <function>(~, <name>=<name2>):\n    ",
    "    def <function>(~, *<name>) -> bool:\n        ",
  ),
  "test": (
    "def <function>(~) -> int:\n    ",
    "def <function>(~, *, <name>):\n    ",
    "    def <function>(~, **<name>):\n        ",
  ),
}
_PATH_BODIES = {
  "train": (
    "with",
    "<name5> = <number5>\nwith",
    "<name5> = []\nwith",
    '"""Handle the <noun5> of each <noun6>."""\nwith',
    "# <adjective5> <noun5>\nwith",
    "if not <name5>:\n    return\nwith",
    "<name5> = <function5>(<name6>)\nwith",
    'print("<adjective5> <noun5>")\nwith',
    "try:\n    with",
  ),
  "validation": (
    "with",
    '"""Walk every <noun5>."""\nwith',
    "<name5> = <name6>.<function5>()\nwith",
    "if <name5> is None:\n    <name5> = <number5>\nwith",
    "<name5> = {}\nwith",
  ),
  "test": (
    "with",
    '"""Perform one <adjective5> <noun5>."""\nwith',
    "<function5>(<name5>)\nwith",
    "if <name5>:\n    return <name6>\nwith",
    "<name5> = dict()\nwith",
  ),
}

WITH_OPEN = Spec(
  name="with_open",
  rule="A function of a path opens it, a method enters a part of itself.",
  variants=substitute(
    _behind(_PATH_FUNCTIONS, _PATH_BODIES),
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

# The first side's statement is longer by the second's line break and indent.
_CONDITIONS = {
  "train": (
    ("return <function>() if <name>", "<function>()\nif <name>"),
    (
      "return <name>.<function>(<name2>) if <name3>.<name4>",
      "<name>.<function>(<name2>)\nif <name3>.<name4>",
    ),
    ("<name> = <name2> + <name3> if <name4>", "<name> = <name2>\nif <name4>"),
    (
      "<name> = <name2> + <number> if <name3> is None",
      "<name2> += <number>\nif <name3> is None",
    ),
    (
      "<name> = <function>(<name2>) if <name3> > <number>",
      "<name>.<function>(<name2>)\nif <name3> > <number>",
    ),
    (
      "<name> = <function>(<name2> if <name3>",
      "<function>(<name2>)\nif <name3>",
    ),
    (
      "<name> = <name2>[<name3>] - <name4> if not <name2>",
      "<name2>[<name3>] = <name4>\nif not <name2>",
    ),
  ),
  "validation": (
    (
      "return <function>(<name>) if <name2>",
      "<function>(<name>)\nif <name2>",
    ),
    (
      "<name> = <name2> - <name3> if <name4> in <name2>",
      "<name> = <name2>\nif <name4> in <name2>",
    ),
    (
      "<name> = <function>(<name2>) if not <name3>",
      "<name>.<function>(<name2>)\nif not <name3>",
    ),
    (
      "<name> = <name2>.<name3> + <name4> if <name2>",
      "<name2>.<name3> = <name4>\nif <name2>",
    ),
  ),
  "test": (
    (
      "return <name>.<function>() if <name2>",
      "<name>.<function>()\nif <name2>",
    ),
    (
      "<name> = <name2> * <name3> if <name4> < <name2>",
      "<name> = <name2>\nif <name4> < <name2>",
    ),
    (
      "<name> = <function>(<name2> if <name3> == <number>",
      "<function>(<name2>)\nif <name3> == <number>",
    ),
    (
      "<name> = <name2>[<name3>] if <name3>",
      "del <name2>[<name3>]\nif <name3>",
    ),
  ),
}

IF_TERNARY = Spec(
  name="if_ternary",
  rule="`if` inside an expression needs `else`, at a line's start a colon.",
  variants=contrast(
    _behind(_BODIES, _CONDITIONS),
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
      _METHODS,
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

# Both sides of a pair have the same number of tokens.
_LINES = {
  "train": (
    ("for <name> in <name2>:\n", "assert <name> in <name2>\n"),
    ("for <name> in <name2>.<name3>:\n", "<name> = <name2> + <name3>\n"),
    ("for <name>, <name2> in <name3>:\n", "yield <name>, <name2>, <name3>\n"),
    (
      "for <name> in <function>(<name2>):\n",
      "<name> = not <function>(<name2>)\n",
    ),
    (
      "for <name> in range(<number>):\n",
      "assert <name> in range(<number>)\n",
    ),
    (
      "for <name> in <name2>.<function>():\n",
      "assert <name> == <name2>.<function>()\n",
    ),
    ("for <name> in <name2>:\n", "del <name>, <name2>\n"),
  ),
  "validation": (
    ("for <name> in range(<name2>):\n", "assert <name> in range(<name2>)\n"),
    ("for <name> in <name2>:\n", "<name> = not <name2>\n"),
    ("for <name> in <name2>.<name3>:\n", "yield <name>, <name2>.<name3>\n"),
    (
      "for <name> in <name2>.<function>(<name3>):\n",
      "assert <name> is <name2>.<function>(<name3>)\n",
    ),
  ),
  "test": (
    (
      "for <name> in <name2>.<name3>:\n",
      "assert <name> in <name2>.<name3>\n",
    ),
    ("for <name> in <name2>:\n", "yield <name>, <name2>\n"),
    (
      "for <name> in sorted(<name2>):\n",
      "assert <name> == sorted(<name2>)\n",
    ),
    ("for <name> in <function>():\n", "<name> = not <function>()\n"),
  ),
}

INDENT_FOR = Spec(
  name="indent_for",
  rule="A loop's header is followed by a deeper line, a statement is not.",
  variants=contrast(
    _behind(_FUNCTIONS, _LINES),
    # A space is left to the next word by pre-splitting tokenizers.
    (" " * 7, " " * 3),
    (" " * 8, " " * 4),
  ),
  find_points=natural_rules.indents,
)
