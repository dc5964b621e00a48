"""The pictures: size against loss, and the follow-up figures."""

import dataclasses
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure

from sparse_jax.frontier import compare, grid
from sparse_jax.utils import files

NAMES = {
  "num_edges": "edges",
  "num_essential_edges": "edges that are needed (masked)",
  "num_nodes": "nodes",
}
_COLOURS = ("#1a5a96", "#c04a12", "#1d7a55", "#8743b3", "#a06a00")
_DENSE = "#22262b"
_BEATEN = "#9aa0a6"


def _save(drawing: figure.Figure, path: pathlib.Path) -> None:
  """Writes PNG and SVG; the same figures give the same bytes."""
  for kind, metadata in (("png", {}), ("svg", {"Date": None})):
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
      drawing.savefig(out, format=kind, dpi=150, metadata=metadata)
    files.write_bytes(path.with_suffix(f".{kind}"), out.getvalue())


def _label(model: Mapping[str, Any]) -> str:
  return f"1/{1 / model['density']:.3g}"


def _curves(models: Sequence[Mapping[str, Any]]):
  """Yields (label, colour, models of falling density) of every curve."""
  dense = [m for m in models if m["density"] == 1]
  for label, colour, on_frontier in (
    ("dense", _DENSE, True),
    ("dense, a narrower one is better", _BEATEN, False),
  ):
    curve = [m for m in dense if m["on_frontier"] == on_frontier]
    yield label, colour, sorted(curve, key=lambda m: m["width"])
  sparse = [m for m in models if m["density"] < 1 and m["on_frontier"]]
  kind = lambda m: (m["variant"], m["width"])
  for i, (variant, width) in enumerate(sorted({kind(m) for m in sparse})):
    curve = [m for m in sparse if kind(m) == (variant, width)]
    changed = f", {grid.changes(variant)}" if variant else ""
    yield (
      f"sparse, d_model {width}{changed}",
      _COLOURS[i % len(_COLOURS)],
      sorted(curve, key=lambda m: -m["density"]),
    )


def _errorbar(axes: axes_lib.Axes, x, sizes, **style):
  values = [s["value"] for s in sizes]
  below = [0.0 if s["low"] is None else s["value"] - s["low"] for s in sizes]
  above = [0.0 if s["high"] is None else s["high"] - s["value"] for s in sizes]
  # A mean of logarithms may lie a rounding error outside its interval.
  low, high = (np.maximum(x, 0) for x in (below, above))
  axes.errorbar(
    x, values, yerr=[low, high], marker="o", ms=4, capsize=2, lw=1.2, **style
  )


def _shared_legend(drawing: figure.Figure, handles, labels) -> None:
  """Puts one legend for all panels below them, if there is anything in it."""
  if labels:
    drawing.legend(
      list(handles),
      list(labels),
      loc="outside lower center",
      ncols=len(labels),
      fontsize=8,
      frameon=False,
    )


def plot_frontier(path: pathlib.Path, comparison: Mapping[str, Any]) -> None:
  """Draws circuit size against held-out loss, one curve a width.

  Args:
    path: without suffix; `.png` and `.svg` are written.
    comparison: as `compare.compare_cells` returns.
  """
  drawing = figure.Figure(figsize=(13, 4.6), layout="constrained")
  panels = drawing.subplots(1, len(NAMES))
  for axes, (measure, name) in zip(panels, NAMES.items(), strict=True):
    for label, colour, curve in _curves(comparison["models"]):
      shown = [m for m in curve if m["sizes"][measure]]
      if not shown:
        continue
      sizes = [m["sizes"][measure] for m in shown]
      losses = [m["eval_loss"] for m in shown]
      _errorbar(axes, losses, sizes, label=label, color=colour)
      for m, loss, size in zip(shown, losses, sizes, strict=True):
        text = f"d{m['width']}" if m["density"] == 1 else _label(m)
        axes.annotate(
          text,
          (loss, size["value"]),
          xytext=(5, 5),
          textcoords="offset points",
          fontsize=7,
          color=colour,
        )
    axes.set(yscale="log", xlabel="held-out loss, nats a token", ylabel=name)
    axes.margins(x=0.12)
    axes.invert_xaxis()
    axes.grid(alpha=0.2)
  _shared_legend(drawing, *panels[0].get_legend_handles_labels())
  tasks = comparison["common_tasks"]
  drawing.suptitle(
    "Size of circuits that meet the target loss on validation pairs: geometric"
    f" mean over {len(tasks)} tasks; better models to the right",
    fontsize=10,
  )
  _save(drawing, path)


@dataclasses.dataclass(frozen=True)
class Point:
  """Where a circuit is in a picture.

  Attributes:
    cell: name of the model's cell.
    task: what the circuit does.
    edges: how many it has.
    x: share of the picture's width, from the left.
    y: share of its height, from the top.
  """

  cell: str
  task: str
  edges: int
  x: float
  y: float


