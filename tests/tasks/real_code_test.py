"""Real code around prompts: what is taken, and where it may stand."""

import ast
import dataclasses
import types

import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax import tasks
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.tasks import real_code
from sparse_jax.tasks.pairs import Prompts

_FILE = """import os
import sys

def load(path):
  \"\"\"Reads.\"\"\"
  name = path
  size = len(name)
  if size:
    print('alpha')
    print("beta")
  return call(
    name)
"""


def _document(text, name="a"):
  return types.SimpleNamespace(text=text, name=name)


class RealCodeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    text = "\n".join(
      f"print('{word}')\nlog(\"{word}\")\n{word} = {word}"
      for word in ("alpha", "beta", "gamma", "delta")
    )
    cls.tokenizer = tokenizer_lib.Tokenizer.train([text * 4], 300)
    cls.task = tasks.make_task("single_double_quote", cls.tokenizer)
    # As `natural.harvest` returns them: each answer equally often.
    a, b = (cls.tokenizer.single_token(text) for text in cls.task.answers)
    prompts = Prompts(
      tokens=np.arange(24, dtype=np.int32).reshape(6, 4),
      lengths=np.array([4, 3, 4, 2, 4, 4], np.int32),
      correct=np.array([a, a, a, b, b, b], np.int32),
      incorrect=np.array([b, b, b, a, a, a], np.int32),
      names=("f", "f", "g", "f", "g", "h"),
    )
    cls.code = real_code.RealCode(
      ("x = 1\n", "y = 2\nz = 3\n"), {cls.task.name: prompts}
    )

  def surround(self, **fields):
    return real_code.surround(
      self.task, self.code, config_lib.PruneConfig(**fields)
    )

  def test_snippets_are_whole_statements_that_open_nothing(self):
    found = list(real_code.snippets(_document(_FILE)))
    self.assertNotEmpty(found)
    for text in found:
      self.assertEqual(text, text.lstrip(" "))
      ast.parse(text)
    self.assertIn("import os\nimport sys\n", found)

  def test_what_is_not_python_gives_none(self):
    self.assertEmpty(list(real_code.snippets(_document("a b (:"))))

  def test_a_snippet_takes_the_prompts_indent(self):
    task = self.surround(behind_code=1.0, real_prompts=0.0)
    for text in task.pairs("train", 40).prompt_texts:
      *before, last = text.split("\n")
      self.assertNotEmpty(before)
      indent = len(last) - len(last.lstrip(" "))
      if len(before) == 1:
        self.assertEqual(before[0], " " * indent + "x = 1")

  def test_a_snippet_leaves_the_prompt_in_the_models_context(self):
    own = self.task.pairs("train", 60)
    limit = int(own.lengths.max()) + 2
    code = dataclasses.replace(self.code, max_tokens=limit)
    prune = config_lib.PruneConfig(behind_code=1.0, real_prompts=0.0)
    pairs = real_code.surround(self.task, code, prune).pairs("train", 60)
    self.assertLessEqual(pairs.lengths.max(), limit)
    self.assertTrue(any("\n" in text for text in pairs.prompt_texts))

  @parameterized.parameters("validation", "test")
  def test_other_pairs_stay_what_they_are(self, split):
    task = self.surround(behind_code=1.0, real_prompts=0.5)
    for a, b in zip(
      task.pairs(split, 30).sequences(),
      self.task.pairs(split, 30).sequences(),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)

  def test_real_prompts_are_the_share_asked_for_and_paired_by_answer(self):
    task = self.surround(behind_code=0.0, real_prompts=0.25)
    pairs = task.pairs("train", 60)
    self.assertLen(pairs, 80)
    real = pairs.templates == -1
    self.assertEqual(real.sum(), 20)
    self.assertLen(set(pairs.answers[real]), 1)
    self.assertLen(set(pairs.counter_answers[real]), 1)
    np.testing.assert_array_equal(
      pairs.answers != pairs.counter_answers, np.ones(80, bool)
    )
    # Dealt among the others, and the same again.
    self.assertTrue(real[:40].any() and real[40:].any())
    again = task.pairs("train", 60)
    np.testing.assert_array_equal(again.prompts, pairs.prompts)

  def test_a_task_without_real_prompts_keeps_its_pairs(self):
    pairs = self.task.pairs("train", 10)
    self.assertIs(real_code.mix(pairs, None, 0.5), pairs)
    self.assertIs(
      real_code.mix(pairs, self.code.prompts[self.task.name], 0.0), pairs
    )


if __name__ == "__main__":
  absltest.main()
