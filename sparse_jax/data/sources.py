"""Source text as documents: listed, deduplicated, ordered and split by content.

A document's place in the order and its side of the split are functions of its
text alone, so equal text gives equal data on any machine, whatever the paths.
Files are read twice, once to hash and once in hash order, so that memory holds
one document at a time.
"""

import bisect
import collections
import contextlib
import dataclasses
import glob
import hashlib
import importlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from sparse_jax import config as config_lib
from sparse_jax.data import cleaning
from sparse_jax.utils import errors
from sparse_jax.utils import progress as progress_lib

ACCEPTED = (
  '"python", "hf:NAME", or the path of a directory, a text or .jsonl file, or'
  " a glob that matches files"
)

# A text file is cut at the first blank line after SOFT_CUT bytes; without one,
# at the first line end after HARD_CUT; a line longer than that, between words.
SOFT_CUT = 4096
HARD_CUT = 4 * SOFT_CUT
# Any other document is whole up to so many characters.
MAX_DOCUMENT = 1 << 20


class Document(NamedTuple):
  """A text, where it is from, and the SHA-256 of its UTF-8 bytes in hex."""

  text: str
  name: str  # A relative path, `PATH:LINE` where a file holds several.
  digest: str


class _File(NamedTuple):
  path: str
  name: str
  size: int
  mtime_ns: int

  @property
  def is_jsonl(self) -> bool:
    return self.path.lower().endswith(".jsonl")


class _Entry(NamedTuple):
  digest: bytes
  num_bytes: int
  where: Any
  part: int  # Of a text longer than MAX_DOCUMENT.


def _walk(root: str, skip=lambda path: False) -> Iterator[tuple[str, str]]:
  """Yields (path, path relative to root) of files, none hidden."""
  for folder, subfolders, names in os.walk(root):
    path_of = lambda name: os.path.join(folder, name)
    is_open = lambda name: not (name.startswith(".") or skip(path_of(name)))
    subfolders[:] = filter(is_open, subfolders)
    for name in names:
      if not name.startswith("."):
        yield path_of(name), os.path.relpath(path_of(name), root)


def _python_files(paths: Mapping[str, str]) -> Iterator[tuple[str, str]]:
  """Yields the .py files of the interpreter and of its installed packages."""
  labels = dict.fromkeys(("platlib", "purelib"), "site-packages")
  labels["stdlib"] = "stdlib"
  roots = {os.path.realpath(paths[k]): label for k, label in labels.items()}

  def elsewhere(path):
    # Also in a virtual environment, where the standard library's own
    # site-packages belong to another environment.
    path = os.path.realpath(path)
    parent, name = os.path.split(path)
    packages = name in ("site-packages", "dist-packages")
    return path in roots or (packages and parent in roots)

  for root, label in roots.items():
    for path, name in _walk(root, elsewhere):
      if name.endswith(".py"):
        yield path, f"{label}/{name}"


def _list_files(source: str) -> list[_File]:
  """Returns the files of a source, in the order of their names."""
  path = os.path.expanduser(source)
  if source == "python":
    found = _python_files(sysconfig.get_paths())
  elif os.path.isdir(path):
    found = _walk(path)
  elif os.path.isfile(path):
    found = [(path, os.path.basename(path))]
  else:
    paths = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    if not paths:
      raise errors.bad_value("data.source", source, ACCEPTED)
    root = os.path.commonpath([os.path.dirname(p) for p in paths]) or "."
    found = [(p, os.path.relpath(p, root)) for p in paths]
  files = []
  for path, name in found:
    with contextlib.suppress(OSError):  # A link to nowhere.
      if os.path.isfile(path):
        status = os.stat(path)
        name = name.replace(os.sep, "/")
        files.append(_File(path, name, status.st_size, status.st_mtime_ns))
  if not files:
    raise errors.InputError(
      f"data.source={source!r} holds no files; need {ACCEPTED}"
    )
  return sorted(files, key=lambda f: (f.name, f.path))


def fingerprint(config: config_lib.DataConfig) -> str:
  """Returns a SHA-256 of the source's paths, sizes and times; reads no content.

  A Hugging Face dataset counts as unchanged while its name is.
  """
  listing = [config.source]
  if not config.source.startswith("hf:"):
    listing = [file[1:] for file in _list_files(config.source)]
  return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _paragraphs(file: BinaryIO) -> Iterator[bytes]:
  """Yields the file in pieces, as SOFT_CUT and HARD_CUT say."""
  piece = b""
  while line := file.readline(HARD_CUT):
    piece += line
    end = 0
    if len(line) == HARD_CUT and not line.endswith(b"\n"):
      end = piece.rfind(b" ", SOFT_CUT) + 1 or _last_character(piece)
    elif len(piece) >= (HARD_CUT if line.strip() else SOFT_CUT):
      end = len(piece)
    if end:
      yield piece[:end]
      piece = piece[end:]
  if piece:
    yield piece


