"""Tasks about variables: what they hold, and which one comes next."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, contrast, substitute

# `~` stands for the initial value, `@` for the variable it is given to.
_SET_PROMPTS = {
  "train": (
    "    @ = ~\n    for <name2> in <name3>:\n        @",
    "@ = ~\nfor <name2> in <name3>:\n    @",
    "def <function>(<name2>):\n    @ = ~\n    for <name3> in <name2>:\n"
    "        @",
    "    @ = ~\n    if <name2>:\n        @",
  ),
  "validation": (
    "    @ = ~\n    while <name2>:\n        @",
    "@ = ~\nif not <name2>:\n    @",
    "def <function>(self):\n    @ = ~\n    for <name3> in self.<name2>:\n"
    "        @",
  ),
  "test": (
    "    @ = ~\n    for <name2> in <name3>.<function>():\n        @",
    "@ = ~\nwith <name2>:\n    @",
    "def <function>(self, <name2>):\n    @ = ~\n    if <name2> is None:\n"
    "        @",
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

_SWAP_PROMPTS = {
  "train": (
    ("    {0}, {1} = {1},", "    {1}, {0} = {0},"),
    ("        {0}, {1} = {1},", "        {1}, {0} = {0},"),
    (
      "    if {0} > {1}:\n        {0}, {1} = {1},",
      "    if {0} > {1}:\n        {1}, {0} = {0},",
    ),
  ),
  "validation": (
    (
      "    while {0} < {1}:\n        {0}, {1} = {1},",
      "    while {0} < {1}:\n        {1}, {0} = {0},",
    ),
    (
      "for <name3> in <name4>:\n    {0}, {1} = {1},",
      "for <name3> in <name4>:\n    {1}, {0} = {0},",
    ),
    (
      "def <function>({0}, {1}):\n    {0}, {1} = {1},",
      "def <function>({0}, {1}):\n    {1}, {0} = {0},",
    ),
  ),
  "test": (
    (
      "    if not {0}:\n        {0}, {1} = {1},",
      "    if not {0}:\n        {1}, {0} = {0},",
    ),
    (
      "while <name3>:\n    {0}, {1} = {1},",
      "while <name3>:\n    {1}, {0} = {0},",
    ),
    (
      "def <function>(self, {0}, {1}):\n    {0}, {1} = {1},",
      "def <function>(self, {0}, {1}):\n    {1}, {0} = {0},",
    ),
  ),
}

VAR_SWAP = Spec(
  name="var_swap",
  rule="A swap ends with the variable it began with.",
  variants=contrast(
    {
      split: tuple(
        tuple(side.format("<var>", "<var2>") for side in sides)
        for sides in texts
      )
      for split, texts in _SWAP_PROMPTS.items()
    },
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
  ),
  "validation": (
    "    ~ = <function>(<name3>)\n    if",
    "    ~ = len(<name3>)\n    if",
    "        ~ = <name3>.get(<name4>)\n        if",
  ),
  "test": (
    "    ~ = self.<function>(<name3>)\n    if",
    "    ~ = <name3>.<name4>\n    if",
    "        ~ = <name3>.pop(<name4>)\n        if",
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
