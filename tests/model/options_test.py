"""The options of dense models, each against a plain NumPy forward pass."""

import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.faithfulness import robustness
from sparse_jax.model import (
  edges,
  fingerprint,
  heads,
  hooks,
  kernels,
  transformer,
)
from sparse_jax.tasks import mask_evaluator
from sparse_jax.utils import errors

PLAIN = {
  "activation_fraction": 1.0,
  "norm": "layer",
  "sink": False,
  "bigram": "none",
}
# Each option with what it needs to matter, and what it is compared with.
OPTIONS = (
  ("tanh", {"activation": "gelu_tanh"}, {}),
  ("eps", {"norm_eps": 0.5}, {}),
  ("output_bias", {"attention_bias": "output"}, None),
  ("no_attention_bias", {"attention_bias": "none"}, None),
  ("parallel", {"parallel": True}, {}),
  ("unscaled", {"scale_scores": False}, {}),
  ("window", {"windows": (3, 0)}, {}),
  ("rotary", {"positions": "rotary"}, {}),
  (
    "half_rotary",
    {"positions": "rotary", "rotary_share": 0.5, "rotary_base": 7.0},
    {"positions": "rotary"},
  ),
)
ALL = {
  "activation": "gelu_tanh",
  "parallel": True,
  "scale_scores": False,
  "windows": (0, 4),
  "positions": "rotary",
  "rotary_share": 0.5,
  "attention_bias": "output",
}


def numpy_logits(c, params, tokens):
  """One prompt at a time, one head at a time, one query at a time."""
  layers = params["layers"]

  def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_eps)
    return x * p["scale"] + p["bias"]

  def linear(p, i, x):
    return x @ p["kernel"][i] + (p["bias"][i] if "bias" in p else 0)

  def turned(x, position):
    if c.positions != "rotary":
      return x
    half = int(c.rotary_share * c.d_head) // 2
    pairs = x[:half] + 1j * x[half : 2 * half]
    rate = c.rotary_base ** (-2 * np.arange(half) / (2 * half))
    pairs = pairs * np.exp(1j * position * rate)
    return np.concatenate([pairs.real, pairs.imag, x[2 * half :]])

  def attention(i, h):
    q, k, v = np.split(linear(layers["attn"]["c_attn"], i, h), 3, -1)
    y = np.zeros_like(q)
    window = c.windows[i] if c.windows else 0
    for start in range(0, c.d_model, c.d_head):
      cut = slice(start, start + c.d_head)
      for at in range(len(h)):
        first = max(0, at + 1 - window) if window else 0
        seen = range(first, at + 1)
        scores = [turned(q[at, cut], at) @ turned(k[m, cut], m) for m in seen]
        scores = np.array(scores)
        if c.scale_scores:
          scores = scores / math.sqrt(c.d_head)
        weight = np.exp(scores - scores.max())
        y[at, cut] = weight @ v[first : at + 1, cut] / weight.sum()
    return linear(layers["attn"]["c_proj"], i, y)

  def mlp(i, h):
    h = linear(layers["mlp"]["c_fc"], i, h)
    if c.activation == "gelu_tanh":
      inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
      h = h * (1 + np.tanh(inner)) / 2
    else:
      h = h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
    return linear(layers["mlp"]["c_proj"], i, h)

  def prompt(t):
    x = params["wte"]["embedding"][t]
    for i in range(c.n_layer):
      of = lambda name: jax.tree.map(lambda leaf: leaf[i], layers[name])
      after = x + attention(i, norm(of("ln_1"), x))
      read = x if c.parallel else after
      x = after + mlp(i, norm(of("ln_2"), read))
    unembed = params["lm_head"]["embedding"]
    return norm(params["ln_f"], x) @ unembed.T + params["logit_bias"]

  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  layers = params["layers"]
  return np.stack([prompt(t) for t in np.asarray(tokens)])


@functools.cache
def tiny(**fields):
  return helpers.tiny_model(**PLAIN | fields)


