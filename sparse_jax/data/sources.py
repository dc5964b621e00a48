"""Source text as documents: found, deduplicated, ordered and split by content.

A document's place in the order and its side of the split are functions of its
text alone, so equal text gives equal data on any machine, whatever the paths.
Files are read twice, once to hash and once in hash order, so that memory holds
one document at a time.
"""

import dataclasses
import glob
import hashlib
import importlib
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tqdm

from sparse_jax import config as config_lib
from sparse_jax.utils import errors

ACCEPTED = (
  '"python", "hf:NAME", or the path of a directory, a text or .jsonl file, or'
  " a glob that matches files"
)

# A text file is cut at the first blank line after SOFT_CUT bytes; without one,
# at the first line end after HARD_CUT.
SOFT_CUT = 4096
HARD_CUT = 4 * SOFT_CUT


class Document(NamedTuple):
  """One text.

  Attributes:
    text: the whole text.
    name: where it was found, for people: a relative path, with `:LINE` where a
      file holds several documents.
    digest: SHA-256 of the text's UTF-8 bytes, hexadecimal.
  """

  text: str
  name: str
  digest: str


class _File(NamedTuple):
  path: str
  name: str
  size: int
  mtime_ns: int


class _Entry(NamedTuple):
  digest: bytes
  num_bytes: int
  where: Any


def _listed(path: str, name: str) -> Iterator[_File]:
  try:
    stat = os.stat(path)
  except OSError:
    return
  if os.path.isfile(path):
    yield _File(path, name.replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns)


def _walk(root: str, skip=lambda path: False) -> Iterator[tuple[str, str]]:
  """Yields (path, path relative to root) of files, none hidden."""
  for folder, subfolders, names in os.walk(root):
    subfolders[:] = [
      name
      for name in subfolders
      if not name.startswith(".") and not skip(os.path.join(folder, name))
    ]
    for name in names:
      if not name.startswith("."):
        path = os.path.join(folder, name)
        yield path, os.path.relpath(path, root)


def _python_files(paths: Mapping[str, str]) -> Iterator[_File]:
  """Yields the .py files of the interpreter and of its installed packages."""
  roots = {}
  for label, key in (
    ("stdlib", "stdlib"),
    ("site-packages", "purelib"),
    ("site-packages", "platlib"),
  ):
    roots.setdefault(os.path.realpath(paths[key]), label)

  def elsewhere(path):
    # Also in a virtual environment, where the standard library's own
    # site-packages belong to another environment.
    path = os.path.realpath(path)
    name = os.path.basename(path)
    return path in roots or (
      name in ("site-packages", "dist-packages")
      and os.path.dirname(path) in roots
    )

  for root, label in roots.items():
    for path, name in _walk(root, elsewhere):
      if name.endswith(".py"):
        yield from _listed(path, f"{label}/{name}")


def _list_files(source: str) -> list[_File]:
  """Returns the files of a source, in the order of their names."""
  path = os.path.expanduser(source)
  if source == "python":
    files = list(_python_files(sysconfig.get_paths()))
  elif os.path.isdir(path):
    files = [f for args in _walk(path) for f in _listed(*args)]
  elif os.path.isfile(path):
    files = list(_listed(path, os.path.basename(path)))
  else:
    found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    if not found:
      raise errors.bad_value("data.source", source, ACCEPTED)
    root = os.path.commonpath([os.path.dirname(p) for p in found] or [""])
    files = [
      f for p in found for f in _listed(p, os.path.relpath(p, root or "."))
    ]
  return sorted(files, key=lambda f: (f.name, f.path))


def fingerprint(config: config_lib.DataConfig) -> str:
  """Returns a SHA-256 of the source's listing; no content is read.

  It covers relative paths, sizes (bytes) and modification times (ns). A Hugging
  Face dataset counts as unchanged while its name is.

  Raises:
    InputError: if there is no such source.
  """
  if config.source.startswith("hf:"):
    listing = [config.source]
  else:
    listing = [list(f[1:]) for f in _list_files(config.source)]
  return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _decode(raw: bytes) -> str | None:
  """Returns the text as Python's text mode reads it; None if not UTF-8."""
  try:
    text = raw.decode("utf-8-sig")
  except UnicodeDecodeError:
    return None
  return text.replace("\r\n", "\n").replace("\r", "\n")


