"""Tasks about brackets: how many and which to close."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, substitute

# `~` stands for one bracket or two; a list of rows or of numbers.
_LISTS = {
  "train": (
    "<name> = ~<number>, <number2>",
    "<name> = ~<number>, <number2>, <number3>",
    "    <name> = ~<number>, <number2>, <number3>",
    "    return ~<number>, <number2>",
    "<name> += ~<number>, <number2>, <number3>, <number4>",
    "        self.<name> = ~<number>, <number2>, <number3>",
  ),
  "validation": (
    "    for <name> in ~<number>, <number2>",
    "<name>.<name2> = ~<number>, <number2>, <number3>",
    "    assert <name> == ~<number>, <number2>",
    "        yield ~<number>, <number2>, <number3>",
    "    if <name> in ~<number>, <number2>",
    "<name>: list = ~<number>, <number2>, <number3>",
  ),
  "test": (
    "<name> = <name2> + ~<number>, <number2>",
    "    <name> = <name2> or ~<number>, <number2>, <number3>",
    "<name>[0] = ~<number>, <number2>, <number3>",
    "    assert <name> != ~<number>, <number2>",
    "        <name> = None or ~<number>, <number2>",
    "<name>, <name2> = ~<number>, <number2>, <number3>",
  ),
}
_CALLS = {
  "train": (
    "<name> = np.array(~<number>, <number2>",
    "    <name> = np.array(~<number>, <number2>, <number3>",
    "print(~<number>, <number2>, <number3>",
    "        <name> = <name2>(~<number>, <number2>",
    "    return <function>(~<number>, <number2>, <number3>",
    "<name>.append(~<number>, <number2>",
  ),
  "validation": (
    "<name> = list(~<number>, <number2>",
    "    <name> = <name2>.<function>(~<number>, <number2>, <number3>",
    "    yield <function>(~<number>, <number2>",
    "<name>.extend(~<number>, <number2>, <number3>",
    "        assert_equal(<name>, ~<number>, <number2>",
    "<name> = numpy.asarray(~<number>, <number2>, <number3>",
  ),
  "test": (
    "<name> = deque(~<number>, <number2>",
    "    <name>.<name2> = <function>(~<number>, <number2>, <number3>",
    "    self.<function>(~<number>, <number2>",
    "<name>.appendleft(~<number>, <number2>, <number3>",
    "        self.assertEqual(<name>, ~<number>, <number2>",
    "<name> = ma.stack(~<number>, <number2>, <number3>",
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
