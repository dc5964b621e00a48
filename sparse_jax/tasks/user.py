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
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging

from sparse_jax.tasks import base
from sparse_jax.tasks.pairs import SPLITS, PairText
from sparse_jax.utils import errors, files

_FIELDS = ("prompt", "answer", "counter_prompt", "counter_answer")
_DEALT = ("train", "train", "train", "validation", "test")
_SUFFIXES = (".jsonl", ".py")
# Pairs drawn from each split of a Python file to look for shared prompts.
_NUM_PROBED = 256
_FEW_PAIRS = 20


def is_path(name: str) -> bool:
  """Whether a task's name is meant as a file."""
  return name.endswith(_SUFFIXES) or os.sep in name


def load(path: str, tokenizer, difficulty: int = 0) -> base.Task:
  """Returns the task of a user's file.

  A warning counts the pairs of a JSONL file that the tokenizer cannot state,
  another one tells of splits with few pairs. Raises InputError if the file is
  faulty, TaskNotExpressible if the tokenizer can state no pair of some split.
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

    def generate(split: str, key: str) -> Iterator[PairText]:
      shuffled = list(pairs[split])
      random.Random(key).shuffle(shuffled)
      return iter(shuffled)

  else:
    generate, rule = _from_module(file, rule)
  answers = base.check_expressible(file.stem, tokenizer, generate)
  if file.suffix == ".jsonl":
    _warn_of_losses(file.stem, tokenizer, pairs)
  reason = "a user's own task states no rule on real code"
  return base.Task(
    file.stem, rule, answers, tokenizer, generate, natural_reason=reason
  )


def _read_lines(file: pathlib.Path) -> dict[str, list[PairText]]:
  """Returns a JSONL file's pairs, by split."""
  by_split = {split: [] for split in SPLITS}
  home = {}
  text = files.read_text(file, "UTF-8 text", "utf-8-sig")
  for number, line in enumerate(text.split("\n"), 1):
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
    bucket = hashlib.sha256(pair.prompt.encode()).digest()[0] % 5
    split = row.get("split") or _DEALT[bucket]
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


def _settle(home: dict, where: str, pair: PairText, split: str) -> None:
  """Records the split of a pair's prompts; one prompt has one split."""
  for text in (pair.prompt, pair.counter_prompt):
    if home.setdefault(text, split) != split:
      raise errors.InputError(
        f"{where}: prompt {_short(text)!r} is in {home[text]} as well as"
        f" {split}; need splits that share no prompts"
      )


def _warn_of_losses(name: str, tokenizer, by_split: Mapping) -> None:
  pairs = [pair for split in SPLITS for pair in by_split[split]]
  stated, offending = {}, {}
  for split in SPLITS:
    stated[split], texts = base.count_stated(tokenizer, by_split[split])
    offending |= dict.fromkeys(texts)
  if dropped := len(pairs) - sum(stated.values()):
    answers = {a for pair in pairs for a in (pair.answer, pair.counter_answer)}
    reason = "their prompts occur before"
    if split_up := [text for text in offending if text in answers]:
      reason = f"answers {_listed(split_up)} are not single tokens"
    elif offending:
      reason = f"answer and prompt merge in {_listed(list(offending))}"
    part = f"{dropped} of {len(pairs)}"
    logging.warning("task %r: %s pairs dropped: %s", name, part, reason)
  if min(stated.values()) < _FEW_PAIRS:
    counts = ", ".join(f"{stated[split]} {split}" for split in SPLITS)
    little = f"below {_FEW_PAIRS} a split measures little"
    logging.warning("task %r: %s pairs; %s", name, counts, little)


def _listed(texts: Sequence[str]) -> str:
  more = ", …" if len(texts) > 4 else ""
  return ", ".join(repr(_short(t)) for t in texts[:4]) + more


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
  known = (*_FIELDS, "split")
  for field in row:
    if field not in known:
      raise errors.unknown_name(f"field in {where}", _short(field), known)
  for field in ("prompt", "answer"):
    if row[field] == row[f"counter_{field}"]:
      name, accepted = f"{where}: counter_{field}", f"another text than {field}"
      raise errors.bad_value(name, _short(row[field]), accepted)
  return PairText(**{field: row[field] for field in _FIELDS})


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
    need = "a function generate(split, rng)"
    raise errors.bad_value(f"{file}: generate", function, need)

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
  row, where = tuple(row), f"{file}: generate"
  if len(row) != len(_FIELDS):
    raise errors.bad_value(where, row, f"tuples of {', '.join(_FIELDS)}")
  return _pair(where, dict(zip(_FIELDS, row, strict=True)))
