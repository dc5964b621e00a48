"""Prompts from a file: what is read, and what is refused by its line."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized

from sparse_jax.report import user_prompts
from sparse_jax.utils import errors


class ReadTest(parameterized.TestCase):
  def _read(self, text):
    directory = self.enter_context(tempfile.TemporaryDirectory())
    path = pathlib.Path(directory, "prompts.jsonl")
    path.write_text(text)
    return user_prompts.read(path)

  def test_texts_and_pairs_with_further_keys(self):
    found = self._read(
      '"x = \\"a\\n"\n\n{"prompt": "p", "answer": "a"}\n'
      '{"prompt": "p", "counter_prompt": "q"}\n'
    )
    make = user_prompts.UserPrompt
    self.assertEqual(found, [make('x = "a\n'), make("p"), make("p", "q")])

  @parameterized.parameters(
    ("", "prompts=0 .*1 to 20 lines"),
    ('"a"\n' * 21, "prompts=21 .*1 to 20 lines"),
    ('"a"\nx = 1\n', "line 2='x = 1'"),
    ("[1]\n", "line 1="),
    ('{"prompt": 3}\n', "line 1=.*text in JSON"),
    ('{"prompt": "a", "counter_prompt": []}\n', "line 1="),
    ("[" * 100_000, "line 1="),
  )
  def test_other_lines_are_refused(self, text, want):
    with self.assertRaisesRegex(errors.InputError, want) as caught:
      self._read(text)
    self.assertLess(len(str(caught.exception)), 400)


if __name__ == "__main__":
  absltest.main()
