"""The command that draws: which circuits it takes, what it writes."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import own_task
import pages
from absl.testing import absltest, parameterized

from sparse_jax import checkpoint, reference
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.utils import errors

_ROOT = pathlib.Path(__file__).parents[2]


def run(*args):
  return subprocess.run(
    [sys.executable, "-m", "experiments.report", *args],
    cwd=_ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )


class ReportTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    for name in ("a", "b"):
      pages.small(task=name).save(cls.dir / "circuits" / name)
    (cls.dir / "circuits" / "other").mkdir()

  def test_directories_of_circuits_and_each_once(self):
    root = self.dir / "circuits"
    find = lambda *paths: reference.find_circuits(map(str, paths))
    self.assertEqual(find(root / "b"), [root / "b"])
    self.assertEqual(find(root), [root / "a", root / "b"])
    again = root / "other" / ".." / "a"
    self.assertEqual(find(root / "b", root, again), [root / "b", root / "a"])
    for nothing in (root / "other", self.dir / "nowhere"):
      with self.assertRaisesRegex(errors.InputError, f"--circuits={nothing}"):
        find(root / "a", nothing)

  def test_draws_a_directory_on_a_page_and_the_first_as_a_picture(self):
    circuits, page = self.dir / "circuits", self.dir / "page.html"
    png, table = self.dir / "first.png", self.dir / "table.md"
    result = run(
      f"--circuits={circuits},{circuits / 'a'}",
      f"--out={page}",
      f"--picture={png}",
      f"--table={table}",
      f"--svg={self.dir / 'first.svg'}",
      "--theme=dark",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    drawn = pages.Page(page.read_text())
    headings = [text for _, text in drawn.find("h2")]
    self.assertEqual(headings, ["a", "b"])
    self.assertIn("head 1", page.read_text())
    self.assertLen(table.read_text().splitlines(), 4)
    self.assertStartsWith(png.read_bytes(), b"\x89PNG\r\n")
    self.assertStartsWith((self.dir / "first.svg").read_text(), "<svg ")

  def test_with_the_model_the_page_shows_how_a_circuit_works(self):
    tokenizer = tokenizer_lib.Tokenizer.train([own_task.TEXT] * 4, 300)
    model, params, circuit = own_task.make_circuit(tokenizer)
    code, own = self.dir / "code", self.dir / "own.jsonl"
    code.mkdir()
    for i in range(8):
      (code / f"held_{i}.py").write_text(f"# {i}\n{own_task.TEXT}\n" * (i + 2))
    run_config = config_lib.Config(
      data=config_lib.DataConfig(source=str(code), eval_fraction=0.5)
    )
    where = self.dir / "model"
    checkpoint.save_model(where, model, params, tokenizer, run_config)
    circuit.save(self.dir / "own_task")
    own.write_text('"y = \'gamma"\n')
    page = self.dir / "works.html"
    result = run(
      f"--circuits={self.dir / 'own_task'}",
      f"--model={where}",
      f"--prompts={own}",
      f"--out={page}",
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    ((_, text), _) = pages.Page(page.read_text()).find("script")
    found = json.loads(text)
    self.assertNotEmpty(found["windows"])
    self.assertStartsWith(found["windows"][0][0], "held_")
    owns = [prompt["own"] for prompt in found["circuits"][0]["prompts"]]
    self.assertEqual(owns, [False, False, True])
    self.assertTrue(all("values" in n for n in found["circuits"][0]["nodes"]))

  @parameterized.parameters(
    ((), "--out is missing; .*--picture=FILE.png, --svg=FILE.svg or --table"),
    (("--circuits=/nowhere", "--out=x.html"), "/nowhere"),
    (("--prompts=x", "--out=x.html"), "--prompts=x without a model; .*--model"),
  )
  def test_missing_flags_and_circuits_are_one_line(self, args, want):
    result = run(*args)
    self.assertEqual(result.returncode, 2)
    self.assertRegex(result.stderr, f"^error: .*{want}.*\n$")


if __name__ == "__main__":
  absltest.main()
