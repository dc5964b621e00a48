"""The page: what it says, and that nothing in it can break it."""

import json
import math
import os
import pathlib
import tempfile
import time

import hypothesis
import numpy as np
import pages
from absl.testing import absltest, parameterized

from sparse_jax import circuit as circuit_lib
from sparse_jax import report
from sparse_jax.report import draw, section
from sparse_jax.report import text as text_lib
from sparse_jax.utils import errors


class ContentTest(parameterized.TestCase):
  def _page(self, circuit):
    return pages.Page(report.render([{"core": circuit}]))

  def test_draws_and_lists_every_node_and_edge(self):
    circuit = pages.small()
    page = self._page(circuit)
    drawn = {a["data-key"] for a, _ in page.find("g", "node")}
    self.assertEqual(
      drawn, {f"{n['site']}:{n['index']}" for n in circuit.nodes}
    )
    self.assertLen(page.find("g", "node"), 8)
    # The legend holds one edge of each sign and one wire.
    edges = [a for a, _ in page.find("path", "edge") if "data-from" in a]
    self.assertCountEqual(
      [(a["data-from"], a["data-to"]) for a in edges],
      [
        tuple(f"{e[k]['site']}:{e[k]['index']}" for k in ("from", "to"))
        for e in circuit.edges
      ],
    )
    self.assertEqual(page.rows("nodes"), 8)
    self.assertEqual(page.rows("edges"), 5)

  def test_edge_width_grows_with_weight_and_class_is_its_sign(self):
    edges = [
      a
      for a, _ in self._page(pages.small()).find("path", "edge")
      if "data-from" in a
    ]
    widths = {
      (a["data-from"], a["data-to"], a["class"]): float(a["stroke-width"])
      for a in edges
    }
    up = widths["0.attn.act_in:3", "0.attn.q:17", "edge pos"]
    down = widths["0.attn.act_in:3", "0.attn.v:18", "edge neg"]
    most = widths["0.attn.v:18", "0.attn.resid_delta:5", "edge pos"]
    self.assertEqual(max(widths.values()), most)
    self.assertLess(up, down)

  def test_headline_has_the_figures_and_the_verdict(self):
    page = self._page(pages.small())
    headline = page.find("p", "lead")[1][1]
    for figure in ("8 nodes", "5 edges", "0.121 nats", "98.4%", "0.0430"):
      self.assertIn(figure, headline)
    self.assertIn("meets its target of 0.150", headline)
    self.assertNotIn("validation", headline)
    page = pages.Page(report.render([pages.alone(target_loss=0.1)]))
    self.assertIn("misses its target", page.find("p", "lead")[1][1])

  def test_says_on_which_pairs_the_target_is_met(self):
    circuit = pages.small(target_loss=0.1)
    circuit.metrics.update(meets_target=True, validation_loss=0.098)
    page = self._page(circuit)
    headline = " ".join(page.find("p", "lead")[1][1].split())
    self.assertIn("On the test pairs the circuit misses its target", headline)
    self.assertIn(
      "On the validation pairs, to which it was cut, it meets the target"
      " (0.0980 nats).",
      headline,
    )
    self.assertIn("yeson the validation pairs", "".join(page.text))

  def test_says_so_where_counts_disagree(self):
    text = report.render(
      [pages.alone(metrics={"num_nodes": 9, "num_edges": 5})]
    )
    self.assertIn("num_nodes is 9, 8 are listed", text)
    self.assertNotIn("disagrees", report.render([pages.alone()]))

  def test_missing_and_non_finite_figures_are_dashes(self):
    metrics = {"test_loss": math.nan, "test_accuracy": math.inf}
    page = pages.Page(
      report.render(
        [pages.alone(metrics=metrics | {"odd": -math.inf, "big": 10**400})]
      )
    )
    text = " ".join(page.text)
    self.assertIn("– nats", text)
    for word in ("nan", "inf", "None"):
      self.assertNotIn(word, [w.strip("().,").lower() for w in text.split()])

  def test_shows_every_further_figure_nested_ones_too(self):
    metrics = {"extra": 0.25, "group": {"random": {"loss": 1.5}, "ok": True}}
    text = " ".join(self._page(pages.small(metrics=metrics)).text)
    for shown in ("extra", "0.250", "group.random.loss", "1.50", "group.ok"):
      self.assertIn(shown, text)

  def test_faithfulness_is_criteria_curves_and_importance(self):
    metrics = {"faithfulness": pages.faithfulness_metrics()}
    page = self._page(pages.small(metrics=metrics))
    text = " ".join(page.text)
    self.assertIn("Not established: robust to what is outside it.", text)
    self.assertIn("accuracy without it 0.500 [0.400, 0.600]", text)
    lines = [a for a, _ in page.find("path", "line")]
    # Two of sizes, two each of the adversary and of chance, two of larger
    # circuits, one of shares.
    self.assertLen([a for a in lines if "d" in a and "M1 7" not in a["d"]], 9)
    self.assertIn("nonsense labels: 30 more.", text)
    self.assertIn("0.attn.v:3 → 0.attn.resid_delta:1", text)
    # The worst comes first, whatever the file's order.
    self.assertLess(text.index("0.900"), text.index("0.300–0.500"))
    self.assertNotIn("faithfulness.ablation", text)

  @parameterized.parameters(
    ({},), ({"ablation": "zero"},), ({"controls": 3, "importance": [1]},)
  )
  def test_faithfulness_that_cannot_be_read_is_said_to_be(self, metrics):
    render = lambda metrics: report.render(
      [pages.alone(metrics={"faithfulness": metrics})]
    )
    self.assertIn("are not what the faithfulness checks", render(metrics))
    render(pages.faithfulness_metrics() | metrics)

  def test_empty_circuit_and_no_circuits(self):
    empty = pages.small(nodes=[], edges=[], metrics={})
    text = report.render([{"core": empty}])
    self.assertIn("no node was kept", text)
    self.assertIn("No circuits were given", report.render([]))

  def test_draws_the_strongest_edges_and_says_so(self):
    circuit = pages.dense(100, 500)
    page = self._page(circuit)
    shown = [a for a, _ in page.find("path", "edge") if "data-from" in a]
    self.assertLen(shown, draw.MAX_EDGES)
    ranked = sorted(circuit.edges, key=lambda e: -abs(e["weight"]))
    self.assertCountEqual(
      [(a["data-from"], a["data-to"]) for a in shown],
      [
        (
          f"0.mlp.act_in:{e['from']['index']}",
          f"0.mlp.post_act:{e['to']['index']}",
        )
        for e in ranked[: draw.MAX_EDGES]
      ],
    )
    self.assertIn("400 edges of largest |weight| of 500", "".join(page.text))
    self.assertEqual(page.rows("edges"), 500)

  def test_dense_circuit_stays_small_and_quick(self):
    circuit = pages.dense(1600, 5000)
    started = time.process_time()
    text = report.render([{"core": circuit}])
    self.assertLess(time.process_time() - started, 5)
    self.assertLess(len(text.encode()), 5_000_000)
    page = pages.Page(text)
    self.assertLen(page.find("g", "node"), draw.MAX_NODES)
    self.assertEqual(page.rows("edges"), section.MAX_ROWS)
    said = " ".join(page.text)
    self.assertIn("2,000 of 5,000 rows", said)
    self.assertIn("1,500 of 1,600 nodes", said)
    self.assertIn("5,000 edges, the strongest first", said)

  def test_same_input_same_bytes(self):
    make = lambda: report.render(
      [
        pages.alone(examples=[pages.example()]),
        {"core": pages.dense(60, 300)},
        pages.nested(),
      ],
      training=[{"step": 1, "train_loss": 2.0}],
    )
    self.assertEqual(make(), make())

  def test_examples_mark_what_differs(self):
    page = pages.Page(
      report.render([pages.alone(examples=[pages.example("x")])])
    )
    boxes = page.find("bdi", "tok")
    marked = [t for a, t in boxes if "mark" in a["class"].split()]
    self.assertEqual(marked, ["x", "y"])
    self.assertEqual([t for _, t in boxes][:4], ["a", "x", "⏎", "·b"])

  def test_notes_of_a_node_stand_in_its_row(self):
    notes = {"0.attn.q:17": {"read_tokens": [["'", 0.8]], "write_tokens": []}}
    page = pages.Page(report.render([pages.alone(node_notes=notes)]))
    self.assertEqual([t for _, t in page.find("div", "weighted")], ["'0.800"])

  def test_heads_are_those_of_the_model(self):
    def heads(d_head):
      page = pages.Page(report.render([pages.alone(d_head=d_head)]))
      labels = [a["aria-label"] for a, _ in page.find("g", "node")]
      return [x.partition(", ")[2][:6] for x in labels if "head" in x]

    self.assertEqual(heads(16), ["head 1", "head 1"])
    self.assertEqual(heads(32), ["head 0", "head 0"])

  def test_tables_have_captions_and_scopes(self):
    page = pages.Page(report.render([pages.alone()], training=[{"step": 1}]))
    self.assertLen(page.find("caption"), len(page.find("table")))
    for attributes, _ in page.find("th"):
      self.assertIn(attributes["scope"], ("row", "col"))
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    self.assertLen(set(ids), len(ids))
    for _, a, _ in page.elements:
      for name in ("aria-labelledby", "aria-describedby"):
        self.assertContainsSubset((a.get(name) or "").split(), ids)


