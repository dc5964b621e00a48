"""Charts: their axes, lines and bars."""

import math

import pages
from absl.testing import absltest, parameterized

from sparse_jax import report
from sparse_jax.report import charts


class ChartTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (2.1, 7.4, [3, 4, 5, 6, 7]),
    (5.0, 5.0, [5.0]),
  )
  def test_ticks(self, low, high, want):
    got = charts.ticks(low, high)
    self.assertEqual([round(x, 9) for x in got], want)

  def test_thin_keeps_both_ends(self):
    for num in (0, 1, 599, 600, 601, 5000):
      points = [(i, i) for i in range(num)]
      got = charts.thin(points)
      self.assertLessEqual(len(got), 601)
      self.assertEqual((got[:1], got[-1:]), (points[:1], points[-1:]))

  def test_training_is_drawn_with_axes_and_skips_what_is_not_a_number(self):
    rows = [
      {"step": 1, "train_loss": 4.0, "density": 1.0},
      {"step": 2, "train_loss": math.nan, "density": 0.5},
      {"step": 3, "train_loss": 2.0, "eval_loss": 2.5, "density": 0.1},
    ]
    page = pages.Page(report.render([], training=rows))
    (line, _), *_ = page.find("path", "train")
    self.assertEqual(line["d"].count("L"), 1)
    drawn = [a for a, _ in page.find("path", "density") if "M1 7" not in a["d"]]
    self.assertLen(drawn, 1)
    text = [t for _, t in page.find("text")]
    self.assertContainsSubset(
      ["step", "loss (nats per token)", "share of nonzero weights"], text
    )
    bare = report.render([], training=[{"step": 1}])
    self.assertIn("No losses were logged", bare)

  @parameterized.parameters(
    (charts.Axis("", 1.0, 100.0, True), 10.0, 0.5),
    (charts.Axis("", 0.0, 4.0), 1.0, 0.25),
    (charts.Axis("", 0.0, 4.0), 5.0, 1.0),
    (charts.Axis("", 3.0, 3.0), 3.0, 0.0),
  )
  def test_axis_places_values(self, axis, value, want):
    self.assertAlmostEqual(axis.share(value), want)

  @parameterized.parameters(
    (1.0, 30.0, [1, 2, 5, 10, 20]),
    (0.01, 1.0, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]),
    (1e-5, 1.0, [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
  )
  def test_ticks_of_logarithmic_axes(self, low, high, want):
    got = charts.Axis("", low, high, True).ticks()
    self.assertEqual([round(x, 9) for x in got], want)

  def test_sizes_start_at_one_node_and_leave_out_what_is_no_size(self):
    chart = charts.size_curves(
      [
        charts.Curve("a", "a", [(100, 0.1), (0, 0.3), (1, 0.7)]),
        charts.Curve("b", "b", []),
      ],
      target=0.15,
    )
    ((_, path),) = chart["paths"]
    self.assertStartsWith(path, f"M{charts.LEFT:.1f} ")
    self.assertIn(f"L{charts.RIGHT:.1f} ", path)
    self.assertEqual(
      chart["summary"], "a: from 0.700 at 1 to 0.100 at 100 nodes kept"
    )
    self.assertEqual(chart["line"][1], "target")
    self.assertIsNone(charts.size_curves([], 0.15))

  def test_plots_hold_every_point_that_has_a_place(self):
    plot = lambda points, **options: charts.plot(
      "t", [charts.Curve("a", "a", points)], "x", "y", **options
    )
    chart = plot([(0, -1.0), (40, 3.0), (1e300, 1.0), (5, -1e300)])
    self.assertEqual(chart["summary"], "a: from −1 at 0 to 3 at 40 x")
    self.assertEqual([x for _, x in chart["x_ticks"]][::4], ["0", "40"])
    self.assertIn("-1", [y for _, y in chart["y_ticks"]])
    logged = plot([(0.0, 0.0), (0.01, 0.5), (1.0, 1.0)], log=True)
    self.assertStartsWith(logged["summary"], "a: from 0.500 at 0.0100")
    self.assertIsNone(plot([(0.0, 0.0)], log=True))
    self.assertIsNone(plot([]))
    for odd in ([(0, 0)], [(-3, 5)], [(1e-320, 1e-320)], [(1e9, -1e9)]):
      self.assertNotIn("nan", plot(odd)["paths"][0][1])

  def test_bars_are_as_long_as_their_losses(self):
    metrics = {"test_loss": 1.0, "full_model_test_loss": 4.0}
    page = pages.Page(report.render([pages.alone(metrics=metrics)]))
    widths = [float(a["width"]) for a, _ in page.find("rect", "bar")]
    self.assertLen(widths, 2)
    self.assertAlmostEqual(widths[1], 4 * widths[0], delta=0.5)

  def test_cuts_stand_at_their_values_and_only_within_the_axis(self):
    curve = charts.Curve("a", "circuit", [(1, 3), (100, 1)])
    cuts = [("the core", 10), ("outside", 1000), ("unknown", None)]
    chart = charts.plot("t", [curve], "x", "y", log=True, cuts=cuts)
    ((at, label),) = chart["cuts"]
    self.assertEqual(label, "the core")
    self.assertAlmostEqual(at, (charts.LEFT + charts.RIGHT) / 2)


if __name__ == "__main__":
  absltest.main()
