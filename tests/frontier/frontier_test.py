"""The frontier: grid, matched-loss ratios by hand, and one small whole run."""

import csv
import dataclasses
import email
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import browser
import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from matplotlib import colors, image

from experiments import cli
from sparse_jax import config as config_lib
from sparse_jax import frontier
from sparse_jax.frontier import compare, figures, grid, report, runs
from sparse_jax.utils import bootstrap, errors, files, host

_ROOT = pathlib.Path(__file__).parents[2]


def small(**fields):
  run = config_lib.Config(
    data=config_lib.DataConfig(vocab_size=600, context_length=16),
    model=config_lib.ModelConfig(d_head=8),
  )
  return grid.FrontierConfig(
    run=run,
    **{
      "dense_widths": (16, 32),
      "sparse_widths": (32,),
      "densities": (0.5, 0.25),
      "variant_width": 32,
      "variant_density": 0.25,
      "seeds": (0, 1),
      **fields,
    },
  )


class GridTest(parameterized.TestCase):
  def test_runs_by_hand(self):
    config = small(variants=("no_sink",))
    kept, left_out = grid.make_runs(config)
    self.assertEmpty(left_out)
    self.assertEqual(
      [c.name for c in kept],
      [
        "dense_d16_s0",
        "dense_d32_s0",
        "sparse_d32_p0.5_s0",
        "sparse_d32_p0.25_s0",
        "dense_d16_s1",
        "dense_d32_s1",
        "sparse_d32_p0.5_s1",
        "sparse_d32_p0.25_s1",
        "sparse_d32_p0.25_no_sink_s0",
      ],
    )

  def test_contenders_are_trained_with_every_seed(self):
    names = ("no_sink", "no_bigram")
    kept, _ = grid.make_runs(small(variants=names, contenders=("no_sink",)))
    self.assertEqual(
      [c.name for c in kept if c.variant],
      [
        "sparse_d32_p0.25_no_sink_s0",
        "sparse_d32_p0.25_no_sink_s1",
        "sparse_d32_p0.25_no_bigram_s0",
      ],
    )

  def test_a_density_below_what_is_protected_is_left_out_and_said(self):
    kept, left_out = grid.make_runs(small(densities=(0.5, 1 / 64), seeds=(0,)))
    self.assertEqual(list(left_out), ["sparse_d32_p0.01562_s0"])
    self.assertIn("sparsity.min_alive", *left_out.values())
    self.assertLen(kept, 3)

  @parameterized.parameters(*grid.VARIANTS)
  def test_a_variant_is_valid_and_changes_what_it_says_alone(self, name):
    config = small(variants=(name,), variant_width=128, variant_density=0.25)
    variant = grid.make_runs(config)[0][-1]
    base = grid.Run(128, 0.25, 0)
    flat = lambda c: dict(
      config_lib._flat(config_lib.to_dict(grid.run_config(config, c)))
    )
    a, b = flat(base), flat(variant)
    changed = {key for key in a if a[key] != b[key]}
    self.assertEqual(changed, set(grid.VARIANTS[name]))

  def test_dense_is_dense(self):
    run = grid.run_config(small(dense_steps=7), grid.Run(16, 1.0, 3))
    self.assertEqual(run.sparsity.density, 1)
    self.assertEqual(run.sparsity.activation_fraction, 1)
    self.assertEqual((run.model.d_model, run.train.steps, run.seed), (16, 7, 3))

  @parameterized.parameters(
    ({"variants": ("no_skin",)}, "no_skin.*no_sink"),
    ({"contenders": ("no_sink",)}, r"contenders='no_sink'.*variants=\(\)"),
    (
      {"variants": ("no_sink",), "contenders": ("no_sink", "no_sink")},
      "contenders.*each name once",
    ),
    ({"densities": (1.0,)}, "densities=1.0.*below 1"),
    ({"seeds": ()}, r"seeds=\(\).*one or more"),
    ({"dense_widths": (16, 16)}, "dense_widths.*each once"),
    ({"dense_steps": 0}, "dense_steps=0.*at least 1"),
    ({"variant_density": 2.0}, "variant_density=2.0"),
    ({"densities": (0.50001, 0.50002)}, "four significant digits"),
    ({"dense_widths": (12,)}, "d_model"),
  )
  def test_bad_fields(self, fields, message):
    with self.assertRaisesRegex(errors.InputError, message):
      small(**fields)


