"""The pictures: size against loss, task by task, and the follow-up figures."""

import io
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure

from sparse_jax.frontier import compare, grid
from sparse_jax.utils import files

SIZE_NAMES = {
  "num_edges": "edges",
  "num_essential_edges": "essential edges (masked)",
  "num_nodes": "nodes",
}
_COLOURS = ("#1a5a96", "#c04a12", "#1d7a55", "#8743b3", "#a06a00")
_DENSE = "#22262b"
_BEATEN = "#9aa0a6"
_LOSS = "held-out loss, nats a token"
_LINE = {"marker": "o", "ms": 4, "lw": 1.2}
_SMALL = {"fontsize": 8, "frameon": False}
_BESIDE = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 7}


def _save(drawing: figure.Figure, path: pathlib.Path) -> None:
  """Writes a PNG; the same figures give the same bytes."""
  out = io.BytesIO()
  drawing.savefig(out, format="png", dpi=150)
  files.write_bytes(path, out.getvalue())


def _curves(models) -> Iterator[tuple[str, str, list[compare.Record]]]:
  """Yields (label, colour, models of falling density) of every curve."""
  kind = lambda m: (m["variant"], m["width"])
  models = sorted(models, key=lambda m: (*kind(m), -m["density"]))
  for label, colour, on_frontier in (
    ("dense", _DENSE, True),
    ("dense, a narrower one is better", _BEATEN, False),
  ):
    dense = [m for m in models if m["density"] == 1]
    yield label, colour, [m for m in dense if m["on_frontier"] == on_frontier]
  sparse = [m for m in models if m["density"] < 1 and m["on_frontier"]]
  colours = itertools.cycle(_COLOURS)
  for (variant, width), curve in itertools.groupby(sparse, kind):
    changed = f", {grid.changes(variant)}" if variant else ""
    yield f"sparse, d_model {width}{changed}", next(colours), list(curve)


def _draw_sizes(axes: axes_lib.Axes, curve, x: str, size: str, **style):
  """Draws sizes against a field `x`; returns the models whose size is known."""
  curve = [m for m in curve if m["sizes"][size]]
  sizes = [m["sizes"][size] for m in curve]
  values = np.array([s["value"] for s in sizes])
  # Without an interval the bar has no length.
  low, high = ([s[k] or s["value"] for s in sizes] for k in ("low", "high"))
  # A mean of logarithms may lie a rounding error outside its interval.
  lengths = np.maximum([values - low, high - values], 0)
  if curve:
    style |= {"yerr": lengths, "capsize": 2, **_LINE}
    axes.errorbar([m[x] for m in curve], values, **style)
  return curve


def _against_loss(axes: axes_lib.Axes, xlabel: str, ylabel: str) -> None:
  """Styles a panel of sizes on a logarithmic axis, better models right."""
  axes.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
  axes.invert_xaxis()
  axes.grid(alpha=0.2)


def _legend_below(drawing: figure.Figure, handles, labels) -> None:
  """Puts one legend for all panels below them, if there is anything in it."""
  if labels:
    style = {"loc": "outside lower center", "ncols": len(labels), **_SMALL}
    drawing.legend(list(handles), list(labels), **style)


def plot_frontier(path: pathlib.Path, comparison: compare.Record) -> None:
  """Writes a PNG of circuit size against held-out loss, one curve a width."""
  drawing = figure.Figure(figsize=(13, 4.6), layout="constrained")
  panels = drawing.subplots(1, len(SIZE_NAMES))
  for axes, (size, name) in zip(panels, SIZE_NAMES.items(), strict=True):
    for label, colour, curve in _curves(comparison["models"]):
      style = {"label": label, "color": colour}
      for m in _draw_sizes(axes, curve, "eval_loss", size, **style):
        is_dense = m["density"] == 1
        text = f"d{m['width']}" if is_dense else f"1/{1 / m['density']:.3g}"
        at = m["eval_loss"], m["sizes"][size]["value"]
        axes.annotate(text, at, **_BESIDE, color=colour)
    axes.margins(x=0.12)
    _against_loss(axes, _LOSS, name)
  _legend_below(drawing, *panels[0].get_legend_handles_labels())
  drawing.suptitle(
    "Size of circuits that meet the target loss on validation pairs: geometric"
    f" mean over {len(comparison['common_tasks'])} tasks; better models to the"
    " right",
    fontsize=10,
  )
  _save(drawing, path)