def _last_character(raw: bytes) -> int:
  """Returns where the last UTF-8 character, perhaps incomplete, begins."""
  starts = (i for i in range(1, 5) if raw[-i] & 0xC0 != 0x80)
  return len(raw) - next(starts, 1)


def _parts(text: str) -> Iterator[str]:
  """Yields parts of at most MAX_DOCUMENT, cut behind a line or word."""
  start = 0
  while len(text) - start > MAX_DOCUMENT:
    window = start + MAX_DOCUMENT // 2, start + MAX_DOCUMENT
    ends = [text.rfind(mark, *window) + 1 for mark in "\n "]
    end = ends[0] or ends[1] or window[1]
    yield text[start:end]
    start = end
  yield text[start:]


class _FileReader:
  """Texts of files; `where` is (file index, line, start, bytes)."""

  def __init__(self, config: config_lib.DataConfig):
    self._files = _list_files(config.source)
    self._field = config.text_field
    self._cut = len(self._files) == 1
    several = self._cut or any(f.is_jsonl for f in self._files)
    self.unit = "documents" if several else "files"
    self.num_files = len(self._files)
    self.size = sum(f.size for f in self._files)

  def __iter__(self) -> Iterator[tuple[Any, bytes | None]]:
    """Yields (where, content or None if unreadable)."""
    for index, file in enumerate(self._files):
      # One file is cut, and lines of JSONL are documents with a line number.
      line, start = int(self._cut or file.is_jsonl), 0
      try:
        with open(file.path, "rb") as opened:
          if file.is_jsonl:
            pieces = opened
          else:
            pieces = _paragraphs(opened) if self._cut else [opened.read()]
          for raw in pieces:
            # A blank line of JSONL is no document.
            if not file.is_jsonl or raw.strip():
              yield (index, line, start, len(raw)), raw
            line += raw.count(b"\n")
            start += len(raw)
      except OSError:
        yield (index, 0, 0, 0), None

  def read(self, where) -> str:
    index, _, start, size = where
    with open(self._files[index].path, "rb") as file:
      file.seek(start)
      return self.text(where, file.read(size))

  def name(self, where) -> str:
    index, line, _, _ = where
    return self._files[index].name + (f":{line}" if line else "")

  def text(self, where, raw: bytes) -> str:
    """Returns the text as Python's text mode reads it."""
    text = raw.decode("utf-8-sig")
    if not self._files[where[0]].is_jsonl:
      return text.replace("\r\n", "\n").replace("\r", "\n")
    try:
      record = json.loads(text)
    except (ValueError, RecursionError) as e:
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
  """Texts of a Hugging Face dataset; `where` is the row."""

  unit = "documents"

  def __init__(self, config: config_lib.DataConfig):
    try:
      datasets = importlib.import_module("datasets")
    except ImportError:
      need = "the package `datasets` (the `hf` extra), which is not installed"
      raise errors.bad_value("data.source", config.source, need) from None
    self._name, self._field = config.source[len("hf:") :], config.text_field
    try:
      self._rows = datasets.load_dataset(self._name, split="train")
    # The Hub's client raises many kinds; none of them is a fault of ours.
    except Exception as e:
      need = f"a dataset with a train split that can be loaded ({e})"
      raise errors.bad_value("data.source", config.source, need) from e
    self.num_files = 0
    self.size = self._rows.dataset_size or 0

  def __iter__(self):
    for row, record in enumerate(self._rows):
      yield row, _field(record, self._field, self.name(row))

  def text(self, _, text: str) -> str:
    return text

  def read(self, where) -> str:
    return self._rows[where][self._field]

  def name(self, where) -> str:
    return f"{self._name}:{where}"


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The documents of a source, by hash; texts are read when asked for."""

  counts: dict[str, int]  # Of files; of documents by fate; of bytes kept.
  left_out: str  # A line that counts what was skipped, by reason, or "".
  _reader: Any
  _entries: dict[str, list[_Entry]]

  def documents(
    self, split: str | None = None, progress: bool = False
  ) -> Iterator[Document]:
    """Yields the documents of "train", "eval" or both (None), in hash order.

    Raises InputError if a file has changed since it was listed.
    """
    splits = self._entries if split is None else (split,)
    entries = sorted(e for s in splits for e in self._entries[s])
    size = sum(entry.num_bytes for entry in entries)
    with progress_lib.byte_bar(f"{split or 'all'} text", size, progress) as bar:
      for entry in entries:
        name = self._reader.name(entry.where)
        try:
          parts = _parts(self._reader.read(entry.where))
          text = next(itertools.islice(parts, entry.part, None), "")
          same = hashlib.sha256(text.encode()).digest() == entry.digest
        except (OSError, UnicodeError):
          same = False
        if not same:
          raise errors.InputError(
            f"{name} changed while it was being read; need files that stay"
            " as they are"
          )
        yield Document(text, name, entry.digest.hex())
        bar.update(entry.num_bytes)


def is_held_out(digest: str, eval_fraction: float) -> bool:
  """Returns whether a document falls into the evaluation share."""
  # The digest's end decides: its start orders the documents, and a share of the
  # lowest would be all that `max_megabytes` leaves.
  return int(digest[-16:], 16) < eval_fraction * 2**64


# Of one source: a run asks for its training and its held-out files in turn.
_LAST: dict[tuple[config_lib.DataConfig, str], Corpus] = {}


def scan(config: config_lib.DataConfig, progress: bool = False) -> Corpus:
  """Returns a source's documents, deduplicated and split.

  Each split gets at least one. A source is read once in a process for as long
  as its files stay what they are. Raises InputError for a source that is
  missing or has fewer than two, and for a JSONL line without the text field.
  """
  key = config, fingerprint(config)
  if key not in _LAST:
    corpus = _scan(config, progress)
    _LAST.clear()
    _LAST[key] = corpus
  return _LAST[key]


def _scan(config, progress) -> Corpus:
  is_hf = config.source.startswith("hf:")
  reader = (_HuggingFaceReader if is_hf else _FileReader)(config)
  entries, reasons = {}, collections.Counter()
  dropped = {"empty": 0, "duplicates": 0}
  with progress_lib.byte_bar("reading", reader.size, progress) as bar:
    for where, content in reader:
      if content is None:
        reasons["unreadable"] += 1
        continue
      bar.update(len(content))
      try:
        text = reader.text(where, content)
        parts = [part.encode() for part in _parts(text)]
      except UnicodeDecodeError as e:
        reasons["binary" if 0 in e.object else "not UTF-8"] += 1
        continue
      except UnicodeEncodeError:  # Escaped in JSON.
        reasons["with a lone surrogate"] += 1
        continue
      if why := config.clean and cleaning.why_left_out(
        reader.name(where), text
      ):
        reasons[why] += 1
        continue
      for part, raw in enumerate(parts):
        digest = hashlib.sha256(raw).digest()
        if not raw.strip():
          dropped["empty"] += 1
        elif digest in entries:
          dropped["duplicates"] += 1
        else:
          entries[digest] = _Entry(digest, len(raw), where, part)
  ordered = sorted(entries.values())
  ends = list(itertools.accumulate(entry.num_bytes for entry in ordered))
  limit = config.max_megabytes * 1e6 or float("inf")
  kept = ordered[: bisect.bisect_right(ends, limit)]
  skipped = reasons.total()
  counts = {
    "files": reader.num_files,
    "documents": len(kept),
    "skipped": skipped,
    **dropped,
    "bytes": sum(entry.num_bytes for entry in kept),
  }
  left_out = ""
  if skipped:
    unit = reader.unit[:-1] if skipped == 1 else reader.unit
    listed = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    left_out = f"{skipped} {unit} left out: {listed}"
  if len(kept) < 2:
    number = "one document" if kept else "no documents"
    note = f" ({left_out})" if left_out else ""
    within = f", within data.max_megabytes={config.max_megabytes:g}"
    raise errors.InputError(
      f"data.source={config.source!r} gives {number}{note}; need at least 2,"
      f" one to train on and one to hold out{within * (len(entries) > 1)}"
    )
  held_out = [is_held_out(e.digest.hex(), config.eval_fraction) for e in kept]
  # Neither split is empty.
  held_out[0] |= not any(held_out)
  held_out[-1] &= not all(held_out)
  splits = {"eval": [], "train": []}
  for entry, is_eval in zip(kept, held_out, strict=True):
    splits["eval" if is_eval else "train"].append(entry)
  return Corpus(counts, left_out, reader, splits)


def documents(
  config: config_lib.DataConfig,
  split: str | None = None,
  progress: bool = False,
) -> Iterator[Document]:
  """Yields a source's documents as `scan` and `Corpus.documents` do."""
  if split not in (None, "train", "eval"):
    raise errors.bad_value("split", split, 'None, "train" or "eval"')
  return scan(config, progress).documents(split, progress)
