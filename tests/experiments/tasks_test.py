import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

import sparse_jax as sj
from sparse_jax import checkpoint, tasks
from sparse_jax import config as config_lib
from sparse_jax.data import sources, tokenizer
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.tasks import docs, natural
from sparse_jax.utils import errors

_ROOT = pathlib.Path(__file__).parents[2]
_NAMES = ("ast", "csv", "difflib", "json/decoder", "json/encoder", "optparse")
_ROW = {"prompt": "say '{}", "answer": "'"}
_ROW |= {"counter_prompt": 'say "{}', "counter_answer": '"'}


def _write_files(folder: pathlib.Path) -> list[str]:
  texts = []
  for name in _NAMES:
    path = pathlib.Path(sysconfig.get_path("stdlib"), name + ".py")
    texts.append(path.read_text(encoding="utf-8"))
    shutil.copy(path, folder / name.replace("/", "_"))
  return texts


class TasksCommandTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name)
    source = cls.folder / "source"
    source.mkdir()
    cls.tokenizer = tokenizer.Tokenizer.train(_write_files(source), 700)
    cls.config = config_lib.resolve(
      config_lib.from_config_dict(
        {
          "data": {
            "source": str(source),
            "eval_fraction": 0.5,
            "context_length": 32,
          },
          "model": {"n_layer": 1, "d_model": 16},
          "sparsity": {"density": 0.5},
          "prune": {"target_loss": 0.4, "loss_unit": "per_pair"},
        }
      ),
      cls.tokenizer.vocab_size,
    )
    cls.model = sj.Model(cls.config.model, cls.config.sparsity)
    cls.params = jax.jit(cls.model.init)(jax.random.key(0))
    cls.directory = cls.folder / "model"
    checkpoint.save_model(
      cls.directory, cls.model, cls.params, cls.tokenizer, cls.config
    )
    cls.mine = cls.folder / "mine.jsonl"
    rows = [
      {k: v.format(i) for k, v in _ROW.items()} | {"split": split}
      for i, split in enumerate(tasks.SPLITS * 7)
    ]
    cls.mine.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    # Two of the seven test pairs, and all of them, have 500 lines before them.
    for name, some in (("mixed", range(6)), ("long", range(99))):
      for i, row in enumerate(rows):
        if i in some:
          before = "value = compute(1, 2, 3)\n" * 500
          row["prompt"] = before + row["prompt"]
          row["counter_prompt"] = before + row["counter_prompt"]
      path = cls.folder / f"{name}.jsonl"
      path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

  def _figures(self, sequences):
    """Returns loss and accuracy by the whole forward pass."""
    tokens, positions, correct, incorrect = sequences
    rows = np.arange(len(tokens))
    # Wide enough for every task here: one compilation.
    padded = np.zeros((64, 64), np.int32)
    padded[: len(tokens), : tokens.shape[1]] = tokens
    logits = self.apply(self.params, jnp.asarray(padded))
    last = np.asarray(logits)[rows, positions].astype(float)
    two = np.stack([last[rows, correct], last[rows, incorrect]], 1)
    loss = np.mean(np.log(np.exp(two).sum(1)) - two[:, 0])
    return loss, np.mean(two[:, 0] > two[:, 1])

  def test_command_prints_and_writes_the_figures(self):
    out = self.folder / "figures.json"
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "experiments.tasks",
        f"--model={self.directory}",
        f"--tasks=all,{self.mine},"
        f"{self.folder / 'mixed.jsonl'},{self.folder / 'long.jsonl'}",
        f"--out={out}",
        "--natural=40",
        "--pairs=30",
        "--seed=3",
      ],
      cwd=_ROOT,
      env=os.environ,
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    figures = json.loads(out.read_text(encoding="utf-8"))
    self.assertEqual(figures["gate"], {"min_accuracy": 0.9, "max_loss": 0.4})
    self.assertEqual(
      figures["natural"],
      {"source": self.config.data.source, "held_out": True},
    )
    self.assertEqual(
      figures["model_fingerprint"],
      fingerprint_lib.fingerprint(self.model, self.params),
    )
    names = [*figures["tasks"], *figures["skipped"]]
    self.assertCountEqual(names, [*tasks.TASK_NAMES, "mine", "mixed", "long"])
    says = "2 of 7 pairs are longer than 128 tokens: skipped"
    self.assertIn(f"mixed: {says}", done.stdout)
    mixed = figures["tasks"].pop("mixed")
    self.assertIn(says, mixed["too_long"])
    self.assertEqual(mixed["test"]["count"], 5)
    self.assertIn("7 of 7 pairs are longer", figures["skipped"]["long"])
    # Words cut apart by so small a tokenizer.
    self.assertIn("enumerate_range", figures["skipped"])
    self.assertIn("' enumerate'", figures["skipped"]["enumerate_range"])
    for name in names:
      self.assertRegex(done.stdout, rf"(?m)^(skipped: )?{name}\b")

    made, _ = tasks.make_tasks(["all", str(self.mine)], self.tokenizer)
    documents = sources.documents(self.config.data, "eval")
    harvested = natural.harvest(made, documents, 40, 3, 32)
    self.apply = jax.jit(self.model.apply)
    num_natural = 0
    for task in made:
      got = figures["tasks"][task.name]
      count = 7 if task.name == "mine" else 30
      pairs = task.pairs("test", count, 3)
      self.assertEqual(got["test"]["count"], count)
      loss, accuracy = self._figures(pairs.sequences())
      np.testing.assert_allclose(
        (got["test"]["loss"], got["test"]["accuracy"]),
        (loss, accuracy),
        rtol=1e-4,
      )
      self.assertEqual(got["learned"], accuracy >= 0.9 and loss <= 0.4)
      self.assertEqual(got["learned"], got["not_learned_because"] == [])
      prompts = harvested[task.name]
      self.assertEqual(got["natural"] is None, not prompts)
      if prompts:
        num_natural += 1
        self.assertEqual(got["natural"]["count"], len(prompts))
        self.assertEqual(got["natural"]["num_groups"], len(set(prompts.names)))
        np.testing.assert_allclose(
          (got["natural"]["loss"], got["natural"]["accuracy"]),
          self._figures(prompts.sequences()),
          rtol=1e-4,
        )
    self.assertGreater(num_natural, 3)

  def test_a_task_by_name_must_be_one_that_can_be_stated(self):
    for names, message in (
      (["single_quote"], "did you mean"),
      (["enumerate_range"], "cannot be stated"),
      (["else_elif", "all"], "else_elif.*once"),
      ([str(self.mine), str(self.mine)], "mine.*once"),
      ([], "tasks"),
      ([str(self.folder / "none.py")], "existing"),
    ):
      with self.assertRaisesRegex(errors.InputError, message):
        tasks.make_tasks(names, self.tokenizer)

  def test_nothing_of_all_can_be_stated(self):
    class Mute:
      """Has no single tokens."""

      def single_token(self, text):
        del text

      def encode_batch(self, texts):
        return [np.array([0, 1], np.uint32)] * len(texts)

    with self.assertRaisesRegex(errors.InputError, "tasks='all'.*stated"):
      tasks.make_tasks(["all"], Mute())