def plot_tasks(
  path: pathlib.Path,
  results: Sequence[Mapping[str, Any]],
  comparison: Mapping[str, Any],
) -> list[Point]:
  """Draws every circuit's edges against its model's loss, a panel a task.

  Args:
    path: without suffix; `.png` and `.svg` are written.
    results: the finished cells.
    comparison: as `compare.compare_cells` returns.

  Returns:
    Where its points are, so that a page can link each to its circuit.
  """
  names = compare.pruned_tasks(results)
  rows = max(-(-len(names) // 4), 1)
  drawing = figure.Figure(figsize=(13, 0.6 + 2.6 * rows), layout="constrained")
  panels = drawing.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
  cells = {r["name"]: r for r in results}
  handles, drawn = {}, []
  for axes, task in itertools.zip_longest(panels.flat, names):
    if task is None:
      axes.set_axis_off()
      continue
    for label, colour, curve in _curves(comparison["models"]):
      for name in (name for m in curve for name in m["cells"]):
        found = cells[name]["tasks"].get(task, {})
        if found.get("meets_target"):
          edges = found["num_edges"]
          at = cells[name]["eval_loss"], max(edges, 1)
          (handles[label],) = axes.plot(*at, "o", ms=4, color=colour)
          drawn.append((name, task, edges, axes, at))
    axes.set_title(task, fontsize=9)
    axes.set_yscale("log")
    axes.grid(alpha=0.2)
  if names:
    drawing.axes[0].invert_xaxis()
  for axes in panels[-1]:
    axes.set_xlabel("held-out loss, nats a token", fontsize=9)
  for axes in panels[:, 0]:
    axes.set_ylabel("edges", fontsize=9)
  _shared_legend(drawing, handles.values(), handles.keys())
  _save(drawing, path)  # After it the layout is final.
  share = drawing.transFigure.inverted().transform
  points = []
  for *described, axes, at in drawn:
    x, y = share(axes.transData.transform(at))
    points.append(Point(*described, x=float(x), y=1 - float(y)))
  return points


def plot_followup(path: pathlib.Path, comparison: Mapping[str, Any]) -> None:
  """Draws loss and size as density falls, and the variants.

  Args:
    path: without suffix; `.png` and `.svg` are written.
    comparison: as `compare.compare_cells` returns.
  """
  drawing = figure.Figure(figsize=(13, 4.6), layout="constrained")
  of_loss, of_size, of_variants = drawing.subplots(1, 3)
  for label, colour, curve in _curves(comparison["models"]):
    if not curve or curve[0]["density"] == 1:
      continue
    of_loss.plot(
      [m["density"] for m in curve],
      [m["eval_loss"] for m in curve],
      marker="o",
      ms=4,
      lw=1.2,
      label=label,
      color=colour,
    )
    shown = [m for m in curve if m["sizes"]["num_edges"]]
    if shown:
      _errorbar(
        of_size,
        [m["density"] for m in shown],
        [m["sizes"]["num_edges"] for m in shown],
        label=label,
        color=colour,
      )
  densities = sorted(
    {m["density"] for m in comparison["models"] if m["density"] < 1}
  )
  for axes, name in ((of_loss, "held-out loss, nats a token"), (of_size, "")):
    axes.set(xscale="log", xlabel="share of nonzero block weights", ylabel=name)
    axes.set_xticks(densities, [f"{d:.3g}" for d in densities])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.grid(alpha=0.2)
  of_size.set(yscale="log", ylabel="edges")
  if of_loss.lines:
    of_loss.legend(fontsize=8, frameon=False)
  _plot_variants(of_variants, comparison["variants"])
  _save(drawing, path)


def _plot_variants(axes: axes_lib.Axes, rows) -> None:
  """Draws edges over the base's against loss above the base's."""
  axes.plot([0], [1], marker="*", ms=11, ls="", color=_DENSE, label="base")
  names = list(dict.fromkeys(v["variant"] for v in rows))
  for i, name in enumerate(names):
    shown = [v for v in rows if v["variant"] == name and v["edges"]]
    axes.plot(
      [v["above"] for v in shown],
      [v["edges"] for v in shown],
      marker="o",
      ms=5,
      ls="",
      color=f"C{i}",
      label=grid.changes(name),
    )
  axes.set(
    yscale="log",
    xlabel="held-out loss above the base's, nats a token",
    ylabel="edges over the base's",
    title="one thing changed at a time" if rows else "no variant is finished",
  )
  for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
    ticks("{x:g}")
  axes.legend(fontsize=8, frameon=False)
  axes.invert_xaxis()
  axes.grid(alpha=0.2, which="both")