class OptionsTest(parameterized.TestCase):
  @parameterized.named_parameters(*OPTIONS)
  def test_logits_are_those_of_numpy(self, fields, without):
    model, params, tokens = tiny(**fields)
    got = jax.jit(model.apply)(params, tokens)
    want = numpy_logits(model.config, params, tokens)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    if without is not None:
      other, *_ = tiny(**without)
      unlike = jax.jit(other.apply)(params, tokens)
      gap, error = (np.abs(x - want).max() for x in (unlike, got))
      # The two GELUs differ by a thousandth.
      self.assertGreater(gap, 20 * error)

  def test_logits_of_all_options_are_those_of_numpy(self):
    model, params, tokens = tiny(**ALL)
    want = numpy_logits(model.config, params, tokens)
    for hook in (None, hooks.identity):
      got = jax.jit(functools.partial(model.apply, hook=hook))(params, tokens)
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

  def test_one_wanted_position_is_that_of_all(self):
    model, params, tokens = tiny(**ALL)
    wanted_B = jnp.array([8, 2, 5])
    every = jax.jit(model.residual)(params, tokens)
    got = jax.jit(model.residual)(params, tokens, positions_B=wanted_B)
    want = every[jnp.arange(3), wanted_B][:, None]
    np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.parameters("output", "none")
  def test_biases_that_are_left_out_are_no_parameters(self, which):
    _, params, _ = tiny(attention_bias=which)
    attention = params["layers"]["attn"]
    self.assertNotIn("bias", attention["c_attn"])
    self.assertEqual("bias" in attention["c_proj"], which == "output")
    self.assertIn("bias", params["layers"]["mlp"]["c_fc"])

  def test_rotary_scores_depend_on_the_distance_alone(self):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turns = heads.angles(2048, 6, 10000.0)

    def score(at, distance):
      one = [turns[None, [i]] for i in (at, at - distance)]
      turned = map(heads.rotate, (q, k), one)
      return float(np.sum(np.prod([*turned], 0)))

    self.assertAlmostEqual(score(9, 4), score(2047, 4), places=5)
    self.assertNotAlmostEqual(score(9, 4), score(9, 5), places=2)
    # The last two channels are not turned.
    kept = heads.rotate(q, turns[None, [7]])[..., 6:]
    np.testing.assert_array_equal(kept, q[..., 6:])

  def test_attention_patterns_are_those_of_the_forward_pass(self):
    model, params, tokens = tiny(**ALL)
    _, acts = jax.jit(functools.partial(hooks.run_with_sites, model))(
      params, tokens
    )
    pattern = hooks.attention_patterns(model, params, acts)
    for layer in range(2):
      v = heads.split(model.config, acts[f"{layer}.attn.v"])
      y = jnp.einsum("BLHM,BMHK->BLHK", pattern[layer], v)
      want = acts[f"{layer}.attn.y"]
      np.testing.assert_allclose(y.reshape(want.shape), want, atol=1e-5)
    # No query of layer 1 sees beyond its window of 4.
    far = jnp.arange(9)[:, None] - jnp.arange(9) >= 4
    self.assertEqual(float(pattern[1].max(2)[:, far].max()), 0)

  def test_fused_attention_leaves_windows_to_the_exact_one(self):
    model, params, tokens = tiny(**ALL)
    fused = transformer.Model(
      model.config, model.sparsity, kernels=kernels.FUSED
    )
    short = transformer.Model(
      config_lib.from_dict(
        config_lib.ModelConfig,
        config_lib.to_dict(model.config) | {"windows": [9, 9]},
      ),
      model.sparsity,
    )
    want = jax.jit(model.apply)(params, tokens)
    # Both layers have a window once one has.
    got = jax.jit(fused.apply)(params, tokens)
    np.testing.assert_allclose(got, want, atol=1e-5)
    self.assertFalse(
      np.allclose(jax.jit(short.apply)(params, tokens), want, atol=1e-2)
    )


