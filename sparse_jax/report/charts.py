"""Charts as inline SVG: training, losses as bars, losses against size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report import markup

_el = markup.el
_MAX_POINTS = 600


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


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list:
  """Returns (step, value) where both are finite numbers."""
  return [
    (row["step"], row[name])
    for row in rows
    if markup.is_number(row.get("step")) and markup.is_number(row.get(name))
  ]


def _text(x, y, text, **attributes) -> markup.Markup:
  return _el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", **attributes)


def _path(points, x, y) -> str:
  return "M" + "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in points)


def training_svg(rows: Sequence[Mapping[str, Any]]) -> markup.Markup | None:
  """Draws losses (left axis) and weight density (right axis) by step.

  Args:
    rows: lines of `metrics.jsonl`; losses in nats a token.

  Returns:
    The picture, or None if no row has a step and a loss.
  """
  train, evals = column(rows, "train_loss"), column(rows, "eval_loss")
  density = column(rows, "density")
  losses = [value for _, value in train + evals]
  if not losses:
    return None
  width, height = 760, 330
  left, right, top, bottom = 58, 700, 16, 282
  steps = [step for step, _ in train + evals + density]
  first, last = min(0, *steps), max(steps)
  low, high = min(losses), max(losses)
  pad = 0.05 * (high - low) or 0.5
  low, high = max(0.0, low - pad) if low >= 0 else low - pad, high + pad

  def x(step):
    return left + (right - left) * (step - first) / ((last - first) or 1)

  def y(loss):
    return bottom - (bottom - top) * (loss - low) / (high - low)

  parts = []
  for value in ticks(low, high):
    parts.append(
      _el("path", d=f"M{left} {y(value):.1f}H{right}", class_="grid")
    )
    parts.append(_text(left - 8, y(value) + 4, f"{value:g}", text_anchor="end"))
  for value in ticks(first, last, 6):
    parts.append(_el("path", d=f"M{x(value):.1f} {bottom}v5", class_="axis"))
    parts.append(
      _text(x(value), bottom + 19, _step(value), text_anchor="middle")
    )
  parts.append(_el("path", d=f"M{left} {top}V{bottom}H{right}", class_="axis"))
  middle = (left + right) / 2
  parts.append(_text(middle, height - 8, "step", text_anchor="middle"))
  parts.append(_turned(16, (top + bottom) / 2, "loss (nats per token)"))
  if density:
    parts += _density(density, x, (right, top, bottom), width)
  if train:
    points = thin(train)
    parts.append(_el("path", d=_path(points, x, y), class_="line train"))
  if evals:
    points = thin(evals)
    parts.append(_el("path", d=_path(points, x, y), class_="line eval"))
    if len(points) <= 60:
      parts += [
        _el("circle", cx=f"{x(s):.1f}", cy=f"{y(v):.1f}", r=3, class_="dot")
        for s, v in points
      ]
  return _el(
    "svg",
    _el("title", "Training curve", id="training-title"),
    _el("desc", _describe(train, evals, density), id="training-desc"),
    parts,
    class_="chart wide",
    role="img",
    aria_labelledby="training-title training-desc",
    viewBox=f"0 0 {width} {height}",
  )


def _step(value: float) -> str:
  if value >= 10_000:
    return f"{value / 1000:g}k"
  return f"{value:g}"


def _turned(x, y, text) -> markup.Markup:
  return _text(
    x, y, text, text_anchor="middle", transform=f"rotate(-90 {x:g} {y:g})"
  )


def is_log(density: Sequence[tuple[float, float]]) -> bool:
  """Whether densities span too much for a linear axis."""
  values = [value for _, value in density]
  return min(values) > 0 and max(values) / min(values) > 20


def _density(density, x, box, width) -> list[markup.Markup]:
  """The line and the axis of the density."""
  right, top, bottom = box
  if is_log(density):
    floor = math.floor(math.log10(min(value for _, value in density)))
    marks = [10.0**power for power in range(floor, 1)]

    def y(value):
      return bottom - (bottom - top) * (math.log10(value) - floor) / -floor

  else:
    marks = ticks(0, 1)

    def y(value):
      return bottom - (bottom - top) * value

  parts = [_el("path", d=f"M{right} {top}V{bottom}", class_="axis")]
  for value in marks:
    parts.append(_el("path", d=f"M{right} {y(value):.1f}h5", class_="axis"))
    parts.append(_text(right + 9, y(value) + 4, f"{value:.6g}"))
  parts.append(
    _turned(width - 8, (top + bottom) / 2, "share of nonzero weights")
  )
  path = _path(thin(density), x, y)
  return [*parts, _el("path", d=path, class_="line density")]


def _describe(train, evals, density) -> str:
  parts = []
  for name, points in (
    ("Train loss", train),
    ("Eval loss", evals),
    ("Density", density),
  ):
    if points:
      start, end = (markup.number(points[i][1]) for i in (0, -1))
      parts.append(f"{name} from {start} to {end}.")
  return " ".join(parts)


def size_curves(
  curves: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
  target: float | None,
  prefix: str,
) -> markup.Markup:
  """Draws task loss against the number of nodes, on a logarithmic axis.

  Args:
    curves: (name, class, points (nodes > 0, loss in nats)) each.
    target: loss drawn across, or None.
    prefix: starts every id.
  """
  width, height = 760, 330
  left, right, top, bottom = 58, 740, 16, 282
  points = [p for _, _, part in curves for p in part]
  last = math.log10(max(n for n, _ in points)) or 1.0
  # Losses far above guessing say nothing more.
  high = min(max(v for _, v in points), 2.0) * 1.05 or 1.0

  def x(nodes):
    return left + (right - left) * math.log10(max(nodes, 1.0)) / last

  def y(loss):
    return bottom - (bottom - top) * min(max(loss, 0.0), high) / high

  drawn = []
  for value in ticks(0, high):
    drawn.append(
      _el("path", d=f"M{left} {y(value):.1f}H{right}", class_="grid")
    )
    drawn.append(_text(left - 8, y(value) + 4, f"{value:g}", text_anchor="end"))
  for power in range(math.floor(last) + 1):
    for step in (1, 2, 5):
      value = step * 10.0**power
      if math.log10(value) > last:
        continue
      drawn.append(_el("path", d=f"M{x(value):.1f} {bottom}v5", class_="axis"))
      drawn.append(
        _text(x(value), bottom + 19, _step(value), text_anchor="middle")
      )
  drawn.append(_el("path", d=f"M{left} {top}V{bottom}H{right}", class_="axis"))
  middle = (left + right) / 2
  drawn.append(_text(middle, height - 8, "nodes kept", text_anchor="middle"))
  drawn.append(_turned(16, (top + bottom) / 2, "task loss (nats)"))
  if markup.is_number(target):
    drawn.append(
      _el("path", d=f"M{left} {y(target):.1f}H{right}", class_="mark m0")
    )
    drawn.append(_text(right, y(target) - 4, "target", text_anchor="end"))
  for _, class_, part in curves:
    drawn.append(_el("path", d=_path(part, x, y), class_=f"line {class_}"))
  name = f"{prefix}-sizes"
  summary = "; ".join(
    f"{label}: from {markup.number(part[0][1])} at"
    f" {markup.number(part[0][0])} to {markup.number(part[-1][1])} at"
    f" {markup.number(part[-1][0])} nodes"
    for label, _, part in curves
  )
  return _el(
    "svg",
    _el("title", "Task loss against nodes kept", id=name),
    _el("desc", summary, id=f"{name}-desc"),
    drawn,
    class_="chart wide",
    role="img",
    aria_labelledby=f"{name} {name}-desc",
    viewBox=f"0 0 {width} {height}",
  )


def loss_bars(
  bars: Sequence[tuple[str, float | None, str]],
  lines: Sequence[tuple[str, float | None]],
  prefix: str,
) -> markup.Markup:
  """Draws losses as labelled bars.

  Args:
    bars: (label, loss in nats or None, class).
    lines: (label, loss) drawn across, such as a target.
    prefix: starts every id.
  """
  width, pitch, left, right, top = 420, 44, 4, 360, 8
  lines = [line for line in lines if markup.is_number(line[1])]
  values = [v for _, v, _ in bars if markup.is_number(v)]
  values += [v for _, v in lines]
  scale = max([v for v in values if v > 0], default=1.0)
  bottom = top + pitch * len(bars)

  def x(value):
    return left + (right - left) * max(0.0, value) / scale

  parts = []
  for row, (label, value, class_) in enumerate(bars):
    y = top + pitch * row
    parts.append(_text(left, y + 11, label, class_="label"))
    if markup.is_number(value):
      parts.append(
        _el(
          "rect",
          x=left,
          y=y + 17,
          width=f"{max(1.0, x(value) - left):.1f}",
          height=15,
          rx=2,
          class_=f"bar {class_}",
        )
      )
    # Apart from the bars, where the lines across could hide it.
    parts.append(
      _text(
        width - 4,
        y + 29,
        markup.number(value),
        class_="value",
        text_anchor="end",
      )
    )
  captions = []
  for row, (label, value) in enumerate(lines):
    y = bottom + 12 + 14 * row
    parts.append(
      _el(
        "path",
        d="".join(
          f"M{x(value):.1f} {top + pitch * i + 15}v19" for i in range(len(bars))
        )
        + f"M{x(value):.1f} {bottom - 8}V{y - 8}",
        class_=f"mark m{row}",
      )
    )
    ends = x(value) > width / 2
    captions.append(
      _text(
        x(value) + (3 if ends else -3),
        y + 2,
        f"{label} {markup.number(value)}",
        text_anchor="end" if ends else "start",
        class_="marklabel",
      )
    )
  height = bottom + 14 * len(lines) + 6
  summary = "; ".join(
    f"{label}: {markup.number(value)}" for label, value, _ in bars
  )
  return _el(
    "svg",
    _el("title", "Task loss in nats", id=f"{prefix}-bars"),
    _el("desc", summary, id=f"{prefix}-bars-desc"),
    parts,
    captions,
    class_="chart bars",
    role="img",
    aria_labelledby=f"{prefix}-bars {prefix}-bars-desc",
    viewBox=f"0 0 {width} {height}",
  )