class EstimateTest(parameterized.TestCase):
  def test_the_rest_takes_as_long_as_what_is_done_did(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = small(seeds=(0,), densities=(0.5,))
    self.assertEqual(
      runs.remaining_text(config, runs.status(config, root)),
      "3 of 3 runs remain",
    )
    todo, _ = grid.make_runs(config)
    costs = [grid.cost(grid.run_config(config, c), 600) for c in todo]
    directory = runs.directory_of(root.absolute(), todo[0])
    settings = runs._settings(config, todo[0], root.absolute())
    files.write_json(
      directory / runs.FILE,
      {"name": todo[0].name, "seconds": 3600.0, "settings": settings},
    )
    hours = (costs[1] + costs[2]) / costs[0] / 2
    self.assertEqual(
      runs.remaining_text(config, runs.status(config, root), processes=2),
      f"2 of 3 runs remain, about {runs.duration(3600 * hours)}",
    )

  @parameterized.parameters((3.2, "4 s"), (600, "10 min"), (9000, "2.5 h"))
  def test_duration(self, seconds, want):
    self.assertEqual(runs.duration(seconds), want)


def model(name, loss, edges, width=8, density=1.0, variant="", **missing):
  """A model of one seed per loss; `edges` by task."""
  losses = loss if isinstance(loss, tuple) else (loss,)
  metrics = {
    task: {
      "learned": missing.get(task) != "not learned",
      "meets_target": missing.get(task) != "misses",
      "test_loss": 0.3 if missing.get(task) == "misses on test" else 0.1,
      "num_edges": size,
      "num_nodes": size,
      "num_essential_edges": size,
    }
    for task, size in edges.items()
  }
  return compare.ModelGroup(
    name=name,
    width=width,
    density=density,
    variant=variant,
    activation_fraction=0.25,
    eval_losses=losses,
    metrics=(metrics,) * len(losses),
    target=0.15,
    tokens=1000,
    runs=tuple(f"{name}_s{i}" for i in range(len(losses))),
  )


_MIDDLE = math.sqrt(12)  # Halfway from 4 to 3 on a logarithmic axis.


class CompareTest(parameterized.TestCase):
  def ratio(self, dense, sparse):
    found = compare.ratio_at_matched_loss(dense, sparse)
    return found | {"ratio": found["ratios"]["num_edges"]}

  @parameterized.parameters(
    (_MIDDLE, 200 / 20), (4.0, 100 / 20), (3.0, 400 / 20)
  )
  def test_ratio_by_hand(self, loss, want):
    dense = [model("a", 4.0, {"t": 100}), model("b", 3.0, {"t": 400})]
    found = self.ratio(dense, model("s", loss, {"t": 20}, density=0.1))
    self.assertAlmostEqual(found["ratio"]["value"], want, places=6)
    # One seed and one task: nothing to resample, so there is no interval.
    self.assertIsNone(found["ratio"]["low"])
    self.assertIn("no interval", report.resampled(found))

  def test_geometric_mean_over_tasks_by_hand(self):
    dense = [
      model("a", 4.0, {"t": 100, "u": 80}),
      model("b", 3.0, {"t": 400, "u": 80}),
    ]
    sparse = model("s", _MIDDLE, {"t": 20, "u": 2}, density=0.1)
    found = self.ratio(dense, sparse)
    self.assertAlmostEqual(found["ratio"]["value"], 20.0, places=6)  # √(10·40)
    self.assertAlmostEqual(found["ratio"]["low"], 10.0, places=6)
    self.assertAlmostEqual(found["ratio"]["high"], 40.0, places=6)

  def test_neighbours_are_used_and_nothing_is_extrapolated(self):
    dense = [
      model("c", 2.0, {"t": 9999}),
      model("a", 4.0, {"t": 100}),
      model("b", 3.0, {"t": 400}),
    ]
    found = self.ratio(dense, model("s", 3.5, {"t": 10}, density=0.1))
    self.assertEqual(found["between"], ["a", "b"])
    for loss in (4.01, 1.99):
      out = self.ratio(dense, model("s", loss, {"t": 10}, density=0.1))
      self.assertIsNone(out["ratio"])
      self.assertIn("outside", out["why"])

  @parameterized.parameters("misses", "not learned")
  def test_a_task_that_one_side_fails_is_left_out_and_listed(self, why):
    dense = [
      model("a", 4.0, {"t": 100, "u": 1}, u=why),
      model("b", 3.0, {"t": 400, "u": 1}),
    ]
    found = self.ratio(dense, model("s", _MIDDLE, {"t": 20, "u": 1}))
    self.assertEqual(found["tasks"], ["t"])
    self.assertEqual(found["left_out"], {"u": ["a"]})
    self.assertAlmostEqual(found["ratio"]["value"], 10.0, places=6)

  def test_tasks_that_miss_on_test_pairs_have_a_ratio_of_their_own(self):
    dense = [
      model("a", 4.0, {"t": 100, "u": 100}, u="misses on test"),
      model("b", 3.0, {"t": 400, "u": 400}),
    ]
    found = self.ratio(dense, model("s", _MIDDLE, {"t": 20, "u": 2}))
    self.assertEqual(
      (found["tasks"], found["tasks_on_test"]), (["t", "u"], ["t"])
    )
    on_test = found["ratios_on_test"]["num_edges"]["value"]
    self.assertAlmostEqual(on_test, 10.0, places=6)
    self.assertAlmostEqual(found["ratio"]["value"], math.sqrt(1000), places=6)

  def test_circuits_without_edges_can_be_left_aside(self):
    dense = [
      model("a", 4.0, {"t": 100, "u": 50}),
      model("b", 3.0, {"t": 400, "u": 50}),
    ]
    found = self.ratio(dense, model("s", _MIDDLE, {"t": 20, "u": 0}))
    self.assertEqual(found["tasks_with_edges"], ["t"])
    some = found["ratios_with_edges"]["num_edges"]["value"]
    self.assertAlmostEqual(some, 10.0, places=6)
    self.assertAlmostEqual(found["ratio"]["value"], math.sqrt(500), places=6)

  def test_a_wider_dense_model_of_higher_loss_is_no_baseline(self):
    by_width = lambda *losses: [
      model(str(i), loss, {"t": 1}, width=8 * (i + 1))
      for i, loss in enumerate(losses)
    ]
    names = lambda models: [m.name for m in compare.baseline(models)]
    self.assertEqual(names(by_width(4.0, 3.0, 3.5, 2.0)[::-1]), ["0", "1", "3"])
    self.assertEqual(names(by_width(4.0, 4.0)), ["0"])
    self.assertEqual(names([]), [])

  def test_draws_outside_the_dense_range_are_left_out_and_counted(self):
    dense = [model("a", 4.0, {"t": 100}), model("b", 3.0, {"t": 400})]
    # Of four draws of its seeds one has both at 2.9, below the better model.
    found = self.ratio(dense, model("s", (2.9, 3.5), {"t": 20}, density=0.1))
    self.assertAlmostEqual(found["outside"], 0.25, delta=0.05)
    share = f"without the {found['outside']:.0%} of draws"
    self.assertIn(share, report.resampled(found))
    self.assertNotIn("draws", report.resampled(found | {"outside": 0.0}))
    self.assertGreaterEqual(found["ratio"]["low"], 100 / 20)
    self.assertLessEqual(found["ratio"]["high"], 400 / 20)

  def test_each_seed_alone_by_hand(self):
    dense = [model("a", 4.0, {"t": 100}), model("b", 3.0, {"t": 400})]
    sparse = model("s", (3.0, 4.0, 4.1), {"t": 20}, density=0.1)
    sizes = (
      {"t": sparse.metrics[0]["t"] | {"num_edges": n}} for n in (20, 5, 1)
    )
    sparse = dataclasses.replace(sparse, metrics=tuple(sizes))
    first, second, outside = self.ratio(dense, sparse)["by_seed"]
    self.assertAlmostEqual(first, 400 / 20, places=6)
    self.assertAlmostEqual(second, 100 / 5, places=6)
    self.assertIsNone(outside)

  def test_without_a_draw_inside_there_is_no_interval(self):
    dense = [model("a", (4.0, 3.0), {"t": 9}), model("b", (3.0, 2.0), {"t": 9})]
    sparse = model("s", 3.2, {"t": 3}, density=0.1)
    # Always the last seed: 3.0 and 2.0 do not enclose 3.2, their means do.
    last = lambda sizes, seed: [np.full((5, n), n - 1) for n in sizes]
    with mock.patch.object(bootstrap, "draw_indices", last):
      found = self.ratio(dense, sparse)
    self.assertEqual(found["outside"], 1)
    self.assertAlmostEqual(found["ratio"]["value"], 3.0)
    self.assertIsNone(found["ratio"]["low"])

  def test_a_failed_search_does_not_decide_the_smallest_of_seeds(self):
    worse, better = (
      model(name, (loss, loss), {"t": edges, "u": 80})
      for name, loss, edges in (("a", 4.0, 100), ("b", 3.0, 400))
    )
    failed = better.metrics[0] | {
      "t": better.metrics[0]["t"] | {"num_edges": 70_000}
    }
    better = dataclasses.replace(better, metrics=(failed, better.metrics[1]))
    sparse = model("s", (_MIDDLE, _MIDDLE), {"t": 20, "u": 2}, density=0.1)
    found = self.ratio([worse, better], sparse)
    smallest = found["ratios_of_smallest"]["num_edges"]
    self.assertAlmostEqual(smallest["value"], 20.0, places=6)  # √(10·40)
    self.assertGreater(found["ratio"]["value"], 30.0)

  def test_without_a_common_task_there_is_no_ratio(self):
    dense = [model("a", 4.0, {"t": 1}), model("b", 3.0, {"t": 1})]
    sparse = model("s", 3.5, {"t": 1}, t="misses")
    found = self.ratio(dense, sparse)
    self.assertIsNone(found["ratio"])
    self.assertIn("no task", found["why"])

  def test_the_draws_of_a_seed_are_pinned(self):
    # Intervals change with the order of draws: published ones must not.
    edges = lambda *sizes: dict(zip("tuv", sizes, strict=True))
    seeds = lambda group, *sizes: dataclasses.replace(
      group,
      metrics=(
        group.metrics[0],
        {
          task: group.metrics[0][task] | {"num_edges": size}
          for task, size in edges(*sizes).items()
        },
      ),
    )
    dense = [
      seeds(model("a", (4.0, 3.8), edges(100, 30, 9)), 80, 60, 20),
      seeds(model("b", (3.0, 3.2), edges(400, 200, 70)), 300, 500, 30),
    ]
    sparse = model("s", (3.1, 3.6), edges(20, 9, 2), density=0.1)
    sparse = seeds(sparse, 30, 4, 8)
    found = self.ratio(dense, sparse)
    size = compare.mean_size(sparse, "num_edges", "tuv")
    got = [*found["ratio"].values(), *size.values(), found["outside"]]
    want = (12.18812245378512, 3.6627760038943062, 26.827622558159494)
    want += (8.377137083581049, 4.0, 19.309787692112597, 0.064)
    np.testing.assert_allclose(got, want, rtol=1e-9)

  sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=4)

  @hypothesis.given(sizes, st.floats(2.0, 4.0), st.integers(1, 50))
  @hypothesis.settings(deadline=None, max_examples=15)
  def test_identical_curves_have_ratio_1_and_scaling_scales(
    self, edges, loss, factor
  ):
    by_task = {f"t{i}": e for i, e in enumerate(edges)}
    larger = {t: factor * e for t, e in by_task.items()}
    same = [model("a", 4.0, by_task), model("b", 2.0, by_task)]
    scaled = [model("a", 4.0, larger), model("b", 2.0, larger)]
    sparse = model("s", loss, by_task, density=0.1)
    value = self.ratio(same, sparse)["ratio"]["value"]
    self.assertAlmostEqual(value, 1.0, places=6)
    value = self.ratio(scaled, sparse)["ratio"]["value"]
    self.assertAlmostEqual(value / factor, 1.0, places=6)

  def test_common_tasks_by_hand(self):
    passes = ({"t", "u", "v"}, {"t", "u"}, {"t", "u"}, {"t"}, {"w"})
    models = [
      model(str(i), 3.0, dict.fromkeys(p, 5)) for i, p in enumerate(passes)
    ]
    # {t, u} by 3 models is 6 pairs, {t} by 4 is 4.
    self.assertEqual(compare.common_tasks(models), ("t", "u"))
    self.assertEqual(compare.common_tasks([]), ())
    # More models weigh more than more tasks: {t} by 5, not {t, u, v, w} by 2.
    wide = [model(n, 3.0, dict.fromkeys("tuvw", 5)) for n in "pq"]
    narrow = [model(n, 3.0, {"t": 5}) for n in "xyz"]
    self.assertEqual(compare.common_tasks([*wide, *narrow]), ("t",))
    # One model alone is no comparison, however much it passes.
    many = model("m", 3.0, dict.fromkeys("abcdefgh", 5))
    self.assertEqual(compare.common_tasks([*models, many]), ("t", "u"))
    # Nor are sparse models among themselves, if a dense one passes less.
    sparse = [
      model(n, 3.0, dict.fromkeys("tuv", 5), density=0.1) for n in "xyz"
    ]
    dense = model("d", 3.0, {"t": 5})
    self.assertEqual(compare.common_tasks([dense, *sparse]), ("t",))

  def test_interpolation_of_seeds_stays_inside(self):
    dense = [
      model("a", (4.0, 3.6), {"t": 100}),
      model("b", (3.0, 3.2), {"t": 400}),
    ]
    sparse = model("s", (3.0, 4.0), {"t": 20}, density=0.1)
    found = self.ratio(dense, sparse)["ratio"]
    self.assertGreaterEqual(found["low"], 100 / 20 - 1e-6)
    self.assertLessEqual(found["high"], 400 / 20 + 1e-6)
    self.assertLess(found["low"], found["high"])

  def test_best_leaves_a_lucky_single_task_aside(self):
    row = lambda value, tasks, with_edges=None: {
      "ratios": {"num_edges": {"value": value} if value else None},
      "tasks": tasks,
      "tasks_with_edges": tasks if with_edges is None else with_edges,
    }
    rows = [row(50, ["t"]), row(8, ["t", "u", "v"]), row(9, ["t", "u"])]
    best = compare.best(
      [*rows, row(None, ["t"] * 9, []), row(70, ["t"] * 3, [])]
    )
    self.assertEqual(best["ratios"]["num_edges"]["value"], 9)
    self.assertIsNone(compare.best([]))


