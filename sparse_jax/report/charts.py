"""Geometry of the charts; `templates/charts.html` is their SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparse_jax.report import text

_MAX_POINTS = 600
_MAX_DOTS = 60
# Values beyond these have no place on an axis.
_LARGEST, _SMALLEST = 1e9, 1e-9
# Of a line chart, in pixels.
WIDTH, HEIGHT = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 700, 16, 282

Points = Sequence[tuple[float, float]]


class Axis(NamedTuple):
  """The range of an axis; values outside are drawn at its ends."""

  label: str
  low: float
  high: float
  log: bool = False

  def share(self, value: float) -> float:
    """Returns where a value lies: 0 at the low end, 1 at the high end."""
    value = min(max(value, self.low), self.high)
    low, high = self.low, self.high
    if self.log:
      value, low, high = (math.log10(v) for v in (value, low, high))
    return (value - low) / ((high - low) or 1.0)

  def ticks(self) -> list[float]:
    """Returns round values within the range."""
    if not self.log:
      return ticks(self.low, self.high)
    first, last = math.log10(self.low), math.log10(self.high)
    steps = (1, 2, 5) if last - first <= 4 else (1,)
    powers = range(math.floor(first), math.floor(last) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    slack = 1 + 1e-9
    return [v for v in values if self.low / slack <= v <= self.high * slack]


class Curve(NamedTuple):
  """A line of a chart; `points` are not empty."""

  label: str
  class_: str
  points: Points
  on_right: bool = False
  dots: bool = False


def ticks(low: float, high: float, num: int = 5) -> list[float]:
  """Returns round values (1, 2 or 5 times a power of ten) within a range."""
  span = high - low
  if span <= 0:
    return [low]
  raw = span / num
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= 0.7 * raw)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def thin(points: Sequence, limit: int = _MAX_POINTS) -> list:
  """Returns every n-th point, and the last, so that about `limit` remain."""
  stride = math.ceil(len(points) / limit)
  if stride <= 1:
    return list(points)
  kept = list(points[::stride])
  return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def column(
  rows: Sequence[Mapping[str, Any]], name: str, x: str = "step"
) -> list[tuple[float, float]]:
  """Returns (row[x], row[name]) where both are finite numbers."""
  pairs = [(row.get(x), row.get(name)) for row in rows]
  return [pair for pair in pairs if all(map(text.is_number, pair))]


def line_chart(
  title: str,
  curves: Sequence[Curve],
  x: Axis,
  y: Axis,
  right: Axis | None = None,
  line: tuple[str, float] | None = None,
  cuts: Sequence[tuple[str, float]] = (),
) -> dict[str, Any]:
  """Returns curves, the last on top, in pixels, for the template.

  `right` is the axis of curves that are `on_right`; `line`, a label and a value
  of y, is drawn across, and `cuts`, labels and values of x, from top to bottom.
  """
  to_x = lambda v: LEFT + (RIGHT - LEFT) * x.share(v)
  to_y = lambda axis, v: BOTTOM - (BOTTOM - TOP) * axis.share(v)
  paths, dots = [], []
  for curve in curves:
    axis = right if curve.on_right and right else y
    drawn = [(to_x(a), to_y(axis, b)) for a, b in thin(curve.points)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in drawn)
    paths.append((f"line {curve.class_}", path))
    if curve.dots and len(drawn) <= _MAX_DOTS:
      dots += drawn
  marks = lambda axis, place: [(place(v), _tick(v)) for v in axis.ticks()]
  has_line = line is not None and text.is_number(line[1])
  return {
    "title": title,
    "axes": (x, y, right),
    "x_ticks": marks(x, to_x),
    "y_ticks": marks(y, lambda v: to_y(y, v)),
    "right_ticks": marks(right, lambda v: to_y(right, v)) if right else [],
    "paths": paths,
    "dots": dots,
    "line": (to_y(y, line[1]), line[0]) if has_line else None,
    "cuts": [
      (to_x(at), label)
      for label, at in cuts
      if text.is_number(at) and x.low <= at <= x.high
    ],
    "summary": "; ".join(_summary(curve, x.label) for curve in curves),
    "legend": [(f"line {curve.class_}", curve.label) for curve in curves],
  }


def _tick(value: float) -> str:
  return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.6g}"


def _summary(curve: Curve, x_label: str) -> str:
  (x1, y1), (x2, y2) = curve.points[0], curve.points[-1]
  number = text.number
  return (
    f"{curve.label}: from {number(y1)} at {number(x1)} to {number(y2)} at"
    f" {number(x2)} {x_label}"
  )


def training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Returns losses, in nats a token, and weight density by step.

  None if no row of `metrics.jsonl` has a step and a loss.
  """
  train, evals = column(rows, "train_loss"), column(rows, "eval_loss")
  density = column(rows, "density")
  losses = [loss for _, loss in train + evals]
  if not losses:
    return None
  steps = [step for step, _ in train + evals + density]
  low, high = min(losses), max(losses)
  pad = 0.05 * (high - low) or 0.5
  low, high = max(0.0, low - pad) if low >= 0 else low - pad, high + pad
  curves, right = [], None
  if density:
    values = [value for _, value in density]
    # Densities that span too much for a linear axis get a logarithmic one.
    is_log = min(values) > 0 and max(values) / min(values) > 20
    floor = 10.0 ** math.floor(math.log10(min(values))) if is_log else 0.0
    right = Axis("share of nonzero weights", floor, 1.0, is_log)
    scale = "log scale" if is_log else "right axis"
    curves.append(Curve(f"density ({scale})", "density", density, True))
  if train:
    curves.append(Curve("train loss", "train", train))
  if evals:
    curves.append(Curve("eval loss", "eval", evals, dots=True))
  return line_chart(
    "Training curve",
    curves,
    Axis("step", min(0, *steps), max(steps)),
    Axis("loss (nats per token)", low, high),
    right,
  )