class Point(NamedTuple):
  """Where a circuit is in a picture, in shares of it from the top left."""

  run: str
  task: str
  edges: int
  x: float
  y: float


def plot_tasks(
  path: pathlib.Path,
  results: Sequence[compare.Record],
  comparison: compare.Record,
) -> list[Point]:
  """Writes a PNG of each circuit's edges against its model's loss, by task.

  Returns where its points are, so that a page can link each to its circuit.
  """
  tasks = compare.pruned_tasks(results)
  rows = max(-(-len(tasks) // 4), 1)
  drawing = figure.Figure(figsize=(13, 0.6 + 2.6 * rows), layout="constrained")
  panels = drawing.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
  for axes in panels.flat[len(tasks) :]:
    axes.set_axis_off()
  by_name = {r["name"]: r for r in results}
  handles, drawn = {}, []
  for axes, task in zip(panels.flat, tasks, strict=False):
    for label, colour, curve in _curves(comparison["models"]):
      for run in (by_name[name] for m in curve for name in m["runs"]):
        metrics = run["tasks"].get(task, {})
        if metrics.get("meets_target"):
          at = run["eval_loss"], max(metrics["num_edges"], 1)
          (handles[label],) = axes.plot(*at, "o", ms=4, color=colour)
          drawn.append((run["name"], task, metrics["num_edges"], axes, at))
    axes.set_title(task, fontsize=9)
    axes.set_yscale("log")
    axes.grid(alpha=0.2)
  if tasks:
    drawing.axes[0].invert_xaxis()
  for axes in panels[-1]:
    axes.set_xlabel(_LOSS, fontsize=9)
  for axes in panels[:, 0]:
    axes.set_ylabel("edges", fontsize=9)
  _legend_below(drawing, handles.values(), handles)
  _save(drawing, path)  # After it the layout is final.
  share = drawing.transFigure.inverted().transform
  points = []
  for *described, axes, at in drawn:
    x, y = share(axes.transData.transform(at))
    points.append(Point(*described, float(x), 1 - float(y)))
  return points


def plot_followup(path: pathlib.Path, comparison: compare.Record) -> None:
  """Writes a PNG of loss and size as density falls, and of the variants."""
  drawing = figure.Figure(figsize=(13, 4.6), layout="constrained")
  of_loss, of_size, of_variants = drawing.subplots(1, 3)
  sparse = [m for m in comparison["models"] if m["density"] < 1]
  for label, colour, curve in _curves(sparse):
    if not curve:
      continue
    style = {"label": label, "color": colour}
    densities = [m["density"] for m in curve]
    of_loss.plot(densities, [m["eval_loss"] for m in curve], **_LINE, **style)
    _draw_sizes(of_size, curve, "density", "num_edges", **style)
  densities = sorted({m["density"] for m in sparse})
  for axes, name in ((of_loss, _LOSS), (of_size, "edges")):
    _against_loss(axes, "share of nonzero block weights", name)
    axes.set(xscale="log")
    axes.set_xticks(densities, [f"{d:.3g}" for d in densities])
    axes.set_xticks([], minor=True)
  of_loss.set(yscale="linear")
  if of_loss.lines:
    of_loss.legend(**_SMALL)
  _plot_variants(of_variants, comparison["variants"])
  _save(drawing, path)


def _plot_variants(axes: axes_lib.Axes, rows) -> None:
  """Draws edges over the base's against loss above the base's."""
  axes.plot([0], [1], marker="*", ms=11, ls="", color=_DENSE, label="base")
  for i, name in enumerate(dict.fromkeys(v["variant"] for v in rows)):
    shown = [v for v in rows if v["variant"] == name and v["edges"]]
    points = [v["above"] for v in shown], [v["edges"] for v in shown]
    axes.plot(*points, "o", ms=5, color=f"C{i}", label=grid.changes(name))
  above = "held-out loss above the base's, nats a token"
  _against_loss(axes, above, "edges over the base's")
  title = "one thing changed at a time" if rows else "no variant is finished"
  axes.set_title(title)
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter("{x:g}")
  axes.legend(**_SMALL)
  axes.grid(alpha=0.2, which="both")
