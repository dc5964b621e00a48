"""What circuits share against chance, and what hangs on whom."""

import dataclasses
import math

import helpers
import numpy as np
import small_circuits
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.faithfulness import cross_ablation, overlap
from sparse_jax.model import edges as edges_lib


class OverlapTest(absltest.TestCase):
  def test_chance_by_hand(self):
    # Two of four and one of four: shared with probability a half.
    got = overlap.chance({"a": 2}, {"a": 1}, {"a": 4})
    np.testing.assert_allclose(got, [0.5, 0.5])
    # In two strata independently; in others they cannot meet.
    got = overlap.chance(
      {"a": 2, "b": 2, "c": 3},
      {"a": 1, "b": 1},
      {"a": 4, "b": 4, "c": 9},
    )
    np.testing.assert_allclose(got, [0.25, 0.5, 0.25])

  @given(st.integers(1, 30), st.data())
  @settings(max_examples=25)
  def test_chance_is_hypergeometric(self, total, data):
    first = data.draw(st.integers(0, total))
    second = data.draw(st.integers(0, total))
    got = overlap.chance({0: first}, {0: second}, {0: total})
    ways = math.comb(total, second)
    for shared, p in enumerate(got):
      rest = second - shared
      some = math.comb(first, shared) * math.comb(total - first, rest)
      self.assertAlmostEqual(p, some / ways if rest <= total - first else 0)

  def test_groups_are_what_pairs_join(self):
    layer = lambda *indices: {("0.attn.q", i) for i in indices}
    elements = {
      "a": layer(*range(6)),
      "b": layer(*range(6)) | {("0.attn.v", 0)},
      "c": layer(*range(50, 56)),
      "d": {("0.attn.v", 1)},
    }
    shared = overlap.compare(elements, {"0.attn.q": 100, "0.attn.v": 9})
    by_pair = {(s.first, s.second): s for s in shared}
    self.assertLen(shared, 6)
    same = by_pair["a", "b"]
    self.assertEqual((same.count, by_pair["a", "c"].count), (6, 0))
    self.assertAlmostEqual(same.expected, 0.36)
    self.assertAlmostEqual(same.p, 1 / math.comb(100, 6))
    self.assertAlmostEqual(same.p_corrected, 6 * same.p)
    self.assertAlmostEqual(by_pair["a", "c"].p, 1)
    [group] = overlap.groups(shared, elements)
    self.assertEqual(group.names, ("a", "b"))
    self.assertEqual(group.nodes, tuple(f"0.attn.q:{i}" for i in range(6)))
    chosen = overlap.compare(elements, {"0.attn.q": 100}, [("a", "c")])
    self.assertEqual([(s.first, s.second) for s in chosen], [("a", "c")])

  def test_a_circuits_elements_are_counted_among_all(self):
    circuit, params = small_circuits.make()
    everything = dataclasses.replace(
      circuit,
      node_mask={n: np.ones_like(m) for n, m in circuit.node_mask.items()},
    )
    nodes, edges = overlap.num_nodes(circuit), overlap.num_edges(params)
    self.assertEqual(sum(nodes.values()), everything.num_nodes)
    self.assertEqual(
      sum(edges.values()), edges_lib.count_edges(params, everything.node_mask)
    )
    self.assertLen(overlap.nodes(circuit), circuit.num_nodes)
    self.assertLen(overlap.edges(circuit), circuit.num_edges)
    for strata, of in (
      (nodes, overlap.nodes(circuit)),
      (edges, overlap.edges(circuit)),
    ):
      self.assertLessEqual({stratum for stratum, _ in of}, set(strata))


class CrossAblationTest(absltest.TestCase):
  def test_a_row_is_the_model_without_the_circuit(self):
    circuit, params = small_circuits.make(context_length=12)
    tasks = {
      "a": helpers.random_sequences(8),
      "b": helpers.random_sequences(8, seed=4),
    }
    none = {n: np.zeros_like(m) for n, m in circuit.node_mask.items()}
    empty = dataclasses.replace(circuit, node_mask=none)
    matrix = cross_ablation.measure(
      params, {"own": circuit, "none": empty}, tasks
    )
    own, nothing = matrix.rows
    self.assertEqual(nothing.scores, matrix.whole)
    self.assertEqual(nothing.random, matrix.whole)
    for score, sequences in zip(own.scores, tasks.values(), strict=True):
      diff_S = circuit.logit_differences(params, sequences)["without it"]
      self.assertAlmostEqual(score.accuracy, np.mean(diff_S > 0))
      want = np.mean(np.logaddexp(0, -diff_S))
      self.assertAlmostEqual(score.loss, want, places=4)
    for name, task, lost in cross_ablation.costs(matrix, -1):
      i = matrix.tasks.index(task)
      row = own if name == "own" else nothing
      want = row.random[i].accuracy - row.scores[i].accuracy
      self.assertAlmostEqual(lost, want)
    self.assertLen(cross_ablation.costs(matrix, -1), 4)
    self.assertEqual(set(matrix.to_dict()["without"]), {"own", "none"})


if __name__ == "__main__":
  absltest.main()