def result(name, model_name, width, density, loss, edges, variant=""):
  return {
    "name": name,
    "model": model_name,
    "width": width,
    "density": density,
    "variant": variant,
    "seed": 0,
    "eval_loss": loss,
    "tokens": 4_096_000,
    "seconds": 60.0,
    "settings": {"prune": {}, "sparsity": {}},
    "tasks": {
      "t": {
        "learned": True,
        "meets_target": True,
        "test_loss": 0.1,
        "num_edges": edges,
        "num_essential_edges": edges,
        "num_nodes": edges,
      },
      "<u>": {"learned": False, "reasons": ["accuracy"]},
    },
  }


_GRID = {"num_runs": 6, "missing": [], "diverged": {}, "left_out": {}}


def written_text(found, comparison):
  """Returns results.md."""
  environment = {"versions": {"python": "3", "jax": "1"}}
  return report.markdown(
    found, {"grid": _GRID, **comparison}, "make it", environment
  )


class BaselineTest(absltest.TestCase):
  def test_a_beaten_dense_model_is_shown_apart_and_said(self):
    found = [
      result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100),
      result("dense_d16_s0", "dense_d16", 16, 1.0, 3.0, 400),
      result("dense_d32_s0", "dense_d32", 32, 1.0, 3.2, 40_000),
      result("s_s0", "s", 32, 0.1, _MIDDLE, 20),
    ]
    comparison = frontier.compare_runs(found)
    self.assertAlmostEqual(
      comparison["best"]["ratios"]["num_edges"]["value"], 10
    )
    (ratio,) = comparison["ratios"]
    self.assertGreater(ratio["with_all_dense"]["value"], 100)
    curves = {c: ms for c, _, ms in figures._curves(comparison["models"])}
    apart = curves["dense, a narrower one is better"]
    self.assertEqual([m["name"] for m in apart], ["dense_d32"])
    text = written_text(found, comparison)
    self.assertIn("at most the same loss: `dense_d32`.", text)


