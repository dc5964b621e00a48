"""What circuits do: values, looks and differences are those of the model."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import own_task
from absl.testing import absltest

from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import hooks
from sparse_jax.report import activations, data, section, user_prompts
from sparse_jax.utils import errors

Document = collections.namedtuple("Document", "text name")


class ActivationsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.Tokenizer.train([own_task.TEXT] * 4, 300)
    cls.model, cls.params, cls.circuit = own_task.make_circuit(cls.tokenizer)
    cls.documents = [
      Document(own_task.TEXT * 2, "a.py"),
      Document(own_task.TEXT[9:], "b.py"),
    ]
    cls.own = [
      user_prompts.UserPrompt("y = 'gamma"),
      user_prompts.UserPrompt("z = 'beta", 'z = "beta'),
    ]
    cls.evidence = cls._collect(cls.documents, cls.own)
    (cls.found,) = cls.evidence.circuits
    cls.sides = [s for p in cls.found.prompts for s in p.sides]
    run = functools.partial(hooks.run_with_sites, cls.model)
    cls.run_with_sites, cls.runs = staticmethod(jax.jit(run)), {}

  @classmethod
  def _collect(cls, documents=(), own=(), circuit=None):
    circuits = [{"core": circuit or cls.circuit}]
    args = cls.model, cls.params, cls.tokenizer, circuits
    return activations.collect(*args, documents, own)

  def _acts(self, tokens):
    """Returns (logits, values at all sites), each `[1, L, …]`."""
    key = tuple(map(int, tokens))
    if key not in self.runs:
      batch = jnp.asarray(key)[None]
      self.runs[key] = self.run_with_sites(self.params, batch)
    return self.runs[key]

  def test_prompts_are_the_stored_pairs_and_the_users_own(self):
    prompts = self.found.prompts
    self.assertEqual([p.is_own for p in prompts], [False, False, True, True])
    self.assertEqual([len(p.sides) for p in prompts], [2, 2, 1, 2])
    texts = [self.tokenizer.decode(side.tokens) for side in self.sides]
    want = ["x = ['alpha", 'x = ["alpha', "x = ['beta", 'x = ["beta']
    self.assertEqual(texts[:4], want)
    self.assertEqual(texts[4:], ["y = 'gamma", "z = 'beta", 'z = "beta'])
    quotes = tuple(map(self.tokenizer.single_token, "'\""))
    self.assertEqual(self.sides[0].answers, quotes)
    self.assertEqual(self.sides[1].answers, quotes[::-1])
    self.assertEqual(self.sides[5].answers, self.sides[6].answers[::-1])

  def test_values_are_the_whole_models_at_every_token(self):
    nodes = {f"{n['site']}:{n['index']}" for n in self.circuit.nodes}
    self.assertEqual(set(self.found.nodes), nodes)
    acts = [self._acts(side.tokens)[1] for side in self.sides]
    for node in self.circuit.nodes:
      want = np.concatenate(
        [a[node["site"]][0, :, node["index"]] for a in acts]
      )
      got = self.found.nodes[f"{node['site']}:{node['index']}"]
      np.testing.assert_allclose(got.prompts, want, atol=1e-5)
      self.assertGreaterEqual(got.scale, np.abs(want).max() - 1e-5)

  def test_snippets_peak_where_held_out_code_excites_most(self):
    names = [name for name, _ in self.evidence.windows]
    self.assertContainsSubset(names, {"a.py", "b.py"})
    acts = [self._acts(tokens)[1] for _, tokens in self.evidence.windows]
    for node in self.circuit.nodes:
      values = self.found.nodes[f"{node['site']}:{node['index']}"]
      of = lambda i: np.asarray(acts[i][node["site"]][0, :, node["index"]])
      for snippets, sign in ((values.most, 1), (values.least, -1)):
        peaks = [sign * s.values[s.peak - s.first] for s in snippets]
        self.assertEqual(peaks, sorted(peaks, reverse=True))
        for s in snippets:
          row = of(s.window)
          self.assertEqual(int(np.argmax(sign * row)), s.peak)
          whole = row[s.first : s.first + len(s.values)]
          np.testing.assert_allclose(s.values, whole, atol=1e-5)
      every = max(float(of(i).max()) for i in range(len(acts)))
      if every > 1e-4:
        first = values.most[0]
        self.assertAlmostEqual(
          first.values[first.peak - first.first], every, places=4
        )

  def test_differences_are_those_of_model_and_circuit_after_each_token(self):
    apply = jax.jit(self.circuit.apply)
    for side in self.sides:
      batch = jnp.asarray(side.tokens)[None]
      a, b = side.answers
      diff = lambda logits, a=a, b=b: np.asarray(
        logits[0, :, a] - logits[0, :, b]
      )
      (full, full_L), (name, own_L) = side.differences
      self.assertEqual((full, name), ("full model", "circuit"))
      np.testing.assert_allclose(
        full_L, diff(self._acts(side.tokens)[0]), atol=1e-4
      )
      shift = 0.25 if a < b else -0.25
      want = diff(apply(self.params, batch)) + shift
      np.testing.assert_allclose(own_L, want, atol=1e-4)

  def test_heads_look_as_they_do_in_the_model(self):
    self.assertNotEmpty(self.found.heads)
    patterns = functools.partial(hooks.attention_patterns, self.model)
    start, patterns = 0, jax.jit(patterns)
    for side in self.sides:
      _, acts = self._acts(side.tokens)
      pattern = patterns(self.params, acts)
      corner = np.tril_indices(len(side.tokens))
      for head, row in self.found.heads.items():
        layer, number = map(int, head.split("."))
        np.testing.assert_allclose(
          row[start : start + len(corner[0])],
          np.asarray(pattern)[layer, 0, :, number][corner],
          atol=1e-5,
        )
      start += len(corner[0])

  def test_histograms_count_each_side_of_every_test_pair_once(self):
    for values in self.found.nodes.values():
      low, high, first, second = values.histogram
      self.assertLessEqual(low, high)
      self.assertEqual((sum(first), sum(second)), (2, 2))

  def test_the_page_holds_values_in_eight_bits(self):
    parts = [section.section({"core": self.circuit}, 0)]
    self.assertIn('"prompts"', data.page_data(parts, self.evidence))
    with self.assertRaisesRegex(errors.InputError, "evidence=.*1 circuits"):
      empty = self.evidence._replace(circuits=())
      data.page_data(parts, empty)

  def test_without_documents_pairs_or_prompts_there_is_less(self):
    bare = dataclasses.replace(
      self.circuit,
      details={"examples": [{"answer": "'", "counter_answer": '"'}]},
    )
    found = self._collect(circuit=bare)
    self.assertEqual(found.circuits[0].prompts, [])
    self.assertEqual(found.windows, [])
    found = self._collect(own=self.own[:1], circuit=bare).circuits[0]
    self.assertLen(found.prompts, 1)
    self.assertCountEqual(
      found.prompts[0].sides[0].answers,
      map(self.tokenizer.single_token, "'\""),
    )

  def test_prompts_that_cannot_be_read_are_named(self):
    for text, count in (("", "0"), ("x = " * 99, r"\d+")):
      with self.assertRaisesRegex(
        errors.InputError, f"number 1: tokens={count} .*1 to "
      ):
        self._collect(own=[user_prompts.UserPrompt(text)])
    other = dataclasses.replace(self.circuit, model_fingerprint="0" * 64)
    with self.assertRaisesRegex(errors.InputError, "model_fingerprint"):
      self._collect(circuit=other)


if __name__ == "__main__":
  absltest.main()
