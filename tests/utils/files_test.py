"""Files are whole or absent; directories belong to one process."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl.testing import absltest, parameterized

from sparse_jax.utils import errors, files


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def names(self):
    return sorted(p.name for p in self.root.iterdir())

  def test_write_makes_parents_and_replaces(self):
    path = self.root / "a" / "b.txt"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    self.assertEqual(path.read_bytes(), b"two")
    self.assertEqual(os.listdir(path.parent), ["b.txt"])

  def test_full_disk_keeps_the_old_file(self):
    # The system's limit on file sizes fails in the middle of a write, as a
    # full disk does.
    path = self.root / "a.txt"
    path.write_bytes(b"old")
    script = (
      "import resource, sys; from sparse_jax.utils import errors, files\n"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
      "try: files.write_bytes(sys.argv[1], bytes(5000))\n"
      "except errors.InputError as e: print(e)"
    )
    done = subprocess.run(
      [sys.executable, "-c", script, path],
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertIn(f"cannot write {path}", done.stdout)
    self.assertIn(os.strerror(errno.EFBIG), done.stdout)
    self.assertEqual(path.read_bytes(), b"old")
    self.assertEqual(self.names(), ["a.txt"])

  def test_a_file_in_place_of_the_directory(self):
    (self.root / "file").write_text("")
    with self.assertRaisesRegex(errors.InputError, "cannot write .*file/a"):
      files.write_bytes(self.root / "file" / "a", b"")

  def test_json_holds_null_for_what_json_cannot(self):
    path = self.root / "a.json"
    values = {"a": [1.5, float("nan")], "b": (float("inf"), True, None)}
    files.write_json(path, values)
    want = {"a": [1.5, None], "b": [None, True, None]}
    self.assertEqual(json.loads(path.read_text()), want)
    self.assertEqual(files.read_json(path, "a thing"), want)

  @parameterized.named_parameters(
    ("missing", None, "No such file"),
    ("empty", b"", "not JSON"),
    ("truncated", b'{"a": 1', "not JSON"),
    ("binary", b"\xff\xfe\x00", "not JSON"),
  )
  def test_unreadable_json(self, content, reason):
    path = self.root / "a.json"
    if content is not None:
      path.write_bytes(content)
    with self.assertRaisesRegex(errors.InputError, reason) as e:
      files.read_json(path, "a thing of ours")
    self.assertIn(str(path), str(e.exception))
    self.assertIn("a thing of ours", str(e.exception))

  def test_directory_takes_its_place_when_whole(self):
    target = self.root / "out"
    for content in ("one", "two"):
      with files.replace_directory(target, "marker") as new:
        (new / "marker").write_text(content)
        (new / content).write_text("")
    self.assertEqual((target / "marker").read_text(), "two")
    self.assertEqual(sorted(os.listdir(target)), ["marker", "two"])
    self.assertEqual(self.names(), ["out"])

  def test_failure_keeps_the_old_directory(self):
    target = self.root / "out"
    target.mkdir()
    (target / "marker").write_text("old")
    with self.assertRaises(KeyError):
      with files.replace_directory(target, "marker") as new:
        (new / "marker").write_text("new")
        raise KeyError
    self.assertEqual((target / "marker").read_text(), "old")
    self.assertEqual(self.names(), ["out"])

  def test_foreign_directory_is_left_alone(self):
    target = self.root / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with self.assertRaisesRegex(errors.InputError, "holds no marker"):
      with files.replace_directory(target, "marker"):
        self.fail("must not be entered")
    self.assertEqual((target / "thesis.txt").read_text(), "mine")
    self.assertEqual(self.names(), ["out"])

  def test_file_in_place_of_a_directory_is_left_alone(self):
    (self.root / "out").write_text("mine")
    with self.assertRaisesRegex(errors.InputError, "holds no marker"):
      with files.replace_directory(self.root / "out", "marker"):
        self.fail("must not be entered")
    self.assertEqual((self.root / "out").read_text(), "mine")

  def test_what_others_still_write_after_a_failure_goes_as_well(self):
    with self.assertRaisesRegex(ValueError, "half way"):
      with files.replace_directory(self.root / "out", "marker") as new:

        def write_on():
          for i in range(30):
            new.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
              (new / str(i)).write_text("late")
            time.sleep(0.005)

        writer = threading.Thread(target=write_on)
        writer.start()
        raise ValueError("half way")
    writer.join()
    self.assertEqual(self.names(), [])

  def test_empty_directory_is_accepted(self):
    (self.root / "out").mkdir()
    with files.replace_directory(self.root / "out", "marker") as new:
      (new / "marker").write_text("")
    self.assertEqual(os.listdir(self.root / "out"), ["marker"])

  def test_one_holder_at_a_time(self):
    with files.exclusive(self.root / "run"):
      with self.assertRaisesRegex(errors.InputError, "in use by another"):
        with files.exclusive(self.root / "run"):
          self.fail("must not be entered")
    with files.exclusive(self.root / "run"):
      pass

  def test_exclusive_on_a_file(self):
    (self.root / "run").write_text("")
    with self.assertRaisesRegex(errors.InputError, "cannot write .*run"):
      with files.exclusive(self.root / "run"):
        self.fail("must not be entered")


if __name__ == "__main__":
  absltest.main()
