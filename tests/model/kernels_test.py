"""Fused kernels, interpreted, against the functions that they stand for."""

import dataclasses
import functools
from unittest import mock

import chex
import helpers
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments.benchmark import measure
from sparse_jax import config as config_lib
from sparse_jax.model import attention, top_k, transformer
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.model import loss as loss_lib
from sparse_jax.utils import errors

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
      kernels_lib.row_top_k_mask(x, k), top_k.top_k_mask(x, k)
    )

  @parameterized.parameters((6, 1024), (5, 100), (3, 4097))
  def test_equals_select_for_wide_rows(self, *shape):
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    k = shape[-1] // 4
    np.testing.assert_array_equal(
      kernels_lib.row_top_k_mask(x, k), top_k.top_k_mask(x, k)
    )

  @parameterized.parameters(
    ((4096, 96), "bfloat16"),
    ((4096, 96), "float32"),
    ((131072, 4096), "bfloat16"),
    ((5, 100), "float16"),
  )
  def test_lowers_for_a_gpu(self, shape, dtype):
    x = jax.ShapeDtypeStruct(shape, dtype)
    mask = functools.partial(
      kernels_lib.row_top_k_mask, k=shape[-1] // 4, interpret=False
    )
    try:
      lowered = jax.jit(mask).trace(x).lower(lowering_platforms=("cuda",))
    except RuntimeError as e:
      if "No supported GPU devices" not in str(e):
        raise
      self.skipTest("JAX from 0.11 on asks for the GPU itself")
    self.assertIn("triton", lowered.as_text())

  def test_other_dtypes_are_refused(self):
    with self.assertRaisesRegex(TypeError, "16- or 32-bit float array"):
      kernels_lib.row_top_k_mask(jnp.arange(4), 1)


class KernelsTest(parameterized.TestCase):
  def test_a_model_and_its_gradient_are_the_same(self):
    model, params, windows = helpers.tiny_model()
    attend = mock.Mock(
      side_effect=functools.partial(
        attention.fused_attend, implementation="xla"
      )
    )
    top_k_mask = mock.Mock(side_effect=kernels_lib.row_top_k_mask)
    fused = transformer.Model(
      model.config,
      model.sparsity,
      kernels=kernels_lib.Kernels(attend, top_k_mask),
    )
    want, got = (
      jax.value_and_grad(loss_lib.next_token_loss, 1)(m, params, windows)
      for m in (model, fused)
    )
    attend.assert_called()
    top_k_mask.assert_called()
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)

  def test_fused_kernels_elsewhere_are_refused(self):
    config = config_lib.Config()
    self.assertIs(
      kernels_lib.choose(config, jnp.float32, num_devices=8), kernels_lib.XLA
    )
    with self.assertRaisesRegex(
      errors.InputError, "train.kernels='fused' .*need xla for 1 cpu"
    ):
      kernels_lib.choose(
        dataclasses.replace(
          config, train=config_lib.TrainConfig(kernels="fused")
        ),
        jnp.bfloat16,
      )

  @parameterized.named_parameters(
    ("width", 12, "bfloat16", "model.d_head=12 .*multiple of 8"),
    ("wide", 128, "bfloat16", "model.d_head=128 .*at most 120"),
    ("dtype", 16, "float32", "train.compute_dtype='float32' .*bfloat16"),
  )
  def test_what_cudnn_does_not_take_is_named(self, width, dtype, message):
    model = config_lib.ModelConfig(d_model=8 * width, d_head=width)
    with self.assertRaisesRegex(errors.InputError, message):
      kernels_lib.check_fused(model, jnp.dtype(dtype))

  def test_they_are_taken_otherwise(self):
    found = kernels_lib.check_fused(
      config_lib.ModelConfig(), jnp.dtype("bfloat16")
    )
    self.assertIs(found, kernels_lib.FUSED)

  def test_the_training_step_asks_for_them(self):
    shape = measure.Shape(n_layer=1, d_model=32, kernels="fused")
    with self.assertRaisesRegex(errors.InputError, "train.kernels='fused'"):
      measure.TrainingStep(shape)
    metrics = list(measure.measure_fused(measure.SHORT, shape))
    self.assertLen(metrics, 2)
    for metric in metrics:
      self.assertIsNone(metric.value)
      self.assertIn("need xla for 1 cpu", metric.note)


if __name__ == "__main__":
  absltest.main()
