"""Tasks about variables: what they hold, and which one comes next."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, substitute

# `~` stands for the initial value, `@` for the variable it is given to.
_SET_PROMPTS = {
  "train": (
    "    @ = ~\n    for <name2> in <name3>:\n        @",
    "@ = ~\nfor <name2> in <name3>:\n    @",
    "def <function>(<name2>):\n    @ = ~\n    for <name3> in <name2>:\n"
    "        @",
    "    @ = ~\n    if <name2>:\n        @",
    "        @ = ~\n        for <name2> in self.<name3>:\n            @",
    "    <name2> = <function>(<name3>)\n    @ = ~\n"
    "    for <name4> in <name2>:\n        @",
    "import os\n\n@ = ~\nfor <name2> in os.listdir(<name3>):\n    @",
    "    @ = ~\n    for <name2> in range(<number>):\n        @",
    "    @ = ~\n    for <name2> in sorted(<name3>):\n        if <name2>:\n"
    "            @",
    "    @ = ~\n    while True:\n        <name2> = <name3>.<function>()\n"
    "        @",
    "    @ = ~\n    @",
    "    @ = ~\n    <name2> = None\n    for <name3> in <name4>:\n        @",
    "    @ = ~\n    try:\n        @",
    "    @ = ~\n    for <name2>, <name3> in <name4>.items():\n        @",
    '    """\n    @ = ~\n    for <name2> in <name3>:\n        @',
    "        return <name2>\n    @ = ~\n    for <name3> in <name4>[1:]:\n"
    "        @",
    "    # <adjective> <noun>\n    @ = ~\n    if <name2> in <name3>:\n"
    "        @",
    "    def __init__(self, <name2>):\n        self.@ = ~\n        self.@",
    "    @ = ~\n    <function>(<name2>)\n    @",
    "    @ = ~\n    with open(<path>) as <name2>:\n"
    "        for <name3> in <name2>:\n            @",
    "    @ = ~\n    if isinstance(<name2>, str):\n        @",
    "    @ = ~\n    for <name2> in <name3>:\n"
    "        <name4> = <function>(<name2>)\n        @",
    "    @ = ~\n    for <name2> in <name3>:\n        for <name4> in <name2>:\n"
    "            @",
    '    @ = ~\n    if <name2> == "<noun>":\n        @',
    "    @ = ~\n    for <name2> in <name3>:\n        if <name2> is None:\n"
    "            continue\n        @",
    "class <class>:\n    def <function>(self):\n        @ = ~\n"
    "        for <name2> in self.<name3>:\n            @",
    "            @ = ~\n            for <name2> in <name3>.<name4>:\n"
    "                @",
  ),
  "validation": (
    "    @ = ~\n    while <name2>:\n        @",
    "@ = ~\nif not <name2>:\n    @",
    "    def <function>(self):\n        @ = ~\n"
    "        for <name2> in self.<name3>:\n            @",
    "    @ = ~\n    for <name2> in reversed(<name3>):\n        @",
    "    <name2> = <number>\n    @ = ~\n    while <name2> > 0:\n        @",
    "import csv\n\n@ = ~\nfor <name2> in csv.reader(<name3>):\n    @",
    "    @ = ~\n    # <adjective> <noun>\n    @",
    "    @ = ~\n    for <name2> in <name3>:\n"
    "        if <name2> not in <name4>:\n            @",
    "    @ = ~\n    <name2> = len(<name3>)\n"
    "    for <name4> in range(<name2>):\n        @",
    "        self.@ = ~\n        for <name2> in <name3>:\n            self.@",
    "        pass\n    @ = ~\n    if <name2> > <number>:\n        @",
    "            @ = ~\n            for <name2> in <name3>[<name4>]:\n"
    "                @",
  ),
  "test": (
    "    @ = ~\n    for <name2> in <name3>.<function>():\n        @",
    "@ = ~\nwith <name2>:\n    @",
    "    def <function>(self, <name2>):\n        @ = ~\n"
    "        if <name2> is None:\n            @",
    "    @ = ~\n    for <name2> in list(<name3>):\n        @",
    "    <name2> = self.<name3>\n    @ = ~\n    while <name2> is not None:\n"
    "        @",
    "import glob\n\n@ = ~\nfor <name2> in glob.iglob(<name3>):\n    @",
    "    @ = ~\n    # <noun> <noun2>\n    if <name2>:\n        @",
    "    @ = ~\n    for <name2> in <name3>:\n        if <name2> != <name4>:\n"
    "            @",
    "    @ = ~\n    <name2> = <function>(<name3>)\n    @",
    "        self.@ = ~\n        if <name2>:\n            self.@",
    "        raise TypeError(<name2>)\n    @ = ~\n"
    "    for <name3> in <name2>:\n        @",
    "            @ = ~\n            while <name2> < <name3>:\n"
    "                @",
  ),
}
_SET_DISTRACTORS = {
  "train": ("<name> = set()", '<name> = ""'),
  "validation": ('<name>, <name2> = set(), ""',),
  "test": ('<name>, <name2> = "", set()',),
}


