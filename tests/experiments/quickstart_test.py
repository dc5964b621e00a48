"""The whole path, small: what a new user runs, and the files it leaves."""

import email
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest

import sparse_jax as sj
from sparse_jax import checkpoint
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib

_ROOT = pathlib.Path(__file__).parents[2]
_CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
    "data": {"source": SOURCE, "vocab_size": 600, "context_length": 16},
    "model": {"d_model": 16, "d_head": 8, "d_mlp": 16},
    "sparsity": {"density": 0.2, "min_alive": 2},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 6,
              "eval_every": 6, "eval_batches": 1},
    "prune": {"steps": 6, "batch_size": 4, "k_coefs": (1e-3,),
              "num_runs": 2, "num_seeds": 1, "edge_steps": 3,
              "robust_k_coefs": (1e-3,), "num_robust_runs": 1,
              "outside_steps": 3,
              "num_train": 24, "num_validation": 12, "num_test": 12,
              "mean_batches": 2},
  })
"""
_METRICS = (
  "num_nodes",
  "num_edges",
  "test_loss",
  "test_accuracy",
  "full_model_test_loss",
  "full_model_test_accuracy",
  "without_circuit_test_loss",
)


def run_module(name, *args):
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{name}", *args],
    cwd=_ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )


class QuickstartTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    config = cls.directory / "config.py"
    source = str(pathlib.Path(email.__file__).parent / "*.py")
    config.write_text(_CONFIG.replace("SOURCE", repr(source)))
    cls.workdir = cls.directory / "run"
    cls.flags = (f"--config={config}", f"--workdir={cls.workdir}")
    cls.result = run_module("quickstart", *cls.flags)

  def setUp(self):
    super().setUp()
    self.assertEqual(self.result.returncode, 0, self.result.stderr)

  def test_it_leaves_the_files_of_the_contract(self):
    for name in (
      "model/config.json",
      "model/tokenizer.json",
      "model/checkpoint",
      "circuits/single_double_quote/circuit.json",
      "report.html",
      "summary.json",
      "metrics.jsonl",
    ):
      self.assertTrue((self.workdir / name).exists(), name)
    self.assertTrue(list((self.workdir / "tensorboard").iterdir()))
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertContainsSubset(_METRICS, summary["tasks"]["single_double_quote"])
    self.assertIn("single_double_quote", self.result.stdout)
    rows = (self.workdir / "metrics.jsonl").read_text().splitlines()
    self.assertContainsSubset(
      ("tokens", "train_loss", "eval_loss", "learning_rate", "density"),
      json.loads(rows[-1]),
    )

  def test_a_task_that_is_not_learned_is_said_to_be(self):
    self.assertRegex(self.result.stdout, "bracket_counting +not pruned")
    self.assertIn("not learned: the full model", self.result.stdout)

  def test_the_saved_figures_are_those_of_the_saved_circuit(self):
    model, params = sj.load_model(self.workdir / "model")
    tokenizer = sj.load_tokenizer(self.workdir / "model")
    circuit = sj.Circuit.load(self.workdir / "circuits/single_double_quote")
    task = sj.tasks.make_task(circuit.task, tokenizer)
    pairs = task.pairs("test", count=12, seed=0)
    tokens, positions, correct, incorrect = pairs.sequences()
    rows = np.arange(len(tokens))

    def figures(logits):
      last = np.asarray(logits)[rows, positions]
      diff = last[rows, correct] - last[rows, incorrect]
      return np.log1p(np.exp(-diff)).mean(), (diff > 0).mean()

    for prefix, apply in (("", circuit.apply), ("full_model_", model.apply)):
      loss, accuracy = figures(jax.jit(apply)(params, tokens))
      metrics = circuit.metrics
      self.assertAlmostEqual(metrics[f"{prefix}test_loss"], loss, places=4)
      self.assertAlmostEqual(
        metrics[f"{prefix}test_accuracy"], accuracy, places=6
      )
    self.assertEqual(
      circuit.num_edges, edges_lib.count_edges(params, circuit.node_mask)
    )
    self.assertEqual(circuit.metrics["num_nodes"], circuit.num_nodes)
    fingerprint = fingerprint_lib.fingerprint(model, params)
    self.assertEqual(circuit.model_fingerprint, fingerprint)
    diff = jax.jit(
      lambda q: logit_difference_lib.logit_difference(
        model, params, q, circuit.hook(params, q.tokens)
      )
    )
    loss = logit_difference_lib.task_loss(
      diff(sequences_lib.task_sequences(pairs)), circuit.logit_scale
    )
    self.assertAlmostEqual(circuit.metrics["test_loss"], loss, places=4)

  def test_again_it_trains_no_further_and_finds_the_same(self):
    before = json.loads((self.workdir / "summary.json").read_text())
    again = run_module("quickstart", *self.flags)
    self.assertEqual(again.returncode, 0, again.stderr)
    after = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual(before["tasks"], after["tasks"])

  def test_the_page_is_drawn_again_from_the_directory(self):
    page = self.directory / "page.html"
    circuit = self.workdir / "circuits/single_double_quote"
    result = run_module("report", f"--circuits={circuit}", f"--out={page}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("single_double_quote", page.read_text())

  def test_the_tasks_are_measured_at_every_checkpoint(self):
    out = self.directory / "learning.json"
    task = "single_double_quote"
    result = run_module(
      *("learning", f"--workdir={self.workdir}", f"--tasks={task}"),
      *("--natural=0", "--pairs=12", f"--out={out}"),
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    rows = json.loads(out.read_text())
    self.assertEqual([row["step"] for row in rows], [6, 12])
    self.assertEqual([row["tokens"] for row in rows], [6 * 128, 12 * 128])
    # The last checkpoint is the model that was saved.
    circuit = sj.Circuit.load(self.workdir / "circuits" / task)
    full = circuit.metrics["full_model_test_loss"]
    loss = rows[-1]["tasks"][task]["test"]["loss"]
    self.assertAlmostEqual(loss, full, places=4)

  def test_a_compact_export_is_the_rounded_model_with_its_own_means(self):
    out = self.directory / "compact"
    flags = f"--model={self.workdir / 'model'}", f"--out={out}", "--compact"
    result = run_module("export", *flags)
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertTrue((out / "weights.npz").exists())
    _, params = sj.load_model(self.workdir / "model")
    _, rounded = sj.load_model(out)
    for a, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(rounded), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)
      np.testing.assert_array_equal(b, np.float32(np.float16(b)))
    before = checkpoint.load_means(self.workdir / "model")
    after = checkpoint.load_means(out)
    self.assertEqual(before.keys(), after.keys())
    for name, mean in before.items():
      np.testing.assert_allclose(after[name], mean, rtol=0.05, atol=0.02)

  def test_a_missing_circuit_is_one_line(self):
    result = run_module("report", "--circuits=/nowhere", "--out=x.html")
    self.assertEqual(result.returncode, 2)
    self.assertLen(result.stderr.splitlines(), 1)
    self.assertIn("/nowhere", result.stderr)


if __name__ == "__main__":
  absltest.main()
