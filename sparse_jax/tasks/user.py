"""Tasks from a user's file, given where a task's name is.

A `.jsonl` file holds one pair a line:

    {"prompt": "x = 'a", "answer": "'",
     "counter_prompt": "x = \\"a", "counter_answer": "\\"", "split": "train"}

`split` is optional: without it the prompt's hash deals three in five pairs to
train and one in five each to validation and test.

A `.py` file defines `generate(split, rng)`, which yields (prompt, answer,
counter_prompt, counter_answer) from a seeded `random.Random`, and may define
`RULE`, a sentence. Its splits must not share prompts.
"""

import hashlib
import itertools
import json
import os
import pathlib
import random
import runpy
from collections.abc import Iterable, Iterator

from sparse_jax.tasks import base
from sparse_jax.tasks.pairs import SPLITS, PairText
from sparse_jax.utils import errors

_FIELDS = ("prompt", "answer", "counter_prompt", "counter_answer")
_SUFFIXES = (".jsonl", ".py")
_NO_NATURAL = "a user's own task states no rule on real code"
# Pairs drawn from each split of a Python file to look for shared prompts.
_NUM_PROBED = 256


def is_path(name: str) -> bool:
  """Whether a task's name is meant as a file."""
  return name.endswith(_SUFFIXES) or os.sep in name


def load(path: str, tokenizer, difficulty: int = 0) -> base.Task:
  """Returns the task of a user's file.

  Raises:
    InputError: if the file is missing or faulty, or splits share prompts.
    TaskNotExpressible: if the tokenizer can state no pair of some split.
  """
  file = pathlib.Path(path)
  if file.suffix not in _SUFFIXES:
    raise errors.bad_value("task", path, "a name, or a .jsonl or .py file")
  if not file.is_file():
    raise errors.bad_value("task", path, "an existing .jsonl or .py file")
  if difficulty:
    raise errors.bad_value("difficulty", difficulty, f"0 for task {path}")
  rule = f"Stated by {file.name}."
  if file.suffix == ".jsonl":
    generate = _from_lines(file)
  else:
    generate, rule = _from_module(file, rule)
  return base.Task(
    name=file.stem,
    rule=rule,
    answers=base.check_expressible(file.stem, tokenizer, generate),
    tokenizer=tokenizer,
    generate=generate,
    natural_reason=_NO_NATURAL,
  )


def _from_lines(file: pathlib.Path) -> base.Generator:
  """Returns the generator of a JSONL file's pairs."""
  by_split = {split: [] for split in SPLITS}
  home = {}
  try:
    lines = file.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.InputError(
      f"{file} cannot be read ({error}); need UTF-8 text"
    ) from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    where = f"{file}:{number}"
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.InputError(
        f"{where} is not JSON ({error.msg}); need one object a line"
      ) from error
    pair = _pair(where, row)
    split = row.get("split") or _dealt(pair.prompt)
    if split not in SPLITS:
      raise errors.unknown_name(f"split in {where}", str(split), SPLITS)
    for text in (pair.prompt, pair.counter_prompt):
      if home.setdefault(text, split) != split:
        raise errors.InputError(
          f"{where}: prompt {text!r} is in {home[text]} as well as {split};"
          " need splits that share no prompts"
        )
    by_split[split].append(pair)
  missing = [split for split in SPLITS if not by_split[split]]
  if missing:
    raise errors.InputError(
      f"{file} has no pairs for {', '.join(missing)}; need some for each of"
      f" {', '.join(SPLITS)}"
    )

  def generate(split: str, key: str) -> Iterator[PairText]:
    pairs = list(by_split[split])
    random.Random(key).shuffle(pairs)
    return iter(pairs)

  return generate


def _pair(where: str, row) -> PairText:
  if not isinstance(row, dict):
    raise errors.bad_value(where, row, f"an object with {', '.join(_FIELDS)}")
  for field in _FIELDS:
    if not isinstance(row.get(field), str) or not row[field]:
      raise errors.bad_value(
        f"{where}: {field}", row.get(field), "a string that is not empty"
      )
  for field in row:
    if field not in (*_FIELDS, "split"):
      raise errors.unknown_name(f"field in {where}", field, (*_FIELDS, "split"))
  for field in ("prompt", "answer"):
    if row[field] == row[f"counter_{field}"]:
      raise errors.bad_value(
        f"{where}: counter_{field}", row[field], f"another text than {field}"
      )
  return PairText(
    prompt=row["prompt"],
    counter_prompt=row["counter_prompt"],
    answer=row["answer"],
    counter_answer=row["counter_answer"],
  )


def _dealt(text: str) -> str:
  bucket = hashlib.sha256(text.encode()).digest()[0] % 5
  return ("train", "train", "train", "validation", "test")[bucket]


def _from_module(file: pathlib.Path, rule: str) -> tuple[base.Generator, str]:
  """Returns the generator and rule that a Python file defines."""
  try:
    names = runpy.run_path(str(file))
  except (Exception, SystemExit) as error:
    raise errors.InputError(
      f"{file} fails: {type(error).__name__}: {error}; need a file that"
      " defines generate(split, rng)"
    ) from error
  function = names.get("generate")
  if not callable(function):
    raise errors.bad_value(
      f"{file}: generate", function, "a function generate(split, rng)"
    )

  def generate(split: str, key: str) -> Iterator[PairText]:
    try:
      rows = iter(function(split, random.Random(key)))
      for row in rows:
        yield _row(file, row)
    except errors.InputError:
      raise
    except (Exception, SystemExit) as error:
      raise errors.InputError(
        f"{file}: generate({split!r}, rng) fails:"
        f" {type(error).__name__}: {error}; need (prompt, answer,"
        " counter_prompt, counter_answer) from it"
      ) from error

  _check_disjoint(file, generate)
  return generate, str(names.get("RULE", rule))


def _row(file: pathlib.Path, row) -> PairText:
  if not isinstance(row, Iterable) or isinstance(row, str):
    row = (row,)
  row = tuple(row)
  if len(row) != len(_FIELDS):
    raise errors.bad_value(
      f"{file}: generate", row, f"tuples of {', '.join(_FIELDS)}"
    )
  return _pair(f"{file}: generate", dict(zip(_FIELDS, row, strict=True)))


def _check_disjoint(file: pathlib.Path, generate: base.Generator) -> None:
  home = {}
  for split in SPLITS:
    for pair in itertools.islice(generate(split, split), _NUM_PROBED):
      for text in (pair.prompt, pair.counter_prompt):
        if home.setdefault(text, split) != split:
          raise errors.InputError(
            f"{file}: generate yields {text!r} for {home[text]} and {split};"
            " need splits that share no prompts"
          )
