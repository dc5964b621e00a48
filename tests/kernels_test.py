"""Fused kernels, interpreted, against the functions that they stand for."""

import functools

import chex
import helpers
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_jax import attention, errors, kernels, loss, select
from sparse_jax import model as model_lib

_TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan])
_FLOATS = st.floats(width=16, allow_nan=False)


class RowTopKMaskTest(parameterized.TestCase):
  @hypothesis.given(
    hnp.arrays(
      np.float32,
      st.sampled_from([(1, 1), (9,), (4, 7), (2, 3, 8)]),
      elements=st.one_of(_TIED, _FLOATS),
    ),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.data(),
  )
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_equals_select(self, x, dtype, data):
    k = data.draw(st.integers(0, x.shape[-1]))
    x = jnp.asarray(x, dtype)
    np.testing.assert_array_equal(
      kernels.row_top_k_mask(x, k), select.top_k_mask(x, k)
    )

  @parameterized.parameters((6, 1024), (5, 100), (3, 4097))
  def test_equals_select_for_wide_rows(self, *shape):
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    k = shape[-1] // 4
    np.testing.assert_array_equal(
      kernels.row_top_k_mask(x, k), select.top_k_mask(x, k)
    )

  @parameterized.parameters("bfloat16", "float32")
  def test_lowers_for_a_gpu(self, dtype):
    x = jax.ShapeDtypeStruct((4096, 96), dtype)
    mask = functools.partial(kernels.row_top_k_mask, k=24, interpret=False)
    lowered = jax.jit(mask).trace(x).lower(lowering_platforms=("cuda",))
    self.assertIn("triton", lowered.as_text())


class KernelsTest(absltest.TestCase):
  def test_a_model_and_its_gradient_are_the_same(self):
    model, params, windows = helpers.tiny_model()
    fused = model_lib.Model(
      model.config,
      model.sparsity,
      kernels=kernels.Kernels(
        functools.partial(attention.fused_attend, implementation="xla"),
        kernels.row_top_k_mask,
      ),
    )
    want, got = (
      jax.value_and_grad(loss.next_token_loss, 1)(m, params, windows)
      for m in (model, fused)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)

  def test_fused_kernels_elsewhere_are_refused(self):
    self.assertIs(kernels.choose("xla", num_devices=8), kernels.XLA)
    with self.assertRaisesRegex(
      errors.InputError, "train.kernels='fused' .*need xla for 1 cpu"
    ):
      kernels.choose("fused")


if __name__ == "__main__":
  absltest.main()
