"""Losses of bridges by identities, and their gathered gradients."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax.bridge import figures, maps, objective, points


def perfect():
  """Returns a span of a model with itself, perfect bridges and its windows."""
  model, params, windows = helpers.tiny_model(n_layer=1)
  settings = config_lib.BridgeConfig(activation_fraction=1.0)
  span = objective.Span(model, model, settings)
  bridges = maps.identity(len(span.points), model.config.d_model)
  return span, {"sparse": params, "maps": bridges}, params, windows


def imperfect(**settings):
  """Returns a span of two models of different widths, and what it trains."""
  sparse, of_sparse, windows = helpers.tiny_model(n_layer=1, d_model=24)
  dense, of_dense, _ = helpers.tiny_model(1.0, n_layer=1)
  span = objective.Span(dense, sparse, config_lib.BridgeConfig(**settings))
  bridges = span.init_maps(jax.random.key(3))
  return span, {"sparse": of_sparse, "maps": bridges}, of_dense, windows


class LossesTest(absltest.TestCase):
  def test_perfect_bridges_lose_nothing_and_hybrids_are_the_plain_pass(self):
    span, params, dense, windows = perfect()
    self.assertEqual(span.points, ("0.resid_in", "0.resid_mid", "final_resid"))

    @jax.jit
    def hybrids(params, dense, windows):
      tokens = windows[:, :-1]
      states = points.body_states(span.dense, dense, tokens, span.points)
      tails = [
        points.tail_logits(
          span.sparse,
          params["sparse"],
          tokens,
          point,
          span.encode(params["maps"], i, states[i]),
        )
        for i, point in enumerate(span.points)
      ]
      losses = objective.all_losses(span, params, dense, windows)
      return tails, span.dense.apply(dense, tokens), losses

    tails, plain, losses = hybrids(params, dense, windows)
    self.assertGreater(losses.pop("cross_entropy"), 1)
    self.assertEqual(losses.keys(), {*objective.PER_BRIDGE, "distillation"})
    for name, value in losses.items():
      np.testing.assert_allclose(value, 0, atol=2e-5, err_msg=name)
    for hybrid in tails:
      np.testing.assert_allclose(hybrid, plain.reshape(-1, 40), atol=1e-5)

  def test_gathered_gradients_are_those_of_the_whole_loss(self):
    span, params, dense, windows = imperfect(
      distillation=0.7, kl_encode=1.3, nmse_decode=0.4
    )

    def whole(params, dense, windows):
      losses = objective.all_losses(span, params, dense, windows)
      return objective.weighted(span.settings, losses), losses

    args = params, dense, windows
    want, losses = jax.jit(jax.grad(whole, has_aux=True))(*args)
    gathered = functools.partial(objective.loss_and_gradients, span)
    found = jax.jit(gathered)(*args)
    chex.assert_trees_all_close(found, (losses, want), rtol=2e-4, atol=2e-5)
    sizes = [float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(found[1])]
    self.assertGreater(np.median(sizes), 1e-3)

  def test_the_scale_of_the_sparse_stream_is_no_matter(self):
    # Nor is anything won by it: its gradient is zero.
    span, params, dense, windows = imperfect(activation_fraction=0.5)
    writes = ("attn", "c_proj"), ("mlp", "c_proj")

    def scaled(scale):
      def grow(path, x):
        names = tuple(key.key for key in path)
        is_write = names[0] in ("wte", "wpe") or names[1:3] in writes
        return scale * x if is_write else x

      sparse = jax.tree_util.tree_map_with_path(grow, params["sparse"])
      losses = objective.all_losses(
        span, {**params, "sparse": sparse}, dense, windows
      )
      return objective.weighted(span.settings, losses), losses

    of = jax.jit(jax.value_and_grad(scaled, has_aux=True))
    ((_, losses), slope), ((_, large), _) = of(1.0), of(30.0)
    chex.assert_trees_all_close(losses, large, rtol=1e-3, atol=1e-4)
    self.assertAlmostEqual(float(slope), 0, 2)

  def test_normalized_error_by_hand(self):
    # Around the mean (2, 0) the variance is 1; every row is off by 1.
    target = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])
    found = target + jnp.array([0.0, 1.0])
    self.assertEqual(objective.normalized_error(found, target), 1)

  def test_parallel_layers_have_no_bridge_behind_attention(self):
    config = config_lib.ModelConfig(n_layer=2, parallel=True)
    self.assertEqual(
      points.bridge_points(config_lib.ModelConfig(n_layer=2), config),
      ("0.resid_in", "1.resid_in", "final_resid"),
    )


class BaselinesTest(absltest.TestCase):
  def test_a_linear_relation_is_found_and_the_mean_explains_nothing(self):
    span, params, dense, windows = imperfect()
    # One token's embedding says all there is to say at the first bridge.
    found = figures.figures(span, params, dense, windows[None], windows[None])
    first = found["bridges"][0]
    self.assertAlmostEqual(first["mean"]["variance_explained_decode"], 0, 2)
    self.assertGreater(first["linear"]["variance_explained_decode"], 0.9)
    for of in found["bridges"]:
      for way in ("encode", "decode"):
        name = f"variance_explained_{way}"
        self.assertGreater(of["linear"][name], of["mean"][name])
        self.assertGreater(of["linear"][name], of["bridge"][name])


if __name__ == "__main__":
  absltest.main()
