"""Circuits: counts by brute force, files, identities."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import helpers
import jax
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import circuit, sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors


def new_directory(test) -> pathlib.Path:
  return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


def make_circuit(share=0.4, **fields):
  model, params, tokens = helpers.tiny_model(**fields)
  params = helpers.sparsify(params, 0.5)
  mask = helpers.random_masks(model, share)
  made = helpers.make_circuit(
    model,
    params,
    mask,
    logit_scale=1.5,
    metrics={"test_loss": 0.1},
    details={"runs": [{"k_coef": 1e-3}]},
  )
  return made, model, params, tokens


def brute_force_edges(params, mask, config):
  """Every weight, one at a time, as the paper defines an edge."""
  attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
  d = config.d_model
  found = set()
  for layer in range(config.n_layer):
    joins = []
    for block, name in enumerate(("attn.q", "attn.k", "attn.v")):
      kernel = np.asarray(attn["c_attn"]["kernel"][layer])
      joins.append(
        ("attn.act_in", name, kernel[:, block * d : (block + 1) * d])
      )
    joins.append(
      ("attn.v", "attn.resid_delta", attn["c_proj"]["kernel"][layer])
    )
    joins.append(("mlp.act_in", "mlp.post_act", mlp["c_fc"]["kernel"][layer]))
    joins.append(
      ("mlp.post_act", "mlp.resid_delta", mlp["c_proj"]["kernel"][layer])
    )
    for source, target, kernel in joins:
      for i in range(mask[source].shape[1]):
        for j in range(mask[target].shape[1]):
          if mask[source][layer, i] and mask[target][layer, j]:
            if kernel[i, j] != 0:
              found.add((f"{layer}.{source}", i, f"{layer}.{target}", j))
  return found


class CircuitTest(parameterized.TestCase):
  def test_frozen_norms_are_the_whole_models_and_are_kept_in_the_file(self):
    made, model, params, tokens = make_circuit()
    frozen = dataclasses.replace(made, freeze_norms=True)
    sequences = sequences_lib.Sequences(
      tokens,
      np.full(len(tokens), tokens.shape[1] - 1),
      np.arange(len(tokens)),
      np.arange(len(tokens)) + 20,
      np.arange(len(tokens)),
    )
    hook = hooks.circuit_hook(
      model,
      params,
      sequences.tokens,
      sequences.positions,
      made.node_mask,
      made.means,
      freeze_norms=True,
    )
    want = logit_difference_lib.logit_difference(model, params, sequences, hook)
    directory = new_directory(self) / "c"
    frozen.save(directory)
    loaded = circuit.Circuit.load(directory)
    rows = np.arange(len(tokens))
    diff = lambda logits: (
      logits[rows, -1, sequences.correct]
      - logits[rows, -1, sequences.incorrect]
    )
    got = diff(loaded.apply(params, tokens)) / made.logit_scale
    np.testing.assert_allclose(got, want, atol=1e-4)
    free = diff(made.apply(params, tokens)) / made.logit_scale
    self.assertGreater(np.abs(free - want).max(), 1e-2)

  @parameterized.parameters(
    {}, {"positions": "concatenated", "d_position": 6}, {"tied": True}
  )
  def test_edges_against_brute_force(self, **fields):
    made, model, params, _ = make_circuit(**fields)
    want = brute_force_edges(params, made.node_mask, model.config)
    got = {
      (e["from"]["site"], e["from"]["index"], e["to"]["site"], e["to"]["index"])
      for e in made.edges
    }
    self.assertEqual(got, want)
    self.assertLen(made.edges, len(want))
    self.assertEqual(edges_lib.count_edges(params, made.node_mask), len(want))
    self.assertEqual(made.num_edges, len(want))

  def test_edge_weights_are_the_models(self):
    made, _, params, _ = make_circuit()
    edge = next(e for e in made.edges if e["kind"] == "key")
    layer = int(edge["from"]["site"][0])
    kernel = params["layers"]["attn"]["c_attn"]["kernel"][layer]
    index = (edge["from"]["index"], 16 + edge["to"]["index"])
    self.assertEqual(edge["weight"], float(kernel[index]))

  def test_token_edges_by_hand(self):
    made, _, params, _ = make_circuit()
    embed = np.asarray(params["wte"]["embedding"])
    reads = made.node_mask["attn.act_in"] | made.node_mask["mlp.act_in"]
    want = sum(
      embed[token, channel] != 0
      for token in (3, 5)
      for channel in range(16)
      if reads[0, channel] or reads[1, channel]
    )
    counts = edges_lib.count_token_edges(
      params, made.node_mask, np.array([[3, 5, 3]]), np.array([7])
    )
    self.assertEqual(counts["num_embedding_edges"], want)

  def test_nodes_are_listed_in_forward_order(self):
    made, model, _, _ = make_circuit()
    order = list(sites.all_site_ids(model.config.n_layer))
    ranks = [order.index(node["site"]) for node in made.nodes]
    self.assertEqual(ranks, sorted(ranks))
    self.assertEqual(made.num_nodes, len(made.nodes))
    total = sum(mask.sum() for mask in made.node_mask.values())
    self.assertEqual(made.num_nodes, total)

  def test_saved_and_loaded_it_computes_the_same(self):
    made, _, params, tokens = make_circuit()
    directory = new_directory(self) / "c"
    made.save(directory)
    loaded = circuit.Circuit.load(directory)
    for field in dataclasses.fields(circuit.Circuit):
      if field.name not in ("node_mask", "means"):
        self.assertEqual(
          getattr(loaded, field.name), getattr(made, field.name), field.name
        )
    apply = lambda c: np.asarray(jax.jit(c.apply)(params, tokens))
    np.testing.assert_array_equal(apply(loaded), apply(made))
    made.save(directory)  # Over an earlier one.

  def test_with_all_nodes_it_is_the_full_model(self):
    made, model, params, tokens = make_circuit(share=1.1)
    whole = dataclasses.replace(made, logit_scale=1.0)
    np.testing.assert_allclose(
      jax.jit(whole.apply)(params, tokens),
      jax.jit(model.apply)(params, tokens),
      atol=1e-5,
    )

  def _damaged(self, edit):
    made, *_ = make_circuit()
    directory = new_directory(self) / "c"
    made.save(directory)
    edit(directory)
    with self.assertRaises(ValueError) as caught:
      circuit.Circuit.load(directory)
    message = str(caught.exception)
    self.assertNotIn("\n", message)
    self.assertIn(str(directory), message)
    return message

  def test_damaged_files_are_refused_by_name(self):
    def edit_json(change):
      def edit(directory):
        path = directory / "circuit.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

      return edit

    cases = {
      "missing": lambda d: (d / "circuit.json").unlink(),
      "not JSON": lambda d: (d / "circuit.json").write_text("{"),
      "format": edit_json(lambda r: r.update(format="other")),
      "earlier format": edit_json(
        lambda r: r.update(format="sparse_jax circuit 1")
      ),
      "index": edit_json(lambda r: r["nodes"][0].update(index=10**6)),
      "negative": edit_json(lambda r: r["nodes"][0].update(index=-1)),
      "an index that is no number": edit_json(
        lambda r: r["nodes"][0].update(index=True)
      ),
      "a huge weight": edit_json(
        lambda r: r["edges"][0].update(weight=10**400)
      ),
      "no nodes": edit_json(lambda r: r.pop("nodes")),
      "no means": lambda d: (d / "arrays.npz").unlink(),
      "a node less": edit_json(lambda r: r["nodes"].pop()),
      "a node twice": edit_json(lambda r: r["nodes"].append(r["nodes"][0])),
      "node counts": edit_json(lambda r: r["metrics"].update(num_nodes=1)),
      "edge counts": edit_json(lambda r: r["edges"].pop()),
      "no metrics": edit_json(lambda r: r.update(metrics=None)),
      "scale": edit_json(lambda r: r.update(logit_scale=float("nan"))),
      "target": edit_json(lambda r: r.update(target_loss=float("inf"))),
      "shift": edit_json(lambda r: r.update(answer_shift="much")),
      "ablation": edit_json(lambda r: r.update(ablation="none")),
      "edge kind": edit_json(lambda r: r["edges"][0].update(kind="other")),
      "edge weight": edit_json(lambda r: r["edges"][0].update(weight=None)),
      "edge twice": edit_json(
        lambda r: r["edges"].__setitem__(0, r["edges"][1])
      ),
      "edge's layer": edit_json(
        lambda r: r["edges"][0]["to"].update(site="1.attn.q")
      ),
      "torn means": lambda d: (d / "arrays.npz").write_bytes(b"PK\3\4torn"),
    }
    for name, edit in cases.items():
      with self.subTest(name):
        message = self._damaged(edit)
        if name == "earlier format":
          self.assertRegex(message, "prune again .*experiments.prune")

  def test_an_edge_to_a_node_that_is_not_kept_is_refused(self):
    def edit(directory):
      path = directory / "circuit.json"
      raw = json.loads(path.read_text())
      end = raw["edges"][0]["to"]
      raw["nodes"].remove(end)
      raw["metrics"]["num_nodes"] -= 1
      path.write_text(json.dumps(raw))

    self.assertRegex(
      self._damaged(edit), r"edges\[\d+\]:.*not one of the nodes"
    )

  def test_another_models_circuit_is_refused_if_asked(self):
    made, model, params, _ = make_circuit()
    directory = new_directory(self) / "c"
    made.save(directory)
    load = functools.partial(circuit.Circuit.load, directory)
    self.assertEqual(load(model=model, params=params).edges, made.edges)
    other = jax.tree.map(lambda w: w + 1, params)
    for given in ({"model": model}, {}):
      with self.assertRaisesRegex(
        errors.InputError, "model_fingerprint=sha256"
      ):
        load(params=other, **given)
    wider, *_ = helpers.tiny_model(d_mlp=16)
    with self.assertRaisesRegex(errors.InputError, "shape is not"):
      load(model=wider)

  def test_without_a_node_it_takes_its_mean_and_its_edges_are_gone(self):
    made, _, params, tokens = make_circuit()
    end = made.edges[0]["to"]
    name = f"{end['site']}:{end['index']}"
    smaller = made.without(name)
    self.assertEqual(smaller.num_nodes, made.num_nodes - 1)
    self.assertNotIn(end, smaller.nodes)
    touching = [e for e in made.edges if end in (e["from"], e["to"])]
    self.assertEqual(smaller.num_edges, made.num_edges - len(touching))
    circuit.check_consistent(smaller, "smaller")
    site, layer = sites.parse_site_id(end["site"], 2)
    mean = made.means[site][layer, end["index"]]

    def at_mean(name, at, x):
      is_site = (name, at) == (site, layer)
      return x.at[..., end["index"]].set(mean) if is_site else x

    np.testing.assert_allclose(
      smaller.apply(params, tokens),
      made.apply(params, tokens, at_mean),
      atol=1e-5,
    )
    with self.assertRaisesRegex(errors.InputError, "unknown node '9.attn.q:0'"):
      made.without("9.attn.q:0")

  def test_logit_differences_are_those_of_whole_forward_passes(self):
    made, model, params, _ = make_circuit()
    made = dataclasses.replace(made, details={"answer_shift": 0.25})
    prompts = helpers.random_sequences()
    rows = np.arange(len(prompts.positions))
    rest = dataclasses.replace(
      made,
      node_mask={name: ~mask for name, mask in made.node_mask.items()},
      logit_scale=1.0,
    )
    sign = np.where(prompts.correct < prompts.incorrect, 1, -1)
    found = made.logit_differences(params, prompts)
    for name, apply, shift in (
      ("full model", model.apply, 0.0),
      ("circuit", made.apply, 0.25),
      ("without it", rest.apply, 0.0),
    ):
      last = np.asarray(apply(params, prompts.tokens))[rows, prompts.positions]
      want = last[rows, prompts.correct] - last[rows, prompts.incorrect]
      np.testing.assert_allclose(
        found[name], want + shift * sign, atol=1e-4, err_msg=name
      )

  def test_it_is_shown_in_a_line_and_in_a_small_table(self):
    made, *_ = make_circuit()
    made = dataclasses.replace(made, task="<b>'quotes'")
    line = repr(made)
    self.assertLess(len(line), 200)
    for part in (
      "<b>'quotes'",
      f"nodes: {made.num_nodes}",
      f"edges: {made.num_edges}",
      "test loss: 0.1",
      "full model's test loss: not measured",
    ):
      self.assertIn(part, line)
    table = made._repr_html_()
    self.assertNotIn("<b>", table)
    self.assertIn("&lt;b&gt;", table)
    self.assertIn(f"<td>{made.num_nodes}</td>", table)

  def test_a_foreign_directory_is_never_replaced(self):
    made, *_ = make_circuit()
    directory = new_directory(self)
    (directory / "thesis.tex").write_text("years of work")
    with self.assertRaisesRegex(ValueError, "holds no circuit.json"):
      made.save(directory)
    self.assertTrue((directory / "thesis.tex").exists())


if __name__ == "__main__":
  absltest.main()
