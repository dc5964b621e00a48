"""Which circuit decides a prompt: by identities, by hand, and as a command."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import checkpoint, explain
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.utils import errors

_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)


def influence(**fields):
  return explain.Influence(
    **{
      "task": "t",
      "answers": ("a", "b"),
      "mass": 0.5,
      "full_difference": 2.0,
      "circuit_difference": 1.0,
      "without_difference": 0.5,
      "has_top": True,
      **fields,
    }
  )


class DecidingTest(absltest.TestCase):
  def test_by_hand(self):
    self.assertEqual(influence().effect, 1.5)
    self.assertTrue(influence().decides)
    for fields in (
      {"has_top": False},
      {"circuit_difference": -0.1},
      {"without_difference": 2.5},
    ):
      self.assertFalse(influence(**fields).decides, fields)
    strong = influence(task="u", without_difference=-1.0)
    other = influence(task="v", has_top=False, without_difference=-9.0)
    self.assertIs(explain.deciding([influence(), strong, other]), strong)
    self.assertIsNone(explain.deciding([other]))
    likelier = influence(task="w", has_top=False, mass=0.6)
    against = influence(mass=0.9, circuit_difference=-1.0)
    self.assertIs(explain.nearest([other, likelier, against]), likelier)
    self.assertIs(explain.nearest([against]), against)


class ExplainTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
    config = config_lib.ModelConfig(
      n_layer=2,
      d_model=16,
      d_head=4,
      d_mlp=16,
      vocab_size=cls.tokenizer.vocab_size,
      context_length=64,
    )
    cls.model = transformer.Model(
      config, config_lib.SparsityConfig(min_alive=0)
    )
    cls.params = jax.jit(cls.model.init)(jax.random.key(0))
    mask = helpers.random_masks(cls.model, 0.15)
    example = {"answer": "'", "counter_answer": '"'}
    cls.circuit = circuit_lib.Circuit(
      task="quotes",
      model_fingerprint=fingerprint_lib.fingerprint(cls.model, cls.params),
      model_config=config,
      sparsity=cls.model.sparsity,
      ablation="mean_pretrain",
      target_loss=0.15,
      logit_scale=2.0,
      node_mask=mask,
      means=helpers.random_means(cls.model),
      edges=edges_lib.find_edges(cls.params, mask),
      metrics={},
      details={"examples": [example, example]},
    )
    cls.circuit.metrics.update(
      num_nodes=cls.circuit.num_nodes, num_edges=cls.circuit.num_edges
    )
    cls.tokens = cls.tokenizer.encode("x = ['alpha")
    cls.explanation = cls.explain(cls.circuit)

  @classmethod
  def explain(cls, circuit):
    _, probabilities = explain.top_tokens(cls.model, cls.params, cls.tokens)
    return explain.explain(
      cls.model,
      cls.params,
      circuit,
      cls.tokenizer,
      cls.tokens,
      probabilities,
    )

  def test_a_prompt_is_explained_from_its_text(self):
    found = explain.explain_prompt(
      self.model, self.params, [self.circuit], self.tokenizer, "x = ['alpha"
    )
    self.assertEqual(found.influences, (self.explanation.influence,))
    self.assertEqual(found.chosen, self.explanation.influence)
    want = explain.parts(self.explanation, self.tokenizer)
    self.assertSequenceEqual(found.parts, want)
    self.assertLen(found.tokens, len(self.tokens))
    probabilities = [p for _, p in found.next_tokens]
    self.assertEqual(probabilities, sorted(probabilities, reverse=True))
    self.assertIn(self.circuit.task, repr(found))
    table = found._repr_html_()
    self.assertIn(f"<th>{want[0].node}</th>", table)
    self.assertIn("&#x27;alpha", table)
    with self.assertRaisesRegex(errors.InputError, "prompt=''"):
      explain.explain_prompt(
        self.model, self.params, [self.circuit], self.tokenizer, ""
      )

  def test_another_models_circuit_is_refused(self):
    wider = dataclasses.replace(self.model.config, d_mlp=99)
    other = dataclasses.replace(self.circuit, model_config=wider)
    with self.assertRaisesRegex(errors.InputError, "shape is not"):
      self.explain(other)

  def test_diffs_are_those_of_whole_forward_passes(self):
    found = self.explanation.influence
    sequence = self.explanation.evaluator.sequences
    ids = int(sequence.correct[0]), int(sequence.incorrect[0])
    self.assertCountEqual(found.answers, ("'", '"'))
    batch = jnp.asarray(self.tokens)[None]
    diff = lambda logits: float(logits[0, -1, ids[0]] - logits[0, -1, ids[1]])
    full = self.model.apply(self.params, batch)
    self.assertAlmostEqual(found.full_difference, diff(full), places=4)
    self.assertGreater(
      found.full_difference, 0
    )  # The likelier answer comes first.
    self.assertAlmostEqual(
      found.circuit_difference,
      diff(self.circuit.apply(self.params, batch)),
      places=4,
    )
    rest = dataclasses.replace(
      self.circuit,
      logit_scale=1.0,
      node_mask={n: ~m for n, m in self.circuit.node_mask.items()},
    )
    self.assertAlmostEqual(
      found.without_difference, diff(rest.apply(self.params, batch)), places=4
    )
    mass = np.asarray(jax.nn.softmax(full[0, -1]))[list(ids)].sum()
    self.assertAlmostEqual(found.mass, mass, places=5)

  def test_a_nodes_importance_is_the_diff_lost_without_it(self):
    sequence = self.explanation.evaluator.sequences
    parts = explain.parts(self.explanation, self.tokenizer)
    self.assertLen(parts, self.circuit.num_nodes)
    sizes = [abs(p.importance) for p in parts]
    self.assertEqual(sizes, sorted(sizes, reverse=True))
    first = parts[0]
    site, _, index = first.node.rpartition(":")
    layer, _, name = site.partition(".")
    mask = {n: m.copy() for n, m in self.circuit.node_mask.items()}
    self.assertTrue(mask[name][int(layer), int(index)])
    diff = lambda gates: logit_difference_lib.logit_difference(
      self.model,
      self.params,
      sequence,
      hooks.gate(jax.tree.map(jnp.asarray, gates), self.circuit.means),
    )[0]
    whole = diff(mask)
    mask[name][int(layer), int(index)] = False
    np.testing.assert_allclose(
      first.importance, 2.0 * (whole - diff(mask)), atol=1e-4
    )

  def test_attention_is_a_distribution_less_the_sink(self):
    looks = explain.attention_of(self.explanation)
    self.assertNotEmpty(looks)
    for pattern in looks.values():
      self.assertLen(pattern, len(self.tokens))
      self.assertTrue(np.all(pattern >= 0))
      self.assertLess(pattern.sum(), 1)

  def test_a_circuit_of_no_nodes_has_no_parts(self):
    mask = {n: np.zeros_like(m) for n, m in self.circuit.node_mask.items()}
    empty = dataclasses.replace(self.circuit, node_mask=mask, edges=[])
    found = self.explain(empty)
    self.assertAlmostEqual(found.influence.effect, 0, places=5)
    self.assertFalse(found.influence.decides)
    self.assertEqual(explain.parts(found, self.tokenizer), [])
    self.assertEqual(explain.attention_of(found), {})

  def test_a_part_of_a_character_is_escaped_once(self):
    shown = {
      explain.shown(self.tokenizer, t)
      for t in self.tokenizer.encode("\u20ac'\\\n")
    }
    self.assertContainsSubset(
      {r"'\xe2'", r"'\x82'", r"'\xac'", '"\'"', r"'\\'", r"'\n'"}, shown
    )

  def test_a_circuit_without_examples_is_refused(self):
    bare = dataclasses.replace(self.circuit, details={})
    with self.assertRaisesRegex(errors.InputError, "quotes has no examples"):
      explain.answer_pairs(bare)
    broken = dataclasses.replace(self.circuit, details={"examples": [{}]})
    with self.assertRaisesRegex(errors.InputError, "answer"):
      explain.answer_pairs(broken)

  def test_command(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    checkpoint.save_model(
      root / "model", self.model, self.params, self.tokenizer
    )
    self.circuit.save(root / "circuits" / "quotes")

    def run(*args, text=None):
      return subprocess.run(
        [sys.executable, "-m", "experiments.explain", *args],
        capture_output=True,
        input=text,
        text=True,
        check=False,
      )

    flags = f"--model={root / 'model'}", f"--circuits={root / 'circuits'}"
    done = run(*flags, "--prompt=x = ['alpha", f"--out={root / 'out.json'}")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertNotIn("warning", done.stderr)
    self.assertRegex(done.stdout, r"the model goes on with '")
    self.assertRegex(done.stdout, r"quotes +.* over ")
    # An untrained model's next token is neither answer.
    self.assertRegex(
      done.stdout,
      r"no circuit here decides the model's next token\nthe nearest is quotes"
      r".* its logit difference is -?\d+\.\d\d nats.*\n"
      r"core: \d+ nodes, \d+ edges; no claim was measured\n\nnode +importance",
    )
    self.assertRegex(done.stdout, r"\n\d\.[a-z._]+:\d+ +-?\d")
    written = json.loads((root / "out.json").read_text())
    self.assertEqual([r["task"] for r in written["circuits"]], ["quotes"])
    self.assertLen(written["nodes"], self.circuit.num_nodes)

    # From a file, and of a long prompt only what the model was trained on.
    long = "def alpha():\n" * 700 + "x = ['alpha"
    (root / "prompt").write_text(long)
    done = run(*flags, f"--prompt_file={root / 'prompt'}")
    self.assertEqual(done.returncode, 0, done.stderr)
    limit = self.model.config.context_length
    self.assertRegex(
      done.stderr,
      rf"warning: the prompt has \d{{4}} tokens and the model was trained on"
      rf" {limit}; only the last {limit} are read\n",
    )
    last = self.tokenizer.encode(long)[-limit:]
    texts = " ".join(explain.shown(self.tokenizer, t) for t in last)
    self.assertStartsWith(done.stdout, f"prompt: {texts}\n")

    for args, text, error in (
      ([], None, "--prompt and --prompt_file: neither given; need exactly .*"),
      (["--prompt=x", "--prompt_file=-"], "x", ".*: both given; need .*"),
      (["--prompt_file=-"], "x", "--circuits=/nowhere: no .*"),
    ):
      done = run(flags[0], "--circuits=/nowhere", *args, text=text)
      self.assertEqual(done.returncode, 2)
      self.assertRegex(done.stderr, rf"^error: {error}\n$")
    done = run(*flags, "--prompt_file=-", text="")
    self.assertRegex(
      done.stderr, r"^error: --prompt_file=- is empty; need .*\n$"
    )


if __name__ == "__main__":
  absltest.main()
