"""Circuits of every family as programs: JAX, NumPy and the Python file."""

import pathlib
import runpy
import tempfile

import helpers
import jax
import numpy as np
import small_circuits
from absl.testing import absltest, parameterized

from sparse_jax import checkpoint, programs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf"


class ProgramsTest(parameterized.TestCase):
  @parameterized.parameters(
    "gpt2", "gpt_neo", "gpt_neox", "gpt_neox_serial_sharded"
  )
  def test_a_circuit_of_the_family_is_a_program(self, family):
    model, params = checkpoint.load_model(GOLDEN / family)
    mask, means = helpers.random_masks(model, 0.1), helpers.random_means(model)
    circuit = small_circuits.with_mask(model, params, mask, means)
    length = model.config.context_length
    tokens = np.random.default_rng(0).integers(
      0, model.config.vocab_size, (2, length)
    )
    want = np.asarray(jax.jit(circuit.apply)(params, tokens))
    # Of how far apart two prompts' logits are.
    self.assertGreater(np.ptp(want, 0).mean(), 0.01)
    answers = small_circuits.ANSWERS
    want = want[..., list(answers.tokens)]
    program = circuit.compact(params, answers.tokens)
    np.testing.assert_allclose(program(tokens), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(program.numpy(tokens), want, rtol=0, atol=1e-5)
    text = programs.write_source(
      circuit, params, small_circuits.TOKENIZER, answers
    )
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (root / "quote.py").write_text(text)
    logits = runpy.run_path(str(root / "quote.py"))["logits"]
    for n in (1, 2, length):
      got = np.array([logits(row[:n]) for row in tokens])
      np.testing.assert_allclose(got, want[:, n - 1], rtol=0, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
