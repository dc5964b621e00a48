"""Compiled files: the circuit's logits, by NumPy, and short enough to read."""

import dataclasses
import json
import pathlib
import re
import runpy
import subprocess
import sys
import tempfile

import hypothesis
import jax
import numpy as np
import small_circuits
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import programs, sites
from sparse_jax.utils import errors

# Reads token rows from standard input; imports neither JAX nor this package.
_RUN = """
import json, runpy, sys
for name in ("jax", "flax", "sparse_jax"):
  sys.modules[name] = None
logits = runpy.run_path(sys.argv[1])["logits"]
print(json.dumps([logits(row).tolist() for row in json.load(sys.stdin)]))
"""


def write(test, circuit, params, claims=()):
  """Returns (path, text) of a circuit's file."""
  text = programs.write_source(
    circuit, params, small_circuits.TOKENIZER, small_circuits.ANSWERS, claims
  )
  root = pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))
  (root / "quote.py").write_text(text)
  return root / "quote.py", text


class SourceTest(parameterized.TestCase):
  def test_without_jax_it_gives_the_circuits_difference_on_256_prompts(self):
    circuit, params, sequences = small_circuits.with_prompts()
    tokens, positions, correct, incorrect = sequences
    self.assertLen(tokens, 256)
    logits = np.asarray(jax.jit(circuit.apply)(params, tokens))
    rows = np.arange(len(tokens))
    last = logits[rows, positions]
    want = last[rows, correct] - last[rows, incorrect]
    path, _ = write(self, circuit, params)
    prompts = [
      row[: n + 1].tolist() for row, n in zip(tokens, positions, strict=True)
    ]
    done = subprocess.run(
      [sys.executable, "-c", _RUN, str(path)],
      input=json.dumps(prompts),
      capture_output=True,
      text=True,
      check=True,
    )
    got = np.array(json.loads(done.stdout))
    at = {token: i for i, token in enumerate(small_circuits.ANSWERS.tokens)}
    side = lambda ids: got[rows, [at[int(t)] for t in ids]]
    diff = side(correct) - side(incorrect)
    np.testing.assert_allclose(diff, want, rtol=0, atol=1e-4)
    self.assertGreater(np.std(want), 0.01)

  @hypothesis.given(
    case=st.fixed_dictionaries(
      {
        **small_circuits.OPTIONS,
        "fraction": st.sampled_from([0.15, 0.3, 1.0]),
        "share": st.sampled_from([0.0, 0.05, 0.2, 1.1]),
        "gate_last": st.booleans(),
      }
    ),
    tokens=st.lists(st.integers(0, 299), min_size=1, max_size=9),
  )
  # Zeroed channels tie behind a LayerNorm: AbsTopK keeps the first of them.
  @hypothesis.example(
    case={
      **{"positions": "concatenated", "d_position": 1, "norm": "layer"},
      **{"norm_bias": False, "activation": "gelu", "bias": False},
      **{"tied": False, "sink": False, "bigram": "learned"},
      **{"residual_activation": "relu", "fraction": 0.3, "share": 0.2},
      "gate_last": False,
    },
    tokens=[0],
  )
  @hypothesis.settings(max_examples=25)
  def test_it_is_the_compact_circuit_for_any_config(self, case, tokens):
    circuit, params = small_circuits.make(**case)
    tokens = [t % small_circuits.TOKENIZER.vocab_size for t in tokens]
    want = circuit.compact(params, small_circuits.ANSWERS.tokens).numpy(
      [tokens]
    )[0, -1]
    path, text = write(self, circuit, params)
    logits = runpy.run_path(str(path))["logits"]
    np.testing.assert_allclose(logits(tokens), want, rtol=1e-5, atol=1e-4)
    long = [line for line in text.splitlines() if len(line) > 80]
    self.assertLen(long, 1)  # What is packed.

  @parameterized.named_parameters(
    ("parallel", {"parallel": True}),
    ("a window", {"windows": (3, 3)}),
    ("a window, positions", {"windows": (3, 3), "positions": "learned"}),
    ("rotary", {"positions": "rotary"}),
  )
  def test_closed_heads_write_what_they_do_in_the_compact_circuit(self, fields):
    circuit, params = small_circuits.make(share=0.3, **fields)
    mask = {name: np.array(m) for name, m in circuit.node_mask.items()}
    for letter in "qkv":
      mask[f"attn.{letter}"][:] = False
    mask["attn.resid_delta"][1] = False
    circuit = small_circuits.with_mask(
      circuit.model, params, mask, circuit.means
    )
    tokens = np.random.default_rng(0).integers(0, 200, 9)
    compact = circuit.compact(params, small_circuits.ANSWERS.tokens)
    path, _ = write(self, circuit, params)
    logits = runpy.run_path(str(path))["logits"]
    want = compact.numpy(tokens[None])[0, -1]
    np.testing.assert_allclose(logits(tokens), want, rtol=0, atol=1e-4)

  @parameterized.named_parameters(
    ("many edges", 2, (10, 1, 2, 2, 3, 1, 1, 1), (42, 116)),
    ("many functions", 2, (5, 1, 2, 2, 2, 5, 2, 2), (42, 86)),
    ("three layers", 3, (4, 1, 1, 1, 2, 2, 1, 2), (42, 54)),
  )
  def test_a_core_of_40_nodes_is_under_200_lines(self, n_layer, counts, size):
    fields = {"positions": "learned", "d_model": 32, "d_head": 8}
    circuit, params = small_circuits.make(
      share=1.1, density=1.0, n_layer=n_layer, **fields
    )
    mask = {name: np.array(m) for name, m in circuit.node_mask.items()}
    rng = np.random.default_rng(2)
    for name, count in zip(sites.LAYER_NODE_SITES, counts, strict=True):
      mask[name][:] = False
      for row in mask[name]:
        # Queries, keys and values of two heads.
        width = 16 if name in ("attn.q", "attn.k", "attn.v") else len(row)
        row[rng.choice(width, count, replace=False)] = True
    circuit = small_circuits.with_mask(
      circuit.model, params, mask, circuit.means
    )
    self.assertEqual((circuit.num_nodes, circuit.num_edges), size)
    claims = ["Holds: " + "; ".join(["agrees with the model"] * 8) + "."]
    _, text = write(self, circuit, params, claims)
    self.assertLess(text.count("\n"), 200)

  def test_it_says_what_it_is_and_answers_a_prompt(self):
    circuit, params = small_circuits.make()
    claims = ["sufficient: holds; loss 0.12", 'quotes """ and \\']
    path, text = write(self, circuit, params, claims)
    names = runpy.run_path(str(path))
    for part in (
      small_circuits.TASK,
      "0.123",
      f"{circuit.num_nodes} nodes",
      *claims[:1],
    ):
      self.assertIn(part, names["__doc__"])
    self.assertEqual(
      names["encode"]("x = 'a"), small_circuits.TOKENIZER.encode("x = 'a")
    )
    run = lambda *arguments: subprocess.run(
      [sys.executable, str(path), *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
    answered = run("x = 'alpha").stdout
    self.assertRegex(
      answered, r"^['\"]{3} over ['\"]{3}: logit difference \d+\.\d{4} nats\n$"
    )
    for arguments in ((), ("a", "b"), ("",)):
      done = run(*arguments)
      self.assertEqual(done.returncode, 1)
      self.assertIn("usage: python", done.stderr)
    for edge in circuit.edges:
      self.assertIn(f"{abs(edge['weight']):.6g}", text)

  def test_channels_are_named_by_what_writes_and_reads_them(self):
    circuit, params = small_circuits.make(share=0.3)
    _, text = write(self, circuit, params)
    groups = re.findall(r"(\w+)_to_(\w+)=\(([\d,\s]+)\)", text)
    writers, readers, numbers = zip(*groups, strict=True)
    named = {
      f"{writer}_to_{reader}_r{i}"
      for writer, reader, some in groups
      for i in re.findall(r"\d+", some)
    }
    used = {
      f"{name}_{i}"
      for name, weights in re.findall(r"h\.(\w+_to_\w+)\(([^)]*)\)", text)
      for i in re.findall(r"(r\d+)=", weights)
    }
    self.assertNotEmpty(used)
    self.assertContainsSubset(used, named)
    self.assertGreater(max(map(len, numbers)), len("1, 2"))
    self.assertContainsSubset(("token", "heads0", "many"), writers)
    self.assertContainsSubset(("heads0", "mlp0", "mlp1"), readers)
    first = text[text.index("def attn0") : text.index("def mlp0")]
    self.assertNotRegex(first, r"(head|mlp)\w*_to_\w+=")

  @parameterized.parameters(True, False)
  def test_a_parallel_mlp_reads_nothing_of_the_heads_beside_it(self, parallel):
    made = small_circuits.make(share=0.3, parallel=parallel)
    _, text = write(self, *made)
    first = text[text.index("def mlp0") : text.index("def attn1")]
    is_read = re.search(r"heads?0\w*_to_mlp0=", first) is not None
    self.assertEqual(is_read, not parallel)

  def test_what_it_refuses(self):
    with self.assertRaisesRegex(errors.InputError, "'alpha beta' is no single"):
      programs.find_answers([("'", "alpha beta")], small_circuits.TOKENIZER)
    circuit, params = small_circuits.make()
    frozen = dataclasses.replace(circuit, freeze_norms=True)
    with self.assertRaisesRegex(errors.InputError, "freeze_norms=True"):
      write(self, frozen, params)
    path, _ = write(self, *small_circuits.make(positions="learned"))
    with self.assertRaisesRegex(ValueError, "65 tokens; need at most 64"):
      runpy.run_path(str(path))["logits"]([1] * 65)


if __name__ == "__main__":
  absltest.main()
