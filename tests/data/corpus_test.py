"""The pinned corpus: equal bytes from wheels, whatever is in them."""

import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

from absl.testing import absltest, parameterized

from sparse_jax.data import corpus
from sparse_jax.utils import errors

_GOOD = "def area(width, height):\n  return width * height\n"


def make_wheel(directory, name, members):
  """Writes a wheel of version 1.0; returns its line of a requirements file."""
  info = f"{name}-1.0.dist-info"
  members = {
    **members,
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    "Tag: py3-none-any\n",
    f"{info}/RECORD": "",
  }
  raw = io.BytesIO()
  with zipfile.ZipFile(raw, "w") as archive:
    for path, text in members.items():
      archive.writestr(path, text)
  (directory / f"{name}-1.0-py3-none-any.whl").write_bytes(raw.getvalue())
  digest = hashlib.sha256(raw.getvalue()).hexdigest()
  return f"{name}==1.0 --hash=sha256:{digest}  # MIT\n"


class KeepTest(parameterized.TestCase):
  @parameterized.parameters(
    ("a/b.py", _GOOD, None),
    ("a/tests/test_b.py", _GOOD, None),
    ("a/b.py", " \n", "empty"),
    ("a/b.py", None, "too large or not UTF-8"),
    ("pip/_vendor/b.py", _GOOD, "a copy of another package"),
    ("a/tests/data/b.py", _GOOD, "test data"),
    ("a/fixtures/b.py", _GOOD, "test data"),
    ("a/b_pb2.py", _GOOD, "generated"),
    ("a/b.py", "# DO NOT EDIT\n" + _GOOD, "generated"),
    ("a/b.py", f"x = {list(range(500))}\n", "data"),
    ("a/b.py", 'def f():\n  print "old"\n', "Python 2"),
    ("a/b.py", "try:\n  f()\nexcept OSError, e:\n  pass\n", "Python 2"),
  )
  def test_why_dropped(self, path, text, want):
    self.assertEqual(corpus.why_dropped(path, text), want)

  def test_the_hash_of_the_whole_does_not_depend_on_the_order(self):
    documents = [("b.py", "1"), ("a.py", "2")]
    self.assertEqual(
      corpus.whole_hash(documents), corpus.whole_hash(documents[::-1])
    )
    swapped = [("a.py", "1"), ("b.py", "2")]
    self.assertNotEqual(
      corpus.whole_hash(documents), corpus.whole_hash(swapped)
    )

  @parameterized.parameters(
    "", "# nothing\n", "a==1.0\n", "a --hash=sha256:0\n"
  )
  def test_a_list_that_names_no_file_by_hash_is_refused(self, text):
    path = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      / "list.txt"
    )
    path.write_text(text)
    with self.assertRaisesRegex(errors.InputError, "need"):
      corpus.read_listing(path)


class WheelTest(absltest.TestCase):
  def test_members_are_read_as_text_and_never_outside(self):
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    make_wheel(
      root,
      "odd",
      {
        "odd/b.py": _GOOD.replace("\n", "\r\n"),
        "odd/a.py": b"\xff\xfe",
        "../outside.py": _GOOD,
        "/absolute.py": _GOOD,
        "odd/data.json": "{}",
        "odd/large.py": "#" * (1 << 21),
      },
    )
    read = list(corpus.python_files(root / "odd-1.0-py3-none-any.whl"))
    self.assertEqual(
      read, [("odd/a.py", None), ("odd/b.py", _GOOD), ("odd/large.py", None)]
    )

  def test_what_is_no_wheel_is_one_line(self):
    path = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      / "a-1.0-py3-none-any.whl"
    )
    path.write_bytes(b"PK")
    with self.assertRaisesRegex(errors.InputError, "need a wheel"):
      list(corpus.python_files(path))


class CommandTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.index = self.root / "index"
    self.index.mkdir()
    words = [f"name_{i}" for i in range(80)]
    module = lambda part: "".join(f"{w} = {part}\n" for w in words)
    self.lines = [
      make_wheel(
        self.index,
        name,
        {f"{name}/{i}.py": module(f"{name}_{i}") for i in range(60)}
        | {"shared/same.py": _GOOD, f"{name}/old.py": 'print "x"\n'},
      )
      for name in ("first", "second")
    ]
    self.list = self.root / "list.txt"

  def make(self, out, lines):
    self.list.write_text("".join(lines))
    return subprocess.run(
      [
        *(sys.executable, "-m", "experiments.corpus", f"--out={out}"),
        *(f"--list={self.list}", "--vocab_size=300", "--pip=--no-index"),
        f"--pip=--find-links={self.index}",
      ],
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=False,
    )

  def test_equal_bytes_twice_kept_wheels_and_a_checked_hash(self):
    first = self.make(self.root / "one", self.lines)
    self.assertEqual(first.returncode, 0, first.stderr)
    manifest = json.loads((self.root / "one" / "manifest.json").read_text())
    self.assertEqual(manifest["files"], 121)
    self.assertEqual(manifest["dropped"], {"Python 2": 2, "a duplicate": 1})
    self.assertGreater(manifest["tokens"]["train"], 0)

    # In another order; then from what has been fetched, without an index.
    self.make(self.root / "two", self.lines[::-1])
    again = json.loads((self.root / "two" / "manifest.json").read_text())
    for name in ("sha256", "tokens", "tokens_sha256"):
      self.assertEqual(manifest[name], again[name])
    for wheel in self.index.iterdir():
      wheel.unlink()
    whole = f"# corpus sha256:{manifest['sha256']}\n"
    kept = self.make(self.root / "one", [whole, *self.lines])
    self.assertEqual(kept.returncode, 0, kept.stderr)
    less = self.make(self.root / "one", [whole, self.lines[0]])
    self.assertEqual(less.returncode, 1, less.stderr)
    self.assertIn("names another", less.stdout)

  def test_a_wheel_of_another_hash_is_refused_in_one_line(self):
    line = re.sub("sha256:\\w+", "sha256:" + 64 * "0", self.lines[0])
    result = self.make(self.root / "three", [line])
    self.assertEqual(result.returncode, 2)
    said = [x for x in result.stderr.splitlines() if x.startswith("error")]
    self.assertLen(said, 1)
    self.assertIn("cannot fetch first==1.0", said[0])


if __name__ == "__main__":
  absltest.main()
