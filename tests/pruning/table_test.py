"""The table over tasks: hand-computed means, files that can be read again."""

import csv
import dataclasses
import json
import math
import pathlib
import tempfile

import helpers
from absl.testing import absltest

from sparse_jax import circuit as circuit_lib
from sparse_jax.pruning import table as table_lib


def make_circuit(task, edges, *, meets=True, learned=True, essential=None):
  model, _, _ = helpers.tiny_model()
  metrics = {
    "num_nodes": 4,
    "num_edges": edges,
    "test_loss": 0.1,
    "test_accuracy": 0.97,
    "full_model_test_loss": 0.05,
    "full_model_test_accuracy": 1.0,
    "without_circuit_test_loss": 0.7,
    "meets_target": meets,
    "learned": learned,
  }
  if essential is not None:
    metrics["num_essential_edges"] = essential
  return circuit_lib.Circuit(
    task=task,
    model_fingerprint="sha256:0",
    model_config=model.config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.15,
    logit_scale=1.0,
    node_mask=helpers.random_masks(model, 0.1),
    means=helpers.random_means(model),
    edges=[],
    metrics=metrics,
    details={
      "runs": [{}] * 3,
      "edges_over_seeds": [edges, edges + 5],
      "curve": [
        {"num_nodes": 1, "num_edges": 0, "validation_loss": 0.7},
        {"num_nodes": 4, "num_edges": edges, "validation_loss": 0.1},
      ],
    },
  )


class TableTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.circuits = [
      make_circuit("a", 10, essential=5),
      make_circuit("b", 1000),
      make_circuit("missed", 3, meets=False),
      make_circuit("unlearned", 3, learned=False),
    ]
    robust = make_circuit("a", 90)
    robust.metrics["faithfulness"] = {
      "sufficiency_and_necessity": {"full_model": {"accuracy": {"value": 0.9}}},
      "partial_ablation": {"adversarial": {"accuracy": {"value": 0.7}}},
    }
    self.rows = [table_lib.row(c) for c in self.circuits]
    self.rows[0] = table_lib.row(self.circuits[0], robust)

  def test_geometric_mean_over_what_is_learned_and_met(self):
    mean = table_lib.means(self.rows)
    self.assertEqual(mean["tasks"], ["a", "b"])
    self.assertAlmostEqual(mean["num_edges"], 100.0)
    self.assertAlmostEqual(mean["num_essential_edges"], 5.0)
    self.assertTrue(math.isnan(table_lib.geometric_mean([])))
    self.assertAlmostEqual(table_lib.geometric_mean([0, 4]), 2.0)

  def test_the_robust_circuit_stands_beside_its_core(self):
    row = self.rows[0]
    self.assertEqual(row["robust_edges"], 90)
    self.assertAlmostEqual(row["robust_accuracy_lost"], 0.2)
    self.assertIsNone(self.rows[1]["robust_nodes"])
    self.assertRegex(table_lib.text(self.rows), r"a .*\d+/90 ")

  def test_text_marks_what_counts_for_nothing(self):
    lines = table_lib.text(self.rows).splitlines()
    self.assertIn("10–15 (2)", lines[1])
    self.assertIn("nearest miss", lines[4])
    self.assertIn("not learned: the full model", lines[6])
    self.assertIn("100.0", lines[-1])

  def test_files_hold_the_same_metrics(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    table_lib.write(root, self.rows, {"c": "not learned"})
    with open(root / "circuits.csv", newline="") as f:
      read = list(csv.DictReader(f))
    self.assertEqual([r["num_edges"] for r in read], ["10", "1000", "3", "3"])
    written = json.loads((root / "circuits.json").read_text())
    self.assertEqual(written["tasks"]["b"]["edges_high"], 1005)
    self.assertEqual(written["skipped"], {"c": "not learned"})
    for name in ("curves.png", "curves.svg"):
      table_lib.plot_curves(root / name, self.circuits)
    self.assertEqual((root / "curves.png").read_bytes()[1:4], b"PNG")
    self.assertIn(b"<svg", (root / "curves.svg").read_bytes())

  def test_a_circuit_without_a_search_has_a_row(self):
    bare = dataclasses.replace(self.circuits[0], details={}, metrics={})
    self.assertIsNone(table_lib.row(bare)["edges_low"])


if __name__ == "__main__":
  absltest.main()
