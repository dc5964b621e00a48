"""Tasks about functions, classes and calls."""

from sparse_jax.tasks import natural_rules, templates
from sparse_jax.tasks.spec import Spec, contrast, substitute

_PROMPTS = templates.read("functions")


def _fork(prompts):
  """Returns both sides of prompts: `~a|b~` is `a` on side A, `b` on side B."""
  sides = lambda text: tuple(
    "".join(
      part.split("|")[side] if i % 2 else part
      for i, part in enumerate(text.split("~"))
    )
    for side in (0, 1)
  )
  return {split: tuple(map(sides, texts)) for split, texts in prompts.items()}


LAMBDA_FUNC = Spec(
  name="lambda_func",
  rule="The parameters of a lambda end with a colon, those of a `def` with a"
  " parenthesis.",
  variants=contrast(
    _fork(
      {
        split: [
          text.replace("@", "~<function> = lambda |def <function>(~")
          for text in texts
        ]
        for split, texts in _PROMPTS["lambda"].items()
      }
    ),
    (":", "):\n"),
    (":", ")"),
  ),
  find_points=natural_rules.parameters,
)

ENUMERATE_RANGE = Spec(
  name="enumerate_range",
  rule="A loop over two names enumerates, over one index it takes a range.",
  variants=contrast(
    {
      split: tuple(
        tuple(
          text.replace("@", loop).replace("^", before)
          for loop, before in ((", <name>", ""), ("", ", <name>"))
        )
        for text in texts
      )
      for split, texts in _PROMPTS["loop"].items()
    },
    (" enumerate", " range"),
    (" enum", " range"),
    (" en", " range"),
  ),
  find_points=natural_rules.iterations,
)

FINAL_KWARG = Spec(
  name="final_kwarg",
  rule="A call closes once every parameter of the definition is given.",
  variants=substitute(_PROMPTS["call"], ("=", ", "), (")\n", ","), (")", ",")),
  natural_reason="a definition and a call of it by keywords alone hardly ever"
  " stand within one context",
)

_INIT_PROMPTS = {
  split: tuple(
    (
      text.replace("~", "class").replace("<function>", "__init__("),
      text.replace("~", "def").replace("<function>", "<function>("),
    )
    for text in texts
  )
  for split, texts in _PROMPTS["class"].items()
}

CLASS_INIT = Spec(
  name="class_init",
  rule="A function in a class takes `self` first, a function in a function"
  " does not.",
  variants=contrast(_INIT_PROMPTS, ("self", "items"))
  + substitute(
    _PROMPTS["class"],
    ("class", "def"),
    ("(self", "():\n"),
    ("(self", "():"),
    ("(self", "()"),
  ),
  find_points=natural_rules.methods,
)
