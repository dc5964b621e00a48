"""The page: what it says, that nothing in it runs, and how it behaves."""

import html.parser
import itertools
import json
import math
import os
import pathlib
import tempfile
import time

import browser
import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import report, sites
from sparse_jax.report import charts, draw, layout, markup, section, view
from sparse_jax.utils import errors

_HOSTILE = (
  "</script><script>window.pwned = 1</script>",
  '"><img src=x onerror="window.pwned = 1">',
  "' onmouseover='window.pwned = 1",
  "</style><svg onload=window.pwned=1>",
  "<!-- ",
  "]]>",
  "&lt;b&gt;",
  "javascript:window.pwned=1",
  "\u2028\u2029\u202eabc\u2066\x00\x1b\x7f\ufeff",
  "\ud800",
  "\ufffd",
  "\u0301",
  "\r\n\t  ",
  "",
)
_HOSTILE_TEXT = st.lists(
  st.one_of(st.sampled_from(_HOSTILE), st.text(st.characters(), max_size=5)),
  max_size=3,
).map("".join)


def node(site, index):
  return {"site": site, "index": index}


def edge(source, target, weight):
  return {"from": node(*source), "to": node(*target), "weight": weight}


def small(**fields):
  """A circuit of 7 nodes, 5 edges and one residual wire."""
  a, q = ("0.attn.act_in", 3), ("0.attn.q", 17)
  v, w = ("0.attn.v", 18), ("0.attn.resid_delta", 5)
  r, h = ("0.mlp.act_in", 5), ("0.mlp.post_act", 200)
  nodes = (a, q, v, w, r, h, ("final_resid", 5))
  defaults = {
    "task": "single_double_quote",
    "nodes": [node(*n) for n in nodes],
    "edges": [
      edge(a, q, 0.5),
      edge(a, v, -1.25),
      edge(v, w, 2.0),
      edge(r, h, 1e-5),
      edge(("0.mlp.act_in", 5), h, 0.125),
    ],
    "metrics": {
      "num_nodes": 7,
      "num_edges": 5,
      "test_loss": 0.121,
      "test_accuracy": 0.984,
      "full_model_test_loss": 0.043,
      "full_model_test_accuracy": 1.0,
      "without_circuit_test_loss": 2.91,
      "without_circuit_test_accuracy": 0.48,
      "logit_scale": 1.37,
    },
    "ablation": "mean_pretrain",
    "target_loss": 0.15,
  }
  return report.CircuitView(**(defaults | fields))


def example(text="x"):
  return {
    "prompt_tokens": ["a", text, "\n", " b"],
    "answer": text,
    "counter_prompt_tokens": ["a", "y", "\n", " b"],
    "counter_answer": "z",
    "circuit_prob": 0.9,
    "full_prob": 0.99,
  }


