"""The forward pass: hooks, causality, sparsity, references."""

import dataclasses
import functools

import chex
import helpers
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import hooks, transformer
from sparse_jax.utils import errors

VARIANTS = (
  ("plain", {}),
  ("dense", {"activation_fraction": 1.0}),
  ("bare", {"sink": False, "bigram": "none", "bias": False, "tied": True}),
  ("layer_norm", {"norm": "layer", "activation": "relu"}),
  ("learned", {"positions": "learned", "bigram": "fixed"}),
  ("concatenated", {"positions": "concatenated", "d_position": 6}),
  ("sinusoidal", {"positions": "sinusoidal", "d_position": 6}),
  ("relu_residual", {"residual_activation": "relu"}),
  ("rotary", {"positions": "rotary", "rotary_share": 0.5}),
  ("parallel", {"parallel": True, "norm": "layer", "norm_eps": 1e-3}),
  ("windows", {"windows": (0, 3), "scale_scores": False}),
  ("output_bias", {"attention_bias": "output", "activation": "gelu_tanh"}),
)


@functools.cache
def shared():
  return helpers.tiny_model()


class ModelTest(parameterized.TestCase):
  @parameterized.named_parameters(*VARIANTS)
  def test_no_hook_equals_identity_hook_equals_open_gates(self, fields):
    model, params, tokens = helpers.tiny_model(**fields)
    want = jax.jit(model.apply)(params, tokens)
    chex.assert_shape(want, (3, 9, 40))
    ones = {
      name: np.ones(model.config.site_shape(name), bool)
      for name in sites.NODE_SITES
    }
    means = jax.tree.map(lambda m: 7.0 * m, ones)
    for hook in (hooks.identity, hooks.gate(ones, means), hooks.patch({})):
      got = model.apply(params, tokens, hook=hook)
      np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.named_parameters(*VARIANTS)
  def test_causality_by_gradients(self, fields):
    model, params, tokens = helpers.tiny_model(**fields)
    x_BxLxD = params["wte"]["embedding"][tokens]

    def logits_at(x, position):
      hook = lambda site, layer, v: (
        v + x if (site, layer) == ("resid_in", 0) else v
      )
      return jnp.sum(model.apply(params, tokens, hook)[:, position] ** 2)

    for position in (0, 4, 8):
      grad = jax.grad(logits_at)(jnp.zeros_like(x_BxLxD), position)
      np.testing.assert_array_equal(grad[:, position + 1 :], 0)
      self.assertGreater(float(jnp.abs(grad[:, position]).max()), 0)

  def test_a_huge_sink_silences_attention(self):
    model, params, tokens = shared()
    params = jax.tree.map(lambda leaf: leaf, params)  # A tree of its own.
    params["layers"]["attn"]["sink"] += 1e4
    _, acts = hooks.run_with_sites(model, params, tokens)
    np.testing.assert_allclose(acts["0.attn.y"], 0, atol=1e-6)

  def test_top_k_keeps_the_fraction_at_every_site(self):
    model, params, tokens = shared()
    _, acts = hooks.run_with_sites(model, params, tokens)
    self.assertEqual(list(acts), list(sites.all_site_ids(2)))
    for name in sites.LAYER_NODE_SITES:
      for layer in range(2):
        x = acts[sites.site_id(name, layer)]
        np.testing.assert_array_less(
          jnp.count_nonzero(x, -1), x.shape[-1] // 4 + 1
        )

  def test_recording_is_limited_to_the_sites_asked_for(self):
    model, params, tokens = shared()
    names = ["1.mlp.post_act", "final_resid"]
    logits, acts = hooks.run_with_sites(model, params, tokens, sites=names)
    self.assertEqual(list(acts), names)
    np.testing.assert_allclose(
      model.unembed(params, acts["final_resid"], tokens), logits, atol=1e-6
    )
    with self.assertRaisesRegex(ValueError, "did you mean '1.attn.q'"):
      hooks.run_with_sites(model, params, tokens, sites=["1.attn.qq"])

  def test_a_patched_site_replays_its_recording(self):
    model, params, tokens = shared()
    other = tokens[::-1]
    _, acts = hooks.run_with_sites(model, params, other)
    want = model.apply(params, other)
    # All that layer 1 and the output read is the residual stream.
    final = hooks.patch({"final_resid": acts["final_resid"]})
    got = model.unembed(params, model.residual(params, tokens, final), other)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_hooks_compose_in_order(self):
    double = lambda site, layer, x: 2 * x
    add = lambda site, layer, x: x + 1
    hook = hooks.compose(double, add)
    self.assertEqual(hook("attn.q", 0, jnp.array(3.0)), 7.0)

  def test_mean_ablation_by_hand(self):
    gates = {"attn.q": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
    means = {"attn.q": jnp.array([[5.0, 6.0], [7.0, 8.0]])}
    hook = hooks.gate(gates, means)
    x = jnp.array([[[1.0, 2.0]]])
    np.testing.assert_array_equal(hook("attn.q", 0, x), [[[1.0, 6.0]]])
    np.testing.assert_array_equal(hook("attn.q", 1, x), [[[7.0, 2.0]]])
    np.testing.assert_array_equal(hook("attn.k", 1, x), x)

  def test_noise_moves_some_channels_towards_their_mean_and_keeps_the_mean(
    self,
  ):
    x = jax.random.normal(jax.random.key(1), (4, 5, 64))
    mean = x.mean((0, 1))
    shares = []
    for seed in range(12):
      hook = hooks.loosen(jax.random.key(seed), 1.0)
      y = hook("mlp.post_act", 0, x)
      m = np.asarray((y - mean) / (x - mean))
      # One m for all positions, from 0 to 1; some channels stay.
      same = np.broadcast_to(np.median(m, (0, 1)), m.shape)
      np.testing.assert_allclose(m, same, atol=2e-2)
      self.assertBetween(float(same.min()), -1e-3, 1 + 1e-3)
      self.assertLess(float(same.max()), 1 + 1e-3)
      np.testing.assert_allclose(y.mean((0, 1)), mean, atol=1e-5)
      shares.append(float(np.mean(same[0, 0] < 0.999)))
    # The share of channels that move is uniform itself.
    self.assertLess(min(shares), 0.3)
    self.assertGreater(max(shares), 0.7)
    self.assertFalse(np.allclose(y, hook("mlp.post_act", 1, x)))
    np.testing.assert_array_equal(hook("resid_mid", 0, x), x)
    few = hooks.loosen(jax.random.key(3), 1.0, 0.1)("mlp.post_act", 0, x)
    self.assertLess(np.mean(np.any(np.abs(few - x) > 1e-5, (0, 1))), 0.25)
    never = hooks.loosen(jax.random.key(0), 0.0)
    np.testing.assert_allclose(never("attn.q", 0, x), x, atol=1e-6)

  def test_closed_gates_make_every_site_its_mean(self):
    model, params, tokens = shared()
    shape = model.config.site_shape
    rng = np.random.default_rng(0)
    means = {n: rng.normal(size=shape(n)) for n in sites.NODE_SITES}
    zeros = {n: np.zeros(shape(n)) for n in sites.NODE_SITES}
    acts = {}
    model.apply(
      params,
      tokens,
      hooks.compose(hooks.gate(zeros, means), hooks.record(acts)),
    )
    for name in sites.NODE_SITES:
      for row in range(sites.num_rows(name, 2)):
        got = acts[sites.site_id(name, row)]
        want = np.broadcast_to(means[name][row], got.shape)
        np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_two_candidates_equal_all_logits(self):
    model, params, tokens = shared()
    x = model.residual(params, tokens)
    candidates = jax.random.randint(jax.random.key(3), (3, 9, 2), 0, 40)
    want = jnp.take_along_axis(model.apply(params, tokens), candidates, -1)
    got = model.unembed(params, x, tokens, candidates)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_the_bigram_tables_last_row_gets_no_gradient(self):
    model, params, tokens = shared()
    tokens = tokens.at[0, 0].set(39)
    grad = jax.grad(lambda p: jnp.sum(model.apply(p, tokens) ** 2))(params)
    rows = np.abs(grad["bigram_table"]).sum(-1)
    self.assertEqual(rows[39], 0)
    self.assertGreater(rows[int(tokens[1, 1])], 0)

  def test_a_fixed_bigram_table_gets_no_gradient(self):
    model, params, tokens = helpers.tiny_model(bigram="fixed")
    grad = jax.grad(
      lambda p: jnp.sum(model.unembed(p, jnp.ones((3, 9, 16)), tokens) ** 2)
    )(params)
    self.assertFalse(np.any(grad["bigram_table"]))
    self.assertTrue(np.any(grad["logit_bias"]))

  def test_compute_in_bfloat16_stays_close(self):
    model, params, tokens = helpers.tiny_model(activation_fraction=1.0)
    half = transformer.Model(model.config, model.sparsity, jnp.bfloat16)
    got, want = half.apply(params, tokens), model.apply(params, tokens)
    self.assertEqual(got.dtype, jnp.float32)
    error = jnp.abs(got - want).mean() / jnp.abs(want).mean()
    self.assertLess(float(error), 0.05)

  def test_positions_limit_the_length(self):
    model, params, _ = helpers.tiny_model(positions="learned")
    with self.assertRaisesRegex(ValueError, "length 13.*context_length=12"):
      model.apply(params, jnp.zeros((1, 13), jnp.int32))

  def test_sinusoids_have_log_spaced_periods(self):
    table = np.asarray(transformer.sinusoids(64, 6))
    np.testing.assert_allclose(table[:, 0][::4], 0, atol=1e-5)
    np.testing.assert_allclose(
      table[:, 1], np.sin(2 * np.pi * np.arange(64) / 16), atol=1e-5
    )
    np.testing.assert_allclose(
      table[:, 5], np.cos(2 * np.pi * np.arange(64) / 64), atol=1e-5
    )

  @hypothesis.given(st.sampled_from(sites.NODE_SITES), st.integers(0, 1))
  @hypothesis.settings(max_examples=12, deadline=None)
  def test_site_names_round_trip(self, name, layer):
    full = sites.site_id(name, layer)
    want = (name, layer if sites.SITES[name].per_layer else None)
    self.assertEqual(sites.parse_site_id(full, 2), want)

  def test_unresolved_shapes_are_refused(self):
    with self.assertRaisesRegex(ValueError, "model.vocab_size=0"):
      transformer.Model(
        dataclasses.replace(helpers.tiny_model()[0].config, vocab_size=0),
        config_lib.SparsityConfig(),
      )


class InputTest(parameterized.TestCase):
  """What is refused, and what an empty batch gives."""

  @parameterized.parameters(40, 5000, -1)
  def test_ids_outside_the_vocabulary(self, bad):
    model, params, _ = shared()
    for run in (model.apply, functools.partial(hooks.run_with_sites, model)):
      with self.assertRaisesRegex(
        errors.InputError,
        f"id {bad} is outside the vocabulary of 40; need 0 to",
      ):
        run(params, [[1, 2, bad]])

  @parameterized.named_parameters(
    ("one_row", [1, 2], r"shape \(2,\); need \[batch, length\]"),
    ("ragged", [[1], [1, 2]], "rows of different lengths"),
    ("no_position", [[], []], r"shape \(2, 0\).* at least one position"),
    ("nothing", [], r"shape \(0,\)"),
    ("fractions", [[1.5]], "float64; need integers"),
    ("text", [["a"]], "need integers"),
  )
  def test_what_is_no_batch_of_ids(self, tokens, message):
    model, params, _ = shared()
    with self.assertRaisesRegex(errors.InputError, message):
      model.apply(params, tokens)

  def test_lists_are_arrays(self):
    model, params, tokens = shared()
    np.testing.assert_array_equal(
      model.apply(params, tokens.tolist()), model.apply(params, tokens)
    )

  def test_traced_ids_are_not_checked(self):
    model, params, _ = shared()
    logits = jax.jit(model.apply)(params, jnp.full((1, 2), 5000))
    self.assertEqual(logits.shape, (1, 2, 40))

  def test_an_empty_batch_gives_no_logits(self):
    model, params, _ = shared()
    none = np.zeros((0, 5), np.int32)
    for hook in (None, hooks.identity):
      self.assertEqual(model.apply(params, none, hook).shape, (0, 5, 40))
    last_B = np.zeros(0, np.int32)
    self.assertEqual(
      model.residual(params, none, positions_B=last_B).shape, (0, 1, 16)
    )

  @parameterized.named_parameters(
    ("length", lambda x: jnp.zeros((1, 10, x.shape[-1])), r"float32 \[1, 10, "),
    ("broadcasts", lambda x: x[:, :1], r"float32 \[1, 1, "),
    ("width", lambda x: x[..., :1], r"float32 \[1, 6, 1\]"),
    ("integers", lambda x: x.astype(jnp.int32), "int32"),
    ("nothing", lambda x: None, "NoneType"),
    ("scalar", lambda x: 0.0, "float"),
  )
  def test_hooks_that_return_another_shape_or_kind(self, change, got):
    model, params, _ = shared()
    tokens = np.ones((1, 6), np.int32)
    for target in sites.all_site_ids(2):
      hook = lambda site, layer, x, target=target: (
        change(x) if sites.site_id(site, layer) == target else x
      )
      with self.assertRaisesRegex(
        errors.InputError,
        rf"hook at {target} returned {got}.*; need float32 \[1, 6, \d+\]$",
      ):
        jax.eval_shape(lambda p, h=hook: model.apply(p, tokens, h), params)

  def test_a_hook_may_return_another_precision(self):
    model, params, tokens = shared()
    half = transformer.Model(model.config, model.sparsity, jnp.bfloat16)
    double = lambda site, layer, x: np.asarray(x, np.float64)
    half.apply(params, tokens, double)

  def test_repr_is_one_line(self):
    model, params, _ = shared()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    self.assertEqual(
      repr(model),
      f"Model(2 layers, d_model 16, {count:,} parameters, density 0.1,"
      " AbsTopK 0.25, float32)",
    )


if __name__ == "__main__":
  absltest.main()