class TaskDocsTest(absltest.TestCase):
  def test_page_is_complete_and_deterministic(self):
    with tempfile.TemporaryDirectory() as folder:
      texts = _write_files(pathlib.Path(folder))
    # Few tokens, so that some tasks cannot be stated.
    words = tokenizer.Tokenizer.train(texts, 400)
    make_task = functools.partial(tasks.make_task, tokenizer=words)
    names = tasks.TASK_NAMES
    page = docs.page(names, make_task, words, 20)
    few = names[:2]
    self.assertEqual(
      docs.page(few, make_task, words, 20),
      docs.page(few, make_task, words, 20),
    )
    self.assertIn("not in this tokenizer", page)
    rows = [line for line in page.split("\n") if line.startswith("| [")]
    self.assertLen(rows, 20)
    for name, row in zip(tasks.TASK_NAMES, rows, strict=True):
      self.assertIn(f"\n## {name}\n", page)
      # Four cells, whatever the answers hold.
      self.assertLen(re.findall(r"(?<!\\)\|", row), 5)
    opened = re.findall(r"\n```(?:text|json|python)\n", page)
    self.assertLen(opened, page.count("\n```\n"))
    self.assertLess(max(map(len, page.split("\n"))), 1000)

  def test_example_marks_the_tokens(self):
    words = tokenizer.Tokenizer.train([], 257)
    task = tasks.make_task("single_double_quote", words)
    first, second = docs.example(task).split("\n")
    pairs = task.pairs("test", 1)
    self.assertTrue(first.endswith(" → '"))
    self.assertTrue(second.endswith(' → "'))
    self.assertEqual(
      first.split(" → ")[0].rstrip(" ").split("│"),
      list(pairs.prompt_texts[0]),
    )

  @given(st.text(alphabet="`| a", min_size=1))
  def test_code_survives_bars_and_backticks(self, text):
    span = docs.code_span(text)
    fence = re.match("`+", span)[0]
    # A run of the fence's length occurs at both ends only.
    runs = re.findall("`+", span)
    self.assertEqual([len(r) == len(fence) for r in runs].count(True), 2, span)
    self.assertEqual(runs[0], runs[-1])
    self.assertIn(text, span)
    self.assertNotRegex(docs.cell(span), r"(?<!\\)\|")
    block = docs.code_block(text).split("\n")
    self.assertFalse(any(line.startswith(block[-1]) for line in block[1:-1]))


if __name__ == "__main__":
  absltest.main()
