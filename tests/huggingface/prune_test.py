"""The commands on a Hugging Face directory: means, pruning, an explanation."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import safetensors.numpy
from absl.testing import absltest

from sparse_jax import checkpoint
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import means as means_lib
from sparse_jax.utils import errors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf"
_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\"]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma")
)
_VOCABULARY = 300
_FAST = [
  f"--config.{field}"
  for field in (
    "prune.steps=3",
    "prune.batch_size=4",
    "prune.num_runs=1",
    "prune.num_seeds=0",
    "prune.num_train=8",
    "prune.num_validation=8",
    "prune.num_test=8",
    "prune.edge_steps=2",
    "prune.mean_batches=1",
    "prune.ablation_outside=plain",  # Robust ones compile for minutes.
    "prune.target_loss=9.0",
    "train.batch_size=8",
    "data.context_length=16",
  )
]


def run(command, *args):
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{command}", *args],
    capture_output=True,
    text=True,
    check=False,
  )


def make_model(folder: pathlib.Path) -> pathlib.Path:
  """Writes the parallel rotary model with a vocabulary that has bytes."""
  shutil.copytree(GOLDEN / "gpt_neox", folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  rng = np.random.default_rng(0)
  for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
    shape = _VOCABULARY, tensors[name].shape[1]
    tensors[name] = rng.normal(size=shape).astype(np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  config = json.loads((folder / "config.json").read_text())
  config["vocab_size"] = _VOCABULARY
  (folder / "config.json").write_text(json.dumps(config))
  trained = tokenizer_lib.Tokenizer.train([_TEXT] * 4, _VOCABULARY - 10)
  trained.save(folder / "tokenizer.json")
  return folder


class HuggingFaceCommandsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.root, self.model = root, make_model(root / "model")
    self.source = root / "text"
    self.source.mkdir()
    for i in range(8):
      (self.source / f"{i}.py").write_text(_TEXT + f"\nn = {i}\n")
    self.config = config_lib.from_config_dict(
      {
        "data": {"source": str(self.source), "context_length": 16},
        "train": {"batch_size": 8},
        "prune": {"mean_batches": 1},
      }
    )

  def test_means_are_measured_kept_and_found_again(self):
    model, params = checkpoint.load_model(self.model)
    kept = self.root / "work" / "means.npz"
    find = lambda config: checkpoint.find_means(
      self.model, model, params, kept, config
    )
    found = find(self.config)
    for name, mean in found.items():
      self.assertEqual(mean.shape[1], model.config.width(name))
    tokenizer = checkpoint.load_tokenizer(self.model)
    self.assertEqual(tokenizer.vocab_size, _VOCABULARY)
    # From the file, though the text has gone.
    shutil.rmtree(self.source)
    # From any text where no config says which.
    for again in (find(self.config), find(None)):
      for name, mean in found.items():
        np.testing.assert_array_equal(again[name], mean)
    kept.write_bytes(kept.read_bytes()[:-20])
    with self.assertRaisesRegex(errors.InputError, "data.source"):
      find(self.config)
    # Means that lie in the model's directory come first.
    np.savez(self.model / "means.npz", **{"attn.q": np.ones((3, 32))})
    self.assertEqual(list(find(self.config)), ["attn.q"])

  def test_means_are_over_the_sources_text(self):
    model, params = checkpoint.load_model(self.model)
    tokenizer = checkpoint.load_tokenizer(self.model)
    for path in self.source.iterdir():
      path.write_text("ab" * 200 + path.name)
    one = tokenizer.encode("ab" * 200)[:16]
    found = checkpoint.find_means(
      self.model, model, params, self.root / "means.npz", self.config
    )
    want = means_lib.mean_activations(model, params, [np.array([one] * 8)])
    # Windows start anywhere in the text; its tokens are the same few.
    for name in ("mlp.act_in", "attn.v"):
      gap = np.abs(found[name] - np.asarray(want[name])).mean()
      self.assertLess(gap, 0.5 * np.abs(found[name]).mean())

  def test_prune_and_explain(self):
    out = self.root / "circuits"
    task = self.root / "own.jsonl"
    sides = [
      {
        "prompt": f"x = '{a}{b}",
        "answer": "'",
        "counter_prompt": f'x = "{a}{b}',
        "counter_answer": '"',
        "split": split,
      }
      for a, split in (("a", "train"), ("b", "validation"), ("c", "test"))
      for b in "defghijklmnop"
    ]
    task.write_text("\n".join(map(json.dumps, sides)))
    done = run(
      "prune",
      f"--model={self.model}",
      f"--tasks={task}",
      f"--workdir={out}",
      f"--config.data.source={self.source}",
      "--unlearned",
      "--nofaithfulness",
      *_FAST,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("means of the nodes", done.stderr)
    self.assertTrue((out / "means.npz").is_file())
    circuit = circuit_lib.Circuit.load(out / "own")
    self.assertTrue(circuit.model_config.parallel)
    shown = run(
      "explain",
      f"--model={self.model}",
      f"--circuits={out / 'own'}",
      "--prompt=x = 'ad",
    )
    self.assertEqual(shown.returncode, 0, shown.stderr)
    self.assertIn("own", shown.stdout)


if __name__ == "__main__":
  absltest.main()
