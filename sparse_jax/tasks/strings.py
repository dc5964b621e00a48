"""Tasks about strings: which quote or brace closes what was opened."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, contrast, substitute

# `~` stands for the quote, `<...>` for a slot. The string is the last argument
# of the only open call, and no other quote stands before it.
_QUOTE_PROMPTS = {
  "train": (
    "print(~<adjective> <noun>",
    "raise ValueError(~<adjective> <noun> <noun2>",
    "    if <name> is None:\n"
    "        raise TypeError(~<noun> is not <adjective>",
    "<name> = <name2>.get(~<noun>",
    "        self.<name> = <name2>.<name3>.get(~<noun>_<noun2>",
    "import os\n\n<name> = os.path.join(<name2>, ~<noun>-<noun2>",
    "    return getattr(<name>, ~<noun>_<noun2>",
    "        self.assertEqual(<name>.<name2>, ~<noun>",
    "        self.assertTrue(<name> in <name2>, ~no <adjective> <noun>",
    "<name> = argparse.ArgumentParser()\n<name>.add_argument(~--<noun>-<noun2>",
    "    <name> = self.<function>(<name2>, <name3>=~<noun>",
    "<name> = <class>(<name2>, <number>, ~<noun> <noun2>",
    "        logging.info(~<noun> <noun2> is <adjective>",
    "def <function>(<name>):\n    <name>.append(~<noun>",
    "    try:\n        <name> = <name2>[<number>]\n"
    "    except IndexError:\n        print(~no <noun> in <noun2>",
    "for <name> in range(<number>):\n"
    "    <name2>.<function>(<name>, ~<noun>_<noun2>",
    "class <class>(<class2>):\n    <name> = <class3>(~<noun>-<noun2>",
    "    @property\n    def <name>(self):\n"
    "        return self.<name2>.<function>(~<noun>",
    "    # the <noun> and its <noun2>\n"
    "    <name> = <name2>.<function>(~<noun3>",
    "<name> = []\n<name2> = {}\n<function>(<name>, <name2>, ~<noun>",
    "            <name>.<name2>.<function>(<number>, ~<adjective>-<noun>",
    "    assert isinstance(<name>, dict)\n"
    "    <name2> = <name>.pop(~<noun>_<noun2>",
    "    with open(<name>) as <name2>:\n"
    "        <name2>.write(~<adjective> <noun> <number>",
    "        return <class>(<name>.<name2>, <name3>=~<noun>_<noun2>",
    "    if not hasattr(self, ~<noun>_<noun2>",
    "    <name> = None\n    for <name2> in self.<name3>:\n"
    "        <name2>.<function>(~<noun>",
    "<name> = lambda <name2>: <name2>.<function>(~<noun>",
    "    <name>[<number>] = <function>(<name2>, ~<noun>/<noun2>",
    "    if <name> != <number>:\n        sys.exit(~<noun> <noun2> failed",
    "        del self.<name>[<name2>]\n"
    "        self.<function>(<name2>, None, ~<noun>",
    "    <name> = <name2>.<function>()\n"
    "    <name>.<function2>(True, ~<adjective> <noun>",
    "        self.<name>.setObjectName(~<noun>_<noun2>",
    "    <name>, <name2> = <name3>.<function>(<number>, <number2>, ~<noun>",
    "        return super().<function>(<name>, ~<noun>",
    "@<name>.route(~/<noun>/<noun2>",
    "from .<noun> import <class>\n\n<name> = <class>(~<noun2> <noun3>",
    "    <name> += <name2>.<function>(<name3> + <number>, ~<noun>",
    "    await <name>.<function>(~<noun>-<noun2>-<noun3>",
    "    <name> = <name2> if <name3> else <function>(~<noun>",
    "    return <name>\n\n\n<name2> = <class>(~<noun> <noun2>",
  ),
  "validation": (
    "logger.warning(~<adjective> <noun> <noun2>",
    "    print(<name>, <name2>.<name3>, ~<noun>",
    "    if <name> not in <name2>:\n"
    "        raise KeyError(~<noun> not in <noun2>",
    "<name> = <name2>.getAttribute(~<noun>",
    "import shutil\n\n<name> = shutil.which(~<noun>-<noun2>",
    "        return self.<name>.<function>(<name2>, ~<noun>_<noun2>",
    "        self.assertFalse(<name>, ~<noun> is <adjective>",
    "    def <function>(self, <name>):\n        <name>.<function2>(~<noun>",
    "class <class>:\n    <name> = <class2>(<number>, ~<adjective> <noun>",
    "for <name> in reversed(<name2>):\n"
    "    <name>.<name3>.<function>(~<noun>_<noun2>",
    "    <name> = int(<name2>)\n"
    "    <name3> = <function>(<name>, <name4>=~<noun>",
    "    except OSError:\n"
    "        <name>.<function>(<name2>, ~unable to open <noun>",
    "            yield <class>(<name>.<name2>, ~<noun>/<noun2>",
    "    if <name>.startswith(~<noun>_<noun2>",
    "@<name>.<function>(~<noun>-<noun2>",
    "from <noun> import <class>\n\n<class>(<name>, ~<noun2> <noun3> <number>",
  ),
  "test": (
    "warnings.warn(~<adjective> <noun> <noun2>",
    "        print(<name>[<number>], ~<adjective> <noun>",
    "    if not isinstance(<name>, list):\n"
    "        raise RuntimeError(~<noun> must be <adjective>",
    "<name> = <name2>.getlist(~<noun>",
    "import pathlib\n\n<name> = pathlib.PurePath(<name2>, ~<noun>-<noun2>",
    "        delattr(self.<name>, ~<noun>_<noun2>",
    "        self.assertNotEqual(<name>.<name2>, ~<noun>",
    "class <class>(object):\n    def <function>(self):\n"
    "        self.<name>.<function2>(~<noun>",
    "    <name>.<name2> = <class>(<name3>, <number>, ~<noun> <noun2>",
    "while <name> < <number>:\n    <name2>.<function>(<name>, ~<noun>_<noun2>",
    "    <name> = str(<name2>)\n    return <function>(<name>, <name3>=~<noun>",
    "    finally:\n        <name>.<function>(~<noun> was <adjective>",
    "    yield self.<name>.<function>(<name2>, ~<noun>/<noun2>",
    "            elif <name>.endswith(~<noun>_<noun2>",
    "<name> = <name2> or <function>(~<noun>-<noun2>",
    "    <name> = False\n    <name2>.<function>(<number>, ~<adjective> <noun>",
  ),
}

# Lines that hold both kinds of quote, or one of either.
_QUOTE_DISTRACTORS = {
  "train": (
    "<name> = {'<noun>': \"<noun2>\"}",
    "<name> = {\"<noun>\": '<noun2>'}",
  ),
  "validation": (
    "<name> = ['<noun>', \"<noun2>\"]",
    "<name> = [\"<noun>\", '<noun2>']",
  ),
  "test": ("<name> = '<noun>', \"<noun2>\"", "<name> = \"<noun>\", '<noun2>'"),
}


SINGLE_DOUBLE_QUOTE = Spec(
  name="single_double_quote",
  rule="A string in a call closes with the quote that opened it.",
  variants=substitute(_QUOTE_PROMPTS, ("'", '"'), ("')", '")'), ("'", '"')),
  distractors=_QUOTE_DISTRACTORS,
  find_points=natural_rules.quotes,
)

# What stands before, then side A's f-string and side B's call.
_FSTRING_PROMPTS = {
  "train": (
    ("<name> = ", 'f"<noun> {<name2>', 'f("<noun>", <name2>'),
    ("    return ", 'f"<noun>: {<name>', 'f("<noun>:", <name>'),
    ("        self.<name> = ", 'f"<noun>-{<name2>', 'f("<noun>-", <name2>'),
    ("print(", 'f"<noun> {<name>', '"<noun> is", <name>'),
    (
      "    raise ValueError(",
      'f"<adjective> <noun> {<name>',
      '"<adjective> <noun> in", <name>',
    ),
    (
      "def <function>(<name>):\n    return ",
      'f"<noun> {<name>',
      "f(<name2>, <name>",
    ),
    (
      "    if not <name>:\n        <name> = ",
      'f"<adjective> {<name2>',
      'f("<adjective>", <name2>',
    ),
    ("<name> += ", 'f"<noun>, {<name2>', 'f("<noun>,", <name2>'),
    (
      "import sys\n\n<name> = ",
      'f"<adjective> <noun> {<name2>',
      'f("<adjective> <noun>", <name2>',
    ),
    ("    yield ", 'f"<noun>/{<name>', 'f("<noun>/", <name>'),
    (
      "for <name> in range(<number>):\n    print(",
      'f"<noun> {<name>',
      "<name2>[0], <name>",
    ),
    ("    <name>[<name2>] = ", 'f"<noun>_{<name2>', 'f("<noun>_", <name2>'),
    ("<name> = <name2> or ", 'f"<noun> {<name3>', 'f("<noun>", <name3>'),
    (
      "        try:\n            <name> = ",
      'f"<noun>={<name2>',
      'f("<noun>=", <name2>',
    ),
    (
      "class <class>:\n    <name> = <number>\n    <name2> = ",
      'f"<noun> {<name>',
      'f("<noun>", <name>',
    ),
    (
      "    <name> = int(<name2>)\n    return ",
      'f"the <noun> {<name>',
      'f("the <noun>", <name>',
    ),
    (
      "    @property\n    def <name>(self):\n        return ",
      'f"<adjective> <noun> {self.<name2>',
      'f("<adjective> <noun>", self.<name2>',
    ),
    ("        assert <name> == ", 'f"<noun>.{<name2>', 'f("<noun>.", <name2>'),
    (
      "<name> = []\n<name2> = ",
      'f"<noun> <noun2> {<name>',
      'f("<noun> <noun2>", <name>',
    ),
    (
      "    # the <noun>\n    <name> = ",
      'f"<noun> {<name2>.<name3>',
      'f("<noun>", <name2>.<name3>',
    ),
    (
      "<name> = <number>\n<name2> = <name3> + ",
      'f"<noun> {<name>',
      'f("<noun>", <name>',
    ),
    (
      "            <name> = ",
      'f"<noun>: {self.<name2>',
      'f("<noun>:", self.<name2>',
    ),
    ("<name> = lambda <name2>: ", 'f"<noun> {<name2>', "f(<number>, <name2>"),
    (
      "    except KeyError:\n        raise RuntimeError(",
      'f"no <noun> {<name>',
      '"no <noun> for", <name>',
    ),
    (
      "        <name>.<name2> = <name3> if <name4> else ",
      'f"<noun> {<name4>',
      'f("<noun>", <name4>',
    ),
    (
      "    with open(<name>) as <name2>:\n        <name3> = ",
      'f"<noun> in {<name>',
      'f("<noun> in", <name>',
    ),
    ("<name>, <name2> = None, ", 'f"<noun> {<name3>', 'f("<noun>", <name3>'),
    (
      "    <name> = <name2>.<function>()\n    <name3> = ",
      'f"<adjective> <noun> <noun2> {<name2>',
      'f("<adjective> <noun> <noun2>", <name2>',
    ),
  ),
  "validation": (
    ("<name> = ", 'f"<adjective> {<name2>', 'f("<adjective>", <name2>'),
    ("        return ", 'f"<noun>-{<name>', 'f("<noun>-", <name>'),
    ("    print(", 'f"<adjective> {<name>', '"<adjective> in", <name>'),
    (
      "    if <name> is None:\n        raise TypeError(",
      'f"<noun> {<name2>',
      '"<noun> in", <name2>',
    ),
    (
      "    def <function>(self, <name>):\n        return ",
      'f"<noun>: {<name>',
      'f("<noun>:", <name>',
    ),
    ("<name> = <name2> + ", 'f"<noun>, {<name3>', 'f("<noun>,", <name3>'),
    (
      "import shutil\n\n<name> = ",
      'f"<noun>/{<name2>',
      'f("<noun>/", <name2>',
    ),
    (
      "for <name> in <name2>:\n    <name3> = ",
      'f"<noun> <noun2> {<name>',
      'f("<noun> <noun2>", <name>',
    ),
    ("    yield ", 'f"<noun> of {<name>', 'f("<noun> of", <name>'),
    (
      "    <name>[<number>] = ",
      'f"<noun> {self.<name2>',
      'f("<noun>", self.<name2>',
    ),
    (
      "        <name> = len(<name2>)\n        self.<name3> = ",
      'f"<noun> {<name>',
      "f(<name2>, <name>",
    ),
    (
      "    else:\n        <name> += ",
      'f"<noun>_{<name2>',
      'f("<noun>_", <name2>',
    ),
  ),
  "test": (
    ("<name>: str = ", 'f"<noun> {<name2>', 'f("<noun>", <name2>'),
    (
      "    return <name> + ",
      'f"<adjective> {<name2>',
      'f("<adjective>", <name2>',
    ),
    (
      "        print(",
      'f"<noun> <noun2> {<name>',
      '"<noun> <noun2> is", <name>',
    ),
    (
      "    if <name> > <number>:\n        raise IndexError(",
      'f"<noun> {<name>',
      '"<noun> in", <name>',
    ),
    (
      "class <class>(object):\n    <name> = ",
      'f"<noun>/{<name2>',
      'f("<noun>/", <name2>',
    ),
    (
      "    <name> = str(<name2>)\n    <name3> += ",
      'f"<noun>, {<name>',
      'f("<noun>,", <name>',
    ),
    (
      "import pathlib\n\n<name> = ",
      'f"<noun>-{<name2>',
      'f("<noun>-", <name2>',
    ),
    (
      "while <name>:\n    <name2> = ",
      'f"<noun>: {<name>',
      'f("<noun>:", <name>',
    ),
    ("            yield ", 'f"<noun>_{<name>', 'f("<noun>_", <name>'),
    ("    <name>.<name2> = ", 'f"<noun> at {<name3>', 'f("<noun> at", <name3>'),
    (
      "    <name> = False\n    return ",
      'f"<noun> {<name2>.<name3>',
      'f("<noun>", <name2>.<name3>',
    ),
    (
      "        finally:\n            self.<name> = ",
      'f"<noun> {<name2>',
      "f(<number>, <name2>",
    ),
  ),
}

FSTRING_BRACE = Spec(
  name="fstring_brace",
  rule="A name in an f-string closes with a brace, an argument with a"
  " parenthesis.",
  variants=contrast(
    {
      split: [(before + a, before + b) for before, a, b in rows]
      for split, rows in _FSTRING_PROMPTS.items()
    },
    ("}", ")"),
  ),
  find_points=natural_rules.fields,
)