class NestedTest(parameterized.TestCase):
  """A core and the robust circuit around it: one section."""

  def _nested(self, core=None, robust=None):
    around = pages.nested()
    for which, metrics in (("core", core), ("robust", robust)):
      around[which].metrics.update(metrics or {})
    return around

  def _measured(self, accuracy):
    metrics = pages.faithfulness_metrics()
    adversarial = metrics["partial_ablation"]["adversarial"]
    adversarial["accuracy"]["value"] = accuracy
    return {"faithfulness": metrics}

  def test_one_section_has_both_sizes_losses_and_accuracies_lost(self):
    around = self._nested(self._measured(0.4), self._measured(0.96))
    page = pages.Page(report.render([around, pages.alone("b")]))
    self.assertLen(page.find("section", "circuit-section"), 2)
    lead = " ".join(page.find("p", "lead")[1][1].split())
    for figure in (
      "The core, 8 nodes and 5 edges,",
      "0.121 nats",
      "The robust circuit around it, 14 nodes and 11 edges,",
      "0.0456 nats",
      "costs the core 59.0%, the robust circuit 3.0% of accuracy",
    ):
      self.assertIn(figure, lead)
    overview = page.find("table")[0][1]
    for figure in ("59.0%", "3.0%", "0.0456", "14", "11", "robust circuit"):
      self.assertIn(figure, overview)
    self.assertIn("Accuracy lost to the adversary: the", " ".join(page.text))

  def test_support_is_drawn_behind_the_core_and_apart(self):
    text = report.render([pages.nested()])
    page = pages.Page(text)
    marks = [text.rindex(f'<g class="{part}">') for part in ("support", "core")]
    self.assertEqual(marks, sorted(marks))
    keys = [a["data-key"] for a, _ in page.find("g", "node")]
    self.assertLen(keys, 14)
    self.assertStartsWith(keys[0], "0.mlp.post_act:300")
    self.assertEqual(keys[6], "0.attn.act_in:3")
    stops = [a for a, _ in page.find("g", "node") if a["tabindex"] == "0"]
    self.assertEqual([a["data-key"] for a in stops], ["0.attn.act_in:3"])
    legend = [text for _, text in page.find("li")]
    self.assertTrue(any("core:" in item for item in legend))
    self.assertTrue(any("support:" in item for item in legend))
    # The core comes first in the tables, whatever the weights.
    parts = [t for _, t in page.find("td") if t in ("core", "support")]
    nodes = 8 * ["core"] + 6 * ["support"]
    edges = 5 * ["core"] + 6 * ["support"]
    self.assertEqual(parts, ["core", *nodes, *edges])
    alone = report.render([pages.alone()])
    for mark in ('class="support"', "data-core-height", "checkbox"):
      self.assertIn(mark, text)
      self.assertNotIn(mark, alone)

  @parameterized.parameters((142, True), (143, False))
  def test_much_support_is_hidden_at_first(self, num_support, is_checked):
    page = pages.Page(report.render([pages.nested(num_support=num_support)]))
    ((attributes, _),) = page.find("input")
    self.assertEqual("checked" in attributes, is_checked)

  def test_the_core_is_drawn_before_stronger_support(self):
    around = pages.nested(num_support=600)
    for edge in around["robust"].edges[5:]:
      edge["weight"] = 99.0
    page = pages.Page(report.render([around]))
    drawn = {
      (a["data-from"], a["data-to"])
      for a, _ in page.find("path", "edge")
      if "data-from" in a
    }
    self.assertLen(drawn, draw.MAX_EDGES)
    for edge in around["core"].edges:
      ends = (f"{edge[k]['site']}:{edge[k]['index']}" for k in ("from", "to"))
      self.assertIn(tuple(ends), drawn)

  def test_criteria_of_both_and_both_in_each_chart(self):
    around = self._nested(self._measured(0.4), self._measured(0.96))
    page = pages.Page(report.render([around]))
    text = " ".join(" ".join(page.text).split())
    self.assertIn("The core: Not established: robust to what", text)
    self.assertIn("The robust circuit: Every criterion below holds.", text)
    self.assertIn("40 sign steps of 0.1 from each of 2 starts", text)
    self.assertIn("The core: CPR 0.750, CMD 0.250.", text)
    self.assertIn("The robust circuit: CPR 0.750", text)
    titles = {
      "Loss against the adversary's steps": ("core", "robust", "random"),
      "Loss against the share ablated at random": ("core", "robust", "random"),
      "Loss against size": ("core", "robust"),
      "Accuracy lost against size": ("core", "robust"),
      "Faithfulness curve": ("core", "robust"),
    }
    summaries = [t for _, t in page.find("desc") if ": from " in t]
    for summary, title in zip(summaries, titles, strict=False):
      curves = titles[title]
      self.assertIn(title, text)
      self.assertLen(summary.split(";"), len(curves))
      for name in curves:
        self.assertIn(name, summary)

  @parameterized.parameters(
    ({},),
    ({"partial_ablation": 3, "curve": [1]},),
    ({"partial_ablation": {"by_steps": [], "random": {"a": 1}}},),
    ({"partial_ablation": {"by_steps": {"circuit": [3, {"steps": "x"}]}}},),
    ({"partial_ablation": {"budget": {"steps": 10**400, "starts": 3}}},),
    ({"curve": {"points": [{"share": -1, "faithfulness": True}], "cpr": []}},),
    ({"sufficiency_and_necessity": {"full_model": 1}},),
  )
  def test_metrics_that_cannot_be_drawn_are_left_out(self, changed):
    whole = pages.faithfulness_metrics()
    for core in (whole | changed, changed):
      for robust in (whole | changed, whole, None):
        report.render(
          [self._nested({"faithfulness": core}, {"faithfulness": robust})]
        )
    around = self._nested({"faithfulness": changed}, {"faithfulness": changed})
    page = pages.Page(report.render([around]))
    self.assertNotIn("Faithfulness curve", " ".join(page.text))

  def test_ids_are_unique_and_tables_whole(self):
    around = self._nested(self._measured(0.4), self._measured(0.96))
    page = pages.Page(report.render([around, pages.nested("b")]))
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    self.assertLen(set(ids), len(ids))
    self.assertLen(page.find("caption"), len(page.find("table")))

  def test_a_damaged_robust_circuit_is_named_by_its_file(self):
    around = pages.nested()
    around["robust"].edges[0] = {"from": 3}
    with self.assertRaisesRegex(errors.InputError, r"robust.json of .*edges"):
      report.render([around])

  def test_a_hundred_nodes_and_all_their_prompts_can_be_mailed(self):
    circuits = [{"core": pages.dense(100, 400)}]
    evidence = pages.evidence(circuits)
    (found,) = evidence.circuits
    # 52 pairs of 30 tokens a side, 12 snippets of 21 tokens, 12 heads.
    side = found.prompts[0].sides[0]._replace(tokens=[0] * 30)
    prompts = [found.prompts[0]._replace(sides=[side, side])] * 52
    values = np.linspace(-2, 2, 52 * 60, dtype=np.float32)
    node = next(iter(found.nodes.values()))
    snippets = [node.most[0]._replace(values=values[:21])] * 6
    node = node._replace(prompts=values, most=snippets, least=snippets)
    looks = np.linspace(0, 1, 104 * 465)
    found = found._replace(
      nodes=dict.fromkeys(found.nodes, node),
      prompts=prompts,
      heads={f"0.{head}": looks for head in range(12)},
    )
    evidence = evidence._replace(circuits=[found])
    page = report.render(circuits, evidence=evidence)
    self.assertBetween(len(page.encode()), 1_000_000, 3_000_000)


