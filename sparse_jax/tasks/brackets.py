"""Tasks about brackets: how many and which to close."""

from sparse_jax.tasks import natural_rules, templates
from sparse_jax.tasks.spec import Spec, substitute

_PROMPTS = templates.read("brackets")

BRACKET_COUNTING = Spec(
  name="bracket_counting",
  rule="A list closes with as many brackets as it opened.",
  variants=(
    *substitute(_PROMPTS["lists"], ("[[", "["), ("]]\n", "]\n")),
    *substitute(_PROMPTS["calls"], ("[[", "["), ("]])\n", "])\n")),
    # Two brackets may be two tokens, of which the second takes the newline.
    *substitute(_PROMPTS["lists"], ("[[", "["), ("]]", "]"), ("]", "]\n")),
  ),
  distractors=_PROMPTS["bracket_distractors"],
  find_points=natural_rules.depth,
)

BRACKET_BRACE = Spec(
  name="bracket_brace",
  rule="A list closes with a bracket, a set with a brace.",
  variants=substitute(
    _PROMPTS["lists"], ("[", "{"), ("]\n", "}\n"), ("]", "}")
  ),
  distractors={
    "train": (
      "<name> = [<number>, <number2>]",
      "<name> = {<number>, <number2>}",
    ),
    "validation": (
      "<name> += [<number>, <number2>]",
      "<name> |= {<number>, <number2>}",
    ),
    "test": (
      "<name> = [] + [<number>, <number2>]",
      "<name> = {0} | {<number>, <number2>}",
    ),
  },
  find_points=natural_rules.displays,
)