def plot(
  title: str,
  curves: Sequence[Curve],
  x: str,
  y: str,
  log: bool = False,
  line: tuple[str, float] | None = None,
  cuts: Sequence[tuple[str, float]] = (),
) -> dict[str, Any] | None:
  """Returns curves on axes, called `x` and `y`, that hold them and 0.

  None if no point can be drawn; on a logarithmic x axis those from 0 down
  cannot. `line` and `cuts` are drawn across as `line_chart` says.
  """
  least = _SMALLEST if log else -_LARGEST
  fits = lambda p: least <= p[0] <= _LARGEST and abs(p[1]) <= _LARGEST
  curves = [c._replace(points=sorted(filter(fits, c.points))) for c in curves]
  curves = [c for c in curves if c.points]
  if not curves:
    return None
  xs, ys = zip(*(point for c in curves for point in c.points), strict=True)
  low, high = min(0.0, *ys), max((line[1] if line else 0.0), *ys)
  pad = 0.05 * (high - low) if high - low > _SMALLEST else 1.0
  first, last = min(xs), max(xs)
  if not log:
    first, last = min(0.0, first), last if last > _SMALLEST else 1.0
  return line_chart(
    title,
    curves,
    Axis(x, first, last, log),
    Axis(y, low - pad if low < 0 else 0.0, high + pad),
    line=line,
    cuts=cuts,
  )


def size_curves(
  curves: Sequence[Curve], target: float | None
) -> dict[str, Any] | None:
  """Returns task loss in nats against nodes kept, from one node; None if empty.

  Points are (nodes, loss); the target is drawn across.
  """
  curves = [
    c._replace(points=sorted(p for p in c.points if p[0] > 0)) for c in curves
  ]
  curves = [c for c in curves if c.points]
  if not curves:
    return None
  points = [point for curve in curves for point in curve.points]
  # Losses far above guessing say nothing more.
  high = min(max(loss for _, loss in points), 2.0) * 1.05
  most = max(nodes for nodes, _ in points)
  return line_chart(
    "Task loss against nodes kept",
    curves,
    Axis("nodes kept", 1.0, most if most > 1 else 10.0, log=True),
    Axis("task loss (nats)", 0.0, high if high > 0 else 1.0),
    line=("target", target),
  )


def loss_bars(
  bars: Sequence[tuple[str, float | None, str]],
  lines: Sequence[tuple[str, float | None]],
) -> dict[str, Any]:
  """Returns losses as labelled bars, lengths in pixels, for the template.

  Bars are (label, loss in nats or None, class), lines across (label, loss).
  """
  lines = [line for line in lines if text.is_number(line[1])]
  values = [v for _, v, *_ in (*bars, *lines) if text.is_number(v) and v > 0]
  scale = max(values, default=1)
  length = lambda v: 356 * max(0.0, v) / scale if text.is_number(v) else 0.0
  return {
    "rows": [(label, class_, v, length(v)) for label, v, class_ in bars],
    "lines": [(label, v, length(v)) for label, v in lines],
    "width": 420,
    "pitch": 44,
  }
