"""Token files: text in, one memory-mapped file and its manifest out.

`prepare` makes them once and finds them again. A directory holds

  tokens.bin      held-out documents, then training documents; little-endian
                  uint16, or uint32 if the vocabulary needs it
  tokenizer.json  Hugging Face `tokenizers` format
  manifest.json   what the two were made from, and their hashes
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tqdm
from absl import logging

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.utils import errors, files
from sparse_jax.utils import progress as progress_lib

FORMAT_VERSION = 1
TOKENS, TOKENIZER, MANIFEST = "tokens.bin", "tokenizer.json", "manifest.json"

# Fields of DataConfig on which the token file depends.
FIELDS = (
  "source text_field max_megabytes clean vocab_size eval_fraction".split()
)

TOKENIZER_SAMPLE = 20_000_000  # Characters that the BPE is learnt from.
BATCH_CHARACTERS = 4_000_000  # Characters that are encoded at once.


@dataclasses.dataclass(frozen=True)
class TokenData:
  """A prepared corpus: read-only tokens `[num_tokens]` of both splits."""

  train: np.memmap
  eval: np.memmap
  tokenizer: tokenizer_lib.Tokenizer
  manifest: dict[str, Any]


class _UnusableError(Exception):
  """Why prepared files cannot be used."""


def prepare(
  config: config_lib.DataConfig,
  directory: str | os.PathLike,
  *,
  batch_size: int,
  frozen: bool = False,
  progress: bool = True,
  tokenizer: tokenizer_lib.Tokenizer | None = None,
) -> TokenData:
  """Returns the tokens of a source, made now or earlier; they fill a batch.

  They are a tokenizer's, or those of one that is learned from the source.

  Earlier files are made again, and a warning says why, unless their hashes, the
  fields they were made for and the source's listing are the same. `frozen` is
  for tokens that a run has trained on: they are never remade, and their source
  may have changed or gone.
  """
  directory = pathlib.Path(directory)
  if tokenizer is not None:
    size = tokenizer.vocab_size
    config = dataclasses.replace(config, vocab_size=size)
  if frozen:
    try:
      data = _load(directory, config, None, progress, tokenizer)
    except _UnusableError as e:
      raise errors.InputError(
        f"{directory} is not accepted: {e}; need the data that the run has"
        " trained on, or a new workdir"
      ) from e
  else:
    data = _find_or_build(directory, config, batch_size, progress, tokenizer)
  _check_size(data.manifest["tokens"], config, batch_size)
  return data


def _find_or_build(
  directory, config, batch_size, progress, tokenizer
) -> TokenData:
  wanted = directory, config, sources.fingerprint(config), progress, tokenizer
  # Without the lock: prepared data may be shared, and read-only.
  with contextlib.suppress(_UnusableError):
    return _load(*wanted)
  try:
    with files.exclusive(directory):
      try:
        return _load(*wanted)
      except _UnusableError as e:
        if (directory / MANIFEST).exists():
          logging.warning("%s: %s; preparing it again", directory, e)
      _build(*wanted, batch_size)
      return _load(*wanted)
  except files.InUseError as e:
    raise errors.InputError(
      f"data.directory={str(directory)!r} is in use by another process;"
      " need another one, or wait until that has prepared it"
    ) from e
  except OSError as e:
    raise errors.InputError(
      f"cannot write {e.filename or directory}: {e.strerror or e}; need a"
      " writable data.directory with room"
    ) from e
  except _UnusableError as e:
    raise errors.InputError(
      f"{directory} changed while it was being prepared: {e}; need a"
      " data.directory of its own"
    ) from e


def _check_size(num_tokens, config, batch_size: int) -> None:
  length = config.context_length
  batch = f"train.batch_size={batch_size} and "
  needs = ("train", batch_size * length, batch), ("eval", length, "")
  for split, need, also in needs:
    if num_tokens[split] <= need:
      raise errors.InputError(
        f"data.source={config.source!r} gives {num_tokens[split]} {split}"
        f" tokens; need at least {need + 1} for {also}"
        f"data.context_length={length}"
      )


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the dtype of a token file, the narrowest of two."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _fields(config: config_lib.DataConfig) -> dict[str, Any]:
  return {name: getattr(config, name) for name in FIELDS}


def _sha256(path: pathlib.Path, show: bool) -> str:
  digest, size = hashlib.sha256(), path.stat().st_size
  bar = progress_lib.byte_bar(f"checking {path.name}", size, show)
  with bar, open(path, "rb") as file:
    while block := file.read(1 << 22):
      digest.update(block)
      bar.update(len(block))
  return digest.hexdigest()


def _load(
  directory, config, listing: str | None, progress, tokenizer
) -> TokenData:
  """Returns prepared data; a `listing` of None leaves the source alone."""
  try:
    text = (directory / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(text)
    if (version := manifest["format_version"]) != FORMAT_VERSION:
      raise _UnusableError(f"format_version={version!r}, not {FORMAT_VERSION}")
    for name, value in _fields(config).items():
      if (old := manifest["config"][name]) != value:
        raise _UnusableError(f"made with data.{name}={old!r}, not {value!r}")
    if listing is not None and manifest["listing"] != listing:
      raise _UnusableError("the files of its source have changed")
    if tokenizer and tokenizer.fingerprint != manifest["sha256"][TOKENIZER]:
      raise _UnusableError("made with another tokenizer")
    for name in (TOKENIZER, TOKENS):
      if _sha256(directory / name, progress) != manifest["sha256"][name]:
        raise _UnusableError(f"{name} is not what {MANIFEST} describes")
    num_eval, num_train = (manifest["tokens"][k] for k in ("eval", "train"))
    dtype, shape = np.dtype(manifest["dtype"]), num_eval + num_train
    tokens = np.memmap(directory / TOKENS, dtype, "r", shape=shape)
    # The one on disk does not know of ids that only a model has.
    tokenizer = tokenizer or tokenizer_lib.Tokenizer.load(directory / TOKENIZER)
    # A writer takes the manifest away before it touches anything else.
    if (directory / MANIFEST).read_text(encoding="utf-8") != text:
      raise _UnusableError("it is being remade")
  except (OSError, errors.InputError) as e:
    raise _UnusableError(str(e)) from e
  except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
    raise _UnusableError(f"{MANIFEST} is damaged ({e!r})") from e
  return TokenData(tokens[num_eval:], tokens[:num_eval], tokenizer, manifest)


def _sample(documents: Iterable[sources.Document], limit: int):
  """Yields texts until they come to `limit` characters."""
  for document in documents:
    if limit <= 0:
      return
    yield document.text[:limit]
    limit -= len(document.text)


def _batches(documents: Iterable[sources.Document]) -> Iterator[list[str]]:
  """Yields lists of texts of about BATCH_CHARACTERS."""
  batch, size = [], 0
  for document in documents:
    batch.append(document.text)
    size += len(document.text)
    if size >= BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  yield batch


def _learned(corpus, config, progress) -> tokenizer_lib.Tokenizer:
  sample = tqdm.tqdm(
    _sample(corpus.documents("train"), TOKENIZER_SAMPLE),
    desc="learning tokens",
    unit=" documents",
    disable=not progress,
  )
  tokenizer = tokenizer_lib.Tokenizer.train(sample, config.vocab_size)
  if tokenizer.vocab_size < config.vocab_size:
    logging.warning(
      f"data.source={config.source!r} gives {tokenizer.vocab_size} different"
      f" tokens, not data.vocab_size={config.vocab_size}"
    )
  return tokenizer


def _build(
  directory, config, listing: str, progress, tokenizer, batch_size
) -> None:
  """Makes the three files; what stood there stays until all are ready."""
  corpus = sources.scan(config, progress)
  if corpus.left_out:
    logging.warning("data.source=%r: %s", config.source, corpus.left_out)
  tokenizer = tokenizer or _learned(corpus, config, progress)
  dtype = token_dtype(tokenizer.vocab_size)
  end = np.array([tokenizer.end_of_text], dtype)
  digest, num_tokens = hashlib.sha256(), {"eval": 0, "train": 0}
  temporary = directory / (TOKENS + ".tmp")
  try:
    with open(temporary, "wb") as file:
      for split in num_tokens:
        for texts in _batches(corpus.documents(split, progress)):
          for ids in tokenizer.encode_batch(texts):
            block = np.concatenate([ids.astype(dtype), end])
            file.write(block)
            digest.update(block)
            num_tokens[split] += len(block)
    _check_size(num_tokens, config, batch_size)
    (directory / MANIFEST).unlink(missing_ok=True)
    tokenizer.save(directory / TOKENIZER)
    os.replace(temporary, directory / TOKENS)
  finally:
    temporary.unlink(missing_ok=True)
  manifest = {
    "format_version": FORMAT_VERSION,
    "config": _fields(config),
    "listing": listing,
    "counts": corpus.counts,
    "dtype": dtype.str,
    "vocab_size": tokenizer.vocab_size,
    "tokens": num_tokens,
    "offset": {"eval": 0, "train": num_tokens["eval"]},
    "sha256": {TOKENS: digest.hexdigest(), TOKENIZER: tokenizer.fingerprint},
  }
  files.write_json(directory / MANIFEST, manifest)
