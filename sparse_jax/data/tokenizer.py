"""Byte-level BPE whose last token is the end of text."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers

from sparse_jax.utils import errors, files

END_OF_TEXT = "<|endoftext|>"
RELEASED_FILES = ("encoder.json", "vocab.bpe")
_RELEASED_END_OF_TEXT = 2047  # Where the released files do not say.
_MAX_ID = 2**20

# GPT-4's pattern (cl100k_base) less its English contractions, which cut a
# quoted 'step' after the s. Words take one character before them, digits go in
# threes, punctuation takes the newlines after it.
SPLIT_PATTERN = (
  r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Of the released tinypython_2k: slashes stay with newlines after punctuation.
_RELEASED_SPLIT_PATTERN = SPLIT_PATTERN.replace(r"[\r\n]*|", r"[\r\n/]*|")


# The byte of every letter: printable Latin-1 bytes stand for themselves, the
# others are numbered from U+0100 (Radford et al. 2019, GPT-2's byte-level BPE).
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = sorted({*range(256)} - {*_PRINTABLE})
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(_REST)}


def _byte_level(
  model: tokenizers.models.Model, split_pattern: str
) -> tokenizers.Tokenizer:
  """Returns a tokenizer that cuts text by a pattern, then maps its bytes."""
  inner = tokenizers.Tokenizer(model)
  steps = tokenizers.pre_tokenizers
  cut = steps.Split(tokenizers.Regex(split_pattern), "isolated")
  to_letters = steps.ByteLevel(add_prefix_space=False, use_regex=False)
  inner.pre_tokenizer = steps.Sequence([cut, to_letters])
  inner.decoder = tokenizers.decoders.ByteLevel()
  return inner


def _released_merges(
  path: pathlib.Path, vocab: Mapping[str, int]
) -> list[tuple[str, str]]:
  """Returns every pair whose union is a token, in the order of `vocab.bpe`."""
  lines = files.read_text(path, "the merges of a released tokenizer")
  merges = []
  for number, line in enumerate(lines.splitlines(), 1):
    if not line or (number == 1 and line.startswith("#version")):
      continue
    token = line.replace(" ", "", 1)
    if len(line.split(" ")) != 2 or token not in vocab:
      raise errors.InputError(
        f"{path}: line {number} is {line!r}; need two parts of a token that"
        " encoder.json has"
      )
    splits = ((token[:i], token[i:]) for i in range(1, len(token)))
    merges += [pair for pair in splits if all(part in vocab for part in pair)]
  return merges


class Tokenizer:
  """A byte-level tokenizer: every text has tokens and comes back from them.

  The text "<|endoftext|>" inside a document is text: only `end_of_text` itself
  ends one.
  """

  def __init__(self, inner: tokenizers.Tokenizer):
    self._inner = inner
    self._inner.encode_special_tokens = True
    self._inner.no_padding()
    self._inner.no_truncation()
    # The token after each document.
    self.end_of_text: int = inner.token_to_id(END_OF_TEXT)
    if self.end_of_text is None:
      raise errors.InputError(f"a tokenizer has no token {END_OF_TEXT}")
    added = inner.get_added_tokens_decoder()
    size = inner.get_vocab_size()
    if (last := max(inner.get_vocab().values())) != size - 1:
      raise errors.InputError(f"{size} tokens have numbers up to {last}")
    self._bytes = []
    for i in range(size):
      text = inner.id_to_token(i) or ""
      is_plain = i in added or not set(text) <= set(_BYTE_OF)
      raw = text.encode() if is_plain else bytes(map(_BYTE_OF.get, text))
      self._bytes.append(raw)

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Learns a BPE of `vocab_size` tokens, or of as many as the texts yield.

    The tokens include the 256 bytes and end of text, so there are at least 257.
    They depend on the texts, not on their order.
    """
    inner = _byte_level(tokenizers.models.BPE(), SPLIT_PATTERN)
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size - 1,
      initial_alphabet=sorted(_BYTE_OF),
      show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens([END_OF_TEXT])
    return cls(inner)

  @classmethod
  def load(
    cls, path: str | os.PathLike, num_ids: int | None = None
  ) -> "Tokenizer":
    """Reads a `tokenizer.json`; raises InputError if there is none.

    `num_ids` is how many tokens its model has, which may be more: the others
    stand for `<|unused ID|>` and never occur. Raises InputError if it is fewer.
    """
    text = files.read_text(path, "a tokenizer.json")
    try:
      found = cls(tokenizers.Tokenizer.from_str(text))
    # The library raises bare Exception for any fault of the file, and panics,
    # which are none, for a few.
    except BaseException as e:
      if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
        raise
      raise errors.InputError(
        f"{path} is not accepted ({e}); need a Hugging Face `tokenizers` file"
        f" with a token {END_OF_TEXT}"
      ) from e
    size = found.vocab_size
    if num_ids is not None and size > num_ids:
      raise errors.InputError(
        f"{path} has {size} tokens; need at most the model's {num_ids}"
      )
    unused = range(size, num_ids or size)
    found._bytes += [f"<|unused {i}|>".encode() for i in unused]
    return found

  @classmethod
  def load_released(cls, directory: str | os.PathLike) -> "Tokenizer":
    """Reads a directory's `encoder.json` and `vocab.bpe`, the released format.

    Encodes as tiktoken does: a piece that is a token is that token, and any
    neighbours whose union is a token may merge, in the order of `vocab.bpe`.
    End of text is 2047 unless `encoder.json` has it; ids that no token uses
    stand for `<|unused ID|>` and never occur.
    """
    path, merges_path = (pathlib.Path(directory) / f for f in RELEASED_FILES)
    vocab = files.read_json(path, "the token ids of a released tokenizer")
    if not isinstance(vocab, dict) or not all(
      isinstance(i, int) and i >= 0 for i in vocab.values()
    ):
      raise errors.InputError(f"{path}: need a JSON object of tokens to ids")
    vocab.setdefault(END_OF_TEXT, _RELEASED_END_OF_TEXT)
    token_of = {i: token for token, i in vocab.items()}
    missing = set(_BYTE_OF) - set(vocab)
    if len(token_of) < len(vocab) or max(token_of) > _MAX_ID or missing:
      raise errors.InputError(
        f"{path}: {len(vocab)} tokens, {len(token_of)} ids up to"
        f" {max(token_of)}, {len(missing)} single bytes missing; need every"
        f" byte and distinct ids up to {_MAX_ID}"
      )
    unused = set(range(max(token_of))) - set(token_of)
    vocab |= {f"<|unused {i}|>": i for i in unused}
    merges = _released_merges(merges_path, vocab)
    model = tokenizers.models.BPE(vocab, merges, ignore_merges=True)
    inner = _byte_level(model, _RELEASED_SPLIT_PATTERN)
    inner.add_special_tokens([END_OF_TEXT])
    return cls(inner)

  def to_json(self) -> str:
    """Returns what a `tokenizer.json` holds."""
    return self._inner.to_str(pretty=True)

  def save(self, path: str | os.PathLike) -> None:
    """Writes a `tokenizer.json` in one step."""
    files.write_bytes(path, self.to_json().encode())

  def __repr__(self) -> str:
    short = self.fingerprint[:12]
    return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={short})"

  @property
  def vocab_size(self) -> int:
    """Number of tokens, end of text included."""
    return len(self._bytes)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the JSON that `save` writes, hexadecimal."""
    return hashlib.sha256(self.to_json().encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Returns the tokens of a text; no end of text is added."""
    return self._inner.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text, uint32, computed in parallel."""
    encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(e.ids, dtype=np.uint32) for e in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

  def token_bytes(self, token: int) -> bytes:
    """Returns the bytes that one token stands for."""
    if not 0 <= token < self.vocab_size:
      raise IndexError(f"token {token} is not below {self.vocab_size}")
    return self._bytes[token]

  def token_text(self, token: int) -> str:
    r"""Returns one token for display; part of a character shows as `\xe2`."""
    return self.token_bytes(token).decode("utf-8", "backslashreplace")

  def single_token(self, text: str) -> int | None:
    """Returns the token that is exactly this text, None if it takes several."""
    ids = self.encode(text)
    return ids[0] if len(ids) == 1 else None
