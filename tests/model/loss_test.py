"""Cross-entropy against optax, and the model's loss against its logits."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from sparse_jax import sites
from sparse_jax.model import loss as loss_lib


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
        lambda x, w=weight: w * loss_lib.cross_entropy(x, targets)
      )(logits)
      want, want_grad = jax.value_and_grad(
        lambda x, w=weight: w * reference(x, targets)
      )(logits)
      np.testing.assert_allclose(got, want, rtol=1e-6)
      np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)

  def test_by_hand(self):
    # Probabilities 1/4 and 3/4 of the right tokens.
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    got = loss_lib.cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(got, (np.log(4) + np.log(4 / 3)) / 2, rtol=1e-6)


class NextTokenLossTest(parameterized.TestCase):
  def test_targets_and_the_last_bigram_row(self):
    model, params, windows = helpers.tiny_model(
      n_layer=1, activation_fraction=1.0
    )
    end = model.config.vocab_size - 1
    windows = windows.at[:, 2].set(end).at[:, 4].set(3)

    @jax.jit
    def both(params):
      got = jax.value_and_grad(loss_lib.next_token_loss, 1)(
        model, params, windows
      )
      logits = model.apply(params, windows[:, :-1])
      return got, reference(logits, windows[:, 1:])

    (got, grads), want = both(params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # Token V - 1 is padding to the released code's lookup.
    self.assertFalse(np.any(grads[sites.BIGRAM][end]))
    self.assertTrue(np.any(grads[sites.BIGRAM][3]))

  @parameterized.parameters(1, 2, 4, 8)
  def test_parts_make_no_difference(self, num_parts):
    model, params, windows = helpers.tiny_model(n_layer=1)
    num_logits = windows[:, 1:].size * model.config.vocab_size
    loss_of = lambda most: jax.value_and_grad(loss_lib.next_token_loss, 1)(
      model, params, windows, most_logits=most
    )
    chex.assert_trees_all_close(
      loss_of(num_logits // num_parts),
      loss_of(num_logits),
      rtol=1e-5,
      atol=1e-7,
    )

  def test_logits_of_all_positions_never_exist(self):
    model, params, windows = helpers.tiny_model(
      n_layer=1, vocab_size=2000, bigram="none"
    )
    windows = jnp.tile(windows, (40, 1))
    num_bytes = 4 * windows[:, 1:].size * model.config.vocab_size

    def temporaries(most):
      step = functools.partial(
        jax.grad(loss_lib.next_token_loss, 1), model, most_logits=most
      )
      compiled = jax.jit(step).lower(params, windows).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertGreater(temporaries(num_bytes), num_bytes)
    self.assertLess(temporaries(num_bytes // 32), num_bytes // 2)


if __name__ == "__main__":
  absltest.main()