class PointsTest(absltest.TestCase):
  def test_the_picture_has_the_curve_s_colour_where_a_point_is(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    found = [
      result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100),
      result("s_s0", "s", 32, 0.1, 3.0, 0),
    ]
    comparison = frontier.compare_runs(found)
    points = figures.plot_tasks(root / "tasks.png", found, comparison)
    self.assertEqual(
      [(p.run, p.task, p.edges) for p in points],
      [("dense_d8_s0", "t", 100), ("s_s0", "t", 0)],
    )
    picture = image.imread(root / "tasks.png")
    height, width, _ = picture.shape
    for point, colour in zip(
      points, (figures._DENSE, figures._COLOURS[0]), strict=True
    ):
      pixel = picture[int(point.y * height), int(point.x * width)]
      np.testing.assert_allclose(pixel[:3], colors.to_rgb(colour), atol=0.01)


class VariantsTest(absltest.TestCase):
  def test_only_a_contender_stands_on_the_frontier_and_may_lead_it(self):
    found = [
      result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100),
      result("dense_d16_s0", "dense_d16", 16, 1.0, 3.0, 400),
      result("s_s0", "s", 32, 0.1, _MIDDLE, 20),
      result("v_s0", "v", 32, 0.1, _MIDDLE, 10, variant="no_sink"),
    ]
    for contenders, best, label in (
      ((), "s", None),
      (("no_sink",), "v", "sparse, d_model 32, sink=False"),
    ):
      comparison = frontier.compare_runs(found, contenders)
      self.assertEqual(comparison["best"]["model"], best)
      sentence = report.headline(comparison)
      self.assertEqual("those of v (sink=False)," in sentence, best == "v")
      curves = {
        name: ms for name, _, ms in figures._curves(comparison["models"])
      }
      self.assertEqual([m["name"] for m in curves["sparse, d_model 32"]], ["s"])
      self.assertEqual(label in curves, label is not None)

  def test_a_variant_beside_its_base_by_hand(self):
    base = result("b", "b", 8, 0.5, 4.0, edges=0)
    variant = result("v", "v", 8, 0.5, 3.75, edges=20, variant="no_sink")
    base["tasks"]["u"] = base["tasks"]["t"] | {"num_edges": 10}
    variant["tasks"]["u"] = variant["tasks"]["t"] | {"num_edges": 50}
    base["tasks"]["w"] = base["tasks"]["t"]
    (row,) = compare.beside_base([base, variant])
    self.assertEqual(row["tasks"], ["t", "u"])
    self.assertEqual((row["above"], row["passed"]), (-0.25, (2, 3)))
    # 20 over none, which counts as one, and 50 over 10: sqrt(20 * 5) = 10.
    self.assertAlmostEqual(row["edges"], 10.0)
    other_seed = base | {"seed": 1}
    self.assertEqual(compare.beside_base([other_seed, variant]), [])

  def test_a_variant_with_no_task_in_common_has_no_size(self):
    base = result("b", "b", 8, 0.5, 4.0, edges=1)
    variant = result("v", "v", 8, 0.5, 3.75, edges=20, variant="no_sink")
    variant["tasks"] = {"u": variant["tasks"]["t"]}
    (row,) = compare.beside_base([base, variant])
    self.assertIsNone(row["edges"])

  def test_losses_by_what_abstopk_keeps(self):
    models = [
      {
        "width": 8,
        "density": 0.5,
        "variant": variant,
        "activation_fraction": fraction,
        "eval_loss": loss,
        "sizes": {"num_edges": None},
      }
      for variant, fraction, loss in (
        ("", 0.25, 3.5),
        ("no_sink", 0.25, 3.0),
        ("activation_1_8", 0.125, 3.75),
        ("activation_1", 1.0, 3.625),
      )
    ]
    (line,) = report.paper_findings({"best": None, "models": models})
    self.assertIn("3.625 (1), 3.500 (0.25), 3.750 (0.125): least at 0.25", line)


