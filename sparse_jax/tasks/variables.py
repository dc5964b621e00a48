"""Tasks about variables: what they hold, and which one comes next."""

from sparse_jax.tasks.spec import Spec, contrast, substitute

# `~` stands for the initial value, `<var>` for the variable it is given to.
_SET_PROMPTS = {
  "train": (
    "    <var> = ~\n    for <name2> in <name3>:\n        <var>",
    "<var> = ~\nfor <name2> in <name3>:\n    <var>",
    "def <function>(<name2>):\n    <var> = ~\n    for <name3> in <name2>:\n"
    "        <var>",
    "    <var> = ~\n    if <name2>:\n        <var>",
  ),
  "validation": (
    "    <var> = ~\n    while <name2>:\n        <var>",
    "<var> = ~\nif not <name2>:\n    <var>",
    "def <function>(self):\n    <var> = ~\n    for <name3> in self.<name2>:\n"
    "        <var>",
  ),
  "test": (
    "    <var> = ~\n    for <name2> in <name3>.<function>():\n        <var>",
    "<var> = ~\nwith <name2>:\n    <var>",
    "def <function>(self, <name2>):\n    <var> = ~\n    if <name2> is None:\n"
    "        <var>",
  ),
}
_SET_DISTRACTORS = {
  "train": ("<name> = set()", '<name> = ""', "<name> = 0"),
  "validation": ("<name> = set()  #", '<name> = ""  #', "<name> = 1"),
  "test": ("<name> = (set())", '<name> = ("")', "<name> = 2"),
}


def _set_or_string(name: str, rule: str, variable: str, **kwargs) -> Spec:
  prompts = {
    split: tuple(text.replace("<var>", variable) for text in texts)
    for split, texts in _SET_PROMPTS.items()
  }
  return Spec(
    name=name,
    rule=rule,
    variants=tuple(
      substitute(prompts, ("set()", '""'), answers)
      for answers in ((".add", " +="), (".", " +="), (".", " "))
    ),
    distractors=_SET_DISTRACTORS,
    **kwargs,
  )


SET_OR_STRING = _set_or_string(
  "set_or_string",
  "A variable that holds a set is added to with .add, a string with +=.",
  "<name>",
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
  variants=(
    contrast(
      {
        split: tuple(
          tuple(side.format("<name>", "<name2>") for side in sides)
          for sides in texts
        )
        for split, texts in _SWAP_PROMPTS.items()
      },
      (" <name>", " <name2>"),
    ),
  ),
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
  variants=(
    substitute(_IF_PROMPTS, ("<name>", "<name2>"), (" <name>", " <name2>")),
  ),
  distractors={
    "train": ("<name> = <name2>", "<name> = <function>()"),
    "validation": ("<name> = -<name2>", "<name> = not <name2>"),
    "test": ("<name> = [<name2>]", "<name> = (<name2>,)"),
  },
)

SPECS = (SET_OR_STRING, SET_OR_STRING_FIXEDVARNAME, VAR_SWAP, VAR_IF)
