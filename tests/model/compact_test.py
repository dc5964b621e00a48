"""Compact weights: what was measured is what is read, and nothing else is."""

import pathlib
import tempfile

import chex
import helpers
import jax
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_jax import checkpoint
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import compact
from sparse_jax.utils import errors


def shapes_of(params):
  return jax.eval_shape(lambda: params)


class CompactTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.root / compact.WEIGHTS

  @settings(max_examples=30, deadline=None)
  @given(
    hnp.arrays(
      np.float32,
      hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7),
      elements=st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-3, 6e4, 1e-9]),
    )
  )
  def test_rounded_parameters_come_back_as_they_are(self, x):
    params = compact.rounded({"a": {"kernel": x}})
    np.testing.assert_allclose(params["a"]["kernel"], x, rtol=1e-3, atol=1e-7)
    compact.save(self.path, params)
    again = compact.load(self.path, shapes_of(params))
    chex.assert_trees_all_equal(again, params)
    bits = lambda tree: tree["a"]["kernel"].view(np.uint32).tolist()
    self.assertEqual(bits(again), bits(params))  # Signs of zeros included.

  def test_a_sparse_matrix_takes_two_bytes_a_weight_and_a_bit_an_entry(self):
    x = np.zeros((256, 256), np.float32)
    rng = np.random.default_rng(0)
    x.flat[rng.choice(x.size, x.size // 8, replace=False)] = rng.normal(
      size=x.size // 8
    )
    compact.save(self.path, compact.rounded({"kernel": x}))
    self.assertLess(self.path.stat().st_size, x.size * (2 / 8 + 1 / 8) * 1.05)

  def test_what_no_float16_holds_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "kernel goes up to 100000"):
      compact.rounded({"kernel": np.float32([1e5])})
    with self.assertRaisesRegex(errors.InputError, "compact.rounded"):
      compact.save(self.path, {"kernel": np.float32([0.1])})
    with self.assertRaisesRegex(errors.InputError, "compact.rounded"):
      compact.save(self.path, {"kernel": np.float32([-0.0])})
    self.assertFalse(self.path.exists())

  @parameterized.named_parameters(
    ("missing", {}, "missing or damaged"),
    ("too_few", {"k": np.ones(3, np.float16)}, "missing or damaged"),
    ("wide", {"k": np.ones(4, np.float32)}, "missing or damaged"),
    ("infinite", {"k": np.float16([1, np.inf, 1, 1])}, "missing or damaged"),
    (
      "few_bits",
      {"k": np.ones(4, np.float16), "k:kept": np.ones(0, np.uint8)},
      "missing or damaged",
    ),
    (
      "other_bits",
      {"k": np.ones(4, np.float16), "k:kept": np.uint8([0b11100000])},
      "missing or damaged",
    ),
    ("more", {"k": np.ones(4, np.float16), "z": np.ones(1)}, "also holds z"),
    ("objects", {"k": np.array([{}], object)}, "ValueError"),
  )
  def test_damage_is_one_line(self, arrays, message):
    np.savez(self.path, **arrays)
    with self.assertRaisesRegex(errors.InputError, message) as e:
      compact.load(self.path, {"k": jax.ShapeDtypeStruct((2, 2), np.float32)})
    self.assertNotIn("\n", str(e.exception))

  def test_a_model_directory_may_hold_compact_weights(self):
    model, params, _ = helpers.tiny_model(n_layer=1)
    params = compact.rounded(params)
    tokenizer = tokenizer_lib.Tokenizer.train(["x = 'abc'\n"] * 3, 258)
    directory = self.root / "model"
    checkpoint.save_model(directory, model, params, tokenizer, is_compact=True)
    self.assertFalse((directory / "checkpoint").exists())
    again, loaded = checkpoint.load_model(directory)
    self.assertEqual(again.config, model.config)
    chex.assert_trees_all_equal(loaded, params)


if __name__ == "__main__":
  absltest.main()