def _paragraphs(lines) -> Iterator[bytes]:
  """Yields runs of lines of about SOFT_CUT bytes that end at blank lines."""
  piece, size = [], 0
  for line in lines:
    piece.append(line)
    size += len(line)
    if size >= HARD_CUT or (size >= SOFT_CUT and not line.strip()):
      yield b"".join(piece)
      piece, size = [], 0
  if piece:
    yield b"".join(piece)


class _FileReader:
  """Documents of files; `where` is (file index, line, start, bytes)."""

  def __init__(self, config: config_lib.DataConfig):
    self._files = _list_files(config.source)
    self._field = config.text_field
    self._cut = os.path.isfile(os.path.expanduser(config.source))
    self.num_files = len(self._files)
    self.size = sum(f.size for f in self._files)

  def __iter__(self) -> Iterator[tuple[Any, str | None, int]]:
    """Yields (where, text or None if unreadable, bytes read)."""
    for index, file in enumerate(self._files):
      try:
        with open(file.path, "rb") as lines:
          yield from self._pieces(index, lines)
      except OSError:
        yield (index, 0, 0, 0), None, 0

  def _pieces(self, index: int, lines):
    if self._is_jsonl(index):
      pieces = lines
    elif self._cut:
      pieces = _paragraphs(lines)
    else:
      raw = lines.read()
      yield (index, 0, 0, len(raw)), _decode(raw), len(raw)
      return
    line, start = 1, 0
    for raw in pieces:
      where = (index, line, start, len(raw))
      # A blank line of JSONL is no document.
      if not self._is_jsonl(index) or raw.strip():
        yield where, self._text(where, raw), len(raw)
      line += raw.count(b"\n")
      start += len(raw)

  def read(self, where) -> str | None:
    index, _, start, size = where
    try:
      with open(self._files[index].path, "rb") as file:
        file.seek(start)
        return self._text(where, file.read(size))
    except OSError:
      return None

  def name(self, where) -> str:
    index, line, _, _ = where
    return self._files[index].name + (f":{line}" if line else "")

  def _is_jsonl(self, index: int) -> bool:
    return self._files[index].path.lower().endswith(".jsonl")

  def _text(self, where, raw: bytes) -> str | None:
    if not self._is_jsonl(where[0]):
      return _decode(raw)
    try:
      record = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
      return None
    except json.JSONDecodeError as e:
      raise errors.InputError(
        f"{self.name(where)} is not JSON ({e}); need one object a line"
      ) from None
    return _field(record, self._field, self.name(where))


def _field(record, field: str, name: str) -> str:
  if not isinstance(record, dict):
    raise errors.InputError(
      f"{name} holds a {type(record).__name__}; need a JSON object with the"
      f" text in data.text_field={field!r}"
    )
  if field not in record:
    raise errors.InputError(
      f"{name} has no field {field!r}; set data.text_field to one of "
      + ", ".join(map(str, record))
    )
  if not isinstance(record[field], str):
    raise errors.InputError(
      f"{name}: data.text_field={field!r} holds"
      f" a {type(record[field]).__name__}; need text"
    )
  return record[field]


