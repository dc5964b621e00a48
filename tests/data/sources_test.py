"""Tests for data/sources.py and for data.prepare."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.data import tokens as tokens_lib
from sparse_jax.utils import errors


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, name: str, content: str | bytes) -> str:
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      content = content.encode()
    path.write_bytes(content)
    return str(path)

  def config(self, source="source", **kwargs) -> config_lib.DataConfig:
    return config_lib.DataConfig(source=str(self.folder / source), **kwargs)


class DocumentsTest(FolderTest):
  def texts(self, split=None, **kwargs) -> list[str]:
    return [d.text for d in sources.documents(self.config(**kwargs), split)]

  def write_many(self, count=50) -> list[str]:
    texts = [f"text number {i}\n" for i in range(count)]
    for i, text in enumerate(texts):
      self.write(f"source/{i}.txt", text)
    return texts

  def test_order_is_that_of_the_hashes(self):
    texts = self.write_many()
    got = list(sources.documents(self.config()))
    self.assertEqual([d.text for d in got], sorted(texts, key=_digest))
    for document in got:
      self.assertEqual(document.digest, _digest(document.text))
      path = self.folder / "source" / document.name
      self.assertEqual(path.read_text(), document.text)

  def test_splits_are_disjoint_and_complete(self):
    texts = self.write_many()
    train = self.texts("train", eval_fraction=0.3)
    held_out = self.texts("eval", eval_fraction=0.3)
    self.assertEqual(sorted(train + held_out), sorted(texts))
    self.assertEqual(train, sorted(train, key=_digest))
    for text in texts:
      self.assertEqual(
        text in held_out, int(_digest(text)[48:], 16) / 2**64 < 0.3
      )

  def test_content_decides_not_the_path(self):
    texts = self.write_many()
    for i, text in enumerate(texts):
      self.write(f"moved/deep/{49 - i}.md", text)
    for split in (None, "train", "eval"):
      self.assertEqual(self.texts(split), self.texts(split, source="moved"))

  def test_a_limit_keeps_the_lowest_hashes_and_the_share(self):
    texts = self.write_many(200)
    kept = self.texts(max_megabytes=0.0015, eval_fraction=0.3)
    want = sorted(texts, key=_digest)[: len(kept)]
    self.assertEqual(kept, want)
    size = sum(map(len, kept))
    self.assertLessEqual(size, 1500)
    self.assertGreater(size, 1500 - 18)
    held_out = self.texts("eval", max_megabytes=0.0015, eval_fraction=0.3)
    # Every one, if order and split read the same end of the hash.
    self.assertBetween(len(held_out), 10, 50)

  @parameterized.parameters((1e-9, 1), (1 - 1e-9, 9))
  def test_neither_side_is_empty(self, fraction, num_held_out):
    texts = sorted(self.write_many(10), key=_digest)
    held_out = self.texts("eval", eval_fraction=fraction)
    self.assertEqual(held_out, texts[:num_held_out])
    train = self.texts("train", eval_fraction=fraction)
    self.assertEqual(train, texts[num_held_out:])

  def test_counts(self):
    self.write("source/a.txt", "one\n")
    self.write("source/b.txt", "two two\n")
    self.write("source/sub/c.txt", "one\n")
    self.write("source/windows.txt", b"\xef\xbb\xbftwo two\r\n")
    self.write("source/binary", b"\xff\x00")
    self.write("source/latin.py", "# é".encode("latin-1"))
    self.write("source/empty.txt", " \n")
    self.write("source/.hidden/x.txt", "hidden\n")
    self.write("source/.hidden.txt", "hidden\n")
    os.symlink("nowhere", self.folder / "source" / "broken")
    corpus = sources.scan(self.config())
    self.assertEqual(
      corpus.counts,
      dict(files=7, documents=2, skipped=2, empty=1, duplicates=2, bytes=12),
    )
    documents = list(corpus.documents())
    self.assertCountEqual([d.text for d in documents], ["one\n", "two two\n"])
    self.assertCountEqual([d.name for d in documents], ["a.txt", "b.txt"])

  def test_a_source_is_read_again_only_when_its_files_have_changed(self):
    self.write("source/a.txt", "one\n")
    self.write("source/b.txt", "two\n")
    first = sources.scan(self.config())
    self.assertIs(sources.scan(self.config()), first)
    self.write("source/c.txt", "three\n")
    second = sources.scan(self.config())
    self.assertEqual(second.counts["documents"], 3)
    half = sources.scan(self.config(max_megabytes=8e-6))
    self.assertEqual(half.counts["documents"], 2)

  def test_what_is_no_code_is_left_out_and_counted(self):
    self.write("source/a.py", "a = 1\n")
    self.write("source/b.py", "b = 2\n")
    self.write("source/sub/c_pb2.py", "c = 3\n")
    corpus = sources.scan(self.config())
    self.assertEqual(corpus.counts["documents"], 2)
    self.assertEqual(corpus.left_out, "1 file left out: 1 generated")
    everything = sources.scan(self.config(clean=False))
    self.assertEqual(everything.counts["documents"], 3)

  def test_glob(self):
    self.write("source/a.py", "a\n")
    self.write("source/deep/er/b.py", "b\n")
    self.write("source/deep/c.txt", "c\n")
    got = list(sources.documents(self.config("source/**/*.py")))
    self.assertCountEqual([d.name for d in got], ["a.py", "deep/er/b.py"])

  def test_a_text_file_is_cut_at_blank_lines(self):
    paragraphs = [f"{i}\n" + "words and words\n" * 60 for i in range(40)]
    text = "\n".join(paragraphs)
    self.write("book.txt", text.replace("\n", "\r\n"))
    got = list(sources.documents(self.config("book.txt")))
    line = lambda d: int(d.name.removeprefix("book.txt:"))
    got.sort(key=line)
    self.assertEqual("".join(d.text for d in got), text)
    for document in got[:-1]:
      self.assertEndsWith(document.text, "\n\n")
      self.assertBetween(len(document.text), 3500, 5500)
    lines = text.splitlines(keepends=True)
    for document in got:
      start = "".join(lines[line(document) - 1 :])
      self.assertStartsWith(start, document.text)

  def test_a_text_file_without_blank_lines_is_cut_too(self):
    text = "".join(f"line {i}\n" for i in range(6000))
    self.write("log.txt", text)
    self.assertLess(max(map(len, self.texts(source="log.txt"))), 16_400)
    self.assertLen("".join(self.texts(source="log.txt")), len(text))

  @parameterized.parameters("", "\n")
  def test_a_line_without_words_is_cut_between_characters(self, end):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) + end
    self.write("line.txt", text)
    texts = self.texts(source="line.txt")
    self.assertLess(max(map(len, texts)), 16_400 // 3)
    self.assertEqual("".join(sorted(texts)), text)

  @parameterized.parameters("\n", " ", "")
  def test_a_long_document_is_cut_where_lines_or_words_end(self, end):
    with mock.patch.object(sources, "MAX_DOCUMENT", 100):
      texts = list(sources._parts(("x" * 59 + (end or "x")) * 4 + "y" * 100))
    self.assertEqual("".join(texts), ("x" * 59 + (end or "x")) * 4 + "y" * 100)
    want = [60] * 4 + [100] if end else [100, 100, 100, 40]
    self.assertEqual(list(map(len, texts)), want)

  def test_jsonl(self):
    records = [{"text": "é\r\n"}, {"text": "b", "n": 1}, {"text": "\ud800"}]
    lines = [json.dumps(r) for r in records]
    self.write("a.jsonl", "\n".join([lines[0], "", *lines[1:]]))
    corpus = sources.scan(self.config("a.jsonl"))
    documents = {d.name: d.text for d in corpus.documents()}
    self.assertEqual(documents, {"a.jsonl:1": "é\r\n", "a.jsonl:3": "b"})
    self.assertEqual(corpus.counts["skipped"], 1)

  @parameterized.named_parameters(
    ("not_json", "{", "not JSON.*one object a line"),
    ("not_an_object", "[1]", "list.*need a JSON object"),
    ("too_deep", "[" * 100_000, "not JSON.*one object a line"),
    ("no_field", '{"body": "x", "id": 1}', "'text'.*text_field.*body, id"),
    ("not_text", '{"text": 1}', "'text' holds a int"),
  )
  def test_bad_jsonl(self, line, message):
    self.write("a.jsonl", '{"text": "a"}\n' + line)
    with self.assertRaisesRegex(errors.InputError, "a.jsonl:2.*" + message):
      sources.scan(self.config("a.jsonl"))

  def test_text_field(self):
    self.write("source/a.jsonl", '{"body": "a"}\n{"body": "b"}')
    self.assertCountEqual(self.texts(text_field="body"), ["a", "b"])

  @parameterized.parameters("missing", "*.nothing")
  def test_no_such_source(self, source):
    for call in (sources.documents, sources.fingerprint):
      with self.assertRaisesRegex(errors.InputError, "data.source=.*need"):
        call(self.config(source))

  def test_one_document_cannot_be_split(self):
    self.write("source/a.txt", "alone\n")
    self.write("source/b.txt", "alone\n")
    with self.assertRaisesRegex(errors.InputError, "one document.*at least 2"):
      sources.documents(self.config())

  def test_unknown_split(self):
    with self.assertRaisesRegex(errors.InputError, "split='test'"):
      sources.documents(self.config(), "test")

  def test_a_file_that_changes_meanwhile(self):
    self.write_many(3)
    corpus = sources.scan(self.config())
    self.write("source/1.txt", "something else\n")
    with self.assertRaisesRegex(errors.InputError, "1.txt changed"):
      list(corpus.documents())

  def test_hugging_face_needs_its_package(self):
    config = config_lib.DataConfig(source="hf:someone/some")
    with mock.patch.dict(sys.modules, {"datasets": None}):
      with self.assertRaisesRegex(errors.InputError, "`datasets`.*`hf` extra"):
        sources.documents(config)

  def test_fingerprint_follows_the_listing(self):
    path = self.write("source/a.txt", "a\n")
    self.write("source/b.txt", "b\n")
    seen = {sources.fingerprint(self.config())}
    self.assertIn(sources.fingerprint(self.config()), seen)
    os.utime(path, ns=(5, 5))
    seen.add(sources.fingerprint(self.config()))
    self.write("source/a.txt", "ab\n")
    os.utime(path, ns=(5, 5))
    seen.add(sources.fingerprint(self.config()))
    os.rename(path, self.folder / "source" / "c.txt")
    seen.add(sources.fingerprint(self.config()))
    self.assertLen(seen, 4)
    os.rename(self.folder / "source", self.folder / "moved")
    self.assertIn(sources.fingerprint(self.config("moved")), seen)


class PythonTest(FolderTest):
  @parameterized.named_parameters(
    ("nested", "lib/site-packages"), ("apart", "venv/site-packages")
  )
  def test_every_file_once(self, packages):
    self.write("lib/a.py", "a")
    self.write("lib/json/b.py", "b")
    self.write("lib/json/c.txt", "c")
    self.write(f"{packages}/d/d.py", "d")
    self.write("lib/site-packages/e.py", "e")
    paths = {
      "stdlib": str(self.folder / "lib"),
      "purelib": str(self.folder / packages),
      "platlib": str(self.folder / packages),
    }
    names = [name for _, name in sources._python_files(paths)]
    want = ["stdlib/a.py", "stdlib/json/b.py", "site-packages/d/d.py"]
    if packages == "lib/site-packages":
      want.append("site-packages/e.py")
    self.assertCountEqual(names, want)

  def test_this_interpreter(self):
    listed = {f.name: f.path for f in sources._list_files("python")}
    self.assertEqual(
      os.path.realpath(listed["stdlib/json/decoder.py"]),
      os.path.realpath(json.decoder.__file__),
    )
    self.assertEqual(
      os.path.realpath(listed["site-packages/numpy/__init__.py"]),
      os.path.realpath(np.__file__),
    )
    self.assertLen(set(map(os.path.realpath, listed.values())), len(listed))


class PrepareTest(FolderTest):
  def setUp(self):
    super().setUp()
    for i in range(20):
      self.write(f"source/{i}.txt", f"def f_{i}(x):\n  return x + {i}\n")
    self.directory = self.folder / "data"

  def prepare(self, **kwargs):
    kwargs = dict(batch_size=2, context_length=8, frozen=False) | kwargs
    batch_size, frozen = kwargs.pop("batch_size"), kwargs.pop("frozen")
    tokenizer = kwargs.pop("tokenizer", None)
    config = self.config(**(dict(vocab_size=270, eval_fraction=0.2) | kwargs))
    return tokens_lib.prepare(
      config,
      self.directory,
      batch_size=batch_size,
      frozen=frozen,
      progress=False,
      tokenizer=tokenizer,
    )

  def inode(self) -> int:
    return os.stat(self.directory / tokens_lib.TOKENS).st_ino

  @contextlib.contextmanager
  def assert_remade(self, message: str):
    before = self.inode()
    with self.assertLogs("absl", "WARNING") as logs:
      yield
    self.assertRegex("\n".join(logs.output), message)
    self.assertNotEqual(self.inode(), before)

  def edit_manifest(self, **changes):
    path = self.directory / tokens_lib.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  def test_tokens_are_the_documents_and_their_ends(self):
    got = self.prepare()
    for split in ("train", "eval"):
      tokens, want = getattr(got, split), []
      config = self.config(eval_fraction=0.2)
      for document in sources.documents(config, split):
        want += [*got.tokenizer.encode(document.text), 269]
      np.testing.assert_array_equal(tokens, want)
      self.assertEqual(tokens.dtype, np.uint16)
      self.assertIsInstance(tokens, np.memmap)
      self.assertFalse(tokens.flags.writeable)

  def test_a_tokenizer_that_is_given_makes_the_tokens(self):
    given = tokenizer_lib.Tokenizer.train(["other text"], 258)
    got = self.prepare(tokenizer=given)
    self.assertIs(got.tokenizer, given)
    (first, *_) = sources.documents(self.config(eval_fraction=0.2), "train")
    want = given.encode(first.text)
    np.testing.assert_array_equal(got.train[: len(want)], want)
    before = self.inode()
    self.prepare(tokenizer=given)
    self.assertEqual(self.inode(), before)
    other = tokenizer_lib.Tokenizer.train(["aaaa bbbb"], 258)
    with self.assertRaisesRegex(errors.InputError, "another tokenizer"):
      self.prepare(tokenizer=other, frozen=True)

  def test_manifest_describes_the_files(self):
    got = self.prepare()
    manifest = json.loads((self.directory / tokens_lib.MANIFEST).read_text())
    self.assertEqual(got.manifest, manifest)
    for name in (tokens_lib.TOKENS, tokens_lib.TOKENIZER):
      content = (self.directory / name).read_bytes()
      self.assertEqual(
        manifest["sha256"][name], hashlib.sha256(content).hexdigest()
      )
    num_train, num_eval = len(got.train), len(got.eval)
    self.assertEqual(manifest["tokens"], dict(train=num_train, eval=num_eval))
    self.assertEqual(manifest["offset"], dict(train=num_eval, eval=0))
    self.assertEqual(
      (self.directory / tokens_lib.TOKENS).stat().st_size,
      2 * (num_train + num_eval),
    )
    self.assertEqual(manifest["counts"]["documents"], 20)
    self.assertEqual(manifest["vocab_size"], 270)
    self.assertCountEqual(
      os.listdir(self.directory),
      [tokens_lib.TOKENS, tokens_lib.TOKENIZER, tokens_lib.MANIFEST, ".lock"],
    )

  def test_same_text_elsewhere_gives_the_same_tokens(self):
    first = self.prepare()
    for i in range(20):
      path = self.folder / "source" / f"{i}.txt"
      self.write(f"moved/{19 - i}/x.py", path.read_bytes())
    self.directory = self.folder / "other"
    second = self.prepare(source="moved")
    self.assertEqual(first.manifest["sha256"], second.manifest["sha256"])

  def test_tokenizer_has_not_seen_held_out_text(self):
    words = ("zqzq " * 50 + f"{i}\n" for i in range(10**6))
    texts = [
      next(w for w in words if sources.is_held_out(_digest(w), 0.2) == side)
      for side in (True, False)
    ]
    self.write("source/z.txt", texts[0])
    got = self.prepare()
    self.assertIsNone(got.tokenizer.single_token("zq"))
    self.assertIn("zqzq", got.tokenizer.decode(got.eval))
    self.write("source/z.txt", texts[1])
    self.assertIsNotNone(self.prepare().tokenizer.single_token("zq"))

  @parameterized.parameters(
    (2048, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)
  )
  def test_width_of_tokens(self, vocab_size, want):
    self.assertEqual(tokens_lib.token_dtype(vocab_size), want)

  def test_prepared_data_is_found_again(self):
    first = self.prepare()
    before = self.inode()
    with self.assertNoLogs("absl", "WARNING"):
      second = self.prepare(batch_size=3, context_length=4)
    self.assertEqual(self.inode(), before)
    np.testing.assert_array_equal(first.train, second.train)
    self.assertEqual(first.tokenizer.fingerprint, second.tokenizer.fingerprint)

  @parameterized.parameters(
    *(("vocab_size", 271), ("eval_fraction", 0.3)),
    *(("max_megabytes", 1.0), ("clean", False)),
  )
  def test_other_fields_remake(self, field, value):
    self.prepare()
    with self.assert_remade(f"data.{field}="):
      got = self.prepare(**{field: value})
    self.assertEqual(got.manifest["config"][field], value)

  def test_changed_source_remakes(self):
    first = self.prepare()
    self.write("source/20.txt", "a new file\n" * 10)
    with self.assert_remade("source have changed"):
      second = self.prepare()
    self.assertGreater(
      len(second.train) + len(second.eval), len(first.train) + len(first.eval)
    )

  def damages(self):
    tokens = self.directory / tokens_lib.TOKENS
    tokenizer = self.directory / tokens_lib.TOKENIZER
    flipped = bytearray(tokens.read_bytes())
    flipped[7] ^= 1
    return {
      "truncated": lambda: os.truncate(tokens, 20),
      "flipped": lambda: tokens.write_bytes(flipped),
      "no_tokens": tokens.unlink,
      "tokenizer": lambda: tokenizer.write_text(tokenizer.read_text() + " "),
      "no_tokenizer": tokenizer.unlink,
      "not_json": lambda: (self.directory / tokens_lib.MANIFEST).write_text(
        "{"
      ),
      "list": lambda: (self.directory / tokens_lib.MANIFEST).write_text("[]"),
      "version": lambda: self.edit_manifest(format_version=0),
      "no_counts": lambda: self.edit_manifest(tokens={}),
      "wrong_counts": lambda: self.edit_manifest(
        tokens={"eval": 10, "train": 10**6}
      ),
    }

  @parameterized.parameters(
    ("truncated", "tokens.bin"),
    ("flipped", "tokens.bin"),
    ("no_tokens", "tokens.bin"),
    ("tokenizer", "tokenizer.json"),
    ("no_tokenizer", "tokenizer.json"),
    ("not_json", "manifest.json"),
    ("list", "manifest.json"),
    ("version", "format_version"),
    ("no_counts", "manifest.json"),
    ("wrong_counts", "manifest.json"),
  )
  def test_damage_remakes_but_never_when_frozen(self, damage, message):
    want = np.array(self.prepare().train)
    self.damages()[damage]()
    with self.assertRaisesRegex(errors.InputError, message):
      self.prepare(frozen=True)
    with self.assertLogs("absl", "WARNING") as logs:
      got = self.prepare()
    self.assertRegex("\n".join(logs.output), message)
    np.testing.assert_array_equal(got.train, want)

  def test_a_kill_before_the_manifest_leaves_nothing_trusted(self):
    want = np.array(self.prepare().train)
    (self.directory / tokens_lib.MANIFEST).unlink()
    os.truncate(self.directory / tokens_lib.TOKENS, 20)
    (self.directory / (tokens_lib.TOKENS + ".tmp")).write_bytes(b"half")
    np.testing.assert_array_equal(self.prepare().train, want)
    self.assertFalse((self.directory / (tokens_lib.TOKENS + ".tmp")).exists())

  def test_frozen_does_not_need_the_source(self):
    want = np.array(self.prepare().train)
    self.write("source/20.txt", "a new file\n")
    np.testing.assert_array_equal(self.prepare(frozen=True).train, want)
    os.rename(self.folder / "source", self.folder / "gone")
    np.testing.assert_array_equal(self.prepare(frozen=True).train, want)

  def test_frozen_keeps_to_its_fields(self):
    self.prepare()
    with self.assertRaisesRegex(errors.InputError, "vocab_size=270, not 271"):
      self.prepare(frozen=True, vocab_size=271)

  def test_frozen_without_data(self):
    with self.assertRaisesRegex(errors.InputError, "manifest.json"):
      self.prepare(frozen=True)
    self.assertFalse(self.directory.exists())

  @parameterized.parameters(False, True)
  def test_too_small(self, found_again):
    if found_again:
      self.prepare()
    with self.assertRaisesRegex(
      errors.InputError,
      r"gives \d+ train tokens; need at least 4001 for train.batch_size=500"
      " and data.context_length=8",
    ):
      self.prepare(batch_size=500)
    self.assertEqual(
      (self.directory / tokens_lib.MANIFEST).exists(), found_again
    )

  def test_too_little_held_out(self):
    with self.assertRaisesRegex(
      errors.InputError, r"\d+ eval tokens; need at least 151"
    ):
      self.prepare(eval_fraction=1e-9, batch_size=1, context_length=150)

  def test_empty_source(self):
    (self.folder / "empty").mkdir()
    with self.assertRaisesRegex(
      errors.InputError, "data.source='.*empty' holds no files; need"
    ):
      self.prepare(source="empty")

  def test_what_is_left_out_is_said_once(self):
    self.write("source/a.py", "# é".encode("latin-1"))
    self.write("source/b.py", "# ü".encode("latin-1"))
    self.write("source/c.pyc", b"\xff\x00")
    with self.assertLogs("absl", "WARNING") as logs:
      self.prepare()
    self.assertLen(logs.output, 1)
    self.assertRegex(
      logs.output[0],
      "data.source='.*source': 3 files left out: 2 not UTF-8, 1 binary$",
    )

  def test_nothing_but_what_is_left_out(self):
    self.write("latin/a.py", "# é".encode("latin-1"))
    self.write("latin/b.py", "# ü".encode("latin-1"))
    with self.assertRaisesRegex(
      errors.InputError, r"gives no documents \(2 files left out: 2 not UTF-8\)"
    ):
      self.prepare(source="latin")

  @parameterized.parameters("one.txt", "sub/one.txt", "one.jsonl")
  def test_a_text_of_one_line_is_trained_on(self, name):
    text = " ".join(f"word{i}" for i in range(350_000))
    self.assertGreater(len(text), 3 * sources.MAX_DOCUMENT)
    self.write(name, json.dumps({"text": text}) if name.endswith("l") else text)
    with mock.patch.object(tokens_lib, "TOKENIZER_SAMPLE", 10_000):
      source = name.partition("/")[0]
      # No document over 2 MB, although the only line is.
      got = self.prepare(source=source, max_megabytes=2.0, context_length=64)
    self.assertGreater(len(got.train), 100_000)
    parts = [d.text for d in sources.documents(self.config(source))]
    self.assertCountEqual(" ".join(parts).split(), text.split())

  def test_small_text_gives_a_small_vocabulary_and_a_warning(self):
    with self.assertLogs("absl", "WARNING") as logs:
      got = self.prepare(vocab_size=5000)
    self.assertLess(got.tokenizer.vocab_size, 5000)
    self.assertIn("not data.vocab_size=5000", logs.output[0])
    before = self.inode()
    self.prepare(vocab_size=5000)
    self.assertEqual(self.inode(), before)

  def test_failure_leaves_the_old_files(self):
    self.prepare()
    before = {p: p.read_bytes() for p in self.directory.iterdir()}
    self.write("small/a.txt", "a\n")
    self.write("small/b.txt", "b\n")
    with self.assertRaises(errors.InputError):
      self.prepare(source="small")
    self.assertEqual(
      {p: p.read_bytes() for p in self.directory.iterdir()}, before
    )

  def test_directory_that_is_a_file(self):
    self.write("data", "a file")
    with self.assertRaisesRegex(errors.InputError, f"{self.directory}.*need"):
      self.prepare()
    self.assertEqual(self.directory.read_text(), "a file")

  def test_disk_that_fails_while_writing(self):
    self.directory.mkdir()
    (self.directory / (tokens_lib.TOKENS + ".tmp")).symlink_to("/dev/full")
    with self.assertRaisesRegex(errors.InputError, "cannot write.*No space"):
      self.prepare()
    self.assertEqual(os.listdir(self.directory), [".lock"])

  def test_no_manifest_speaks_of_files_half_replaced(self):
    self.prepare()
    (self.directory / tokens_lib.TOKENS).unlink()
    (self.directory / tokens_lib.TOKENS).mkdir()
    with self.assertRaisesRegex(errors.InputError, "tokens.bin"):
      self.prepare(vocab_size=280)
    self.assertFalse((self.directory / tokens_lib.MANIFEST).exists())

  def test_one_process_at_a_time(self):
    self.directory.mkdir()
    with open(self.directory / ".lock", "a") as lock:
      # Shared: refused only by one who asks for the lock alone.
      fcntl.flock(lock, fcntl.LOCK_SH)
      with self.assertRaisesRegex(
        errors.InputError, f"data.directory='{self.directory}' is in use"
      ):
        self.prepare()
    before = self.prepare().manifest
    with open(self.directory / ".lock", "a") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      # Ready data can be read by many.
      self.assertEqual(self.prepare().manifest, before)


if __name__ == "__main__":
  absltest.main()
