"""Tasks about strings: which quote or brace closes what was opened."""

from sparse_jax.tasks import natural_rules, templates
from sparse_jax.tasks.spec import Spec, contrast, substitute

_PROMPTS = templates.read("strings")

SINGLE_DOUBLE_QUOTE = Spec(
  name="single_double_quote",
  rule="A string in a call closes with the quote that opened it.",
  variants=substitute(_PROMPTS["quote"], ("'", '"'), ("')", '")'), ("'", '"')),
  distractors=_PROMPTS["quote_distractors"],
  find_points=natural_rules.quotes,
)

FSTRING_BRACE = Spec(
  name="fstring_brace",
  rule="A name in an f-string closes with a brace, an argument with a"
  " parenthesis.",
  variants=contrast(
    {
      split: [(before + a, before + b) for before, a, b in rows]
      for split, rows in _PROMPTS["fstring"].items()
    },
    ("}", ")"),
  ),
  find_points=natural_rules.fields,
)
