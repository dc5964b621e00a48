"""Programs: what a circuit computes, from a few arrays."""

import dataclasses

import helpers
import hypothesis
import jax
import numpy as np
import small_circuits
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import hooks, program, shrink, transformer
from sparse_jax.utils import errors

_FINAL = "final_resid"
_STREAM = ("resid_mid", "resid_in", "attn.q", "mlp.act_in")
# Every value of every field of the model's config occurs.
_CASES = {
  "default": {},
  "few nodes": {"share": 0.1},
  "no nodes": {"share": 0.0},
  "all nodes": {"share": 1.1},
  "learned positions": {"positions": "learned", "sink": False},
  "concatenated positions": {"positions": "concatenated", "d_position": 6},
  "sinusoids": {"positions": "sinusoidal", "d_position": 7, "share": 0.1},
  "LayerNorm": {"norm": "layer", "bigram": "fixed"},
  "no biases": {
    **{"norm": "layer", "norm_bias": False, "bias": False},
    **{"tied": True, "bigram": "none"},
  },
  "relu": {"activation": "relu", "residual_activation": "relu"},
  "AbsTopK on the stream": {"activation_sites": _STREAM},
  "sites that are open": {"without": ("attn.q", "mlp.post_act")},
  "the last stream gated": {"gate_last": True},
  "tanh": {"activation": "gelu_tanh"},
  "biases of the output": {"attention_bias": "output"},
  "no biases of attention": {"attention_bias": "none"},
  "parallel": {"parallel": True, "residual_activation": "relu"},
  "scores as they are": {"scale_scores": False},
  "windows": {"windows": (3, 0)},
  "rotary": {"positions": "rotary"},
  "half rotary": {
    **{"positions": "rotary", "rotary_share": 0.5, "rotary_base": 7.0},
    "sink": False,
  },
  "rotary in closed heads": {"positions": "rotary", "share": 0.02},
}
_BY_TOKEN = {
  "no AbsTopK": {"activation_fraction": 1.0},
  "LayerNorm": {"activation_fraction": 1.0, "norm": "layer"},
  "relu": {"activation_fraction": 1.0, "residual_activation": "relu"},
  "AbsTopK": {"activation_fraction": 0.1, "d_model": 64},
  "parallel": {"activation_fraction": 1.0, "parallel": True, "d_model": 64},
  "the last stream gated": {"activation_fraction": 1.0, "gate_last": True},
}


def make(
  share=0.4, activation_sites=None, without=(), gate_last=False, **fields
):
  """Returns (model, params, tokens, masks, means)."""
  model, params, tokens = helpers.tiny_model(**fields)
  if activation_sites is not None:
    sparsity = dataclasses.replace(
      model.sparsity, activation_sites=activation_sites
    )
    model = transformer.Model(model.config, sparsity)
  masks, means = helpers.random_masks(model, share), helpers.random_means(model)
  for name in without:
    masks.pop(name)
  if gate_last:
    rng = np.random.default_rng(5)
    shape = model.config.site_shape(_FINAL)
    masks[_FINAL] = rng.random(shape) < 0.5
    means[_FINAL] = rng.normal(size=shape).astype(np.float32)
  return model, helpers.sparsify(params, 0.5), tokens, masks, means


def gated(model, params, tokens, masks, means):
  """Returns the logits of the model with closed nodes at their means."""
  run = jax.jit(lambda p, t: model.apply(p, t, hooks.gate(masks, means)))
  return np.asarray(run(params, tokens))


