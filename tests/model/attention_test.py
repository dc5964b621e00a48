"""Attention against a plain softmax with the sink as a key of its own."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax._src.cudnn import fused_attention_stablehlo

from sparse_jax.model import attention

# The fused one by JAX's plain kernel: what it adds is the sink.
FORMS = {
  "exact": attention.attend,
  "fused": functools.partial(attention.fused_attend, implementation="xla"),
}


def naive_attention(q, k, v, sink):
  """One head at a time, with the sink as a real extra key of value zero."""
  out = np.zeros_like(q)
  batch, length, heads, width = q.shape
  for b in range(batch):
    for h in range(heads):
      for i in range(length):
        score = k[b, : i + 1, h] @ q[b, i, h] / np.sqrt(width)
        values = v[b, : i + 1, h]
        if sink is not None:
          score = np.append(score, sink[h])
          values = np.vstack([values, np.zeros(width)])
        weight = np.exp(score - score.max())
        out[b, i, h] = weight @ values / weight.sum()
  return out


class AttentionTest(parameterized.TestCase):
  @parameterized.product(
    form=tuple(FORMS), has_sink=(True, False), length=(5, 6)
  )
  def test_attention_against_one_key_at_a_time(self, form, has_sink, length):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, length, 3, 4)).astype(np.float32)
    sink = rng.normal(size=3).astype(np.float32) if has_sink else None
    got = FORMS[form](*map(jnp.asarray, (q, k, v)), sink)
    np.testing.assert_allclose(
      got, naive_attention(q, k, v, sink), rtol=1e-5, atol=1e-6
    )

  @parameterized.product(
    form=tuple(FORMS),
    has_sink=(True, False),
    queries=("all", "one"),
    dtype=("f4", "bfloat16"),
  )
  def test_gradient_of_attention_is_that_of_a_plain_softmax(
    self, form, has_sink, queries, dtype
  ):
    rng = np.random.default_rng(0)
    q, k, v, dy = (
      jnp.asarray(x, dtype) for x in rng.normal(size=(4, 2, 5, 3, 4))
    )
    sink = jnp.asarray(rng.normal(size=3), jnp.float32) if has_sink else None
    position = jnp.tile(jnp.arange(5), (2, 1))
    asked = None
    if queries == "one":
      q, dy, position = q[:, :1], dy[:, :1], jnp.array([[2], [4]])
      asked = position

    def plain(q, k, v, sink):
      q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
      score = jnp.einsum("BLHK,BMHK->BHLM", q, k) / 2
      hidden = jnp.arange(5) > position[:, None, :, None]
      score = jnp.where(hidden, -jnp.inf, score)
      if sink is not None:
        column = jnp.broadcast_to(sink[:, None, None], (*score.shape[:3], 1))
        score = jnp.concatenate([score, column], -1)
      weight = jax.nn.softmax(score, -1)[..., :5]
      return jnp.einsum("BHLM,BMHK->BLHK", weight, v)

    def ours(q, k, v, sink):
      return FORMS[form](q, k, v, sink, asked)

    dy = dy.astype(jnp.float32)
    want = jax.vjp(plain, q, k, v, sink)[1](dy)
    got = jax.vjp(ours, q, k, v, sink)[1](dy)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    tolerance = 1e-5 if dtype == "f4" else 0.05
    chex.assert_trees_all_close(got, want, rtol=tolerance, atol=tolerance)

  def test_blocks_of_queries_make_no_difference(self):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 150, 2, 4)).astype(np.float32)
    sink = jnp.array([0.5, -0.5])
    self.assertGreater(len(attention._blocks(150)), 2)
    # Stated positions make it one block.
    position = np.tile(np.arange(150), (2, 1))
    chex.assert_trees_all_close(
      attention.attend(q, k, v, sink),
      attention.attend(q, k, v, sink, position),
      rtol=1e-5,
      atol=1e-5,
    )

  def test_attention_does_not_overflow(self):
    big = jnp.full((1, 3, 1, 4), 1e4)
    sink = jnp.array([-1e4])
    self.assertTrue(
      jnp.all(jnp.isfinite(attention.attend(big, big, big, sink)))
    )

  def test_sinks_are_not_rounded_to_bfloat16(self):
    q = jnp.zeros((1, 3, 1, 8), jnp.bfloat16)
    v = jnp.ones_like(q)
    for sink in (8.01, 8.02):
      y = FORMS["fused"](q, q, v, jnp.array([sink]))
      seen = jnp.array([1, 2, 3])
      # A bfloat16 alone holds this logit to 0.02, and the sum to 2 in 100.
      np.testing.assert_allclose(
        y[0, :, 0, 0], seen / (seen + np.exp(sink)), rtol=2**-8
      )

  @parameterized.product(has_sink=(True, False), length=(255, 256))
  def test_gradient_by_cudnn_lowers(self, has_sink, length):
    def total(q, k, v, sink):
      y = attention.fused_attend(q, k, v, sink if has_sink else None)
      return jnp.sum(y)

    x = jax.ShapeDtypeStruct((2, length, 3, 16), jnp.bfloat16)
    sink = jax.ShapeDtypeStruct((3,), jnp.float32)
    # Asks for a version, which a machine without cuDNN does not have.
    with mock.patch.object(
      fused_attention_stablehlo, "check_cudnn_version", lambda: 91100
    ):
      traced = jax.jit(jax.grad(total, (0, 1, 2, 3))).trace(x, x, x, sink)
      text = traced.lower(lowering_platforms=("cuda",)).as_text()
    self.assertIn("__cudnn$fmhaSoftmaxBackward", text)


if __name__ == "__main__":
  absltest.main()