def _set_or_string(name: str, rule: str, variable: str, **kwargs) -> Spec:
  prompts = {
    split: tuple(text.replace("@", variable) for text in texts)
    for split, texts in _SET_PROMPTS.items()
  }
  return Spec(
    name=name,
    rule=rule,
    variants=substitute(
      prompts, ("set()", '""'), (".add", " +="), (".", " +="), (".", " ")
    ),
    distractors=_SET_DISTRACTORS,
    **kwargs,
  )


SET_OR_STRING = _set_or_string(
  "set_or_string",
  "A variable that holds a set is added to with .add, a string with +=.",
  "<name>",
  find_points=natural_rules.containers,
)
SET_OR_STRING_FIXEDVARNAME = _set_or_string(
  "set_or_string_fixedvarname",
  "As set_or_string; the variable is always called `current`.",
  "current",
  natural_reason="real code gives no single variable name both roles often"
  " enough; see set_or_string",
)

# `~` stands for the swap of `<var>` and `<var2>`, begun with either.
_SWAP_PROMPTS = {
  "train": (
    "    ~",
    "    if <var> > <var2>:\n        ~",
    "        if <name>:\n            ~",
    "    for <name> in range(<name2>):\n        ~",
    "    <var> = <number>\n    <var2> = <number2>\n    ~",
    "    <var>, <var2> = <number>, <number2>\n"
    "    for <name> in range(<number3>):\n        ~",
    "    if <var> is None:\n        ~",
    "    if len(<var>) < len(<var2>):\n        ~",
    "    <var> = <name>[0]\n    <var2> = <name>[1]\n    ~",
    "    # Swap <var> and <var2>\n    ~",
    "    <function>(<var>, <var2>)\n    ~",
    '    print("<noun>", <var>, <var2>)\n    ~',
    "    <var>, <var2> = <name>\n    if <var> > <var2>:\n        ~",
    "    while <var2>:\n        ~",
    "    else:\n        ~",
    "        if self.<name>:\n            ~",
    "    if <var> == <var2>:\n        return <var>\n    ~",
    "    assert <var> != <var2>\n    ~",
    "    def <function>(self, <var>, <var2>):\n        if <name>:\n"
    "            ~",
    "    <name> = <var> < <var2>\n    if <name>:\n        ~",
    "    if not isinstance(<var>, int):\n        ~",
    "import sys\n\n<var>, <var2> = sys.argv[1:3]\n~",
    "    <var> = <function>(<name>)\n    <var2> = <function>(<name2>)\n    ~",
    "        return <name>\n    ~",
    "    if <var2> < <var>: ~",
    "    if <var> > <var2> and not <name>:\n        ~",
    "            if <name>.<function>(<var>, <var2>):\n                ~",
  ),
  "validation": (
    "    while <var> < <var2>:\n        ~",
    "for <name> in <name2>:\n    ~",
    "def <function>(<var>, <var2>):\n    ~",
    "    if <var> < 0:\n        ~",
    "    <var>, <var2> = <number>, <number2>\n    while <name> > <number3>:\n"
    "        ~",
    "    <var> = self.<name>\n    <var2> = self.<name2>\n    ~",
    "    # <adjective> <noun>\n    ~",
    "        if abs(<var>) > abs(<var2>):\n            ~",
    "    <name>.append(<var>)\n    ~",
    "    if <var> < <var2>: ~",
    "    elif <var> > <var2>:\n        ~",
    "    <var>, <var2> = <function>(<name>)\n    if not <var2>:\n        ~",
  ),
  "test": (
    "    if not <var>:\n        ~",
    "while <name>:\n    ~",
    "    def <function>(self, <var>, <var2>):\n        ~",
    "    if <var> >= <var2>:\n        ~",
    "    <var>, <var2> = <name>, <name2>\n    for <name3> in <name4>:\n"
    "        ~",
    "    <var> = len(<name>)\n    <var2> = len(<name2>)\n    ~",
    "    # <noun> <noun2>\n    if <name>:\n        ~",
    "        if max(<var>) > max(<var2>):\n            ~",
    "    <name>.<function>(<var2>)\n    ~",
    "    if <name>: ~",
    "    elif <var> is not None:\n        ~",
    "    <var>, <var2> = sorted(<name>)\n    if <name2> < 0:\n        ~",
  ),
}