def dense(num_nodes, num_edges):
  """One layer's MLP, joined at random-looking places."""
  reads = [("0.mlp.act_in", i) for i in range(num_nodes // 2)]
  hidden = [("0.mlp.post_act", i) for i in range(num_nodes - num_nodes // 2)]
  pairs = itertools.islice(itertools.product(reads, hidden), num_edges)
  return small(
    nodes=[node(*n) for n in reads + hidden],
    edges=[edge(a, b, math.sin(1 + i)) for i, (a, b) in enumerate(pairs)],
    metrics={"num_nodes": num_nodes, "num_edges": num_edges},
  )


def trust_metrics():
  """Evidence as circuit.json holds it: all claims hold but one."""
  estimate = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1}
  score = lambda loss, accuracy: {
    "loss": estimate(loss),
    "accuracy": estimate(accuracy),
  }
  control = lambda nodes, meets: {
    "num_nodes": nodes,
    "meets_target": meets,
    "test_accuracy": 0.9,
    "curve": [
      {"num_nodes": 1, "validation_loss": 0.7},
      {"num_nodes": nodes, "validation_loss": 0.1},
    ],
  }
  return {
    "ablation": "zero",
    "target_loss": 0.15,
    "sufficiency_and_necessity": {
      "full_model": score(0.05, 0.99),
      "zero": {
        "circuit": score(0.1, 0.97),
        "without_circuit": score(0.9, 0.5),
        "without_random_circuit": score(0.06, 0.98),
      },
    },
    "agreement": {
      "test": {
        "num_prompts": 8,
        "kl": estimate(0.1),
        "agreement": estimate(0.95),
      }
    },
    "interchange": {"curve": [score(0.1, 0.97), score(0.12, 0.97)]},
    "partial_ablation": {"adversarial": score(2.0, 0.4)},
    "controls": {
      "same": control(10, True),
      "nonsense": control(40, True),
      "reinitialised": control(90, False) | {"curve": []},
      "backup": control(20, True) | {"curve": []},
      "jaccard_over_seeds": 0.4,
      "extra_nodes": {"nonsense": 30, "reinitialised": None},
    },
    "importance": {
      "nodes": [
        {"site": "0.attn.v", "index": 3, "loss_without": estimate(0.4)},
        {"site": "0.attn.v", "index": 1, "loss_without": estimate(0.9)},
      ],
      "edges": [
        {
          "from": {"site": "0.attn.v", "index": 3},
          "to": {"site": "0.attn.resid_delta", "index": 1},
          "loss_without": estimate(0.8),
        }
      ],
    },
  }


class Page(html.parser.HTMLParser):
  """What a browser would find: elements with attributes, and text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.open, self.text = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs), []))
    if tag not in ("meta", "link", "br"):
      self.open.append(self.elements[-1])

  def handle_endtag(self, tag):
    assert self.open[-1][0] == tag, (tag, self.open[-1])
    self.open.pop()

  def handle_data(self, data):
    self.text.append(data)
    for element in self.open:
      element[2].append(data)

  def handle_comment(self, data):
    raise AssertionError(f"comment {data!r}")

  def find(self, tag, class_=None):
    return [
      (attributes, "".join(text))
      for name, attributes, text in self.elements
      if name == tag
      and (class_ is None or class_ in (attributes.get("class") or "").split())
    ]

  def rows(self, class_):
    """Returns the number of body rows of the tables of a class."""
    inside, count = False, 0
    for tag, attributes, _ in self.elements:
      if tag == "table":
        inside = class_ in (attributes.get("class") or "").split()
      count += inside and tag == "th" and attributes.get("scope") == "row"
    return count


class ContentTest(parameterized.TestCase):
  def test_draws_and_lists_every_node_and_edge(self):
    circuit = small()
    page = Page(report.render([circuit]))
    drawn = {a["data-key"] for a, _ in page.find("g", "node")}
    self.assertEqual(
      drawn, {f"{n['site']}:{n['index']}" for n in circuit.nodes}
    )
    self.assertLen(page.find("g", "node"), 7)
    # The legend holds one edge of each sign and one wire.
    edges = [a for a, _ in page.find("path", "edge") if "data-from" in a]
    self.assertCountEqual(
      [(a["data-from"], a["data-to"]) for a in edges],
      [
        tuple(f"{e[k]['site']}:{e[k]['index']}" for k in ("from", "to"))
        for e in circuit.edges
      ],
    )
    self.assertEqual(page.rows("nodes"), 7)
    self.assertEqual(page.rows("edges"), 5)

  def test_edge_width_grows_with_weight_and_class_is_its_sign(self):
    edges = [
      a
      for a, _ in Page(report.render([small()])).find("path", "edge")
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
    page = Page(report.render([small()]))
    headline = page.find("p", "lead")[1][1]
    for figure in ("7 nodes", "5 edges", "0.121 nats", "98.4%", "0.0430"):
      self.assertIn(figure, headline)
    self.assertIn("meets its target of 0.150", headline)
    page = Page(report.render([small(target_loss=0.1)]))
    self.assertIn("misses its target", page.find("p", "lead")[1][1])

  def test_says_so_where_counts_disagree(self):
    text = report.render([small(metrics={"num_nodes": 8, "num_edges": 5})])
    self.assertIn("num_nodes is 8, 7 are listed", text)
    self.assertNotIn("disagrees", report.render([small()]))

  def test_missing_and_non_finite_figures_are_dashes(self):
    metrics = {"test_loss": math.nan, "test_accuracy": math.inf}
    page = Page(
      report.render(
        [small(metrics=metrics | {"odd": -math.inf, "big": 10**400})]
      )
    )
    text = " ".join(page.text)
    self.assertIn("– nats", text)
    for word in ("nan", "inf", "None"):
      self.assertNotIn(word, [w.strip("().,").lower() for w in text.split()])

  def test_shows_every_further_figure_nested_ones_too(self):
    metrics = {"extra": 0.25, "group": {"random": {"loss": 1.5}, "ok": True}}
    text = " ".join(Page(report.render([small(metrics=metrics)])).text)
    for shown in ("extra", "0.250", "group.random.loss", "1.50", "group.ok"):
      self.assertIn(shown, text)

  def test_evidence_is_claims_curves_and_worth(self):
    page = Page(
      report.render([small(metrics={"faithfulness": trust_metrics()})])
    )
    text = " ".join(page.text)
    self.assertIn("Not established: robust to what is outside it.", text)
    self.assertIn("accuracy without it 0.500 [0.400, 0.600]", text)
    lines = [a for a, _ in page.find("path", "line")]
    self.assertLen([a for a in lines if "d" in a and "M1 7" not in a["d"]], 2)
    self.assertIn("nonsense labels: 30 more.", text)
    self.assertIn("0.attn.v:3 → 0.attn.resid_delta:1", text)
    # The worst comes first, whatever the file's order.
    self.assertLess(text.index("0.900"), text.index("0.300–0.500"))
    self.assertNotIn("trust.ablation", text)

  @parameterized.parameters(
    ({},), ({"ablation": "zero"},), ({"controls": 3, "importance": [1]},)
  )
  def test_evidence_that_cannot_be_read_is_said_to_be(self, trust):
    text = report.render([small(metrics={"faithfulness": trust})])
    self.assertIn("evidence is not what the trust checks write", text)
    broken = trust_metrics() | trust
    report.render([small(metrics={"faithfulness": broken})])

  def test_empty_circuit_and_no_circuits(self):
    empty = small(nodes=[], edges=[], metrics={})
    text = report.render([empty])
    self.assertIn("no node was kept", text)
    self.assertIn("No circuits were given", report.render([]))

  def test_draws_the_strongest_edges_and_says_so(self):
    circuit = dense(100, 500)
    page = Page(report.render([circuit]))
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
    circuit = dense(1600, 5000)
    started = time.process_time()
    text = report.render([circuit])
    self.assertLess(time.process_time() - started, 5)
    self.assertLess(len(text.encode()), 5_000_000)
    page = Page(text)
    self.assertLen(page.find("g", "node"), draw.MAX_NODES)
    self.assertEqual(page.rows("edges"), section.MAX_ROWS)
    said = " ".join(page.text)
    self.assertIn("2,000 of 5,000 rows", said)
    self.assertIn("1,500 of 1,600 nodes", said)
    self.assertIn("5,000 edges, the strongest first", said)

  def test_same_input_same_bytes(self):
    make = lambda: report.render(
      [small(examples=[example()]), dense(60, 300)],
      training=[{"step": 1, "train_loss": 2.0}],
    )
    self.assertEqual(make(), make())

  def test_examples_mark_what_differs(self):
    page = Page(report.render([small(examples=[example("x")])]))
    boxes = page.find("bdi", "tok")
    marked = [t for a, t in boxes if "mark" in a["class"].split()]
    self.assertEqual(marked, ["x", "y"])
    self.assertEqual([t for _, t in boxes][:4], ["a", "x", "⏎", "·b"])

  def test_notes_of_a_node_stand_in_its_row(self):
    notes = {"0.attn.q:17": {"read_tokens": [["'", 0.8]], "write_tokens": []}}
    page = Page(report.render([small(node_notes=notes)]))
    self.assertEqual([t for _, t in page.find("div", "weighted")], ["'0.800"])

  def test_heads_are_named_if_their_width_is_known(self):
    labels = lambda **kw: [
      a["aria-label"]
      for a, _ in Page(report.render([small(**kw)])).find("g", "node")
    ]
    self.assertLen([x for x in labels(d_head=16) if "head 1" in x], 2)
    self.assertEmpty([x for x in labels() if "head" in x])

  def test_tables_have_captions_and_scopes(self):
    page = Page(report.render([small()], training=[{"step": 1}]))
    self.assertLen(page.find("caption"), len(page.find("table")))
    for attributes, _ in page.find("th"):
      self.assertIn(attributes["scope"], ("row", "col"))
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    self.assertLen(set(ids), len(ids))
    for _, a, _ in page.elements:
      for name in ("aria-labelledby", "aria-describedby"):
        self.assertContainsSubset((a.get(name) or "").split(), ids)


def structure(page):
  """Returns tags and attribute names, without the pieces inside tokens."""
  return [
    (tag, sorted(attributes))
    for tag, attributes, _ in page.elements
    if tag != "br" and attributes.get("class") not in ("ws", "esc")
  ]


class EscapingTest(parameterized.TestCase):
  @hypothesis.given(_HOSTILE_TEXT)
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_text_never_changes_the_structure(self, text):
    def page(text):
      notes = {"0.attn.q:17": {"read_tokens": [(text, 1.0)]}}
      return report.render(
        [
          small(
            task=text,
            ablation=text,
            model_fingerprint=text,
            metrics={f"name{text}": text},
            examples=[example(text)],
            node_notes=notes,
          )
        ],
        title=text,
      )

    got, benign = Page(page(text)), Page(page("benign"))
    # An empty token is named in a title of its own.
    self.assertEqual(
      [x for x in structure(got) if x != ("span", ["class", "title"])],
      structure(benign),
    )
    page(text).encode("utf-8")

  @hypothesis.given(_HOSTILE_TEXT)
  @hypothesis.settings(max_examples=200, deadline=None)
  def test_token_shows_every_character_and_nothing_invisible(self, text):
    (_, shown), *_ = Page(markup.token(text)).find("bdi")
    spaces = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
    want = "".join(
      spaces.get(c)
      or (c if not markup.spell_out(c) != c else f"U+{ord(c):04X}")
      for c in text
    )
    self.assertEqual(shown.replace("◌", ""), (want or "∅").replace("◌", ""))
    self.assertTrue(all(c.isprintable() for c in shown))

  @parameterized.parameters(
    ("\u202e", "U+202E"),
    ("\u2028", "U+2028"),
    ("\x00", "U+0000"),
    ("\ud800", "U+D800"),
    ("\u00a0", "U+00A0"),
    ("\u200b", "U+200B"),
    ("é", "é"),
    ("漢", "漢"),
    ("\ufffd", "\ufffd"),
  )
  def test_spells_out(self, char, want):
    self.assertEqual(markup.spell_out(char), want)

  def test_nothing_loads_and_only_one_script_runs(self):
    text = report.render([small(examples=[example(h) for h in _HOSTILE])])
    page = Page(text)
    self.assertLen(page.find("script"), 1)
    self.assertLen(page.find("style"), 1)
    for tag, attributes, _ in page.elements:
      self.assertNotIn("src", attributes)
      self.assertNotIn("style", attributes)
      self.assertNotIn(tag, ("img", "iframe", "object", "base", "form"))
      self.assertEmpty([n for n in attributes if n.startswith("on")])
      if "href" in attributes:
        self.assertRegex(attributes["href"], r"^(#c\d+|data:,)$")
    self.assertNotIn("url(", page.find("style")[0][1])


class NumberTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.12345, "0.123"),
    (-0.5, "−0.500"),
    (12.34, "12.3"),
    (1234.5, "1,234"),
    (3, "3"),
    (1234567, "1,234,567"),
    (2.0, "2"),
    (0.0, "0"),
    (1.5e-7, "1.50e−07"),
    (True, "yes"),
    (math.nan, "–"),
    (-math.inf, "–"),
    (None, "–"),
    ("1", "–"),
    (10**400, "–"),
  )
  def test_number(self, value, want):
    self.assertEqual(markup.number(value), want)


class LayoutTest(parameterized.TestCase):
  @hypothesis.given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14)
  )
  def test_crossings_equal_counting_pairs(self, links):
    want = sum(
      (a[0] - b[0]) * (a[1] - b[1]) < 0
      for a, b in itertools.combinations(links, 2)
    )
    self.assertEqual(layout.crossings(links), want)

  @hypothesis.given(
    st.lists(
      st.tuples(st.floats(-99, 99), st.floats(0, 9)), min_size=1, max_size=9
    )
  )
  def test_spread_keeps_distances_and_moves_nothing_without_need(self, items):
    wanted = [want for want, _ in items]
    offsets = list(itertools.accumulate(step for _, step in items))
    got = layout.spread(wanted, offsets)
    pairs = lambda x: list(zip(x, x[1:], offsets, offsets[1:], strict=False))
    for a, b, low, high in pairs(got):
      self.assertGreaterEqual(b - a, high - low - 1e-9)
    # Least squares with distances kept: the mean stays where it was.
    self.assertAlmostEqual(sum(got), sum(wanted), places=6)
    if all(b - a >= high - low for a, b, low, high in pairs(wanted)):
      for a, b in zip(got, wanted, strict=True):
        self.assertAlmostEqual(a, b, places=6)

  def test_spread_by_hand(self):
    self.assertEqual(layout.spread([5.0, 5.0], [0.0, 2.0]), [4.0, 6.0])

  def test_columns_follow_the_forward_pass(self):
    nodes = [
      view.Node(site, 0)
      for site in reversed(sites.all_site_ids(2))
      if sites.SITES[view.Node(site, 0).name].role == "node"
    ]
    got = [
      [lane[0].site for lane in column] for column in layout.columns(nodes)
    ]
    layer = [
      ["attn.act_in"],
      ["attn.q", "attn.k", "attn.v"],
      ["attn.resid_delta"],
      ["mlp.act_in"],
      ["mlp.post_act"],
      ["mlp.resid_delta"],
    ]
    want = [[f"{i}.{n}" for n in names] for i in (0, 1) for names in layer]
    self.assertEqual(got, [*want, ["final_resid"]])

  def test_residual_pairs_join_a_write_to_later_reads_of_its_channel(self):
    n = view.Node
    nodes = [
      n("0.attn.act_in", 5),  # Before the write.
      n("0.attn.resid_delta", 5),
      n("0.mlp.act_in", 5),
      n("0.mlp.act_in", 6),  # Another channel.
      n("1.attn.q", 5),  # No residual channel.
      n("1.mlp.resid_delta", 5),
      n("final_resid", 5),
    ]
    self.assertCountEqual(
      layout.residual_pairs(nodes),
      [
        (nodes[1], nodes[2]),
        (nodes[1], nodes[6]),
        (nodes[5], nodes[6]),
      ],
    )

  def test_ordering_undoes_a_crossing(self):
    a = [view.Node("0.mlp.act_in", i) for i in range(3)]
    b = [view.Node("0.mlp.post_act", i) for i in range(3)]
    edges = [view.Edge(x, y, 1.0) for x, y in zip(a, reversed(b), strict=True)]
    at = layout.place(a + b, edges, 10).at
    links = [(at[e.source][1], at[e.target][1]) for e in edges]
    self.assertEqual(layout.crossings(links), 0)

  def test_nodes_keep_apart_and_inside(self):
    circuit = dense(80, 300)
    nodes, edges = circuit.graph
    got = layout.place(nodes, edges, 10)
    for (x1, y1), (x2, y2) in itertools.combinations(got.at.values(), 2):
      if abs(x1 - x2) < got.node_width:
        self.assertGreaterEqual(abs(y1 - y2), got.node_height)
    for x, y in got.at.values():
      self.assertBetween(x, got.node_width / 2, got.width - got.node_width / 2)
      self.assertBetween(y, 0, got.height)

  def test_tracks_never_overlap(self):
    nodes = [
      view.Node(f"{layer}.{name}", i)
      for layer in range(3)
      for name in ("attn.act_in", "mlp.resid_delta", "attn.resid_delta")
      for i in range(30)
    ]
    got = layout.place(nodes, [], 10)
    for a, b in itertools.combinations(got.tracks, 2):
      if a.y == b.y:
        self.assertTrue(a.right < b.left or b.right < a.left)
    self.assertLen(got.tracks, 30)


class ChartTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (2.1, 7.4, [3, 4, 5, 6, 7]),
    (5.0, 5.0, [5.0]),
  )
  def test_ticks(self, low, high, want):
    got = charts.ticks(low, high)
    self.assertEqual([round(x, 9) for x in got], want)

  def test_thin_keeps_both_ends(self):
    for num in (0, 1, 599, 600, 601, 5000):
      points = [(i, i) for i in range(num)]
      got = charts.thin(points)
      self.assertLessEqual(len(got), 601)
      self.assertEqual((got[:1], got[-1:]), (points[:1], points[-1:]))

  def test_training_is_drawn_with_axes_and_skips_what_is_not_a_number(self):
    rows = [
      {"step": 1, "train_loss": 4.0, "density": 1.0},
      {"step": 2, "train_loss": math.nan, "density": 0.5},
      {"step": 3, "train_loss": 2.0, "eval_loss": 2.5, "density": 0.1},
    ]
    page = Page(charts.training_svg(rows))
    (line, _), *_ = page.find("path", "train")
    self.assertEqual(line["d"].count("L"), 1)
    self.assertLen(page.find("path", "density"), 1)
    text = [t for _, t in page.find("text")]
    self.assertContainsSubset(
      ["step", "loss (nats per token)", "share of nonzero weights"], text
    )
    self.assertIsNone(charts.training_svg([{"step": 1}]))

  def test_bars_are_as_long_as_their_losses(self):
    bars = [("a", 1.0, "circuit"), ("b", 4.0, "full"), ("c", None, "without")]
    page = Page(charts.loss_bars(bars, [("target", 2.0)], "c0"))
    widths = [float(a["width"]) for a, _ in page.find("rect", "bar")]
    self.assertLen(widths, 2)
    self.assertAlmostEqual(widths[1], 4 * widths[0], delta=0.5)


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _fields(self):
    circuit = small()
    return {
      "task": circuit.task,
      "nodes": circuit.nodes,
      "edges": circuit.edges,
      "metrics": dict(circuit.metrics),
      "ablation": circuit.ablation,
      "target_loss": circuit.target_loss,
    }

  def _save(self, fields):
    (self.dir / "circuit.json").write_text(json.dumps(fields))

  def test_view_of_a_saved_circuit(self):
    self._save(self._fields() | {"unknown": 1, "model_fingerprint": None})
    got = report.from_directory(self.dir)
    self.assertEqual(got, small())

  @parameterized.parameters(
    (
      "nodes",
      [{"site": "0.attn.z", "index": 1}],
      r"nodes\[0\].site='0.attn.z'",
    ),
    ("nodes", [{"site": "0.attn.q", "index": -1}], r"nodes\[0\].index=-1"),
    ("nodes", [{"site": "0.attn.q", "index": True}], r"nodes\[0\].index=True"),
    ("nodes", [node("0.attn.q", 1)] * 2, "nodes='0.attn.q:1'"),
    ("nodes", {}, "nodes={}"),
    ("nodes", [node("9" * 400 + ".bogus", 1)], r"nodes\[0\].site"),
    ("edges", [edge(("0.attn.q", 99), ("0.attn.v", 18), 1.0)], "0.attn.q:99"),
    ("edges", [{"from": 3}], r"edges\[0\].from=3"),
    (
      "edges",
      [edge(("0.attn.act_in", 3), ("0.attn.q", 17), "w")],
      r"edges\[0\].weight='w'",
    ),
    (
      "edges",
      [edge(("0.attn.act_in", 3), ("0.attn.q", 17), 10**400)],
      r"edges\[0\].weight",
    ),
    ("metrics", [], r"metrics=\[\]"),
    ("target_loss", "low", "target_loss='low'"),
    ("task", 3, "task=3"),
    ("examples", [{"prompt_tokens": "abc"}], "prompt_tokens='abc'"),
    ("node_notes", {"k": {"read_tokens": [["a"]]}}, "read_tokens"),
    ("d_head", 0, "d_head=0"),
  )
  def test_names_the_file_and_the_field_that_is_wrong(self, name, value, want):
    self._save(self._fields() | {name: value})
    with self.assertRaisesRegex(errors.InputError, want) as caught:
      report.from_directory(self.dir)
    self.assertIn("circuit.json", str(caught.exception))
    self.assertLess(len(str(caught.exception)), 600)

  def test_missing_file_bad_json_and_missing_field(self):
    with self.assertRaisesRegex(errors.InputError, "json: No such file"):
      report.from_directory(self.dir)
    path = self.dir / "circuit.json"
    for content, want in (
      (b"{", "not JSON"),
      (b"\xff", "not JSON"),
      (b"[" * 10**5, "not JSON"),
      (b"[]", "holds list"),
      (b'{"task": "a"}', "has no nodes, edges, metrics"),
    ):
      path.write_bytes(content)
      with self.assertRaisesRegex(errors.InputError, want):
        report.from_directory(self.dir)

  def test_writes_the_rendered_page_and_nothing_else(self):
    path = self.dir / "new" / "page.html"
    report.write_page(path, [small()], title="T")
    self.assertEqual(
      path.read_text("utf-8"), report.render([small()], title="T")
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


class BrowserTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = browser.start(cls)
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.path = pathlib.Path(directory, "page.html")
    circuits = [
      small(
        examples=[example(text) for text in _HOSTILE],
        task="".join(_HOSTILE),
        node_notes={
          "0.attn.q:17": {"read_tokens": [(text, 1.0) for text in _HOSTILE]}
        },
        d_head=16,
      ),
      dense(120, 500),
    ]
    training = [
      {"step": i, "train_loss": 9 / i, "density": 1 / i} for i in range(1, 50)
    ]
    report.write_page(cls.path, circuits, training=training)

  def setUp(self):
    super().setUp()
    self._show(1280)

  def _show(self, width, dark=False):
    self.browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.browser.execute_cdp_cmd(
      "Emulation.setEmulatedMedia", {"features": [scheme]}
    )
    self.browser.get(self.path.as_uri())

  def _run(self, script, *args):
    return self.browser.execute_script(script, *args)

  def _node(self, key):
    return self.browser.find_element(
      "css selector", f"#c0 .node[data-key='{key}']"
    )

  def _lit(self, selector):
    return self._run(
      "return [...document.querySelectorAll(`#c0 svg.circuit ${arguments[0]}`)]"
      ".map(e => e.dataset.key || e.dataset.from + ' ' + e.dataset.to)",
      selector,
    )

  def test_loads_alone_and_without_complaint(self):
    self.browser.get_log("performance")
    self.browser.get_log("browser")
    self.browser.get(self.path.as_uri())
    requests = [
      message["params"]["request"]["url"]
      for entry in self.browser.get_log("performance")
      if (message := json.loads(entry["message"])["message"])["method"]
      == "Network.requestWillBeSent"
    ]
    self.assertEqual(set(requests) - {"data:,"}, {self.path.as_uri()})
    self.assertEqual(self.browser.get_log("browser"), [])

  def test_hostile_text_does_not_run(self):
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self._run("document.querySelector('#c0 .node').focus()")
    for key in ("0.attn.q:17", "0.attn.v:18"):
      self._run("arguments[0].focus()", self._node(key))
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self.assertEqual(self._run("return document.scripts.length"), 1)
    self.assertEqual(self._run("return document.images.length"), 0)

  def test_policy_stops_what_is_put_in_later(self):
    self._run(
      "const s = document.createElement('script');"
      "s.textContent = 'window.pwned = 1'; document.body.append(s);"
      "document.body.insertAdjacentHTML('beforeend',"
      " '<img src=x onerror=\"window.pwned = 1\">')"
    )
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self.browser.get_log("browser")

  @parameterized.parameters("hover", "focus")
  def test_a_node_lights_up_with_its_edges(self, how):
    from selenium.webdriver.common import action_chains  # noqa: PLC0415

    target = self._node("0.attn.act_in:3")
    self._run("arguments[0].scrollIntoView({block: 'center'})", target)
    if how == "hover":
      action_chains.ActionChains(self.browser).move_to_element(target).perform()
    else:
      self._run("arguments[0].focus()", target)
    self.assertCountEqual(
      self._lit(".edge.on"),
      ["0.attn.act_in:3 0.attn.q:17", "0.attn.act_in:3 0.attn.v:18"],
    )
    self.assertCountEqual(
      self._lit(".node.on"), ["0.attn.act_in:3", "0.attn.q:17", "0.attn.v:18"]
    )
    detail = self.browser.find_element("css selector", "#c0 .detail").text
    self.assertIn("0.attn.act_in channel 3; edges in 0, out 2", detail)

  def test_a_write_lights_up_the_later_reads_of_its_channel(self):
    self._run("arguments[0].focus()", self._node("0.attn.resid_delta:5"))
    self.assertContainsSubset(
      ["0.mlp.act_in:5", "final_resid:5"], self._lit(".node.on")
    )
    self.assertNotEmpty(self._lit(".wire.on"))
    self.assertEqual(
      self._lit(".edge.on"), ["0.attn.v:18 0.attn.resid_delta:5"]
    )

  def test_keyboard_walks_and_pins(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

    first = self.browser.find_element("css selector", "#c0 .node[tabindex='0']")
    self._run("arguments[0].focus()", first)
    first.send_keys(keys.Keys.ARROW_RIGHT)
    active = self.browser.switch_to.active_element
    self.assertStartsWith(active.get_attribute("data-key"), "0.attn.")
    self.assertNotEqual(active.get_attribute("data-key"), "0.attn.act_in:3")
    active.send_keys(keys.Keys.ENTER)
    self._run("document.activeElement.blur()")
    self.assertLen(self._lit(".node.at"), 1)
    self._run("arguments[0].focus()", active)
    active.send_keys(keys.Keys.ESCAPE)
    self.assertEmpty(self._lit(".node.at"))

  def test_sorts_by_number_both_ways(self):
    weights = lambda: self._run(
      "return [...document.querySelectorAll('#c0 table.edges tbody tr')]"
      ".map(r => r.cells[2].textContent)"
    )
    self.assertEqual(weights()[0], "2")
    button = self.browser.find_elements(
      "css selector", "#c0 table.edges th button"
    )[2]
    self._run("arguments[0].click()", button)
    self.assertEqual(
      weights(), ["−1.250", "1.000e−05", "0.1250", "0.5000", "2"]
    )
    self._run("arguments[0].click()", button)
    self.assertEqual(weights()[0], "2")

  def test_counts_in_tables_are_those_of_the_circuit(self):
    rows = lambda kind, i: self._run(
      f"return document.querySelectorAll('#c{i} table.{kind} tbody tr').length"
    )
    self.assertEqual((rows("nodes", 0), rows("edges", 0)), (7, 5))
    self.assertEqual((rows("nodes", 1), rows("edges", 1)), (120, 500))

  @parameterized.parameters((390, False), (390, True), (1280, False))
  def test_page_never_scrolls_sideways(self, width, dark):
    self._show(width, dark)
    inner, client = self._run(
      "const e = document.documentElement;return [e.scrollWidth, e.clientWidth]"
    )
    self.assertLessEqual(inner, client)

  @parameterized.parameters(False, True)
  def test_text_has_contrast(self, dark):
    self._show(1280, dark)
    lowest = self._run("""
      const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
      const lum = (c) => rgb(c).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
      const behind = (e) => {
        for (; e; e = e.parentElement) {
          const c = getComputedStyle(e).backgroundColor;
          if ((rgb(c)[3] ?? 1) > 0) return c;
        }
        return "rgb(255, 255, 255)";
      };
      let lowest = [99, ""];
      for (const e of document.querySelectorAll("body *:not(svg *)")) {
        const own = [...e.childNodes].some(
          (n) => n.nodeType === 3 && n.data.trim());
        if (!own || e.tagName === "SCRIPT") continue;
        const [a, b] = [lum(getComputedStyle(e).color), lum(behind(e))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < lowest[0]) lowest = [ratio, e.outerHTML.slice(0, 80)];
      }
      return lowest;
    """)
    self.assertGreaterEqual(lowest[0], 4.5, lowest[1])


if __name__ == "__main__":
  absltest.main()