class CircuitsTest(parameterized.TestCase):
  """Masks, means and edges on a model of all options."""

  def test_closed_edges_carry_their_sources_mean(self):
    model, params, tokens = tiny(**ALL)
    rng = np.random.default_rng(0)
    means = helpers.random_means(model)
    gates = {
      kind.matrix: jnp.asarray(
        rng.random(edges.parameter(params, kind.matrix).shape) < 0.7,
        jnp.float32,
      )
      for kind in sites.EDGE_KINDS
      if kind.source != "attn.v"
    }
    masked = edges.mask_edges(params, gates, means)
    acts = {}
    model.apply(masked, tokens, hooks.record(acts))
    for kind in sites.EDGE_KINDS:
      if kind.matrix not in gates:
        continue
      kernel = np.asarray(edges.parameter(params, kind.matrix))
      bias = np.zeros(kernel.shape[::2])
      if kind.matrix != sites.C_ATTN:
        bias = np.asarray(
          edges.parameter(params, kind.matrix.replace("kernel", "bias"))
        )
      gate = np.asarray(gates[kind.matrix])
      for layer in range(2):
        x = np.asarray(acts[f"{layer}.{kind.source}"])
        open_, mean = gate[layer] * kernel[layer], means[kind.source][layer]
        y = x @ open_ + mean @ ((1 - gate[layer]) * kernel[layer])
        y = (y + bias[layer])[..., edges.columns(kind, kernel)]
        got = np.asarray(acts[f"{layer}.{kind.target}"])
        if kind.name == "up":
          y = np.asarray(jax.nn.gelu(y, approximate=True))
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(True, False)
  def test_an_mlp_follows_the_attention_beside_it_unless_parallel(self, is_):
    model, params, tokens = tiny(**ALL | {"parallel": is_})

    def sites_if_doubled(source):
      acts = {}
      double = lambda site, layer, x: x * (1 + ((site, layer) == (source, 0)))
      model.apply(params, tokens, hooks.compose(double, hooks.record(acts)))
      return acts

    plain = sites_if_doubled(None)
    doubled = sites_if_doubled("attn.resid_delta")
    follows = lambda name: not np.allclose(plain[name], doubled[name])
    for name in ("0.mlp.act_in", "0.mlp.post_act", "0.mlp.resid_delta"):
      self.assertEqual(follows(name), not is_, name)
    self.assertTrue(follows("1.mlp.act_in"))

  def test_gradients_reach_every_gate_of_an_evaluator(self):
    model, params, _ = tiny(**ALL)
    evaluator = mask_evaluator.MaskEvaluator(
      model, params, helpers.random_means(model), helpers.random_sequences()
    )
    _, slope = evaluator.difference_and_gradient(evaluator.constant(0.5))
    for name in sites.LAYER_NODE_SITES:
      self.assertGreater(np.count_nonzero(slope[name]), 0, name)

  def test_norms_of_a_parallel_residual_are_not_frozen(self):
    model, params, tokens = helpers.tiny_model(parallel=True)
    mask, means = helpers.random_masks(model, 0.5), helpers.random_means(model)
    with self.assertRaisesRegex(errors.InputError, "freeze_norms=True.*paral"):
      hooks.circuit_hook(model, params, tokens, None, mask, means, True)

    class Context:
      evaluator = mask_evaluator.MaskEvaluator(
        model, params, means, helpers.random_sequences()
      )

    self.assertIsNone(robustness.frozen_norms(Context))


class OlderModelsTest(absltest.TestCase):
  """Options at their defaults leave everything as it was."""

  def test_the_fingerprint_has_set_options_alone(self):
    model, params, _ = helpers.tiny_model(n_layer=1)
    params = jax.tree.map(jnp.zeros_like, params)
    self.assertEqual(
      fingerprint.fingerprint(model, params),
      "sha256:82e608c3b13d09032c299564ac946586d1c535b6d6ca673a277b457d11b067b8",
    )
    other, *_ = helpers.tiny_model(n_layer=1, parallel=True)
    self.assertNotEqual(
      fingerprint.fingerprint(other, params),
      fingerprint.fingerprint(model, params),
    )

  def test_settings_that_lack_options_are_those_of_their_defaults(self):
    old = config_lib.settings(config_lib.Config())
    for name in config_lib.OPTIONS:
      old["model"].pop(name)
    same = config_lib.settings(config_lib.Config())
    self.assertIsNone(config_lib.first_difference(same, old))
    changed = config_lib.from_config_dict({"model": {"windows": [2, 3]}})
    self.assertEqual(
      config_lib.first_difference(config_lib.settings(changed), old),
      ("model.windows", [], [2, 3]),
    )


if __name__ == "__main__":
  absltest.main()
