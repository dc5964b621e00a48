"""The prune command on a small model: files, resuming, bad input."""

import json
import pathlib
import subprocess
import sys
import tempfile

import helpers
import jax
from absl.testing import absltest

from sparse_jax import checkpoint
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import transformer

_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)


def prune(*args):
  return subprocess.run(
    [sys.executable, "-m", "experiments.prune", *args],
    capture_output=True,
    text=True,
    check=False,
  )


class PruneCommandTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    tokenizer = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
    config = config_lib.ModelConfig(
      n_layer=1,
      d_model=16,
      d_head=4,
      d_mlp=16,
      vocab_size=tokenizer.vocab_size,
      context_length=64,
    )
    cls.few = cls.root / "few,er.jsonl"
    sides = {"prompt": "x = 'a", "answer": "'"}
    sides |= {"counter_prompt": 'x = "a', "counter_answer": '"'}
    rows = [
      {k: v.replace("a", split[:2]) for k, v in sides.items()}
      | {"split": split}
      for split in ("train", "validation", "test")
    ]
    cls.few.write_text("\n".join(map(json.dumps, rows)))
    model = transformer.Model(config, config_lib.SparsityConfig(min_alive=0))
    params = jax.jit(model.init)(jax.random.key(0))
    for name, means in (("model", helpers.random_means(model)), ("bare", None)):
      checkpoint.save_model(
        cls.root / name, model, params, tokenizer, means=means
      )

  def run_on(self, model, *args):
    return prune(
      f"--model={self.root / model}",
      # The comma belongs to the file's name.
      f'--tasks=single_double_quote,"{self.few}"',
      f"--workdir={self.root / 'circuits'}",
      *helpers.quick_prune_flags(),
      *args,
    )

  def test_gate_then_circuits_then_nothing_more_to_do(self):
    out = self.root / "circuits"
    path = out / "single_double_quote" / "circuit.json"
    gated = self.run_on("model")
    self.assertEqual(gated.returncode, 1, gated.stderr)
    self.assertIn("not pruned, not learned: accuracy", gated.stdout)
    written = []
    for more in ((), ("--nofaithfulness",)):
      done = self.run_on("model", "--unlearned", *more)
      self.assertEqual(done.returncode, 0, done.stderr)
      self.assertEqual(bool(more), "verdict: " not in done.stdout)
      self.assertIn("not learned: the full model", done.stdout)
      # A task without enough pairs does not take the other with it.
      self.assertRegex(done.stdout, "(?m)^few,er: not pruned, .*need")
      written.append(path.stat().st_mtime_ns)
    self.assertEqual(*written)
    circuit = circuit_lib.Circuit.load(out / "single_double_quote")
    self.assertFalse(circuit.metrics["learned"])
    written = json.loads((out / "circuits.json").read_text())
    row = written["tasks"]["single_double_quote"]
    self.assertEqual(row["num_runs"], 2)
    for name in ("circuits.csv", "curves.png", "report.html"):
      self.assertTrue((out / name).is_file(), name)

  def test_bad_input_is_one_line(self):
    done = self.run_on("bare", "--unlearned")
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^error: .*means.npz.*need .*\n$")
    done = prune("--tasks=all")
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^error: --model is missing.*\n$")


class MeansTest(absltest.TestCase):
  def test_the_model_directory_keeps_the_means(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    model, params, _ = helpers.tiny_model()
    tokenizer = tokenizer_lib.Tokenizer.train([_TEXT], 280)
    means = helpers.random_means(model)
    checkpoint.save_model(root / "m", model, params, tokenizer, means=means)
    found = checkpoint.load_means(root / "m")
    self.assertCountEqual(found, means)
    for name, mean in means.items():
      self.assertEqual(found[name].tolist(), mean.tolist())


if __name__ == "__main__":
  absltest.main()
