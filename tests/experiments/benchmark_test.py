"""The benchmark at minute shapes: every figure is produced, none is judged."""

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

from experiments.benchmark import baseline_runs, measure, scaling
from sparse_jax.training import loop
from sparse_jax.utils import errors

ROOT = pathlib.Path(__file__).parents[2]

# Stands where a peer stands: prints what it was asked for, and a time.
PEER = """
import json, sys
flags = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
print("a line before")
print(json.dumps({KEY: 500.0, **flags}))
"""


def install_peers(directory) -> baseline_runs.Peers:
  """Writes two scripts that take half a second a step, by their own word."""
  for script, key in (
    (baseline_runs.TRAIN_PEER, "step_ms"),
    (baseline_runs.PRUNE_PEER, "mask_step_ms"),
  ):
    text = PEER.replace("KEY", repr(key))
    (pathlib.Path(directory) / script).write_text(text)
  return baseline_runs.find_peers(sys.executable, str(directory), required=True)


def figure(value, **fields):
  return measure.Figure(
    **{"name": "f", "shape": "s", "value": value, "mark": 2.0, **fields}
  )


class PlanTest(absltest.TestCase):
  def test_short_plan_gives_every_figure(self):
    with tempfile.TemporaryDirectory() as directory:
      peers = install_peers(directory)
      plan = measure.short_plan()
      figures = [
        f for _, measure in measure.measurements(plan, peers) for f in measure()
      ]
    self.assertLen({f.name for f in figures}, 8)
    for f in figures:
      with self.subTest(f.name):
        self.assertTrue(math.isfinite(f.value), f)
        self.assertIn(f.reached, (True, False))
        self.assertEqual(f.note, "")
        json.dumps(f.to_dict(), allow_nan=False)
        self.assertIn(f.name, measure.table(figures))
    over_peers = [f for f in figures if "PyTorch" in f.name]
    self.assertLen(over_peers, 3)
    for f in over_peers:
      ours = f.details.get("sparse_seconds") or f.details["mask_step_seconds"]
      self.assertAlmostEqual(f.value * ours, 0.5, places=6)

  def test_plans_ask_for_the_same_kinds_of_figures(self):
    peers = baseline_runs.Peers()
    kinds = lambda plan: {
      measure.func for _, measure in measure.measurements(plan, peers)
    }
    self.assertEqual(kinds(measure.cpu_plan()), kinds(measure.short_plan()))
    self.assertEqual(
      kinds(measure.accelerator_plan()),
      kinds(measure.short_plan()) | {measure.measure_fused},
    )

  def test_growth_is_measured_and_drawn(self):
    plan = measure.short_plan()
    measured = scaling.measure_growth(
      "d_model", plan.growth_base, plan.growth_axes["d_model"], 1
    )
    self.assertGreater(measured.peak_bytes[1], measured.peak_bytes[0])
    self.assertGreater(min(measured.seconds), 0)
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "growth.png"
      scaling.plot_growth(path, [measured])
      self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

  def test_a_figure_that_does_not_exist_is_one_line(self):
    done = subprocess.run(
      [sys.executable, "-m", "experiments.benchmark", "--only=mass step"],
      cwd=ROOT,
      capture_output=True,
      check=False,
      text=True,
    )
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^error: --only='?mass step'?.*AbsTopK.*\n$")

  def test_command_without_peers_says_so(self):
    with tempfile.TemporaryDirectory() as directory:
      out = pathlib.Path(directory) / "figures.json"
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
    self.assertIn("peers are not installed", done.stdout)
    self.assertIsNone(saved["versions"]["torch"])
    self.assertEqual(saved["versions"]["jax"], jax.__version__)
    for row in saved["figures"]:
      is_over_peer = "PyTorch" in row["name"]
      self.assertEqual(row["value"] is None, is_over_peer, row["name"])
      self.assertEqual(row["reached"] is None, is_over_peer)


class PeersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  def test_missing_peers_are_an_error_only_if_asked_for(self):
    place = str(self.directory)
    self.assertIsNone(baseline_runs.find_peers("none", place, False).python)
    with self.assertRaisesRegex(errors.InputError, "none: no such file"):
      baseline_runs.find_peers("none", place, True)
    with self.assertRaisesRegex(errors.InputError, baseline_runs.TRAIN_PEER):
      baseline_runs.find_peers(sys.executable, place, True)

  def test_failing_peer_gives_its_last_line(self):
    peers = install_peers(self.directory)
    script = self.directory / baseline_runs.TRAIN_PEER
    script.write_text("raise SystemExit('no PyTorch here')")
    with self.assertRaisesRegex(baseline_runs.PeerError, "no PyTorch here"):
      peers.sampler(baseline_runs.TRAIN_PEER, 1)()

  def test_shapes_reach_the_peers(self):
    install_peers(self.directory)
    shape = measure.Shape(n_layer=3, d_model=48, density=0.25)
    mask_shape = measure.MaskShape(num_sequences=6)
    for script, flags, want in (
      (
        baseline_runs.TRAIN_PEER,
        shape.peer_flags(),
        {"layers": "3", "d_model": "48", "density": "0.25", "active": "0.25"},
      ),
      (
        baseline_runs.PRUNE_PEER,
        mask_shape.peer_flags(),
        {"layers": "2", "sequences": "6", "length": "24"},
      ),
    ):
      done = subprocess.run(
        [sys.executable, str(self.directory / script), *flags],
        capture_output=True,
        check=True,
        text=True,
      )
      row = json.loads(done.stdout.splitlines()[-1])
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
    self.assertIs(figure(value, at_most=at_most).reached, want)

  def test_table_says_what_is_missing_and_why_once(self):
    text = measure.table(
      [figure(1.5), figure(None, note="because"), figure(None, note="because")]
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
      raise baseline_runs.PeerError("gone")

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
