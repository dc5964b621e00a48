"""Cross-entropy against optax, and the model's loss against its logits."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from sparse_jax import loss, sites


def reference(logits, targets):
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


class CrossEntropyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("usual", 1.0), ("saturated", 1e3), ("flat", 0.0)
  )
  def test_value_and_gradient_equal_optax(self, scale):
    logits = scale * jax.random.normal(jax.random.key(0), (6, 11))
    targets = jnp.array([0, 10, 3, 3, 7, 1])
    for weight in (1.0, -2.5):
      got, grad = jax.value_and_grad(
        lambda x, w=weight: w * loss.cross_entropy(x, targets)
      )(logits)
      want, want_grad = jax.value_and_grad(
        lambda x, w=weight: w * reference(x, targets)
      )(logits)
      np.testing.assert_allclose(got, want, rtol=1e-6)
      np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)

  def test_by_hand(self):
    # Probabilities 1/4 and 3/4 of the right tokens.
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    got = loss.cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(got, (np.log(4) + np.log(4 / 3)) / 2, rtol=1e-6)


class NextTokenLossTest(absltest.TestCase):
  def test_targets_and_the_last_bigram_row(self):
    model, params, windows = helpers.tiny_model(
      n_layer=1, activation_fraction=1.0
    )
    end = model.config.vocab_size - 1
    windows = windows.at[:, 2].set(end).at[:, 4].set(3)

    @jax.jit
    def both(params):
      got = jax.value_and_grad(loss.next_token_loss, 1)(model, params, windows)
      logits = model.apply(params, windows[:, :-1])
      return got, reference(logits, windows[:, 1:])

    (got, grads), want = both(params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # Token V - 1 is padding to the released code's lookup.
    self.assertFalse(np.any(grads[sites.BIGRAM][end]))
    self.assertTrue(np.any(grads[sites.BIGRAM][3]))


if __name__ == "__main__":
  absltest.main()
