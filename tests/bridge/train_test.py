"""Whole runs, minute: resumed ones, refused ones, and the directory left."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import chex
import helpers
import jax
import numpy as np
from absl.testing import absltest, parameterized

import sparse_jax as sj
from sparse_jax import config as config_lib
from sparse_jax.bridge import directory, objective, train
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.training import metric_log
from sparse_jax.utils import errors, files

ROOT = pathlib.Path(__file__).parents[2]
TASK = "single_double_quote"


class Stop(Exception):
  """What ends a run in the middle."""


class RunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    line = "x = ['alpha', \"beta\", {0}]\ndef gamma(z):\n  return 'delta'\n"
    rows = [json.dumps({"text": f"{i} {line * 8}"}) for i in range(40)]
    (self.root / "text.jsonl").write_text("\n".join(rows))
    tokenizer = tokenizer_lib.Tokenizer.train([line] * 4, 300)
    model = sj.Model(
      config_lib.ModelConfig(
        n_layer=1,
        d_model=16,
        d_head=8,
        d_mlp=16,
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        bigram="none",
      ),
      config_lib.SparsityConfig(density=1.0, activation_fraction=1.0),
    )
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    means = helpers.random_means(model)
    self.dense = self.root / "dense"
    sj.save_model(self.dense, model, params, tokenizer, means=means)
    self.values = {
      "data": {"source": str(self.root / "text.jsonl"), "context_length": 8},
      "model": {
        "n_layer": 1,
        "d_model": 24,
        "d_head": 8,
        "d_mlp": 24,
        "bigram": "none",
      },
      "sparsity": {"density": 0.4, "min_alive": 0},
      "train": {
        "steps": 6,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "eval_every": 3,
        "eval_batches": 1,
      },
      "prune": {"mean_batches": 2},
    }

  def config(self, **groups):
    values = {
      name: {**self.values.get(name, {}), **groups.get(name, {})}
      for name in {*self.values, *groups}
    }
    return config_lib.from_dict(config_lib.BridgeRunConfig, values)

  def test_a_stopped_run_ends_as_one_that_was_not_and_its_directory_works(self):
    whole = train.run(self.config(), self.dense, self.root / "whole")

    def stop(row):
      if row["step"] == 5:
        raise Stop

    with self.assertRaises(Stop):
      train.run(self.config(), self.dense, self.root / "runs" / "bridge", stop)
    train.run(self.config(), self.dense, self.root / "runs" / "bridge")
    resumed = sj.Bridge.load(self.root / "runs" / "bridge" / "bridge")
    for name in ("dense", "sparse", "maps"):
      chex.assert_trees_all_equal(
        getattr(whole.arrays, name), getattr(resumed.arrays, name)
      )
    self.assertEqual(whole.figures, resumed.figures)
    rows = [
      metric_log.read_jsonl(self.root / name / "metrics.jsonl")
      for name in ("whole", "runs/bridge")
    ]
    for a, b in zip(*rows, strict=True):
      self.assertEqual(
        a | {"tokens_per_second": 0}, b | {"tokens_per_second": 0}
      )
    self.assertContainsSubset(
      ("train_loss", "eval_loss", "kl_encode", "eval_nmse_decode", "density"),
      rows[0][-1],
    )
    with self.assertRaisesRegex(errors.InputError, "bridge.kl_encode=1.0"):
      changed = self.config(bridge={"kl_encode": 2.0})
      train.run(changed, self.dense, self.root / "runs" / "bridge")

  def test_the_command_and_the_document_steer_a_saved_bridge(self):
    workdir = self.root / "runs" / "bridge"
    dense, dense_params = sj.load_model(self.dense)
    config = config_lib.resolve(self.config(), dense.config.vocab_size)
    model = sj.Model(config.model, config.sparsity)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(1)))
    span = objective.Span(dense, model, config.bridge)
    arrays = directory.Arrays(
      span, dense_params, params, span.init_maps(jax.random.key(2))
    )
    bridge = sj.Bridge(span, arrays, sj.load_tokenizer(self.dense))
    means = {
      "dense": helpers.random_means(dense),
      "sparse": helpers.random_means(model),
    }
    directory.save(workdir / "bridge", bridge, config, means)
    mask = {
      name: np.zeros(model.config.site_shape(name), bool)
      for name in helpers.random_masks(model, 0)
    }
    mask["mlp.post_act"][0, :2] = True
    circuit = helpers.make_circuit(model, params, mask, task=TASK)
    circuit.save(workdir / "circuits" / TASK)
    run_command = subprocess.run(
      [
        sys.executable,
        "-m",
        "experiments.bridge",
        f"--workdir={workdir}",
        "--steer",
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run_command.returncode, 0, run_command.stderr)
    self.assertIn("random ones", run_command.stdout)
    found = files.read_json(workdir / "steering" / f"{TASK}.json", "curves")
    self.assertLen(found["nodes"], 2)
    for node in found["nodes"]:
      for values in node["probability"].values():
        self.assertLen(values, len(found["strengths"]))
    with contextlib.chdir(self.root):
      text = (ROOT / "docs" / "dense.md").read_text()
      shown = re.search(r"```python\n(.*?)```", text, re.S)[1]
      exec(shown, {"sj": sj})
    page = (workdir / "steering" / f"{TASK}.html").read_text()
    self.assertIn(found["nodes"][0]["node"], page)

  def test_the_sparse_model_starts_from_the_dense_ones_bigram_table(self):
    sparse, _, _ = helpers.tiny_model(n_layer=1, bigram="fixed")
    dense, dense_params, _ = helpers.tiny_model(n_layer=1)
    config = config_lib.BridgeRunConfig(
      model=sparse.config, sparsity=sparse.sparsity
    )
    span = objective.Span(dense, sparse, config.bridge)
    goal = train.make_objective(span, config, dense_params)
    params = jax.jit(goal.init)(jax.random.key(0)).params["sparse"]
    np.testing.assert_array_equal(
      params["bigram_table"], dense_params["bigram_table"]
    )
    self.assertFalse(
      np.allclose(params["wte"]["embedding"], dense_params["wte"]["embedding"])
    )

  @parameterized.parameters(
    ({"model": {"n_layer": 2}}, "model.n_layer=2.*1, the dense model's depth"),
    ({"train": {"batch_size": 6}}, "train.batch_size=6"),
  )
  def test_refused(self, groups, message):
    with self.assertRaisesRegex(errors.InputError, message):
      train.run(self.config(**groups), self.dense, self.root / "run")

  def test_a_damaged_directory(self):
    files.write_json(self.root / "bridge.json", {"format": "other"})
    with self.assertRaisesRegex(errors.InputError, "bridge.json.*'other'"):
      sj.Bridge.load(self.root)


if __name__ == "__main__":
  absltest.main()
