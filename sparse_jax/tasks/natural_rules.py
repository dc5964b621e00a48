"""The tasks' rules on real code: where an answer is due, and which.

Every rule yields `natural.Point`s. `answers` are the task's two answers, side
A's first; where they vary from place to place the code gives them.
"""

import itertools
import re
import tokenize
from collections.abc import Iterator, Sequence

from sparse_jax.tasks.natural import Code, Point

_STRING = re.compile(r"[rRbBuU]{0,2}(['\"])(?!\1\1)")
_FIELD = re.compile(r"(?<!\{)\{[A-Za-z_]\w*\}")
_CLOSED = re.compile(r"\]+")
_OPEN, _CLOSE = "([{", ")]}"


def _point(start: int, offset: int, answers: Sequence[str], side: int) -> Point:
  return Point(start, offset, answers[side], answers[1 - side])


def quotes(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A plain string ends with the quote that began it."""
  for token in code.tokens:
    if token.type == tokenize.STRING:
      if match := _STRING.match(token.text):
        side = "'\"".index(match[1])
        yield _point(token.start, token.end - 1, answers, side)


def fields(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A name in an f-string ends with a brace, a last argument with `)`."""
  for start, end in _fstrings(code):
    for match in _FIELD.finditer(code.text, start, end):
      yield _point(start, match.end() - 1, answers, 0)
  tokens = code.tokens
  for i, stack in _closings(code):
    opener, argument = stack[-1], tokens[i - 1]
    is_call = opener and tokens[opener - 1].is_name and tokens[i].text == ")"
    if is_call and argument.is_name and tokens[i - 2].text in ("(", ","):
      yield _point(tokens[opener].start, argument.end, answers, 1)


def _fstrings(code: Code) -> Iterator[tuple[int, int]]:
  """Yields the offsets of f-strings; Python 3.12 cuts them into tokens."""
  begin = getattr(tokenize, "FSTRING_START", None)
  end = getattr(tokenize, "FSTRING_END", None)
  starts = []
  for token in code.tokens:
    if begin is None:
      prefix = re.match("[a-zA-Z]*", token.text)[0].lower()
      if token.type == tokenize.STRING and "f" in prefix:
        yield token.start, token.end
    elif token.type == begin:
      starts.append(token.start)
    elif token.type == end:
      start = starts.pop()
      if not starts:
        yield start, token.end


def _closings(code: Code) -> Iterator[tuple[int, list[int]]]:
  """Yields (index of a closing token, indices of the open ones)."""
  stack = []
  for i, token in enumerate(code.tokens):
    if token.type == tokenize.OP and token.text in _OPEN:
      stack.append(i)
    elif token.type == tokenize.OP and token.text in _CLOSE and stack:
      yield i, stack
      stack.pop()


def depth(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """As many `]` close as `[` are open; the points where all of them do."""
  tokens = code.tokens
  for i, stack in _closings(code):
    if tokens[i].text != "]" or tokens[i - 1].text in ("[", "]"):
      continue
    is_open = lambda j: tokens[j].text == "["
    num_open = len(list(itertools.takewhile(is_open, reversed(stack))))
    num_closed = len(_CLOSED.match(code.text, tokens[i].start)[0])
    if num_open == num_closed and num_open <= 2:
      outer = tokens[stack[-num_open]]
      yield _point(outer.start, tokens[i].start, answers, 2 - num_open)


def displays(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A list ends with a bracket; a set or dict with a brace."""
  tokens = code.tokens
  for i, stack in _closings(code):
    opener = stack[-1]
    before = tokens[opener - 1]
    value = before.is_name or before.type == tokenize.STRING
    subscript = opener and (value or before.text in _CLOSE)
    side = "]}".find(tokens[i].text)
    if side >= 0 and opener < i - 1 and not subscript:
      yield _point(tokens[opener].start, tokens[i].start, answers, side)


def containers(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A variable last set to `set()` gets `.add`, one set to `""` gets `+=`."""
  held, sides = {}, {("=", "set", "(", ")"): 0, ("=", '""'): 1, ("=", "''"): 1}
  for line in code.lines:
    first, texts = line.tokens[0], line.texts
    if texts[0] in ("def", "class", "async"):
      held.clear()
    elif texts[1:] in sides:
      held[first.text] = first.start, sides[texts[1:]]
    elif texts[1:2] == ("=",):
      held.pop(first.text, None)
    elif texts[1:2] in ((".",), ("+=",)) and first.text in held:
      start, side = held[first.text]
      yield _point(start, first.end, answers, side)


def swaps(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`a, b = b, a`."""
  del answers  # The code's own names.
  for line in code.lines:
    t = line.texts
    marks = t[1::2] == (",", "=", ",") and len(t) == 7
    if marks and (t[0], t[2]) == (t[6], t[4]):
      yield Point(line.start, line.tokens[5].end, f" {t[0]}", f" {t[2]}")


def conditions(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`if` tests the variable of the line before, not one assigned earlier."""
  del answers  # The code's own names.
  older, newer = None, None
  for line in code.lines:
    first, texts = line.tokens[0], line.texts
    if texts[0] == "if" and newer and older and line.indent == newer[1]:
      if texts[1] == newer[0].text and texts[1] != older.text:
        offset = first.end
        yield Point(older.start, offset, f" {texts[1]}", f" {older.text}")
    if texts[0] in ("def", "class", "async"):
      older = newer = None
    elif first.is_name and texts[1:2] == ("=",):
      if newer and newer[0].text != first.text:
        older = newer[0]
      newer = first, line.indent
    elif newer:
      older, newer = newer[0], None


def truths(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`while True:` and `return True`."""
  for line in code.lines:
    side = int(line.texts == ("return", "True"))
    if side or line.texts[:3] == ("while", "True", ":"):
      yield _point(line.start, line.tokens[1].end, answers, side)


def branches(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`else:` and `elif` at the start of a line."""
  for line in code.lines:
    first = line.tokens[0]
    if first.text in ("else", "elif"):
      yield _point(first.start, first.end, answers, int(first.text == "elif"))


def calls(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`with f(x) as` and `return f(x)`, at the closing parenthesis."""
  for line in code.lines:
    if line.tokens[0].text not in ("with", "return"):
      continue
    level = 0
    for i, token in enumerate(line.tokens):
      level += (token.text in _OPEN) - (token.text in _CLOSE)
      if level == 0 and token.text == ")":
        side = int(line.tokens[0].text == "return")
        offset = token.start if answers[0].startswith(")") else token.end
        if line.texts[i + 1 : i + 2] == (() if side else ("as",)):
          yield _point(line.start, offset, answers, side)
        break


def loops(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`for x in` and `while x <`."""
  for line in code.lines:
    texts = line.texts
    if texts[0] in ("for", "while") and line.tokens[1].is_name:
      side = int(texts[0] == "while")
      if texts[2] == answers[side].strip():
        yield _point(line.start, line.tokens[1].end, answers, side)


def ternaries(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`a if x else b` and `if x:`."""
  for line in code.lines:
    texts, start = line.texts, line.start
    for i, text in enumerate(texts[:-2]):
      wanted = "else" if i else ":"
      if text == "if" and texts[i + 2] == wanted and line.tokens[i + 1].is_name:
        yield _point(start, line.tokens[i + 1].end, answers, int(i == 0))


def comparisons(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`if x ==` and `x =` or `self.x =`."""
  for line in code.lines:
    texts, start = line.texts, line.start
    if texts[0] == "if" and texts[2:3] == ("==",) and line.tokens[1].is_name:
      yield _point(start, line.tokens[1].end, answers, 0)
    elif line.tokens[0].is_name:
      last = 2 if texts[1:2] == (".",) else 0
      if texts[last + 1 : last + 2] == ("=",):
        yield _point(start, line.tokens[last].end, answers, 1)


def indents(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A line at four columns; the next is deeper after `for`, else level."""
  for line, following in zip(code.lines, code.lines[1:], strict=False):
    adjacent = not code.text[line.end : following.start].strip(" ")
    if line.indent == 4 and adjacent:
      header = line.texts[-1] == ":"
      if line.texts[0] == "for" or not header:
        yield _point(line.start, line.end, answers, int(not header))


def parameters(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """The last of a lambda's or a function's plain parameters."""
  tokens = code.tokens
  for i, token in enumerate(tokens):
    if token.type != tokenize.NAME or token.text not in ("lambda", "def"):
      continue
    side = int(token.text == "def")
    j = i + 1 + 2 * side
    following = lambda: tokens[j].is_name and tokens[j + 1].text
    while j + 1 < len(tokens) and following() == ",":
      j += 2
    if j + 1 < len(tokens) and following() == ":)"[side]:
      yield _point(token.start, tokens[j].end, answers, side)


def iterations(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """`for i, x in enumerate` and `for i in range`."""
  for line in code.lines:
    texts = line.texts
    if texts[0] == "for" and "in" in texts:
      i = texts.index("in")
      side = {4: 0, 2: 1}.get(i)
      if side is not None and texts[i + 1] in ("enumerate", "range"):
        yield _point(line.start, line.tokens[i].end, answers, side)


def methods(code: Code, answers: Sequence[str]) -> Iterator[Point]:
  """A function right in a class takes `self`; any other one does not."""
  blocks = []
  for previous, line in zip((None, *code.lines), code.lines, strict=False):
    first, texts = line.tokens[0], line.texts
    while blocks and blocks[-1][0] >= line.indent:
      blocks.pop()
    if texts[0] == "def" and not (previous and previous.texts[0] == "@"):
      in_class = bool(blocks) and blocks[-1][1].text == "class"
      start = blocks[-1][1].start if in_class else first.start
      last = 2 if answers[0] == "self" else 1
      yield _point(start, line.tokens[last].end, answers, int(not in_class))
    if texts[0] in ("class", "def"):
      blocks.append((line.indent, first))
