"""Which Python files are not code that somebody wrote to be read.

A model of ten million tokens learns what is common. Tables, generated
bindings and second copies of packages are a good part of what lies on a
machine, and teach it nothing of how code goes on.
"""

import re

import numpy as np

# What a file says of itself before its code: comments, then a docstring.
_HEADER = re.compile(
  r"\A(?:[ \t]*#.*\n|[ \t]*\n)*(?:[rRuU]?(\"{3}|'{3})[\s\S]*?\1)?"
)
_GENERATED = re.compile(
  r"(auto|automatically)[ -]?generated|^\s*\W*\s*generated (by|from|using|with)"
  r"|generated (file|code)[ .,;:-]+do not|do not (edit|modify|change)\b"
  r"|(file|module|code|script) (is|was|has been) generated|@generated\b",
  re.I | re.M,
)
_GENERATED_NAMES = "_pb2.py", "_pb2_grpc.py"
_TEST_DATA = re.compile(
  r"(^|/)(test_?data|testdata|fixtures?|test_?cases?/input|data/tests?"
  r"|tests?/(.*/)?(data|samples?|snapshots?|resources|roots))/"
)
_VENDORED = re.compile(r"(^|/)_?vendor(ed)?/")
# Statements of Python 2, which no parser of today reads.
_PYTHON_2 = re.compile(r"^\s*(print [\"']|except \w+, \w+:)", re.M)
_MAX_LINE = 1000  # Longer lines are data.
_MAX_CHARACTERS = 200_000  # Of one file, or it is too much of a small corpus.
# Shares of the bytes that are not space. The median of code has 85% letters;
# one or two files of a hundred are below the least.
_LEAST_LETTERS = 0.5
_MOST_NON_ASCII = 0.1
_SPACE = np.frombuffer(b" \t\n\r\f", np.uint8)
_LETTERS = np.frombuffer(
  b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz", np.uint8
)
_SHORT = 200  # Bytes: too few to tell a table by.


def why_left_out(name: str, text: str) -> str | None:
  """Returns why a file of a source is left out, None if it is kept.

  `name` is its path with "/" between the parts; only .py files are judged.
  """
  if not name.endswith(".py"):
    return None
  return why_not_code(name, text) or why_unusual(text)


def why_not_code(name: str, text: str) -> str | None:
  """Returns why a .py file is no code to learn from, None if it is."""
  if _VENDORED.search(name):
    return "a copy of another package"
  if _TEST_DATA.search(name):
    return "test data"
  header = _HEADER.match(text)[0]
  if name.endswith(_GENERATED_NAMES) or _GENERATED.search(header):
    return "generated"
  if max(map(len, text.splitlines()), default=0) > _MAX_LINE:
    return "data"
  if _PYTHON_2.search(text):
    return "Python 2"
  return None


def why_unusual(text: str) -> str | None:
  """Returns why a file would be too much of a small corpus, None if not."""
  if len(text) > _MAX_CHARACTERS:
    return "too long"
  counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
  counts[_SPACE] = 0
  total = counts.sum()
  is_table = total > _SHORT and (
    counts[_LETTERS].sum() < _LEAST_LETTERS * total
    or counts[128:].sum() > _MOST_NON_ASCII * total
  )
  return "a table" if is_table else None
