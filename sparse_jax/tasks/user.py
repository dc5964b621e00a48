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

import functools
import hashlib
import itertools
import json
import os
import pathlib
import random
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging

from sparse_jax.tasks import base
from sparse_jax.tasks.pairs import SPLITS, PairText
from sparse_jax.utils import errors

_FIELDS = ("prompt", "answer", "counter_prompt", "counter_answer")
_SUFFIXES = (".jsonl", ".py")
_NO_NATURAL = "a user's own task states no rule on real code"
# Pairs drawn from each split of a Python file to look for shared prompts.
_NUM_PROBED = 256
_FEW_PAIRS = 20


def is_path(name: str) -> bool:
  """Whether a task's name is meant as a file."""
  return name.endswith(_SUFFIXES) or os.sep in name


def load(path: str, tokenizer, difficulty: int = 0) -> base.Task:
  """Returns the task of a user's file.

  A warning counts the pairs of a JSONL file that the tokenizer cannot state,
  another one tells of splits with few pairs.

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
    pairs = _read_lines(file)
    generate = functools.partial(_shuffled, pairs)
  else:
    generate, rule = _from_module(file, rule)
  answers = base.check_expressible(file.stem, tokenizer, generate)
  if file.suffix == ".jsonl":
    _warn_of_losses(file.stem, tokenizer, pairs)
  return base.Task(
    name=file.stem,
    rule=rule,
    answers=answers,
    tokenizer=tokenizer,
    generate=generate,
    natural_reason=_NO_NATURAL,
  )


def _shuffled(
  by_split: Mapping[str, Sequence[PairText]], split: str, key: str
) -> Iterator[PairText]:
  pairs = list(by_split[split])
  random.Random(key).shuffle(pairs)
  return iter(pairs)


def _read_lines(file: pathlib.Path) -> dict[str, list[PairText]]:
  """Returns a JSONL file's pairs, by split."""
  by_split = {split: [] for split in SPLITS}
  home = {}
  try:
    lines = file.read_text(encoding="utf-8-sig").split("\n")
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
    except (ValueError, RecursionError) as error:
      reason = getattr(error, "msg", error)
      raise errors.InputError(
        f"{where} is not JSON ({reason}); need one object a line"
      ) from error
    pair = _pair(where, row)
    split = row.get("split") or _dealt(pair.prompt)
    if split not in SPLITS:
      raise errors.unknown_name(f"split in {where}", _short(split), SPLITS)
    _settle(home, where, pair, split)
    by_split[split].append(pair)
  missing = [split for split in SPLITS if not by_split[split]]
  if missing:
    raise errors.InputError(
      f"{file} has no pairs for {', '.join(missing)}; need some for each of"
      f" {', '.join(SPLITS)}"
    )
  return by_split


def _settle(
  home: dict[str, str], where: str, pair: PairText, split: str
) -> None:
  """Records the split of a pair's prompts; one prompt has one split."""
  for text in (pair.prompt, pair.counter_prompt):
    if home.setdefault(text, split) != split:
      raise errors.InputError(
        f"{where}: prompt {_short(text)!r} is in {home[text]} as well as"
        f" {split}; need splits that share no prompts"
      )


def _warn_of_losses(
  name: str, tokenizer, by_split: Mapping[str, Sequence[PairText]]
) -> None:
  pairs = [pair for split in SPLITS for pair in by_split[split]]
  stated, offending = {}, {}
  for split in SPLITS:
    stated[split], texts = base.count_stated(tokenizer, by_split[split])
    offending |= dict.fromkeys(texts)
  if dropped := len(pairs) - sum(stated.values()):
    answers = {a for pair in pairs for a in (pair.answer, pair.counter_answer)}
    split_up = [text for text in offending if text in answers]
    merged = [text for text in offending if text not in answers]
    reason = "their prompts occur before"
    if split_up:
      reason = f"answers {_listed(split_up)} are not single tokens"
    elif merged:
      reason = f"answer and prompt merge in {_listed(merged)}"
    logging.warning(
      "task %r: %d of %d pairs dropped: %s", name, dropped, len(pairs), reason
    )
  if min(stated.values()) < _FEW_PAIRS:
    counts = ", ".join(f"{stated[split]} {split}" for split in SPLITS)
    logging.warning(
      "task %r: %s pairs; below %d a split measures little",
      name,
      counts,
      _FEW_PAIRS,
    )


def _listed(texts: Sequence[str]) -> str:
  return ", ".join(repr(_short(t)) for t in texts[:4]) + ", …" * (
    len(texts) > 4
  )


def _short(value) -> str:
  """Returns a text or a value's repr, cut to what a message can hold."""
  text = value if isinstance(value, str) else repr(value)
  return text if len(text) <= 80 else text[:80] + "…"


def _pair(where: str, row) -> PairText:
  if not isinstance(row, dict):
    raise errors.InputError(
      f"{where}={_short(row)} is not accepted; need an object with"
      f" {', '.join(_FIELDS)}"
    )
  for field in _FIELDS:
    text = row.get(field)
    if not isinstance(text, str) or not text:
      raise errors.InputError(
        f"{where}: {field}={_short(repr(text))} is not accepted; need a string"
        " that is not empty"
      )
    try:
      text.encode()
    except UnicodeEncodeError:
      raise errors.InputError(
        f"{where}: {field}={_short(repr(text))} holds a lone surrogate; need"
        " characters that UTF-8 has"
      ) from None
  for field in row:
    if field not in (*_FIELDS, "split"):
      raise errors.unknown_name(
        f"field in {where}", _short(field), (*_FIELDS, "split")
      )
  for field in ("prompt", "answer"):
    if row[field] == row[f"counter_{field}"]:
      raise errors.bad_value(
        f"{where}: counter_{field}",
        _short(row[field]),
        f"another text than {field}",
      )
  return PairText(**{field: row[field] for field in _FIELDS})


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
      for row in function(split, random.Random(key)):
        yield _row(file, row)
    except errors.InputError:
      raise
    except (Exception, SystemExit) as error:
      raise errors.InputError(
        f"{file}: generate({split!r}, rng) fails:"
        f" {type(error).__name__}: {error}; need (prompt, answer,"
        " counter_prompt, counter_answer) from it"
      ) from error

  home = {}
  for split in SPLITS:
    for pair in itertools.islice(generate(split, split), _NUM_PROBED):
      _settle(home, f"{file}: generate", pair, split)
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
