"""Losses of bridges by identities, and their gathered gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax.bridge import maps, objective, points
from tests import helpers

NO_TOP_K = config_lib.BridgeConfig(activation_fraction=1.0)


def perfect():
  """Returns a span of a model with itself, perfect bridges and its windows."""
  model, params, tokens = helpers.tiny_model()
  span = objective.Span(model, model, NO_TOP_K)
  bridges = maps.identity(len(span.points), model.config.d_model)
  return span, {"sparse": params, "maps": bridges}, params, tokens


def imperfect(seed=3, **settings):
  """Returns a span of two models of different widths, and what it trains."""
  sparse, of_sparse, tokens = helpers.tiny_model(d_model=24)
  dense, of_dense, _ = helpers.tiny_model(1.0)
  span = objective.Span(dense, sparse, config_lib.BridgeConfig(**settings))
  bridges = span.init_maps(jax.random.key(seed))
  return span, {"sparse": of_sparse, "maps": bridges}, of_dense, tokens


class LossesTest(absltest.TestCase):
  def test_perfect_bridges_lose_nothing(self):
    span, params, dense, windows = perfect()
    losses = jax.jit(functools.partial(objective.all_losses, span))(
      params, dense, windows
    )
    self.assertGreater(losses.pop("cross_entropy"), 1)
    for name, value in losses.items():
      np.testing.assert_allclose(value, 0, atol=2e-5, err_msg=name)

  def test_a_hybrid_pass_over_perfect_bridges_is_the_plain_one(self):
    span, params, dense, windows = perfect()
    tokens = windows[:, :-1]
    plain = span.dense.apply(dense, tokens).reshape(-1, 40)
    states = points.body_states(span.dense, dense, tokens, span.points)
    for i, point in enumerate(span.points):
      encoded = span.encode(params["maps"], i, states[i])
      hybrid = points.tail_logits(
        span.sparse, params["sparse"], tokens, point, encoded
      )
      np.testing.assert_allclose(hybrid, plain, atol=1e-5)

  def test_gathered_gradients_are_those_of_the_whole_loss(self):
    span, params, dense, windows = imperfect(
      distillation=0.7, kl_encode=1.3, nmse_decode=0.4
    )

    def whole(params):
      losses = objective.all_losses(span, params, dense, windows)
      return objective.weighted(span.settings, losses), losses

    want = jax.jit(jax.grad(whole, has_aux=True))(params)
    found = jax.jit(functools.partial(objective.loss_and_gradients, span))(
      params, dense, windows
    )
    chex.assert_trees_all_close(found, want[::-1], rtol=2e-4, atol=2e-5)
    sizes = [float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(found[1])]
    self.assertGreater(np.median(sizes), 1e-3)
