"""Where nodes and lines of a drawing go."""

import itertools

import hypothesis
import pages
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import sites
from sparse_jax.report import graph, layout


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
      graph.Node(site, 0)
      for site in reversed(sites.all_site_ids(2))
      if sites.SITES[graph.Node(site, 0).name].role == "node"
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
    n = graph.Node
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
    a = [graph.Node("0.mlp.act_in", i) for i in range(3)]
    b = [graph.Node("0.mlp.post_act", i) for i in range(3)]
    edges = [graph.Edge(x, y, 1.0) for x, y in zip(a, reversed(b), strict=True)]
    at = layout.place(a + b, edges, 10).at
    links = [(at[e.source][1], at[e.target][1]) for e in edges]
    self.assertEqual(layout.crossings(links), 0)

  def test_nodes_keep_apart_and_inside(self):
    circuit = pages.dense(80, 300)
    nodes, edges, *_ = graph.from_circuit(circuit)
    got = layout.place(nodes, edges, 10)
    for (x1, y1), (x2, y2) in itertools.combinations(got.at.values(), 2):
      if abs(x1 - x2) < got.node_width:
        self.assertGreaterEqual(abs(y1 - y2), got.node_heights[0])
    for x, y in got.at.values():
      self.assertBetween(x, got.node_width / 2, got.width - got.node_width / 2)
      self.assertBetween(y, 0, got.height)

  def test_support_lies_below_and_moves_nothing_of_the_core(self):
    around = pages.nested()
    core, robust = map(graph.from_circuit, around.values())
    shown = graph.nest(core, robust)
    self.assertLen(shown.support, 6)
    alone = layout.place(core.nodes, core.edges, 10)
    got = layout.place(shown.nodes, shown.edges, 10, support=shown.support)
    for node in shown.nodes:
      if node in shown.support:
        self.assertGreater(got.at[node][1], got.core_height)
      else:
        self.assertEqual(got.at[node], alone.at[node])
    self.assertEqual(got.core_height, alone.height)
    self.assertEqual(alone.core_height, alone.height)
    core_wires = [wire for wire in got.wires if not wire.support]
    self.assertEqual(core_wires, alone.wires)
    self.assertGreater(got.height, got.core_height)

  def test_tracks_never_overlap(self):
    nodes = [
      graph.Node(f"{layer}.{name}", i)
      for layer in range(3)
      for name in ("attn.act_in", "mlp.resid_delta", "attn.resid_delta")
      for i in range(30)
    ]
    got = layout.place(nodes, [], 10)
    for a, b in itertools.combinations(got.tracks, 2):
      if a.y == b.y:
        self.assertTrue(a.right < b.left or b.right < a.left)
    self.assertLen(got.tracks, 30)


if __name__ == "__main__":
  absltest.main()
