"""Tasks about functions, classes and calls."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, contrast, substitute

LAMBDA_FUNC = Spec(
  name="lambda_func",
  rule="The parameters of a lambda end with a colon, those of a `def` with a"
  " parenthesis.",
  variants=contrast(
    {
      "train": (
        ("<function> = lambda <name>", "def <function>(<name>"),
        (
          "    <function> = lambda <name>, <name2>",
          "    def <function>(<name>, <name2>",
        ),
        (
          "<name3> = <number>\n<function> = lambda <name>",
          "<name3> = <number>\ndef <function>(<name>",
        ),
      ),
      "validation": (
        (
          "    <name2> = <name3>\n    <function> = lambda <name>",
          "    <name2> = <name3>\n    def <function>(<name>",
        ),
        (
          "try:\n    <function> = lambda <name>",
          "try:\n    def <function>(<name>",
        ),
      ),
      "test": (
        (
          "    <name3>.<name2>()\n    <function> = lambda <name>",
          "    <name3>.<name2>()\n    def <function>(<name>",
        ),
        (
          "<function> = lambda <name>, <name2>, <name3>",
          "def <function>(<name>, <name2>, <name3>",
        ),
      ),
    },
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
      "train": (
        (
          "    <name2> = <name3>\n    for i, <name> in",
          "    <name2>, <name> = <name3>\n    for i in",
        ),
        (
          "def <function>(<name2>):\n    for i, <name> in",
          "def <function>(<name2>, <name>):\n    for i in",
        ),
        (
          "    <function>(<name2>)\n    for i, <name> in",
          "    <function>(<name2>, <name>)\n    for i in",
        ),
      ),
      "validation": (
        (
          "    <name2> = <function>()\n    for j, <name> in",
          "    <name2>, <name> = <function>()\n    for j in",
        ),
        (
          "    <name3>.<function>(<name2>)\n    for j, <name> in",
          "    <name3>.<function>(<name2>, <name>)\n    for j in",
        ),
      ),
      "test": (
        (
          "    <name2> = self.<name3>\n    for k, <name> in",
          "    <name2>, <name> = self.<name3>\n    for k in",
        ),
        (
          "    def <function>(self, <name2>):\n        for k, <name> in",
          "    def <function>(self, <name2>, <name>):\n        for k in",
        ),
      ),
    },
    (" enumerate", " range"),
    (" enum", " range"),
    (" en", " range"),
  ),
  find_points=natural_rules.iterations,
)

# `~` makes the third name a default value, or a third parameter.
FINAL_KWARG = Spec(
  name="final_kwarg",
  rule="A call closes once every parameter of the definition is given.",
  variants=substitute(
    {
      "train": (
        "def <function>(<name>, <name2>~<name3>):\n    pass\n\n"
        "<function>(<name>=<number>, <name2>=<number2>",
        "def <function>(<name>, <name2>~<name3>):\n"
        "    return <name>\n\n"
        "<name4> = <function>(<name>=<number>, <name2>=<number2>",
      ),
      "validation": (
        "def <function>(<name>, <name2>~<name3>):\n"
        "    return <name2>\n\n"
        "assert <function>(<name>=<number>, <name2>=<number2>",
        "def <function>(<name>, <name2>~<name3>):\n    ...\n\n"
        "<function>(<name>=<number>, <name2>=<number2>",
      ),
      "test": (
        "def <function>(<name>, <name2>~<name3>):\n"
        "    return None\n\n"
        "self.<function>(<name>=<number>, <name2>=<number2>",
        "def <function>(<name>, <name2>~<name3>):\n"
        "    yield <name>\n\n"
        "<function>(<name>=<number>, <name2>=<number2>",
      ),
    },
    ("=", ", "),
    (")\n", ","),
    (")", ","),
  ),
  natural_reason="a definition and a call of it by keywords alone hardly ever"
  " stand within one context",
)

# `~` stands for `class` or `def`.
_CLASS_PROMPTS = {
  "train": (
    "~ <class>():\n    def <function>",
    "~ <class>(<class2>):\n    def <function>",
    "    ~ <class>(<class2>):\n        def <function>",
  ),
  "validation": (
    "~ <class>():\n    <name> = <number>\n\n    def <function>",
    "~ <class>(Exception):\n    def <function>",
  ),
  "test": (
    "~ <class>():\n    <name> = None\n\n    def <function>",
    "~ <class>(object):\n    def <function>",
  ),
}
_INIT_PROMPTS = {
  split: tuple(
    (
      text.replace("~", "class").replace("<function>", "__init__("),
      text.replace("~", "def").replace("<function>", "<function>("),
    )
    for text in texts
  )
  for split, texts in _CLASS_PROMPTS.items()
}

CLASS_INIT = Spec(
  name="class_init",
  rule="A function in a class takes `self` first, a function in a function"
  " does not.",
  variants=contrast(_INIT_PROMPTS, ("self", "items"))
  + substitute(
    _CLASS_PROMPTS,
    ("class", "def"),
    ("(self", "():\n"),
    ("(self", "():"),
    ("(self", "()"),
  ),
  find_points=natural_rules.methods,
)
