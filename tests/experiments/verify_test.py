"""The verify command on a small circuit: its three exit statuses."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import helpers
import jax
import numpy as np
from absl.testing import absltest

from sparse_jax import checkpoint, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import sequences as sequences_lib

_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)
_TASK = "single_double_quote"


def run_verify(circuit, *flags):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.verify",
      f"--circuit={circuit}",
      "--nocontrols",
      "--nonatural",
      *flags,
    ],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )


class VerifyTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    tokenizer = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
    shape = config_lib.ModelConfig(
      n_layer=1,
      d_model=16,
      d_head=4,
      d_mlp=16,
      vocab_size=tokenizer.vocab_size,
      context_length=64,
    )
    model = transformer.Model(shape, config_lib.SparsityConfig(min_alive=0))
    params = helpers.sparsify(
      jax.device_get(jax.jit(model.init)(jax.random.key(0))), 0.3
    )
    params = jax.tree.map(np.asarray, params)
    means = helpers.random_means(model)
    config = config_lib.Config(
      prune=config_lib.PruneConfig(
        num_train=12, num_validation=8, num_test=8, ablation="mean_pretrain"
      )
    )
    checkpoint.save_model(
      cls.root / "model", model, params, tokenizer, config, means
    )
    checkpoint.save_model(cls.root / "bare", model, params, tokenizer, config)
    # Trained on by a hair: the same zeros, another fingerprint.
    moved = jax.tree.map(lambda w: w * np.float32(1 + 1e-4), params)
    checkpoint.save_model(
      cls.root / "moved", model, moved, tokenizer, config, means
    )
    mask = helpers.random_masks(model, 0.2)
    task = tasks.make_task(_TASK, tokenizer)
    test = sequences_lib.make_splits(task, config.prune, config.seed).test
    circuit = circuit_lib.Circuit(
      task=_TASK,
      model_fingerprint=fingerprint_lib.fingerprint(model, params),
      model_config=model.config,
      sparsity=model.sparsity,
      ablation="mean_pretrain",
      target_loss=0.15,
      logit_scale=1.0,
      node_mask=mask,
      means=means,
      edges=edges_lib.find_edges(params, mask),
      metrics={},
    )
    logits = jax.jit(circuit.apply)(params, test.tokens)
    rows = np.arange(len(test.tokens))
    last = np.asarray(logits)[rows, test.positions]
    diff = last[rows, test.correct] - last[rows, test.incorrect]
    circuit.metrics.update(
      num_nodes=circuit.num_nodes,
      num_edges=circuit.num_edges,
      test_loss=float(np.logaddexp(0, -diff).mean()),
    )
    cls.directory = cls.root / "circuits" / _TASK
    circuit.save(cls.directory)

  def edited(self, change):
    """Returns a copy of the circuit directory whose JSON was changed."""
    copy = pathlib.Path(tempfile.mkdtemp(dir=self.root)) / _TASK
    shutil.copytree(self.directory, copy)
    path = copy / "circuit.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return copy

  def test_faithfulness_is_stored_and_only_edited_numbers_do_not_reproduce(
    self,
  ):
    first = run_verify(self.directory)
    self.assertEqual(first.returncode, 0, first.stderr)
    self.assertIn("now it is", first.stdout)
    self.assertRegex(first.stdout, "verdict: holds: ")
    model = f"--model={self.root / 'model'}"

    def edit(raw):
      raw["metrics"]["test_loss"] -= 0.5
      own = raw["metrics"]["faithfulness"]["sufficiency_and_necessity"]
      own["mean_pretrain"]["circuit"]["loss"]["value"] = 0.01

    edited = run_verify(self.edited(edit), model)
    self.assertEqual(edited.returncode, 1, edited.stderr)
    lines = [
      line
      for line in edited.stdout.splitlines()
      if line.startswith("does not reproduce: ")
    ]
    # These two and no other: all that was not edited reproduces.
    self.assertLen(lines, 2, edited.stdout)
    self.assertIn("metrics.test_loss", lines[0])
    self.assertIn("mean_pretrain.circuit.loss", lines[1])

  def test_another_model_of_the_shape_is_held_to_every_claim(self):
    stored = self.edited(lambda raw: None)
    model = f"--model={self.root / 'model'}"
    moved = f"--model={self.root / 'moved'}"
    missing = run_verify(stored, moved)
    self.assertEqual(missing.returncode, 2, missing.stderr)
    self.assertIn("no metrics.faithfulness", missing.stderr)
    self.assertEqual(run_verify(stored, model).returncode, 0)
    same = run_verify(stored, moved)
    self.assertEqual(same.returncode, 0, same.stdout + same.stderr)
    self.assertIn("of the same shape", same.stdout)
    self.assertIn("every claim that held before holds here", same.stdout)
    path = stored / "circuit.json"
    raw = json.loads(path.read_text())
    scores = raw["metrics"]["faithfulness"]["sufficiency_and_necessity"]
    scores["mean_pretrain"]["circuit"]["loss"]["value"] = 0.01
    path.write_text(json.dumps(raw))
    lost = run_verify(stored, moved)
    self.assertEqual(lost.returncode, 1, lost.stdout + lost.stderr)
    self.assertIn(
      "held before and fails here: core: sufficient: test loss", lost.stdout
    )

  def test_what_cannot_be_measured_is_one_line(self):
    def drop_node(raw):
      del raw["nodes"][0]

    def rename_task(raw):
      raw["task"] = "mine"

    model = f"--model={self.root / 'model'}"
    for directory, flag, named in (
      (self.edited(drop_node), model, "num_nodes"),
      (
        self.edited(rename_task),
        model,
        "circuit of mine: the task is a user's own; need --task=FILE",
      ),
      (self.directory, f"--model={self.root / 'bare'}", "means.npz"),
    ):
      result = run_verify(directory, flag)
      self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
      self.assertLen(result.stderr.splitlines(), 1)
      self.assertIn(named, result.stderr)


if __name__ == "__main__":
  absltest.main()
