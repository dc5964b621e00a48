"""Selection against a stable sort."""

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_jax.model import top_k

# Few distinct values: most draws hold ties, signed zeros and infinities.
_TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, np.inf, -np.inf])
_mask = jax.jit(top_k.top_k_mask, static_argnames="axis")
_FLOATS = st.floats(width=32, allow_nan=False)


def sorted_mask(x, k):
  """Reference: a stable sort by falling magnitude, row by row."""
  order = np.argsort(-np.abs(np.asarray(x, np.float64)), -1, kind="stable")
  mask = np.zeros(x.shape, bool)
  np.put_along_axis(mask, order[..., :k], True, -1)
  return mask


class SelectTest(parameterized.TestCase):
  @hypothesis.given(
    hnp.arrays(
      np.float32,
      st.sampled_from([(1,), (9,), (4, 7), (2, 3, 8)]),
      elements=st.one_of(_TIED, _FLOATS),
    ),
    st.data(),
  )
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_mask_equals_stable_sort(self, x, data):
    k = data.draw(st.integers(0, x.shape[-1]))
    mask = _mask(jnp.asarray(x), k)
    np.testing.assert_array_equal(mask, sorted_mask(x, k))

  @parameterized.parameters(1023, 1024, 2047, 2048, 65535, 65536)
  def test_counts_that_share_an_integer_do_not_run_over(self, width):
    rng = np.random.default_rng(0)
    magnitude = np.ones((2, width), np.float32)
    magnitude[1] += rng.permutation(width)
    x = magnitude * rng.choice([-1, 1], (2, width))
    for k in (1, width // 4, width - 1):
      np.testing.assert_array_equal(_mask(jnp.asarray(x), k), sorted_mask(x, k))

  def test_axes_that_do_not_adjoin_equal_the_flattened_ones(self):
    x = np.random.default_rng(0).normal(size=(64, 3, 64)).astype(np.float32)
    mask = _mask(jnp.asarray(x), 100, axis=(0, 2))
    for row in range(3):
      np.testing.assert_array_equal(
        np.ravel(mask[:, row]), sorted_mask(x[:, row].ravel(), 100)
      )

  @parameterized.named_parameters(
    ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)
  )
  def test_half_precision_equals_stable_sort(self, dtype):
    x = np.random.default_rng(0).normal(size=(50, 40)).astype(dtype)
    for k in (0, 1, 7, 40):
      mask = _mask(jnp.asarray(x), k)
      np.testing.assert_array_equal(mask, sorted_mask(x, k))

  @hypothesis.given(
    hnp.arrays(np.float32, (3, 4, 5), elements=_TIED), st.data()
  )
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_several_axes_equal_the_flattened_matrix(self, x, data):
    k = data.draw(st.lists(st.integers(0, 20), min_size=3, max_size=3))
    mask = _mask(jnp.asarray(x), jnp.array(k).reshape(3, 1, 1), axis=(1, 2))
    for layer in range(3):
      np.testing.assert_array_equal(
        np.ravel(mask[layer]), sorted_mask(x[layer].ravel(), k[layer])
      )

  @hypothesis.given(hnp.arrays(np.float32, (6, 7), elements=_TIED), st.data())
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_protected_entries_survive_within_k(self, x, data):
    protected = data.draw(hnp.arrays(bool, (6, 7)))
    k = data.draw(st.integers(0, 42))
    mask = np.asarray(
      _mask(jnp.asarray(x), k, axis=(0, 1), protected=jnp.asarray(protected))
    )
    self.assertEqual(mask.sum(), k)
    self.assertEqual((mask & protected).sum(), min(k, protected.sum()))

  def test_kth_magnitude_is_the_sorted_one(self):
    x = np.random.default_rng(1).normal(size=(8, 100)).astype(np.float32)
    want = np.sort(np.abs(x), -1)[:, ::-1]
    for k in (1, 3, 100):
      np.testing.assert_array_equal(
        top_k.kth_magnitude(jnp.asarray(x), k), want[:, k - 1]
      )
    whole = top_k.kth_magnitude(jnp.asarray(x), 5, axis=(0, 1))
    self.assertEqual(whole, np.sort(np.abs(x).ravel())[-5])

  def test_abs_top_k_gradient_is_the_mask(self):
    x = jnp.array([3.0, -5.0, 1.0, 4.0])
    np.testing.assert_array_equal(top_k.abs_top_k(x, 2), [0, -5, 0, 4])
    grad = jax.grad(lambda x: jnp.sum(top_k.abs_top_k(x, 2) ** 2))(x)
    np.testing.assert_array_equal(grad, [0, -10, 0, 8])

  @parameterized.product(
    dtype=(jnp.float32, jnp.bfloat16), width=(2, 7, 32), spread=(2, 1000)
  )
  def test_abs_top_k_keeps_the_mask_at_every_width(self, dtype, width, spread):
    # Few distinct values: ties are the rule.
    rng = np.random.default_rng(width)
    x = rng.integers(-spread, spread + 1, (40, width)) / 8
    x = jnp.asarray(x, dtype).at[0, 0].set(jnp.nan).at[1, 1].set(-jnp.inf)
    wide = jnp.pad(x, [(0, 0), (0, 64)])
    for k in range(1, width):
      y = np.float32(top_k.abs_top_k(x, k))
      mask = top_k.top_k_mask(x, k)
      np.testing.assert_array_equal(y, np.float32(jnp.where(mask, x, 0)))
      widened = np.float32(top_k.abs_top_k(wide, k))
      np.testing.assert_array_equal(y, widened[:, :width])

  @parameterized.parameters(1, 7, 8, 17, 64)
  def test_gradient_is_kept_in_bits_and_is_the_mask(self, width):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, width)))
    k = width // 2
    y, backward = jax.vjp(lambda x: top_k.abs_top_k(x, k), x)
    (grad,) = backward(jnp.ones_like(y))
    np.testing.assert_array_equal(grad, sorted_mask(x, k))
    kept = [
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)
    ]
    self.assertLessEqual(sum(kept), 3 * 5 * -(-width // 8))

  @hypothesis.given(
    hnp.arrays(bool, st.sampled_from([(1,), (8,), (9,), (2, 3, 16), (4, 21)]))
  )
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_packed_bits_come_back(self, mask):
    packed = top_k.pack_bits(jnp.asarray(mask))
    self.assertEqual(packed.shape, (*mask.shape[:-1], -(-mask.shape[-1] // 8)))
    np.testing.assert_array_equal(
      top_k.unpack_bits(packed, mask.shape[-1]), mask
    )

  def test_integers_are_refused(self):
    with self.assertRaisesRegex(TypeError, "float"):
      top_k.top_k_mask(jnp.arange(3), 1)


if __name__ == "__main__":
  absltest.main()
