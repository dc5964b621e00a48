"""Tasks about functions, classes and calls."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, contrast, substitute


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


# `@` stands for `<function> = lambda ` or `def <function>(`.
_LAMBDA_PROMPTS = {
  "train": (
    "@<name>",
    "    @<name>, <name2>",
    "<name3> = <number>\n@<name>",
    "import re\n\n@<name>",
    "    # <adjective> <noun>\n    @<name>",
    "    <name3> = <function2>(<name4>)\n    @<name>, <name2>",
    "if <name3>:\n    @<name>",
    "    else:\n        @<name>",
    "        return <name3>\n\n    @<name>",
    "@<name>, <name2>=None",
    "    @<name>, <name2>, <name3>=<number>",
    '    """\n    @<name>, <name2>, <name3>',
    "    if <name3> is None:\n        @<name>, <name2>",
    "def <function2>(<name3>):\n    @<name>",
    "    <name3>.append(<name4>)\n\n    @<name>",
    "    ~<name2>.sort(key=lambda |def <function>(self, <name2>, ~<name>",
    "    ~<name2> = max(<name3>, key=lambda |def <function>(self, <name2>, "
    "<name3>, ~<name>",
    "    ~<function>(lambda |def <function>(~<name>, <name2>",
    "    <name3> = <number>\n"
    "    ~return <function>(<name2>, lambda |def <function>(self, <name2>, "
    "~<name>",
    "    ~return lambda <name>, |def <function>(~<name2>",
    '    ~<name2>["<noun>"] = lambda |def <function>(<name2>, ~<name>',
    "        ~self.<function> = lambda |def <function>(self, ~<name>",
    "    ~<name2>.<function>(<name3>, lambda |def <function>(<name2>, "
    "<name3>, ~<name>",
    "class <class>:\n"
    "    ~<function> = staticmethod(lambda |def <function>(self, <name2>, "
    "~<name>",
    "    ~<name2> = map(lambda |def <function>(<name2>, ~<name>",
    '        ~"<noun>": lambda |def <function>(~<name>',
  ),
  "validation": (
    "    <name2> = <name3>\n    @<name>",
    "try:\n    @<name>",
    "from math import sqrt\n\n@<name>",
    "    @<name>, <name2>=True",
    "        raise ValueError(<name3>)\n\n    @<name>, <name2>",
    "    # <noun> <noun2>\n    @<name>, <name2>, <name3>",
    "    def <function2>(self):\n        @<name>",
    "        elif <name3>:\n            @<name>",
    "    <name2> = []\n"
    "    ~<function>(<name2>, lambda |def <function>(<name2>, ~<name>",
    "    <name4> = None\n"
    "    ~<name2>.<function>(<name3>=lambda |def <function>(<name2>, <name3>, "
    "~<name>",
    "        <name3> = True\n"
    "        ~self.<name2> = lambda |def <function>(self, ~<name>",
    "    <name3> = <function2>()\n"
    "    ~return map(lambda |def <function>(self, ~<name>",
  ),
  "test": (
    "    <name3>.<name2>()\n    @<name>",
    "@<name>, <name2>, <name3>",
    "import sys\n\n@<name>",
    "    @<name>, <name2>=<number>",
    "        pass\n\n    @<name>, <name2>",
    "    # <adjective> <noun> <noun2>\n    @<name>",
    "    with <name2>:\n        @<name>",
    "def <function2>(<name3>, <name4>):\n    @<name>, <name2>",
    "    <name2> = {}\n"
    "    ~<name2>[<name3>] = lambda |def <function>(self, <name3>, ~<name>",
    "    <name2> = <number>\n"
    "    ~<name3>.<function>(lambda |def <function>(<name3>, ~<name>",
    "    <name3> = self.<name4>\n"
    "    ~return <function>(<name3>, lambda |def <function>(self, <name3>, "
    "~<name>",
    "        self.<name2>()\n"
    "        ~<name3> = filter(lambda |def <function>(<name3>, ~<name>",
  ),
}

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
        for split, texts in _LAMBDA_PROMPTS.items()
      }
    ),
    (":", "):\n"),
    (":", ")"),
  ),
  find_points=natural_rules.parameters,
)