def assert_close(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


class ProgramTest(parameterized.TestCase):
  @parameterized.named_parameters(*((k, v) for k, v in _CASES.items()))
  def test_it_is_the_gated_model(self, case):
    model, params, tokens, masks, means = make(**case)
    made = shrink.shrink(model, params, masks, means)
    want = gated(model, params, tokens, masks, means)
    assert_close(made.numpy(tokens), want)
    at = np.array([8, 3, 5])
    wanted = want[np.arange(3), at][:, None]
    assert_close(made.numpy(tokens, at), wanted)
    assert_close(made(tokens, at), wanted)

  @hypothesis.given(
    case=st.fixed_dictionaries(
      {
        **small_circuits.OPTIONS,
        "activation_fraction": st.sampled_from([0.1, 0.3, 1.0]),
        "share": st.sampled_from([0.05, 0.2, 0.7]),
        "gate_last": st.booleans(),
      }
    ),
    answers=st.none() | st.lists(st.integers(0, 39), min_size=1, max_size=3),
  )
  @hypothesis.settings(max_examples=8)
  def test_it_is_so_for_any_config(self, case, answers):
    model, params, tokens, masks, means = make(**case)
    made = shrink.shrink(model, params, masks, means, 1.5, answers)
    want = 1.5 * gated(model, params, tokens, masks, means)
    if answers is not None:
      want = want[..., answers]
    assert_close(made.numpy(tokens), want)

  @parameterized.named_parameters(*((k, v) for k, v in _BY_TOKEN.items()))
  def test_answers_alone_leave_tables_by_token_of_the_stream(self, case):
    model, params, tokens, masks, means = make(share=0.04, **case)
    made = shrink.shrink(model, params, masks, means, answers=[7, 3])
    want = gated(model, params, tokens, masks, means)[..., [7, 3]]
    assert_close(made.numpy(tokens), want)
    assert_close(made(tokens), want)
    self.assertLess(len(made.wires), model.config.d_model)
    self.assertIsNotNone(made.output.rest_VxC)

  def test_closed_channels_stay_where_abs_top_k_lets_them_compete(self):
    model, params, tokens, masks, means = make(share=0.2)
    made = shrink.shrink(model, params, masks, means)
    want = gated(model, params, tokens, masks, means)
    self.assertGreater(made.num_rivals, 0)

    def alone(m):
      if not isinstance(m, program.Map):
        return m
      is_open, k = m.site.is_open, m.site.k
      site = program.Site(m.site.opened, is_open[is_open], k)
      if k is not None and k >= is_open.sum():
        site = site._replace(k=None)
      weight_SxT, bias_T = m.weight_SxT[:, is_open], m.bias_T[is_open]
      return program.Map(weight_SxT, bias_T, site)

    sublayers = tuple(
      s._replace(body=s.body and type(s.body)(*map(alone, s.body)))
      for s in made.sublayers
    )
    without = dataclasses.replace(made, sublayers=sublayers)
    self.assertEqual(without.num_rivals - made.num_rivals, 0 - _rivals(made))
    self.assertGreater(np.abs(without.numpy(tokens) - want).max(), 0.01)

  def test_without_abs_top_k_no_closed_channel_is_computed(self):
    model, params, _, masks, means = make(share=0.2, activation_fraction=1.0)
    made = shrink.shrink(model, params, masks, means)
    self.assertEqual(made.num_rivals, 0)
    for layer in range(model.config.n_layer):
      up = made.sublayers[2 * layer + 1].body.up
      opened = [masks[f"mlp.{n}"][layer].sum() for n in ("act_in", "post_act")]
      self.assertEqual(list(up.weight_SxT.shape), opened)

  @parameterized.parameters(((),), ((3, 3),))
  def test_a_closed_head_writes_the_share_that_its_sink_leaves(self, windows):
    model, params, tokens, masks, means = make(share=0.3, windows=windows)
    masks |= {f"attn.{n}": 0 * masks["attn.q"] > 0 for n in "qkv"}
    made = shrink.shrink(model, params, masks, means)
    attention = made.sublayers[0].body
    self.assertEmpty(attention.heads)
    self.assertLen(attention.uniform, model.config.n_head)
    want = gated(model, params, tokens, masks, means)
    assert_close(made.numpy(tokens), want)

  def test_ties_go_to_the_lower_index(self):
    x = np.array([[1, -1, 0, 1, 2], [0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(
      program.numpy_top_k(x, 3), [[1, -1, 0, 0, 2], [0, 0, 0, 0, 0]]
    )

  @parameterized.parameters(1, 4, 5, 9)
  def test_open_channels_compete_as_all_channels_do(self, num_open):
    rng = np.random.default_rng(num_open)
    is_open = np.zeros(23, bool)
    is_open[rng.choice(23, num_open, replace=False)] = True
    site = program.Site(np.arange(23), is_open, 6)
    # Few values, so that there are ties.
    x_BxLxT = rng.integers(-4, 5, (5, 7, 23)).astype(np.float32)
    want = program.numpy_top_k(x_BxLxT, 6)[..., is_open]
    x_TxBxL = np.ascontiguousarray(np.moveaxis(x_BxLxT, -1, 0))
    for compete in (program.numpy_compete, program.jax_compete):
      got = np.moveaxis(np.asarray(compete(x_TxBxL, site)), 0, -1)
      np.testing.assert_array_equal(got, want)

  def test_a_circuit_gives_one_and_refuses_what_it_cannot_be(self):
    model, params, tokens, masks, means = make(positions="learned")
    circuit = circuit_lib.Circuit(
      task="single_double_quote",
      model_fingerprint="",
      model_config=model.config,
      sparsity=model.sparsity,
      ablation="mean_pretrain",
      target_loss=0.15,
      logit_scale=1.5,
      node_mask=masks,
      means=means,
      edges=[],
      metrics={},
    )
    made = circuit.compact(params, answers=[3, 5])
    want = 1.5 * gated(model, params, tokens, masks, means)[..., [3, 5]]
    assert_close(made.numpy(tokens), want)
    for answers in ([], [40], [-1], [[1, 2]]):
      with self.assertRaisesRegex(errors.InputError, "answers=.*from 0 to 39"):
        circuit.compact(params, answers=answers)
    with self.assertRaisesRegex(errors.InputError, "context_length=12"):
      made.numpy(np.zeros((1, 13), int))
    with self.assertRaisesRegex(errors.InputError, "token id 40"):
      made(np.full((1, 3), 40))
    frozen = dataclasses.replace(circuit, freeze_norms=True)
    with self.assertRaisesRegex(errors.InputError, "freeze_norms=True"):
      frozen.compact(params)


def _rivals(made):
  bodies = [s.body for s in made.sublayers if s.body is not None]
  maps = [m for b in bodies for m in b if isinstance(m, program.Map)]
  return sum(m.site.num_rivals for m in maps)


if __name__ == "__main__":
  absltest.main()