VAR_SWAP = Spec(
  name="var_swap",
  rule="A swap ends with the variable it began with.",
  variants=substitute(
    _SWAP_PROMPTS,
    ("<var>, <var2> = <var2>,", "<var2>, <var> = <var>,"),
    (" <var>", " <var2>"),
  ),
  find_points=natural_rules.swaps,
)

# `~` stands for the variable assigned last.
_IF_PROMPTS = {
  "train": (
    "    ~ = <function>()\n    if",
    "    ~ = <name3>.<function>()\n    if",
    "        ~ = self.<function>()\n        if",
    "    ~ = <name3>[0]\n    if",
    "    ~ = <function>(<name3>, <name4>)\n    if not",
    '    ~ = <name3>.get("<noun>")\n    if',
    "def <function>(<name3>):\n    ~ = <function2>(<name3>)\n    if",
    "    <name3> = <function>()\n    ~ = <name3>.<function2>()\n    if",
    '        ~ = getattr(self, "<noun>", None)\n        if not',
    "    for <name3> in <name4>:\n        ~ = <function>(<name3>)\n        if",
    'import os\n\n\ndef <function>():\n    ~ = os.environ.get("<noun>")\n'
    "    if",
    "    try:\n        ~ = <function>()\n        if",
    "    while True:\n        ~ = <name3>.read()\n        if not",
    "    ~ = <function>(<name3>=<number>)\n    if",
    "    # <adjective> <noun>\n    ~ = <function>(self)\n    if",
    "    ~ = <name3>.<function>()\n    # <adjective> <noun>\n    if",
    "    ~ = <name3> + <name4>\n    if",
    "    ~ = int(<name3>)\n    if",
    "    ~ = [<name3> for <name3> in <name4> if <name3>]\n    if not",
    "        return <name3>\n    ~ = <function>()\n    if",
    "    ~ = <name3>.<name4>.<function>(<name5>)\n    if",
    "    ~ = <function>(self.<name3>)\n\n    if",
    "    ~ = <number>\n    while",
    "        ~ = <name3>[<name4>]\n        if",
    "    ~ = <name3> or <name4>\n    if",
    '    """\n    ~ = <function>(<name3>, None)\n    if',
  ),
  "validation": (
    "    ~ = <function>(<name3>)\n    if",
    "    ~ = len(<name3>)\n    if",
    "        ~ = <name3>.pop(<name4>)\n        if",
    "    ~ = self.<name3>.<function>()\n    if not",
    "    def <function>(self):\n        ~ = self.<name3>\n        if",
    "    <name3> = <number>\n    ~ = <name4>.<function>(<name3>)\n    if",
    "import sys\n\n\ndef <function>():\n    ~ = sys.argv[1:]\n    if",
    "    ~ = <function>(<name3>)\n    # <noun> <noun2>\n    if not",
    "        raise ValueError(<name3>)\n    ~ = <name3>.<name4>\n    if",
    "    ~ = <name3> - <name4>\n    while",
    "    ~ = max(<name3>, <name4>)\n\n    if",
  ),
  "test": (
    "    ~ = self.<function>(<name3>)\n    if",
    "    ~ = <name3>.<name4>\n    if",
    "        ~ = <name3>.find(<name4>)\n        if",
    "    ~ = <name3>.<function>(<name4>)\n    if not",
    "    def <function>(self, <name3>):\n        ~ = <name3>[-1]\n        if",
    "    <name3> = <name4>\n    ~ = <function>(<name3>, <number>)\n    if",
    'import shutil\n\n\ndef <function>():\n    ~ = shutil.which("<noun>")\n'
    "    if",
    "    # <noun> <adjective> <noun2>\n    ~ = bool(<name3>)\n    if not",
    "        break\n    ~ = <name3>.<function>()\n    if",
    "    ~ = <name3> * <number>\n    while",
    "    ~ = sum(<name3>)\n\n    if",
  ),
}

VAR_IF = Spec(
  name="var_if",
  rule="A condition tests the variable that was just assigned.",
  variants=substitute(_IF_PROMPTS, ("<var>", "<var2>"), (" <var>", " <var2>")),
  distractors={
    "train": ("<name> = <name2>", "<name> = <function>()"),
    "validation": ("<name> = -<name2>", "<name> = not <name2>"),
    "test": ("<name> = [<name2>]", "<name> = (<name2>,)"),
  },
  find_points=natural_rules.conditions,
)