# `@` stands for the second name of the loop on side A; an earlier line has it
# on side B, in place of `^`.
_LOOP_PROMPTS = {
  "train": (
    "    <name2>^ = <name3>\n    for i@ in",
    "def <function>(<name2>^):\n    for i@ in",
    "    <function>(<name2>^)\n    for i@ in",
    "    <name2>, <name3>^ = [], []\n    for i@ in",
    "    <name2> = <name3>[<name4>^]\n    for i@ in",
    "        self.<function>(<name2>^)\n        for i@ in",
    "    <name2> = <function>(<name3>^)\n    for i@ in",
    "    print(<name2>^)\n    for index@ in",
    "    global <name2>^\n    for i@ in",
    "        return <name2>^\n    for i@ in",
    "    <name2> = [<name3>^]\n    for i@ in",
    "import <name2>^\n\nfor i@ in",
    "from <name2> import <name3>^\n\nfor i@ in",
    "    for <name2>^ in <name3>:\n        for i@ in",
    "    <name2> = max(<name3>^)\n\n    for i@ in",
    "    <name2> = zip(<name3>^)\n    # <adjective> <noun>\n    for i@ in",
    "    with <function>(<name2>^):\n        for index@ in",
    "    <name2>^ = <name3>.<name4>\n    <name5> = []\n    for i@ in",
    "    if <function>(<name2>^):\n        for i@ in",
    "        while <function>(<name2>^):\n            for i@ in",
    "    <name2>^ = <function>(<name3>)\n    return [i for i@ in",
    "    <name2>.<name3>(<name4>^)\n    <name5> = {}\n    for index@ in",
    '    def <function>(self, <name2>^):\n        """<adjective> <noun>."""\n'
    "        for i@ in",
    "        del <name2>^\n        for i@ in",
    "    <name2> = <function>(<name3>^)\n    if <name2>:\n        for i@ in",
    "    <name2>^ = <name3>\n    <name4> = [<name5>[i] for i@ in",
    "            self.<name2>^ = <name3>\n            for i@ in",
  ),
  "validation": (
    "    <name2>^ = <function>()\n    for j@ in",
    "    <name3>.<function>(<name2>^)\n    for j@ in",
    "    <name2> = {<name3>^}\n    for n@ in",
    "    def <function>(self, <name2>^):\n        # <noun> <noun2>\n"
    "        for j@ in",
    "        yield <name2>^\n    for j@ in",
    "    for <name2>^ in <name3>.<name4>:\n        for j@ in",
    "    <name2> = min(<name3>^)\n\n    for n@ in",
    "    with <name2>^:\n        for j@ in",
    "    <name2>, <name3>^ = <name4>\n    return [j for j@ in",
    "            <name2>(<name3>^)\n            for j@ in",
    "    <name2> = getattr(self, <name3>^)\n    if <name2>:\n        for j@ in",
    "import sys\nfrom <name2> import <name3>^\n\nfor n@ in",
  ),
  "test": (
    "    <name2>^ = self.<name3>\n    for k@ in",
    "    def <function>(self, <name2>^):\n        for k@ in",
    "    self.<name2> = <function>(<name3>^)\n    for k@ in",
    "    <name2> = next(<name3>^)\n    for idx@ in",
    "        raise ValueError(<name2>^)\n    for k@ in",
    "    for <name2>^ in <function>(<name3>):\n        for k@ in",
    "    <name2> = sum(<name3>^)\n\n    for idx@ in",
    "    with open(<path>^) as <name2>:\n        for k@ in",
    "    <name2>^ = <name3>[<name4>]\n    return [k for k@ in",
    "            <name2>.<name3>(<name4>^)\n            for k@ in",
    "    <name2>^ = <name3>\n    # <noun> <noun2>\n    if <name2>:\n"
    "        for k@ in",
    "from <name2> import <name3>, <name4>^\n\n<name3>()\nfor idx@ in",
  ),
}

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
      for split, texts in _LOOP_PROMPTS.items()
    },
    (" enumerate", " range"),
    (" enum", " range"),
    (" en", " range"),
  ),
  find_points=natural_rules.iterations,
)

