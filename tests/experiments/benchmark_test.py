"""The benchmark at tiny shapes: every metric is measured, none is judged."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.benchmark import measure, saving, scaling, torch_baselines
from sparse_jax.training import loop
from sparse_jax.utils import errors

ROOT = pathlib.Path(__file__).parents[2]

# Stands in for a Python with PyTorch: half a second a step, whatever is asked.
PYTHON = """#!{python}
import json, sys
print("a line before")
print(json.dumps({{"step_seconds": 0.5, "argv": sys.argv[1:]}}))
"""


def install_python(directory, text=PYTHON) -> str:
  """Writes an interpreter that runs every script as this text."""
  path = pathlib.Path(directory) / "python"
  path.write_text(text.format(python=sys.executable))
  path.chmod(0o755)
  return str(path)


def metric(value, **fields):
  return measure.Metric(
    **{"name": "f", "shape": "s", "value": value, "target": 2.0, **fields}
  )


class PlanTest(absltest.TestCase):
  def test_short_plan_gives_every_metric(self):
    with tempfile.TemporaryDirectory() as directory:
      baselines = torch_baselines.Baselines(install_python(directory))
      metrics = [
        m
        for _, measurement in measure.measurements(measure.SHORT, baselines)
        for m in measurement()
      ]
    self.assertLen({m.name for m in metrics}, 11)
    for m in metrics:
      with self.subTest(m.name):
        self.assertTrue(math.isfinite(m.value), m)
        self.assertIn(m.reached, (True, False))
        self.assertEqual(m.note, "")
        json.dumps(m.to_dict(), allow_nan=False)
        self.assertIn(m.name, measure.table(metrics))
    over_torch = [m for m in metrics if "PyTorch" in m.name]
    self.assertLen(over_torch, 3)
    for m in over_torch:
      ours = m.details.get("sparse_seconds") or m.details["mask_step_seconds"]
      self.assertAlmostEqual(m.value * ours, 0.5, places=6)
    (sliced,) = (m for m in metrics if "sliced" in m.name)
    self.assertLess(sliced.details["largest_error"], 1e-5)
    (share,) = (m for m in metrics if "product" in m.name)
    d = share.details
    self.assertAlmostEqual(
      share.value,
      d["model_flops_a_step"]
      / d["sparse_seconds"]
      / d["product_flops_a_second"],
    )

  def test_plans_ask_for_the_same_kinds_of_metrics(self):
    kinds = lambda plan: {
      measurement.func
      for _, measurement in measure.measurements(
        plan, torch_baselines.Baselines()
      )
    }
    self.assertEqual(kinds(measure.CPU), kinds(measure.SHORT))
    self.assertEqual(
      kinds(measure.ACCELERATOR),
      kinds(measure.SHORT) | {measure.measure_fused},
    )

  def test_a_checkpoint_s_pause_is_counted_in_steps(self):
    (m,) = saving.measure_pause(measure.SHORT.saved, 1)
    d = m.details
    self.assertAlmostEqual(m.value, d["pause_seconds"] / d["step_seconds"])
    self.assertLess(d["pause_seconds"], d["whole_seconds"])
    self.assertGreaterEqual(d["longest_pause_in_steps"], m.value)

  def test_growth_is_measured_and_drawn(self):
    plan = measure.SHORT
    measured = scaling.measure_growth(
      "d_model", plan.growth_base, plan.growth_axes["d_model"], 1
    )
    self.assertGreater(measured.peak_bytes[1], measured.peak_bytes[0])
    self.assertGreater(min(measured.seconds), 0)
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "growth.png"
      scaling.plot_growth(path, [measured])
      self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

  def test_a_metric_that_does_not_exist_is_one_line(self):
    done = subprocess.run(
      [sys.executable, "-m", "experiments.benchmark", "--only=mass step"],
      cwd=ROOT,
      capture_output=True,
      check=False,
      text=True,
    )
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^error: --only='?mass step'?.*AbsTopK.*\n$")

  def test_command_without_torch_says_so(self):
    with tempfile.TemporaryDirectory() as directory:
      out = pathlib.Path(directory) / "metrics.json"
      done = subprocess.run(
        [
          sys.executable,
          "-m",
          "experiments.benchmark",
          "--short",
          "--nogrowth",
          f"--out={out}",
        ],
        cwd=directory,
        env={
          **os.environ,
          "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        check=False,
        text=True,
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      saved = json.loads(out.read_text())
    self.assertIn("then --torch_python=torch/bin/python", done.stdout)
    self.assertIsNone(saved["versions"]["torch"])
    self.assertEqual(saved["versions"]["jax"], jax.__version__)
    for row in saved["metrics"]:
      is_over_torch = "PyTorch" in row["name"]
      self.assertEqual(row["value"] is None, is_over_torch, row["name"])
      self.assertEqual(row["reached"] is None, is_over_torch)


class BaselinesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = self.enterContext(tempfile.TemporaryDirectory())

  def test_no_torch_is_an_error_only_if_asked_for(self):
    none = torch_baselines.Baselines()
    self.assertIsNone(none.torch_version())
    with self.assertRaisesRegex(torch_baselines.BaselineError, "pip install"):
      none.sampler(torch_baselines.TRAIN, 1)()
    with self.assertRaisesRegex(errors.InputError, "--torch_python='none'"):
      torch_baselines.Baselines("none")

  def test_a_failing_baseline_gives_its_last_line(self):
    python = install_python(self.directory, "#!/bin/sh\necho no torch >&2\n")
    baselines = torch_baselines.Baselines(python)
    with self.assertRaisesRegex(
      torch_baselines.BaselineError, "torch_step.py failed: no torch"
    ):
      baselines.sampler(torch_baselines.TRAIN, 1)()

  def test_the_scripts_are_there(self):
    directory = pathlib.Path(torch_baselines.__file__).parent / "baselines"
    for script in (torch_baselines.TRAIN, torch_baselines.PRUNE):
      self.assertIn("shared.report(", (directory / script).read_text())

  def test_the_scripts_take_every_flag_they_get(self):
    # Their own parser, with nothing behind it that needs PyTorch.
    (pathlib.Path(self.directory) / "torch").mkdir()
    for name in ("torch/__init__.py", "torch/nn/functional.py"):
      path = pathlib.Path(self.directory) / name
      path.parent.mkdir(exist_ok=True)
      path.write_text("")
    (pathlib.Path(self.directory) / "torch/nn/__init__.py").write_text("")
    shape = measure.Shape(n_layer=3, d_model=48, density=0.25)
    done = subprocess.run(
      [
        sys.executable,
        "-c",
        "import json, shared; print(json.dumps(vars(shared.parse_flags())))",
        "--steps=1",
        "--device=cpu",
        "--compile",
        *shape.flags(),
      ],
      cwd=ROOT / "experiments" / "benchmark" / "baselines",
      env={**os.environ, "PYTHONPATH": self.directory},
      capture_output=True,
      check=False,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    row = json.loads(done.stdout)
    want = dataclasses.asdict(shape) | {"steps": 1, "compile": True}
    del want["kernels"], want["num_runs"]
    self.assertEqual(row, row | want)


class RecordsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("above", 3.0, False, True),
    ("at", 2.0, False, True),
    ("below", 1.0, False, False),
    ("above_bound", 3.0, True, False),
    ("at_bound", 2.0, True, True),
    ("missing", None, True, None),
  )
  def test_reached(self, value, at_most, want):
    self.assertIs(metric(value, at_most=at_most).reached, want)

  def test_table_says_what_is_missing_and_why_once(self):
    text = measure.table(
      [metric(1.5), metric(None, note="because"), metric(None, note="because")]
    )
    self.assertIn("| f | s | at least 2 | 1.5 | **no** |", text)
    self.assertEqual(text.count("not measured"), 2)
    self.assertEqual(text.count("because"), 1)

  def test_interleave_takes_turns_and_drops_who_fails(self):
    calls = []

    def sampler(name, times):
      def sample():
        calls.append(name)
        return [next(times)]

      return sample

    def failing():
      calls.append("c")
      raise torch_baselines.BaselineError("gone")

    medians, failed = measure.interleave(
      {
        "a": sampler("a", iter([3.0, 1.0, 2.0])),
        "b": sampler("b", iter([5.0, 5.0, 9.0])),
        "c": failing,
      },
      rounds=3,
    )
    self.assertEqual("".join(calls), "abcabab")
    self.assertEqual(medians, {"a": 2.0, "b": 5.0})
    self.assertEqual(failed, {"c": "gone"})

  def test_slopes_are_exponents_of_the_last_three_points(self):
    x = np.array([1.0, 2.0, 4.0, 16.0])
    seconds = 3 * x**2
    seconds[0] = 100
    g = scaling.Growth(
      axis="d_model",
      shape=measure.Shape(),
      values=tuple(x),
      seconds=tuple(seconds),
      peak_bytes=tuple(7 * x),
    )
    self.assertAlmostEqual(g.slopes()["seconds"], 2.0)
    self.assertAlmostEqual(g.slopes()["peak_bytes"], 1.0)
    self.assertIn(
      "| d_model | slope | 2.00 | 1.00 |", scaling.growth_table([g])
    )


class StepTest(parameterized.TestCase):
  def test_model_flops_of_a_hand_counted_model(self):
    config = measure.Shape(
      n_layer=2, d_model=16, batch_size=3, length=4, vocab_size=5
    ).config()
    # A token's weights: 12 d² a layer and the unembedding. Its position sees
    # 1 to 4 others, 2.5 on average: scores and mixing, d each.
    weights = 2 * 12 * 16**2 + 5 * 16
    attention = 2 * 2 * 16 * 2.5
    self.assertEqual(
      measure.model_flops(config), 6 * 3 * 4 * (weights + attention)
    )

  @parameterized.named_parameters(
    ("bigram", 2048, "bigram_table", 2048 * 2048),
    ("block", 48, "layers/mlp/c_fc/kernel", 32 * 128),
  )
  def test_largest_matrix(self, vocab_size, path, numel):
    shape = measure.Shape(d_model=32, vocab_size=vocab_size, density=0.5)
    found = measure.largest_matrix(shape.config())
    self.assertEqual(found, (path, 4 * numel))

  @parameterized.parameters(0.25, 1.0)
  def test_density_is_final_from_the_first_step(self, density):
    shape = measure.Shape(
      n_layer=1,
      d_model=32,
      batch_size=2,
      length=8,
      vocab_size=64,
      density=density,
    )
    step = measure.TrainingStep(shape)
    self.assertEqual(loop.block_density(step.state.params), density)
    before = jax.tree.map(np.asarray, step.state.params)
    self.assertGreater(min(step.sample()), 0)
    self.assertNotEqual(
      float(jnp.sum(before["wte"]["embedding"])),
      float(jnp.sum(step.state.params["wte"]["embedding"])),
    )

  def test_protection_fits_the_density(self):
    for density in (1.0, 0.1, 1 / 64, 1 / 1024):
      config = measure.Shape(density=density).config()
      self.assertEqual(
        config.sparsity.min_alive, min(4, math.floor(density * 128))
      )

  def test_peak_bytes_count_donated_arrays_once(self):
    x = jnp.zeros(1000, jnp.float32)
    double = lambda x: 2 * x
    for donated, want in (((), 8000), ((0,), 4000)):
      compiled = jax.jit(double, donate_argnums=donated).lower(x).compile()
      self.assertEqual(measure.peak_bytes(compiled), want)


if __name__ == "__main__":
  absltest.main()
