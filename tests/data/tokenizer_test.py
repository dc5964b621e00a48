"""Tests for data/tokenizer.py."""

import hashlib
import json
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import tokenizers
from absl.testing import absltest, parameterized

from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.utils import errors

CODE = [
  "def area(width, height):\n  return width * height\n\n\n",
  "values = [[5, 3, 11], [2, 4]]\nprint('step', values)\n",
  "while True:\n    total = total + 12345 * width\n",
  "é ü 漢字 🙂\n",
]
SETTINGS = hypothesis.settings(deadline=None, max_examples=50)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def bpe_file(vocab, **fields):
  """Returns the bytes of a tokenizer.json with end of text behind `vocab`."""
  model = {"type": "BPE", "vocab": vocab, "merges": []} | fields
  if "ab" in vocab:
    model["merges"] = [["a", "b"]]
  added = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
  added.add_special_tokens([tokenizer_lib.END_OF_TEXT])
  return json.dumps(json.loads(added.to_str()) | {"model": model}).encode()


class TokenizerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.Tokenizer.train(CODE, 300)

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  @SETTINGS
  @hypothesis.given(TEXTS)
  @hypothesis.example("<|endoftext|>")
  @hypothesis.example("a\r\n\t\x00\x85 \u2028")
  def test_any_text_comes_back(self, text):
    ids = self.tokenizer.encode(text)
    self.assertEqual(self.tokenizer.decode(ids), text)
    self.assertNotIn(self.tokenizer.end_of_text, ids)
    self.assertEqual(
      b"".join(map(self.tokenizer.token_bytes, ids)), text.encode()
    )

  @SETTINGS
  @hypothesis.given(st.lists(TEXTS, max_size=4))
  def test_a_batch_is_its_texts(self, texts):
    got = self.tokenizer.encode_batch(texts)
    self.assertLen(got, len(texts))
    for ids, text in zip(got, texts, strict=True):
      np.testing.assert_array_equal(ids, self.tokenizer.encode(text))

  @parameterized.parameters(257, 258, 280)
  def test_size_is_exact_and_end_of_text_is_last(self, size):
    tokenizer = tokenizer_lib.Tokenizer.train(CODE, size)
    self.assertEqual(tokenizer.vocab_size, size)
    self.assertEqual(tokenizer.end_of_text, size - 1)
    self.assertEqual(tokenizer.token_text(size - 1), "<|endoftext|>")
    self.assertLen({tokenizer.token_bytes(i) for i in range(size)}, size)

  def test_text_that_cannot_fill_the_vocabulary_gives_fewer(self):
    tokenizer = tokenizer_lib.Tokenizer.train(["ab ab"], 2048)
    # The bytes, "ab", " ab" and end of text.
    self.assertEqual(tokenizer.vocab_size, 259)
    self.assertEqual(tokenizer.end_of_text, 258)

  def test_merges_do_not_depend_on_order(self):
    other = tokenizer_lib.Tokenizer.train(CODE[::-1], 300)
    self.assertEqual(other.fingerprint, self.tokenizer.fingerprint)

  @parameterized.parameters(
    ("1234567", ["123", "456", "7"]),
    ("a 12", ["a", " ", "12"]),
    ("x = 'step'\n", ["x", " =", " '", "step", "'\n"]),
    ("['step']", ["['", "step", "']"]),
    ("('s')", ["('", "s", "')"]),
    ("'step'", ["'step", "'"]),
    ("[[5]]\n", ["[[", "5", "]]\n"]),
    ("if x:\n    y", ["if", " x", ":\n", "   ", " y"]),
    ("a\n\n  b", ["a", "\n\n", " ", " b"]),
  )
  def test_text_is_cut_like_this(self, text, want):
    split = tokenizers.pre_tokenizers.Split(
      tokenizers.Regex(tokenizer_lib.SPLIT_PATTERN), behavior="isolated"
    )
    self.assertEqual([s for s, _ in split.pre_tokenize_str(text)], want)

  def test_no_token_crosses_a_cut(self):
    texts = ["12345678 " * 50]
    tokenizer = tokenizer_lib.Tokenizer.train(texts, 300)
    tokens = {tokenizer.token_bytes(i) for i in range(tokenizer.end_of_text)}
    self.assertContainsSubset([b"123", b"456", b"78"], tokens)
    self.assertEqual(max(map(len, tokens)), 3)

  def test_save_and_load_give_the_same_tokenizer(self):
    path = self.folder / "tokenizer.json"
    self.tokenizer.save(path)
    loaded = tokenizer_lib.Tokenizer.load(path)
    self.assertEqual(loaded.fingerprint, self.tokenizer.fingerprint)
    self.assertEqual(
      loaded.fingerprint, hashlib.sha256(path.read_bytes()).hexdigest()
    )
    for text in [*CODE, "<|endoftext|>"]:
      self.assertEqual(loaded.encode(text), self.tokenizer.encode(text))
    self.assertEqual([p.name for p in self.folder.iterdir()], [path.name])

  def test_repr_is_a_line(self):
    fingerprint = self.tokenizer.fingerprint[:12]
    self.assertEqual(
      repr(self.tokenizer),
      f"Tokenizer(vocab_size=300, fingerprint={fingerprint})",
    )

  def test_single_token(self):
    tokenizer = self.tokenizer
    self.assertEqual(tokenizer.single_token("e"), tokenizer.encode("e")[0])
    self.assertIsNone(tokenizer.single_token(""))
    self.assertIsNone(tokenizer.single_token("zq"))
    self.assertIsNone(tokenizer.single_token("<|endoftext|>"))

  def test_part_of_a_character_can_be_shown(self):
    tokenizer = tokenizer_lib.Tokenizer.train([""], 257)
    shown = [tokenizer.token_text(i) for i in tokenizer.encode("é\n")]
    self.assertEqual(shown, ["\\xc3", "\\xa9", "\n"])
    self.assertEqual(tokenizer.decode(tokenizer.encode("é")[:1]), "\ufffd")

  @parameterized.parameters(-1, 300)
  def test_there_is_no_such_token(self, token):
    with self.assertRaises(IndexError):
      self.tokenizer.token_bytes(token)

  @parameterized.named_parameters(
    ("missing", None),
    ("empty", b""),
    ("not_json", b"{"),
    ("not_text", b"\xff\xfe"),
    ("other_json", b'{"a": 1}'),
    (
      "no_end_of_text",
      tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode(),
    ),
    ("numbers_with_a_gap", bpe_file({"a": 0, "b": 5})),
    # The library panics: the prefix is longer than what it would be cut from.
    (
      "too_long_a_prefix",
      bpe_file({"a": 0, "b": 1, "ab": 2}, continuing_subword_prefix=9 * "#"),
    ),
  )
  def test_bad_file(self, content):
    path = self.folder / "tokenizer.json"
    if content is not None:
      path.write_bytes(content)
    with self.assertRaisesRegex(errors.InputError, str(path)):
      tokenizer_lib.Tokenizer.load(path)

  def test_place_that_cannot_be_written(self):
    (self.folder / "file").touch()
    path = self.folder / "file" / "tokenizer.json"
    with self.assertRaisesRegex(errors.InputError, str(path)):
      self.tokenizer.save(path)


if __name__ == "__main__":
  absltest.main()
