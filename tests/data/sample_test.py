"""Windows of a source's first text, by a tokenizer that is given."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax.data import sample, sources
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.utils import errors


class SampleTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for i in range(6):
      (folder / f"{i}.py").write_text(f"x = {i}\ny = 'abc'\n")
    self.config = config_lib.DataConfig(source=str(folder))
    self.tokenizer = tokenizer_lib.Tokenizer.train(["x = 1\n"] * 3, 258)

  def windows(self, **fields):
    return sample.first_windows(
      self.config, self.tokenizer, progress=False, **fields
    )

  def test_windows_follow_the_documents(self):
    tokens = []
    for document in sources.documents(self.config, "train"):
      tokens += self.tokenizer.encode(document.text)
      tokens.append(self.tokenizer.end_of_text)
    got = self.windows(context_length=8, count=3)
    self.assertEqual(got.dtype, np.int32)
    np.testing.assert_array_equal(got, np.reshape(tokens[:24], (3, 8)))

  def test_a_short_source_repeats_its_windows(self):
    got = self.windows(context_length=8, count=40)
    self.assertEqual(got.shape, (40, 8))
    first = next(i for i in range(1, 40) if (got[i] == got[0]).all())
    np.testing.assert_array_equal(got[first:], got[:-first])

  def test_less_than_a_window_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "train tokens; need at lea"):
      self.windows(context_length=10_000, count=1)


if __name__ == "__main__":
  absltest.main()
