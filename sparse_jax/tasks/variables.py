"""Tasks about variables: what they hold, and which one comes next."""

from sparse_jax.tasks import natural_rules, templates
from sparse_jax.tasks.spec import Spec, substitute

_PROMPTS = templates.read("variables")


def _set_or_string(name: str, rule: str, variable: str, **kwargs) -> Spec:
  prompts = {
    split: tuple(text.replace("@", variable) for text in texts)
    for split, texts in _PROMPTS["set"].items()
  }
  return Spec(
    name=name,
    rule=rule,
    variants=substitute(
      prompts, ("set()", '""'), (".add", " +="), (".", " +="), (".", " ")
    ),
    distractors=_PROMPTS["set_distractors"],
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

VAR_SWAP = Spec(
  name="var_swap",
  rule="A swap ends with the variable it began with.",
  variants=substitute(
    _PROMPTS["swap"],
    ("<var>, <var2> = <var2>,", "<var2>, <var> = <var>,"),
    (" <var>", " <var2>"),
  ),
  find_points=natural_rules.swaps,
)

VAR_IF = Spec(
  name="var_if",
  rule="A condition tests the variable that was just assigned.",
  variants=substitute(
    _PROMPTS["if"], ("<var>", "<var2>"), (" <var>", " <var2>")
  ),
  distractors={
    "train": ("<name> = <name2>", "<name> = <function>()"),
    "validation": ("<name> = -<name2>", "<name> = not <name2>"),
    "test": ("<name> = [<name2>]", "<name> = (<name2>,)"),
  },
  find_points=natural_rules.conditions,
)