class DivergedTest(absltest.TestCase):
  def test_a_diverged_run_is_kept_as_such_and_not_tried_again(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = small(seeds=(0,), densities=(0.5,))
    todo, _ = grid.make_runs(config)
    for run, fields in zip(
      todo, ({"diverged": "NaN"}, {"seconds": 1.0}, None), strict=True
    ):
      if fields:
        settings = runs._settings(config, run, root)
        files.write_json(
          runs.directory_of(root, run) / runs.FILE,
          {"name": run.name, "settings": settings, **fields},
        )
    found = runs.status(config, root)
    self.assertEqual([r["name"] for r in found.finished], [todo[1].name])
    self.assertEqual(found.diverged, {todo[0].name: "NaN"})
    self.assertEqual(found.missing, [todo[2].name])
    self.assertIn(
      "1 of 3 runs remain",
      runs.remaining_text(config, runs.status(config, root)),
    )

  def test_a_foreign_run_file_is_one_line(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = small(seeds=(0,))
    run = grid.make_runs(config)[0][0]
    files.write_json(runs.directory_of(root, run) / runs.FILE, [])
    with self.assertRaisesRegex(errors.InputError, "run.json: not run dense"):
      runs.status(config, root)


_WRITTEN = tempfile.TemporaryDirectory()  # Pictures take seconds: one for all.


@functools.cache
def write_grid():
  """Returns the directory of a written grid, and its Markdown."""
  root = pathlib.Path(_WRITTEN.name)
  found = [
    result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100),
    result("dense_d16_s0", "dense_d16", 16, 1.0, 3.0, 400),
    result("s_s0", "s", 32, 0.1, _MIDDLE, 20),
    result("v_s0", "v", 32, 0.1, 3.5, 25, "no_sink"),
  ]
  comparison = frontier.compare_runs(found) | {
    "grid": {
      "num_runs": 6,
      "missing": ["later_s0"],
      "diverged": {"wild_s0": "training stopped"},
      "left_out": {"thin_s0": "too few weights"},
    }
  }
  text = frontier.write(
    root, found, comparison, "make it", host.environment(), root / "docs"
  )
  return root, text


class WriteTest(absltest.TestCase):
  def test_everything_is_written_from_the_runs(self):
    root, text = write_grid()
    self.assertIn("have 10 times as many edges as those of s", text)
    self.assertIn("4 of the grid's 6 runs are finished", text)
    self.assertIn("4.1M", text)
    self.assertIn("(4 on a machine that was not noted)", text)
    self.assertIn("`later_s0`", text)
    self.assertIn("`wild_s0` diverged: training stopped.\n", text)
    self.assertIn("`thin_s0` is left out: too few weights.\n", text)
    # Without a spread nothing is said about the paper's ratio.
    self.assertNotIn("outside the interval", text)
    self.assertIn("make it", text)
    self.assertEqual((root / "docs" / "results.md").read_text(), text)
    for name in ("frontier", "tasks", "followup"):
      png = (root / f"{name}.png").read_bytes()
      self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
      self.assertEqual((root / "docs" / f"{name}.png").read_bytes(), png)
    rows = list(csv.DictReader((root / "frontier.csv").open()))
    self.assertLen(rows, 8)
    self.assertEqual(rows[0]["num_edges"], "100")
    saved = json.loads((root / "frontier.json").read_text())
    self.assertLen(saved["runs"], 4)
    page = (root / "frontier.html").read_text()
    self.assertIn('href="runs/s_s0/report.html"', page)
    self.assertNotIn("<u>", page)
    self.assertIn("<title>s_s0, t: 20 edges</title>", page)
    self.assertIn("have 10 times as many edges as those of s", page)

  def test_criteria_by_hand(self):
    criterion = lambda name, holds: {"name": name, "holds": holds, "need": "x"}
    found = [result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100)]
    comparison = frontier.compare_runs(found)
    title = "## Faithfulness of the best circuits\n\n"
    text = written_text(found, comparison)
    self.assertEndsWith(text, f"{title}Not measured.\n")
    comparison["criteria_of"] = "s_s0"
    comparison["criteria"] = {
      "t": [criterion("a", True), criterion("b", False)],
      "u": [criterion("a", False)],
    }
    text = written_text(found, comparison)
    self.assertIn(f"{title}Of `s_s0`: ", text)
    self.assertIn("| criterion | needs | t | u |", text)
    self.assertIn("| a | x | yes | **no** |", text)
    self.assertIn("| b | x | **no** | – |", text)

  def test_every_section_has_a_blank_line_around_it(self):
    _, text = write_grid()
    self.assertNotIn("\n\n\n", text)
    self.assertEndsWith(text, "Not measured.\n")
    lines = text.splitlines()
    for i, line in enumerate(lines):
      if line.startswith(("#", "![", "```sh")):
        self.assertIn("", lines[max(i - 1, 0) : i] or [""])
      # A table after prose, or prose after a table, would run together.
      if i and line.startswith("|") != lines[i - 1].startswith("|"):
        self.assertIn("", (line, lines[i - 1]))

  def test_the_headline_without_a_ratio_says_so(self):
    found = [result("dense_d8_s0", "dense_d8", 8, 1.0, 4.0, 100)]
    text = report.headline(frontier.compare_runs(found))
    self.assertIn("no ratio", text)


class BrowserTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = browser.start(cls)

  def test_a_click_on_a_point_leads_to_its_circuits(self):
    root, _ = write_grid()
    path = root / "runs" / "s_s0" / "report.html"
    files.write_bytes(path, b"<title>circuits of s</title>")
    self.browser.get((root / "frontier.html").as_uri())
    (point,) = self.browser.find_elements(
      "css selector", "a[href*=s_s0] circle"
    )
    point.click()
    self.assertTrue(self.browser.current_url.endswith("report.html#c0"))
    self.assertEqual(self.browser.title, "circuits of s")
    self.assertEqual(self.browser.get_log("browser"), [])


_CONFIG = """
from sparse_jax import frontier
from sparse_jax.frontier import grid

def get_config():
  c = grid.to_config_dict(frontier.FrontierConfig(
    sparse_widths=(16,), densities=(0.5,), variant_width=16,
    variant_density=0.5))
  c.run.data.source = SOURCE
  c.run.data.vocab_size = 600
  c.run.data.context_length = 16
  c.run.model.d_head = 8
  c.run.model.n_layer = 1
  c.run.train.batch_size = 8
  c.run.train.eval_batches = 1
  c.run.prune.ablation_outside = "plain"
  c.run.prune.steps = 4
  c.run.prune.batch_size = 4
  c.run.prune.num_runs = 2
  c.run.prune.num_seeds = 0
  c.run.prune.edge_steps = 2
  c.run.prune.num_train = 16
  c.run.prune.num_validation = 12
  c.run.prune.num_test = 12
  c.run.prune.mean_batches = 1
  # So lenient that hardly any model fails it.
  c.run.prune.target_loss = 5.0
  c.dense_widths = (16,)
  c.dense_steps = 4
  c.sparse_steps = 4
  c.seeds = (0,)
  c.tasks = ("single_double_quote", "else_elif")
  return c
"""