class _HuggingFaceReader:
  """Documents of a Hugging Face dataset; `where` is the row."""

  def __init__(self, config: config_lib.DataConfig):
    try:
      datasets = importlib.import_module("datasets")
    except ImportError:
      raise errors.bad_value(
        "data.source",
        config.source,
        "the package `datasets` (the `hf` extra), which is not installed",
      ) from None
    self._name = config.source.removeprefix("hf:")
    self._field = config.text_field
    try:
      self._rows = datasets.load_dataset(self._name, split="train")
    # The Hub's client raises many kinds; none of them is a fault of ours.
    except Exception as e:
      raise errors.bad_value(
        "data.source",
        config.source,
        f"a dataset with a train split that can be loaded ({e})",
      ) from e
    self.num_files = 0
    self.size = self._rows.dataset_size or 0

  def __iter__(self):
    for row, record in enumerate(self._rows):
      text = _field(record, self._field, self.name(row))
      yield row, text, len(text)

  def read(self, where) -> str:
    return self._rows[where][self._field]

  def name(self, where) -> str:
    return f"{self._name}:{where}"


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The documents of a source, by hash; texts are read when asked for.

  Attributes:
    counts: files; documents kept; skipped (unreadable or not UTF-8), empty and
      duplicate ones; bytes of the text kept.
  """

  counts: dict[str, int]
  _reader: Any
  _entries: dict[str, list[_Entry]]

  def documents(
    self, split: str | None = None, progress: bool = False
  ) -> Iterator[Document]:
    """Yields the documents of "train", "eval" or both (None), in hash order.

    Raises:
      InputError: if a file has changed since it was listed.
    """
    if split is None:
      entries = sorted(self._entries["eval"] + self._entries["train"])
    else:
      entries = self._entries[split]
    size = sum(entry.num_bytes for entry in entries)
    with _bar(f"{split or 'all'} text", size, progress) as bar:
      for entry in entries:
        name = self._reader.name(entry.where)
        text = self._reader.read(entry.where)
        if text is None or _digest(text) != entry.digest:
          raise errors.InputError(
            f"{name} changed while it was being read; need files that stay"
            " as they are"
          )
        yield Document(text, name, entry.digest.hex())
        bar.update(entry.num_bytes)


def _bar(description: str, size: int, progress: bool) -> tqdm.tqdm:
  return tqdm.tqdm(
    desc=description,
    total=size,
    unit="B",
    unit_scale=True,
    delay=1,
    disable=not progress,
  )


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()


def is_held_out(digest: str, eval_fraction: float) -> bool:
  """Returns whether a document falls into the evaluation share.

  The digest's end decides: its start orders the documents, and a share of the
  lowest would be all that `max_megabytes` leaves.
  """
  return int(digest[-16:], 16) < eval_fraction * 2**64


def scan(config: config_lib.DataConfig, progress: bool = False) -> Corpus:
  """Reads a source once and returns its documents, deduplicated and split.

  Files are UTF-8, read with universal newlines. If no document falls into the
  evaluation share, the one with the lowest hash is held out; if all do, the one
  with the highest is trained on.

  Raises:
    InputError: if there is no such source, a JSONL line is not a record with
      the text field, or the source holds one single document.
  """
  is_hf = config.source.startswith("hf:")
  reader = (_HuggingFaceReader if is_hf else _FileReader)(config)
  counts = dict(
    files=reader.num_files, documents=0, skipped=0, empty=0, duplicates=0
  )
  entries = {}
  with _bar("reading", reader.size, progress) as bar:
    for where, text, num_read in reader:
      bar.update(num_read)
      try:
        raw = None if text is None else text.encode()
      except UnicodeEncodeError:  # A lone surrogate, escaped in JSON.
        raw = None
      if raw is None:
        counts["skipped"] += 1
        continue
      if not raw.strip():
        counts["empty"] += 1
        continue
      digest = hashlib.sha256(raw).digest()
      if digest in entries:
        counts["duplicates"] += 1
      else:
        entries[digest] = _Entry(digest, len(raw), where)
  kept = _limit(sorted(entries.values()), config.max_megabytes)
  counts["documents"] = len(kept)
  counts["bytes"] = sum(entry.num_bytes for entry in kept)
  return Corpus(counts, reader, _split(kept, config))


def _limit(entries: list[_Entry], max_megabytes: float) -> list[_Entry]:
  """Returns the longest prefix of at most `max_megabytes` (all if 0)."""
  if not max_megabytes:
    return entries
  left = max_megabytes * 1e6
  for i, entry in enumerate(entries):
    left -= entry.num_bytes
    if left < 0:
      return entries[:i]
  return entries


def _split(
  entries: list[_Entry], config: config_lib.DataConfig
) -> dict[str, list[_Entry]]:
  if len(entries) == 1:
    raise errors.InputError(
      f"data.source={config.source!r} gives one document; need at least 2,"
      " one to train on and one to hold out"
    )
  held_out = [
    is_held_out(entry.digest.hex(), config.eval_fraction) for entry in entries
  ]
  if entries and not any(held_out):
    held_out[0] = True
  if entries and all(held_out):
    held_out[-1] = False
  pairs = list(zip(entries, held_out, strict=True))
  return {
    "eval": [entry for entry, out in pairs if out],
    "train": [entry for entry, out in pairs if not out],
  }


def documents(
  config: config_lib.DataConfig,
  split: str | None = None,
  progress: bool = False,
) -> Iterator[Document]:
  """Yields a source's documents in the order of their hashes.

  Args:
    config: the source.
    split: "train", "eval", or None for both.
    progress: whether to show progress bars.

  Raises:
    InputError: as `scan` and `Corpus.documents`.
  """
  if split not in (None, "train", "eval"):
    raise errors.bad_value("split", split, 'None, "train" or "eval"')
  return scan(config, progress).documents(split, progress)
