"""A circuit in ONNX Runtime: the logits of `Circuit.apply`, at any size."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
import small_circuits
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import programs

onnxruntime = pytest.importorskip(
  "onnxruntime", reason="no onnxruntime: install the [onnx] extra"
)
pytest.importorskip("jax2onnx", reason="no jax2onnx: install the [onnx] extra")

_TOKENS = list(small_circuits.ANSWERS.tokens)
_DENSE = {"fraction": 1.0, "norm": "layer", "sink": False, "bigram": "none"}


def run(circuit, params):
  """Returns the function from tokens to logits that ONNX Runtime makes."""
  made = programs.write_onnx(circuit, params, small_circuits.ANSWERS)
  session = onnxruntime.InferenceSession(
    made, providers=["CPUExecutionProvider"]
  )
  names = [i.name for i in session.get_inputs()]
  assert names == ["tokens"]
  call = lambda x: session.run(None, {"tokens": np.asarray(x, np.int32)})[0]
  return call, session.get_modelmeta().custom_metadata_map


class OnnxFileTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("learned", {"positions": "learned"}),
    ("concatenated", {"positions": "concatenated", "d_position": 3}),
    ("LayerNorm", {"norm": "layer", "activation": "relu"}),
    ("by token", {"share": 0.05, "fraction": 1.0, "d_model": 32}),
    ("all nodes", {"share": 1.1, "bigram": "learned", "sink": True}),
    ("relu", {"residual_activation": "relu", "gate_last": True}),
    ("no nodes", {"share": 0.0}),
    ("GPT-2", {"positions": "learned", "activation": "gelu_tanh", **_DENSE}),
    ("GPT-Neo", {"windows": (0, 5), "scale_scores": False, **_DENSE}),
    ("GPT-NeoX", {"positions": "rotary", "parallel": True, **_DENSE}),
    ("rotary, closed heads", {"positions": "rotary", "share": 0.02}),
  )
  def test_it_is_the_circuit_on_random_tokens_of_many_sizes(self, case):
    circuit, params = small_circuits.make(**case)
    call, said = run(circuit, params)
    self.assertEqual(said["task"], small_circuits.TASK)
    self.assertEqual(said["answers"], "\"'\"\n'\"'")
    compact = circuit.compact(params, _TOKENS).numpy
    size = small_circuits.TOKENIZER.vocab_size
    for seed, shape in enumerate([(1, 1), (2, 16), (64, 9), (3, 64)]):
      tokens = np.random.default_rng(seed).integers(0, size, shape)
      got = call(tokens)
      np.testing.assert_allclose(got, compact(tokens), rtol=0, atol=1e-4)
    want = np.asarray(jax.jit(circuit.apply)(params, tokens))[..., _TOKENS]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)

  def test_it_has_the_circuits_difference_on_256_prompts(self):
    circuit, params, (tokens, positions, *_) = small_circuits.with_prompts()
    self.assertLen(tokens, 256)
    rows = np.arange(len(tokens))
    difference = lambda x: np.diff(np.asarray(x)[rows, positions], axis=-1)
    want = difference(jax.jit(circuit.apply)(params, tokens)[..., _TOKENS])
    call, _ = run(circuit, params)
    np.testing.assert_allclose(
      difference(call(tokens)), want, rtol=0, atol=1e-4
    )
    self.assertGreater(np.std(want), 0.01)

  @hypothesis.given(
    st.lists(
      st.lists(st.integers(0, 10**6), min_size=7, max_size=7),
      min_size=1,
      max_size=5,
    )
  )
  @hypothesis.settings(max_examples=50, deadline=None)
  def test_it_is_the_compact_program_on_any_tokens(self, rows):
    circuit, params, call = _made()
    tokens = np.array(rows) % small_circuits.TOKENIZER.vocab_size
    want = circuit.compact(params, _TOKENS).numpy(tokens)
    np.testing.assert_allclose(call(tokens), want, rtol=0, atol=1e-4)


@functools.cache
def _made():
  circuit, params = small_circuits.make(positions="learned")
  return circuit, params, run(circuit, params)[0]


if __name__ == "__main__":
  absltest.main()
