"""Identifiers, plain words and numbers that fill the templates, by split.

A word's hash decides its split, so one word never occurs in two splits,
whichever list it stands in.
"""

import hashlib

from sparse_jax.tasks import templates
from sparse_jax.tasks.pairs import SPLITS


def _split_of(word: str) -> str:
  """Returns a word's split: three in five train, one in five each other."""
  bucket = hashlib.sha256(word.encode()).digest()[0] % 5
  return ("train", "train", "train", "validation", "test")[bucket]


def _deal(words) -> dict[str, tuple[str, ...]]:
  dealt = {split: [] for split in SPLITS}
  for word in dict.fromkeys(words):
    dealt[_split_of(word)].append(word)
  return {split: tuple(words) for split, words in dealt.items()}


WORDS = {
  kind: _deal(text.split()) for kind, text in templates.read("words").items()
}
WORDS["var"] = WORDS["name"]  # Variables that answers name.
WORDS["number"] = _deal(str(n) for n in range(100))
