"""The verify command on a small circuit: its three exit statuses."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import verified_circuit
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax import faithfulness
from sparse_jax.faithfulness import measure

_TASK = verified_circuit.TASK


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
    cls.directory = verified_circuit.write(cls.root)

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

  def test_pairs_are_those_that_the_circuit_was_measured_on(self):
    prune = config_lib.to_dict(config_lib.PruneConfig(num_test=5))

    def forget(raw):  # What another test may have measured.
      raw["metrics"].pop("faithfulness", None)
      raw.pop("settings", None)

    def edit(raw):
      forget(raw)
      raw["settings"] = {"prune": prune, "seed": 3}

    measured = self.enterContext(
      mock.patch.object(measure, "measure_all", side_effect=StopIteration)
    )
    for change, want in ((edit, (5, 3)), (forget, (8, 0))):
      with self.assertRaises(StopIteration):
        faithfulness.verify(
          self.edited(change),
          self.root / "model",
          natural=False,
          controls=False,
        )
      options = measured.call_args.args[4]
      self.assertEqual((options.config.num_test, options.seed), want)

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
