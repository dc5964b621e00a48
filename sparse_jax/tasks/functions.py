"""Tasks about functions, classes and calls."""

from sparse_jax.tasks.spec import Spec, contrast, substitute

LAMBDA_FUNC = Spec(
  name="lambda_func",
  rule="The parameters of a lambda end with a colon, those of a `def` with a"
  " parenthesis.",
  variants=tuple(
    contrast(
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
            "<function> = lambda <name>, <name2>",
            "def <function>(<name>, <name2>",
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
      answers,
    )
    for answers in ((":", "):\n"), (":", ")"))
  ),
)

ENUMERATE_RANGE = Spec(
  name="enumerate_range",
  rule="A loop over two names enumerates, over one index it takes a range.",
  variants=tuple(
    contrast(
      {
        "train": (
          ("    for i, <name> in", "    for i in"),
          (
            "    <name2> = <number>\n    for i, <name> in",
            "    <name2> = <number>\n    for i in",
          ),
          (
            "def <function>(<name2>):\n    for i, <name> in",
            "def <function>(<name2>):\n    for i in",
          ),
        ),
        "validation": (
          (
            "    <name2> = []\n    for j, <name> in",
            "    <name2> = []\n    for j in",
          ),
          (
            "    <name2> = <name3>\n    for j, <name> in",
            "    <name2> = <name3>\n    for j in",
          ),
        ),
        "test": (
          (
            "    <name2> = {}\n    for k, <name> in",
            "    <name2> = {}\n    for k in",
          ),
          (
            "    <name2> = len(<name3>)\n    for k, <name> in",
            "    <name2> = len(<name3>)\n    for k in",
          ),
        ),
      },
      answers,
    )
    for answers in (
      (" enumerate", " range"),
      (" enum", " range"),
      (" en", " range"),
    )
  ),
)

# `~` makes the third name a default value, or a third parameter.
FINAL_KWARG = Spec(
  name="final_kwarg",
  rule="A call closes once every parameter of the definition is given.",
  variants=tuple(
    substitute(
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
          "print(<function>(<name>=<number>, <name2>=<number2>",
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
      answers,
    )
    for answers in ((")\n", ","), (")", ","))
  ),
  natural_reason="a definition and a call of it by keywords alone hardly ever"
  " stand within one context",
)

_CLASS_PROMPTS = {
  "train": (
    ("class <class>:\n    def <function>", "def <name>():\n    def <function>"),
    (
      "class <class>(<class2>):\n    def <function>",
      "def <name>(<name2>):\n    def <function>",
    ),
  ),
  "validation": (
    (
      "class <class>:\n    <name2> = <number>\n\n    def <function>",
      "def <name>():\n    <name2> = <number>\n\n    def <function>",
    ),
    (
      "class <class>(Exception):\n    def <function>",
      "def <name>(*args):\n    def <function>",
    ),
  ),
  "test": (
    (
      "class <class>:\n    <name2> = None\n\n    def <function>",
      "def <name>():\n    <name2> = None\n\n    def <function>",
    ),
    (
      "class <class>(object):\n    def <function>",
      "def <name>(**kwargs):\n    def <function>",
    ),
  ),
}
_INIT_PROMPTS = {
  split: tuple(
    (
      method.replace("<function>", "__init__("),
      function.replace("<function>", "<function>("),
    )
    for method, function in texts
  )
  for split, texts in _CLASS_PROMPTS.items()
}

CLASS_INIT = Spec(
  name="class_init",
  rule="A function in a class takes `self` first, a function in a function"
  " does not.",
  variants=(
    contrast(_INIT_PROMPTS, ("self", "items")),
    contrast(_CLASS_PROMPTS, ("(self", "():\n")),
    contrast(_CLASS_PROMPTS, ("(self", "():")),
    contrast(_CLASS_PROMPTS, ("(self", "()")),
  ),
)

SPECS = (LAMBDA_FUNC, ENUMERATE_RANGE, FINAL_KWARG, CLASS_INIT)
