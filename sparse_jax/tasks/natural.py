"""Prompts harvested from real files, where a task's rule decides what follows.

A rule reads parsed code and names *points*: an offset, the answer that the code
calls for there and where the code that decides it begins. A point becomes a
prompt if the tokenizer has a boundary at it, the file's next token is that
answer, and the deciding code is within the context.
"""

import bisect
import dataclasses
import functools
import io
import itertools
import keyword
import random
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from sparse_jax.tasks.pairs import Prompts, pad_rows

# A document gives at most this share of a task's prompts.
_MAX_SHARE = 1 / 8

_SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
_SKIPPED |= {tokenize.INDENT, tokenize.DEDENT}


class Token(NamedTuple):
  """A token of Python, with offsets into the text."""

  type: int
  text: str
  start: int
  end: int

  @property
  def is_name(self) -> bool:
    return self.type == tokenize.NAME and not keyword.iskeyword(self.text)


class Line(NamedTuple):
  """A logical line: its tokens, at least one, less the newline."""

  tokens: Sequence[Token]
  indent: int
  end: int  # Offset behind its newline.

  @property
  def start(self) -> int:
    return self.tokens[0].start

  @property
  def texts(self) -> tuple[str, ...]:
    return tuple(t.text for t in self.tokens)


@dataclasses.dataclass(frozen=True)
class Code:
  """A parsed file, its tokens less comments and layout."""

  text: str
  tokens: Sequence[Token]
  lines: Sequence[Line]


class Point(NamedTuple):
  """A place where a rule decides between the task's two answers."""

  start: int  # Offset of the earliest code that decides the answer.
  offset: int  # Where the answer begins.
  correct: str
  incorrect: str


# (code, the task's answers) -> points.
Rule = Callable[[Code, Sequence[str]], Iterator[Point]]


def parse(text: str) -> Code | None:
  """Returns the file's tokens and logical lines, None if it is not Python."""
  file = io.StringIO(text, newline="\n")
  rows = [0, *itertools.accumulate(map(len, file))]
  file.seek(0)
  tokens, lines, current = [], [], []
  try:
    for t in tokenize.generate_tokens(file.readline):
      if t.type in _SKIPPED:
        continue
      start, end = (rows[row - 1] + col for row, col in (t.start, t.end))
      token = Token(t.type, t.string, start, end)
      if t.type == tokenize.NEWLINE:
        if current:
          first = current[0].start
          indent = first - rows[bisect.bisect(rows, first) - 1]
          lines.append(Line(tuple(current), indent, end))
        current = []
      elif text[start:end] != t.string and t.type == tokenize.NAME:
        return None
      else:
        tokens.append(token)
        current.append(token)
  except (SyntaxError, tokenize.TokenError, IndexError):
    return None
  return Code(text, tuple(tokens), tuple(lines))


def harvest(
  tasks: Iterable,
  documents: Iterable,
  count: int,
  seed: int = 0,
  context_length: int = 128,
  progress: bool = False,
) -> dict[str, Prompts | None]:
  """Returns prompts from real files for several tasks, in one pass.

  Only places where the file agrees with the task's rule are taken: the correct
  answer is both what was written and what the rule says. Of two fixed answers,
  each is correct equally often.

  `tasks` share one tokenizer; `documents` have `text` and `name`. Prompts are
  by task name, at most `count` each and of at most `context_length` tokens;
  None for a task without a rule.
  """
  tasks = list(tasks)
  if not tasks:
    return {}
  ruled = [task for task in tasks if task.find_points]
  rows = {task.name: defaultdict(list) for task in ruled}
  tokenizer = tasks[0].tokenizer
  ids = range(tokenizer.vocab_size)
  widths = np.array([len(tokenizer.token_bytes(i)) for i in ids])
  show = {"unit": "file", "disable": not progress}
  for document in tqdm.tqdm(documents, "natural prompts", **show):
    code = parse(document.text)
    if code is None:
      continue
    window = _Windows(code, tokenizer, widths, context_length)
    for task in ruled:
      for point in task.find_points(code, task.answers):
        if prompt := window.prompt(point):
          key = point.correct if len(task.answers) == 2 else ""
          rows[task.name][key].append((*prompt, document.name))
  return {task.name: None for task in tasks} | {
    task.name: _select(task, rows[task.name], count, seed, context_length)
    for task in ruled
  }


class _Windows:
  """The model's tokens of one file, cut where points ask."""

  def __init__(self, code: Code, tokenizer, widths, context_length: int):
    self._context_length = context_length
    self._ids = np.asarray(tokenizer.encode(code.text), np.int32)
    # Byte offsets: behind each token, and of each character.
    self._ends = np.cumsum(widths[self._ids])
    points = np.frombuffer(code.text.encode("utf-32-le"), np.uint32)
    # The first code points that take two, three and four bytes in UTF-8.
    width = 1 + np.searchsorted([0x80, 0x800, 0x10000], points, "right")
    self._bytes = np.concatenate([[0], np.cumsum(width)])
    self._token = functools.cache(tokenizer.single_token)

  def prompt(self, point: Point) -> tuple[np.ndarray, int, int] | None:
    """Returns (tokens, correct, incorrect), None if the point is unusable."""
    correct, incorrect = map(self._token, (point.correct, point.incorrect))
    if correct is None or incorrect is None or correct == incorrect:
      return None
    byte = self._bytes[point.offset]
    last = int(np.searchsorted(self._ends, byte))
    if last + 1 >= len(self._ids) or self._ends[last] != byte:
      return None
    first = max(0, last + 1 - self._context_length)
    begin = self._ends[first - 1] if first else 0
    if self._ids[last + 1] != correct or begin > self._bytes[point.start]:
      return None
    return self._ids[first : last + 1], correct, incorrect


def _select(
  task, pools: Mapping[str, list], count: int, seed: int, context_length: int
) -> Prompts:
  """Returns a seeded, balanced choice of (prompt, correct, incorrect, name)."""
  rng = random.Random(f"{task.name}/natural/{seed}")
  groups = task.answers if len(task.answers) == 2 else ("",)
  share = count // len(groups)
  most = max(1, int(share * _MAX_SHARE))
  chosen = []
  for group in groups:
    rng.shuffle(pools[group])
    chosen.append(_spread(pools[group], share, most))
  smallest = min(map(len, chosen))
  rows = [row for group in chosen for row in group[:smallest]]
  column = lambda i: [row[i] for row in rows]
  tokens, lengths = pad_rows(column(0), context_length)
  answers = (np.array(column(i), np.int32) for i in (1, 2))
  return Prompts(tokens, lengths, *answers, tuple(column(3)))


def _spread(pool: Sequence, count: int, most: int) -> list:
  """Returns up to `count` distinct rows, `most` a document."""
  chosen, seen, taken = [], set(), Counter()
  for row in pool:
    key = row[0].tobytes()
    if key not in seen and taken[row[3]] < most and len(chosen) < count:
      seen.add(key)
      taken[row[3]] += 1
      chosen.append(row)
  return chosen