# `~` makes the name behind it a default value, or one more parameter.
_CALL_PROMPTS = {
  "train": (
    "def <function>(<name>, <name2>~<name3>):\n    pass\n\n"
    "<function>(<name>=<number>, <name2>=<number2>",
    "def <function>(<name>, <name2>~<name3>):\n    return <name>\n\n"
    "<name4> = <function>(<name>=1, <name2>=0",
    "def <function>(<name>~<name2>):\n    print(<name>)\n\n"
    "<function>(<name>=<number>",
    "    def <function>(<name>~<name2>):\n        return <name>\n\n"
    "    return <function>(<name>=<number>",
    "class <class>:\n    def __init__(self, <name>~<name2>):\n        pass\n\n"
    "<class>(<name>=None",
    "def <function>(<name>, <name2>~<name3>):\n    pass\n\n"
    '<function>(<name>="<noun>", <name2>=None',
    "def <function>(*, <name>~<name2>):\n    return <name>\n\n"
    "<name3> = <function>(<name>=True",
    "def <function>(<name>~<name2>):\n    <name>.<function2>()\n\n\n"
    "<function>(<name>=<name3>",
    "    def <function>(self, <name>~<name2>):\n        pass\n\n"
    "    def <function2>(self):\n        self.<function>(<name>=None",
    "    def <function>(<name>, <name2>~<name3>):\n        pass\n\n"
    "    yield <function>(<name>=0, <name2>=1",
    "@<function2>\ndef <function>(<name>~<name2>):\n    pass\n\n"
    "<function>(<name>=<number>",
    'def <function>(<name>~<name2>):\n    """<adjective> <noun>."""\n\n'
    "<function>(<name>=True",
    "import os\n\ndef <function>(<name>~<name2>):\n    return os.getcwd()\n\n"
    "<name3> = <function>(<name>=False",
    "    def <function>(<name>~<name2>):\n"
    "        raise NotImplementedError\n\n    <name3> = <function>(<name>=self",
    "def <function>(<name>~<name2>):\n    return <name> + 1\n\n"
    "<name3> += <function>(<name>=<name4>",
    "def <function>(<name>, <name2>, <name3>~<name4>): pass\n\n"
    "<function>(<name>=1, <name2>=2, <name3>=3",
    "def <function>(<name>~<name2>):\n    return <name>\n\n"
    "# <adjective> <noun>\n<function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    return\n\n<name3> = <number>\n"
    "<function>(<name>=<name3>",
    "    async def <function>(<name>~<name2>):\n        pass\n\n"
    "    await <function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    del <name>\n\ntry:\n"
    "    <function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    pass\n\nfor <name3> in <name4>:\n"
    "    <function>(<name>=<name3>",
    "def <function>(<name>, <name2>~<name3>):\n    pass\n\nif <name4>:\n"
    "    <function>(<name>=None, <name2>=True",
    "def <function>(<name>~<name2>):\n    return len(<name>)\n\n"
    "<name3> = <function>(<name>=<name4>.<name5>",
    "def <function>(<name>~<name2>):\n    if <name>:\n        return\n\n"
    "<name3>[0] = <function>(<name>=-1",
    "        def <function>(<name>, <name2>~<name3>):\n            pass\n\n"
    "        <function>(<name>=self, <name2>=<number>",
  ),
  "validation": (
    "def <function>(<name>~<name2>):\n    return [<name>]\n\n"
    "assert <function>(<name>=<number>",
    "def <function>(<name>, <name2>~<name3>):\n    ...\n\n"
    "<function>(<name>=<number>, <name2>=<number2>",
    "def <function>(<name>~<name2>):\n    return not <name>\n\n"
    "<name3> = <function>(<name>=<number>",
    "    def <function>(<name>~<name2>):\n        pass\n\n"
    "    self.<name3> = <function>(<name>=<number>",
    "class <class>:\n    def __init__(self, <name>~<name2>):\n        ...\n\n"
    "<class>(<name>=0",
    "def <function>(<name>, <name2>~<name3>):\n    ...\n\n"
    '<function>(<name>="<noun>", <name2>=True',
    "import sys\n\ndef <function>(<name>~<name2>):\n    sys.exit()\n\n"
    "<function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    return <name>\n\n# <noun> <noun2>\n"
    "<function>(<name>=0",
    "    def <function>(self, <name>~<name2>):\n        ...\n\n"
    "    def <function2>(self):\n        self.<function>(<name>=1",
    "def <function>(*, <name>~<name2>):\n    pass\n\n\n<function>(<name>=None",
    "def <function>(<name>~<name2>):\n    return <name>\n\nif <name3>:\n"
    "    <function>(<name>=<name3>",
    "@<function2>\ndef <function>(<name>~<name2>):\n    <name>.<name3>()\n\n"
    "<function>(<name>=<name4>",
  ),
  "test": (
    "    def <function>(<name>~<name2>):\n        return None\n\n"
    "    <name3>.<name4> = <function>(<name>=<number>",
    "def <function>(<name>, <name2>~<name3>):\n    yield\n\n"
    "<function>(<name>=<number>, <name2>=<number2>",
    "def <function>(<name>~<name2>):\n    return str(<name>)\n\n"
    "<name3> = <function>(<name>=<number>",
    "    def <function>(<name>~<name2>):\n        ...\n\n"
    "    return <function>(<name>=<number>",
    "class <class>:\n    def __init__(self, <name>~<name2>):\n        pass\n\n"
    "<name3> = <class>(<name>=True",
    "def <function>(<name>, <name2>~<name3>):\n    assert <name>\n\n"
    '<function>(<name>="<noun>", <name2>=False',
    "import math\n\ndef <function>(<name>~<name2>):\n    return math.pi\n\n"
    "<function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    pass\n\n# <adjective> <noun>\n"
    "<function>(<name>=1",
    "    def <function>(self, <name>~<name2>):\n        pass\n\n"
    "    def <function2>(self):\n        self.<function>(<name>=0",
    "def <function>(*, <name>~<name2>):\n    return -<name>\n\n"
    "<name3> = <function>(<name>=<number>",
    "def <function>(<name>~<name2>):\n    return <name>\n\nwhile <name3>:\n"
    "    <function>(<name>=<name3>",
    "@<function2>\ndef <function>(<name>~<name2>):\n    return <name>\n\n"
    "<function>(<name>=<name3>[0].<name4>",
  ),
}

