"""Tasks about brackets: how many and which to close."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, substitute

# `~` stands for one bracket or two, or for a bracket or a brace. The list or
# set ends its statement.
_LISTS = {
  "train": (
    "<name> = ~<number>, <number2>",
    "    <name> = ~<name2>, <name3>, <name4>",
    "    return ~<number>, <number2>, <number3>",
    "def <function>(<name>):\n    <name2> = ~<name>, <number>",
    "        self.<name> = ~None, <number>",
    "<name>[<number>] = ~<name2>, <name3>",
    "    assert <name> == ~<number>, <number2>",
    "    <name> = <name2> or ~<number>, <number2>",
    "    if <name> is None:\n        <name> = ~<number>, <number2>, <number3>",
    "    else:\n        return ~<name>, <name2>, <name3>",
    "class <class>:\n    <name> = ~<number>, <number2>, <number3>",
    "        yield ~<name>, <name2>.<name3>",
    "for <name> in range(<number>):\n    <name2> = ~<name>, <number2>",
    "<name> = lambda <name2>: ~<name2>, <number>",
    "    <name>, <name2> = None, ~<number>, <number2>",
    "<name> = <name2> = ~<number>, <number2>, <number3>, <number4>",
    "    # the <adjective> <noun>\n    <name> = ~<number>, <number2>",
    "        try:\n            <name> = ~<name2>, <name3>",
    "        return <name> if <name2> else ~<number>, <number2>",
    "            <name>.<name2> = ~<name3>, <name4>.<name5>",
    "<name> = {}\n<name2> = ~<number>, <number2>, <number3>",
    "    @property\n    def <name>(self):\n"
    "        return ~self.<name2>, self.<name3>",
    "    <name> = <function>(<name2>)\n    <name3> = ~<name>, <name2>",
    "<name> = ~<number>, -<number2>",
    "    <name> = ~0.<number>, 1.<number2>",
    "    return ~<name> - <number>, <name> + <number>",
    "    with open(<name>) as <name2>:\n        <name3> = ~<name4>, <number>",
    "    <name>[<name2>] = ~len(<name3>), <number>",
    "import os\n\n<name> = ~<number>, <number2>, <number3>",
    "    return <name>\n\n\n<name2> = ~<number>, <number2>",
    "        del <name>[<number>]\n        return <name> == ~<name2>, <name3>",
    "    <name> = ~<number> * <name2>, <number2> * <name2>",
  ),
  "validation": (
    "<name>.<name2> = ~<number>, <number2>, <number3>",
    "        <name> = ~<name2>, <name3>",
    "    yield ~<number>, <number2>, <number3>",
    "    def <function>(self, <name>):\n        return ~<name>, self.<name2>",
    "    assert <name>[<number>] == ~<number2>, <number3>",
    "    if not <name>:\n        <name> = ~<number>, <number2>",
    "class <class>(<class2>):\n    <name> = ~<number>, <number2>",
    "for <name> in <name2>:\n    <name3> = ~<name>, <number>, <number2>",
    "    <name> = <name2> if <name3> else ~<name4>, <name5>",
    "import shutil\n\n<name> = ~<number>, <number2>",
    "            return ~<name> + <number>, <name> + <number2>",
    "    <name> = int(<name2>)\n    self.<name3> = ~<name>, <number>",
    "<name> = None\n<name2> = ~<number>, -<number2>, <number3>",
    "    <name> = ~<number>.5, <number2>.5",
  ),
  "test": (
    "<name>, <name2> = <name3>, ~<number>, <number2>",
    "            <name> = ~<name2>.<name3>, <number>",
    "    return <name> or ~<number>, <number2>, <number3>",
    "    def <function>(cls, <name>):\n        cls.<name2> = ~<name>, <number>",
    "        assert <name> != ~<number>, <number2>",
    "    elif <name> > <number>:\n        return ~<number2>, <number3>",
    "class <class>(object):\n    <name> = ~<number>, <number2>, <number3>",
    "while <name>:\n    <name2> = ~<name3>, <name4>.<name5>",
    "<name>[<name2>] = ~<number>, <number2>, <number3>, <number4>",
    "import pathlib\n\n<name> = ~<number>, <number2>",
    "    <name> = str(<name2>)\n    <name3> = ~<name>, <name2>",
    "        yield ~<name>, <name> - <number>",
    "    <name> = True\n    self.<name2> = ~<number>, <name3>",
    "    finally:\n        <name> = ~<number>.0, <number2>.0",
  ),
}
# As above, for a list that is a call's last argument.
_CALLS = {
  "train": (
    "<name> = np.array(~<number>, <number2>",
    "    return <function>(~<number>, <number2>, <number3>",
    "print(~<number>, <number2>, <number3>",
    "        <name> = <name2>(~<name3>, <name4>",
    "<name>.append(~<number>, <number2>",
    "    <name> = tuple(~<number>, <number2>, <number3>",
    "        self.<name> = <class>(~<name2>, <number>",
    "from .<noun> import <class>\n\n<name> = <class>(~<number>, <number2>",
    "def <function>(<name>):\n"
    "    return <function2>(<name>, ~<number>, <number2>",
    "    <name> = <class>(<number>, <name2>=~<number2>, <number3>",
    "    if <name> is None:\n        <name> = <function>(~<name2>, <name3>",
    "    else:\n        <name>.<function>(~<number>, <number2>, <number3>",
    "for <name> in range(<number>):\n    <name2>.append(~<name>, <number2>",
    "class <class>:\n    <name> = <class2>(~<number>, <number2>, <number3>",
    "    yield <function>(~<name>, <name2>.<name3>",
    "        self.assertEqual(<name>, ~<number>, <number2>",
    "<name> = lambda <name2>: <function>(~<name2>, <number>",
    "            <name>.<name2>.<function>(~<number>, <number2>",
    "    # the <adjective> <noun>\n"
    "    <name> = <function>(~<number>, <number2>",
    "<name> = <name2> + <function>(~<number>, <number2>, <number3>",
    "    try:\n        <name> = <name2>.<function>(~<number>, <name3>",
    "    @property\n    def <name>(self):\n"
    "        return <class>(~self.<name2>, self.<name3>",
    "<name> = []\n<name2> = <function>(<name>, ~<number>, <number2>",
    "    <name> = np.array(~0.<number>, 1.<number2>",
    "        <name>[<number>] = <function>(~<number2>, -<number3>",
    "        return super().<function>(~<name>, <number>",
    "    await <name>.<function>(~<name2>, <name3>, <name4>",
    "    return <name>\n\n\n<name2> = <class>(~<number>, <number2>",
  ),
  "validation": (
    "<name> = list(~<number>, <number2>",
    "    <name> = <name2>.<function>(~<number>, <number2>, <number3>",
    "        yield <class>(~<name>, <number>",
    "<name>.extend(~<number>, <number2>, <number3>",
    "        self.assertSequenceEqual(<name>, ~<number>, <number2>",
    "import numpy\n\n<name> = numpy.asarray(~<number>, <number2>",
    "    def <function>(self, <name>):\n"
    "        self.<name2> = <function2>(~<name>, <number>",
    "    if not <name>:\n        <name> = <class>(<name2>=~<number>, <number2>",
    "for <name> in <name2>:\n    <function>(<name>, ~<number>, <number2>",
    "class <class>(<class2>):\n    <name> = <class3>(~<number>, <number2>",
    "    <name> = int(<name2>)\n    return <function>(~<name>, <name3>",
    "            print(<name>, ~<number>.5, <number2>.5",
  ),
  "test": (
    "<name> = deque(~<number>, <number2>",
    "    <name>.<name2> = <function>(~<number>, <number2>, <number3>",
    "        return <class>(<name>, ~<name2>, <number>",
    "<name>.appendleft(~<number>, <number2>, <number3>",
    "        self.assertCountEqual(<name>, ~<number>, <number2>",
    "import torch\n\n<name> = torch.tensor(~<number>, <number2>",
    "    def <function>(cls, <name>):\n"
    "        return cls.<function2>(~<name>, <number>",
    "    elif <name> > <number>:\n"
    "        <name2> = <class>(~<number2>, <number3>",
    "while <name>:\n    <name2>.<function>(<name3>=~<name>, <number>",
    "class <class>(object):\n    <name> = <class2>(~<number>, <number2>",
    "    <name> = str(<name2>)\n    <name3> = <function>(~<name>, <name2>",
    "            print(<name>, ~<number>.0, <number2>.0",
  ),
}
_BRACKET_DISTRACTORS = {
  "train": (
    "<name> = [[<number>], [<number2>]]",
    "<name> = [<number>, <number2>]",
  ),
  "validation": (
    "<name> += [[<number>], [<number2>]]",
    "<name> += [<number>, <number2>]",
  ),
  "test": (
    "<name> = [] + [[<number>], [<number2>]]",
    "<name> = [] + [<number>, <number2>]",
  ),
}


BRACKET_COUNTING = Spec(
  name="bracket_counting",
  rule="A list closes with as many brackets as it opened.",
  variants=(
    *substitute(_LISTS, ("[[", "["), ("]]\n", "]\n")),
    *substitute(_CALLS, ("[[", "["), ("]])\n", "])\n")),
    # Two brackets may be two tokens, of which the second takes the newline.
    *substitute(_LISTS, ("[[", "["), ("]]", "]"), ("]", "]\n")),
  ),
  distractors=_BRACKET_DISTRACTORS,
  find_points=natural_rules.depth,
)

BRACKET_BRACE = Spec(
  name="bracket_brace",
  rule="A list closes with a bracket, a set with a brace.",
  variants=substitute(_LISTS, ("[", "{"), ("]\n", "}\n"), ("]", "}")),
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