class CommandTest(absltest.TestCase):
  def run_command(self, *args):
    return subprocess.run(
      [sys.executable, "-m", "experiments.frontier", *args],
      cwd=_ROOT,
      env=os.environ,
      capture_output=True,
      text=True,
      check=False,
    )

  def test_it_runs_resumes_and_refuses_other_settings(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = root / "config.py"
    source = str(pathlib.Path(email.__file__).parent / "*.py")
    config.write_text(_CONFIG.replace("SOURCE", repr(source)))
    flags = (
      f"--config={config}",
      f"--workdir={root / 'run'}",
      "--workers=1",
    )
    # Another process holds the grid.
    with files.exclusive(root / "run"):
      done = self.run_command(*flags)
      self.assertEqual(done.returncode, 2)
      self.assertRegex(done.stderr, "^error: .*run is in use by another proc")
    loaded = cli.load_config(config, [], frontier.FrontierConfig)
    frontier.prepare_data(loaded, root / "run")
    with self.assertRaisesRegex(errors.InputError, "'dense_d16'; did you mean"):
      frontier.make_run(loaded, "dense_d16", root / "run")
    frontier.make_run(loaded, "dense_d16_s0", root / "run")
    run = root / "run" / "runs" / "dense_d16_s0" / "run.json"
    before = run.read_bytes()
    frontier.make_run(loaded, "dense_d16_s0", root / "run")
    self.assertEqual(run.read_bytes(), before)
    done = self.run_command(*flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("1 of 2 runs remain, about", done.stdout)
    self.assertIn("there is no ratio", done.stdout)
    self.assertEqual(run.read_bytes(), before)
    for name in ("frontier.json", "frontier.html", "results.md"):
      self.assertTrue((root / "run" / name).is_file(), name)
    learned = json.loads(before)["tasks"]["else_elif"]
    self.assertIn("full_model_loss", learned)
    done = self.run_command(*flags, "--config.dense_steps=5", "--report")
    self.assertEqual(done.returncode, 2)
    self.assertRegex(
      done.stderr,
      r"^error: .*run.json was made with train.steps=4, .* 5;.*\n$",
    )


if __name__ == "__main__":
  absltest.main()