FINAL_KWARG = Spec(
  name="final_kwarg",
  rule="A call closes once every parameter of the definition is given.",
  variants=substitute(_CALL_PROMPTS, ("=", ", "), (")\n", ","), (")", ",")),
  natural_reason="a definition and a call of it by keywords alone hardly ever"
  " stand within one context",
)

# `~` stands for `class` or `def`.
_CLASS_PROMPTS = {
  "train": (
    "~ <class>():\n    def <function>",
    "~ <class>(<class2>):\n    def <function>",
    "if <name>:\n    ~ <class>(<class2>):\n        def <function>",
    '~ <class>():\n    """<adjective> <noun>."""\n\n    def <function>',
    "import os\n\n\n~ <class>():\n    def <function>",
    "from <name> import <class2>\n\n\n~ <class>(<class2>):\n    def <function>",
    "~ <class>(<class2>, <class3>):\n    def <function>",
    '~ <class>(<class2>):\n    <name> = "<noun>"\n\n    def <function>',
    "~ <class>():\n    <name> = []\n    <name2> = {}\n\n    def <function>",
    "~ <class>():\n    # <adjective> <noun>\n    def <function>",
    "<name> = <function2>()\n\n\n~ <class>(<class2>):\n    def <function>",
    "    return <name>\n\n\n~ <class>():\n    def <function>",
    "@<function2>\n~ <class>():\n    def <function>",
    "    else:\n        ~ <class>(<class2>):\n            def <function>",
    "~ <class>(metaclass=<class2>):\n    def <function>",
    "~ <class>(<class2>):\n    <name>: int = <number>\n\n    def <function>",
    "~ <class>():\n    <name>, <name2> = <number>, <number2>\n\n"
    "    def <function>",
    "~ <class>(<class2>):\n    <name> = <class3>()\n\n    def <function>",
    '~ <class>(<class2>):\n    """<noun> <noun2>."""\n\n    <name> = True\n\n'
    "    def <function>",
    "        pass\n\n\n~ <class>(<class2>):\n\n    def <function>",
    "def <function2>(<name>):\n    ~ <class>(<class2>):\n"
    "        def <function>",
    "print(<name>)\n\n\n~ <class>():\n    <name2> = <name>\n\n"
    "    def <function>",
    '__all__ = ["<class>"]\n\n\n~ <class>():\n    def <function>',
    "<name> = <number>\n<name2> = <number2>\n\n\n~ <class>(<class2>):\n"
    "    def <function>",
    "# <adjective> <noun> <noun2>\n~ <class>(<class2>):\n    def <function>",
    "    ~ <class>():\n        <name> = <class2>.<name2>\n\n"
    "        def <function>",
  ),
  "validation": (
    "~ <class>():\n    <name> = <number>\n\n    def <function>",
    "~ <class>(Exception):\n    def <function>",
    "try:\n    ~ <class>(<class2>):\n        def <function>",
    '~ <class>():\n    """<noun> <adjective> <noun2>."""\n\n    def <function>',
    "import sys\n\n\n~ <class>(<class2>):\n    def <function>",
    "~ <class>(<class2>):\n    <name> = ()\n    <name2> = False\n\n"
    "    def <function>",
    "    yield <name>\n\n\n~ <class>():\n    def <function>",
    "@<name>.<function2>\n~ <class>(<class2>):\n    def <function>",
    "~ <class>(<class2>):\n    # <noun> <noun2>\n    def <function>",
    '<name> = "<noun>"\n\n\n~ <class>():\n\n    def <function>',
    "    def <function2>(self):\n        ~ <class>(<class2>):\n"
    "            def <function>",
  ),
  "test": (
    "~ <class>():\n    <name> = None\n\n    def <function>",
    "~ <class>(object):\n    def <function>",
    "if not <name>:\n    ~ <class>():\n        def <function>",
    '~ <class>(<class2>):\n    """<adjective> <adjective2> <noun>."""\n\n'
    "    def <function>",
    "import math\n\n\n~ <class>():\n    def <function>",
    "~ <class>(<class2>):\n    <name> = <name2> = <number>\n\n"
    "    def <function>",
    "    raise ValueError(<name>)\n\n\n~ <class>(<class2>):\n"
    "    def <function>",
    "@<function2>(<name>)\n~ <class>():\n    def <function>",
    "~ <class>():\n    # <noun> <adjective> <noun2>\n    def <function>",
    "<name> = [<number>]\n\n\n~ <class>(<class2>):\n\n    def <function>",
    "        with <name>:\n            ~ <class>():\n"
    "                def <function>",
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