def structure(page):
  """Returns tags and attribute names, without the pieces inside tokens."""
  return [
    (tag, sorted(attributes))
    for tag, attributes, _ in page.elements
    if tag != "br" and attributes.get("class") not in ("ws", "esc")
  ]


class EscapingTest(parameterized.TestCase):
  @hypothesis.given(pages.HOSTILE_TEXT)
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_text_never_changes_the_structure(self, text):
    def page(text):
      notes = {"0.attn.q:17": {"read_tokens": [(text, 1.0)]}}
      return report.render(
        [
          pages.nested(
            task=text,
            ablation=text,
            model_fingerprint=text,
            metrics={f"name{text}": text},
            examples=[pages.example(text)],
            node_notes=notes,
          )
        ],
        title=text,
      )

    got, benign = pages.Page(page(text)), pages.Page(page("benign"))
    # An empty token is named in a title of its own.
    self.assertEqual(
      [x for x in structure(got) if x != ("span", ["class", "title"])],
      structure(benign),
    )
    page(text).encode("utf-8")
    ((_, data), _) = got.find("script")
    self.assertNotIn("<", data)
    token = json.loads(data)["tokens"][0]
    self.assertEqual(token, [list(p) for p in text_lib.pieces(text)])

  def test_nothing_loads_and_only_one_script_runs(self):
    text = report.render(
      [pages.alone(examples=[pages.example(h) for h in pages.HOSTILE])]
    )
    page = pages.Page(text)
    types = [attributes.get("type") for attributes, _ in page.find("script")]
    self.assertEqual(types, ["application/json", None])
    self.assertLen(page.find("style"), 1)
    for tag, attributes, _ in page.elements:
      self.assertNotIn("src", attributes)
      self.assertNotIn("style", attributes)
      self.assertNotIn(tag, ("img", "iframe", "object", "base", "form"))
      self.assertEmpty([n for n in attributes if n.startswith("on")])
      if "href" in attributes:
        self.assertRegex(attributes["href"], r"^(#c\d+|data:,)$")
    self.assertNotIn("url(", page.find("style")[0][1])


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _save(self, **fields):
    """Saves a circuit, with fields of its circuit.json put in."""
    pages.small(examples=[pages.example()]).save(self.dir / "circuit")
    path = self.dir / "circuit" / "circuit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))

  def _render(self):
    return report.render([circuit_lib.load_all(self.dir / "circuit")])

  def test_a_saved_circuit_has_the_same_page(self):
    self._save()
    want = report.render([pages.alone(examples=[pages.example()])])
    self.assertEqual(self._render(), want)

  @parameterized.parameters(
    ("nodes", [{"site": "0.attn.z", "index": 1}], "0.attn.z"),
    ("nodes", [{"site": "0.attn.q", "index": -1}], "0.attn.q.*=-1 "),
    ("nodes", {}, "circuit.json"),
    ("nodes", [{"site": 3, "index": 3}], "circuit.json"),
    ("nodes", [pages.node("9" * 400 + ".bogus", 1)], "site.*9999"),
    (
      "edges",
      [pages.edge(("0.attn.act_in", 99), ("0.attn.q", 17), 1.0)],
      r"edges\[0\].*0.attn.act_in.*99",
    ),
    ("edges", [{"from": 3}], r"edges\[0\]"),
    (
      "edges",
      [pages.edge(("0.attn.act_in", 3), ("0.attn.q", 17), "w")],
      r"edges\[0\].*weight.*'w'",
    ),
    (
      "edges",
      [pages.edge(("0.attn.act_in", 3), ("0.attn.q", 17), 10**400)],
      r"edges\[0\]",
    ),
    ("metrics", [], r"metrics"),
    ("examples", [{"prompt_tokens": "abc"}], "prompt_tokens='abc'"),
    ("examples", 3, "examples=3"),
    ("node_notes", {"k": {"read_tokens": [["a"]]}}, "read_tokens"),
  )
  def test_a_damaged_file_is_an_error_that_says_where(self, name, value, want):
    if name == "edges":  # In place of the first, so that counts agree.
      value = value + pages.small().edges[1:]
    self._save(**{name: value})
    with self.assertRaisesRegex(errors.InputError, want) as caught:
      self._render()
    self.assertIn("circuit.json", str(caught.exception))
    self.assertLess(len(str(caught.exception)), 600)

  @parameterized.parameters(
    ("task", 3),
    ("ablation", ["<b>"]),
    ("nodes", [pages.node("0.attn.q", 17)] * 2),
    ("nodes", [{"site": "0.attn.q", "index": True}]),
    ("target_loss", "low"),
    ("logit_scale", "<b>"),
    ("answer_shift", "<b>"),
  )
  def test_odd_values_are_an_error_or_shown_as_text(self, name, value):
    self._save(**{name: value, "edges": []})
    try:
      page = pages.Page(self._render())
    except errors.InputError as e:
      self.assertIn("circuit.json", str(e))
    else:
      self.assertEmpty(page.find("b"))

  def test_missing_file_bad_json_and_missing_field(self):
    with self.assertRaisesRegex(errors.InputError, "json: No such file"):
      self._render()
    self._save()
    for content, want in (
      (b"{", "not JSON"),
      (b"\xff", "not JSON"),
      (b"[" * 10**5, "not JSON"),
      (b"[]", "need a circuit"),
      (b'{"task": "a"}', "circuit.json: .*format"),
    ):
      (self.dir / "circuit" / "circuit.json").write_bytes(content)
      with self.assertRaisesRegex(errors.InputError, want):
        self._render()

  def test_writes_the_rendered_page_and_nothing_else(self):
    path = self.dir / "new" / "page.html"
    report.write_page(path, [pages.alone()], title="T")
    self.assertEqual(
      path.read_text("utf-8"), report.render([pages.alone()], title="T")
    )
    self.assertEqual(os.listdir(path.parent), ["page.html"])

  def test_a_path_that_cannot_be_written_leaves_nothing(self):
    (self.dir / "page.html").mkdir()
    (self.dir / "file").write_text("kept")
    for path in (self.dir / "page.html", self.dir / "file" / "page.html"):
      with self.assertRaisesRegex(errors.InputError, "write .*page.html"):
        report.write_page(path, [])
    self.assertCountEqual(os.listdir(self.dir), ["page.html", "file"])
    self.assertEqual((self.dir / "file").read_text(), "kept")


if __name__ == "__main__":
  absltest.main()
