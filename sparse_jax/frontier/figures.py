"""The pictures: size against loss, and the follow-up figures."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure

from sparse_jax import files
from sparse_jax.frontier import grid

NAMES = {
  "num_edges": "edges",
  "num_needed_edges": "edges that are needed (masked)",
  "num_nodes": "nodes",
}
_COLOURS = ("#1a5a96", "#c04a12", "#1d7a55", "#8743b3", "#a06a00")
_DENSE = "#22262b"


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
  yield "dense", _DENSE, sorted(dense, key=lambda m: m["width"])
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
    axes.invert_xaxis()
    axes.grid(alpha=0.2)
  if panels[0].containers:
    panels[0].legend(fontsize=8, frameon=False)
  tasks = comparison["common_tasks"]
  drawing.suptitle(
    "Size of circuits that meet the target loss on validation pairs: geometric"
    f" mean over {len(tasks)} tasks; better models to the right",
    fontsize=10,
  )
  _save(drawing, path)


def plot_followup(path: pathlib.Path, comparison: Mapping[str, Any]) -> None:
  """Draws loss and size as density falls, and the variants.

  Args:
    path: without suffix; `.png` and `.svg` are written.
    comparison: as `compare.compare_cells` returns.
  """
  drawing = figure.Figure(figsize=(13, 4.6), layout="constrained")
  of_loss, of_size, of_variants = drawing.subplots(1, 3)
  for label, colour, curve in _curves(comparison["models"]):
    if label == "dense" or not curve:
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
  for i, m in enumerate(with_base(comparison["models"])):
    size = m["sizes"]["num_edges"]
    if size is None:
      continue
    name = grid.changes(m["variant"]) or "base"
    colour = f"C{i}"
    _errorbar(of_variants, [m["eval_loss"]], [size], label=name, color=colour)
  if of_variants.containers:
    of_variants.legend(fontsize=8, frameon=False)
  else:
    of_variants.text(
      0.5,
      0.5,
      "no variant is finished",
      ha="center",
      transform=of_variants.transAxes,
    )
  of_variants.set(
    yscale="log",
    xlabel="held-out loss, nats a token",
    ylabel="edges",
    title="one thing changed at a time",
  )
  of_variants.invert_xaxis()
  of_variants.grid(alpha=0.2)
  _save(drawing, path)


def with_base(models: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the variants, behind the model that they are variants of."""
  variants = [m for m in models if m["variant"]]
  same = lambda m: any(
    (m["width"], m["density"]) == (v["width"], v["density"]) for v in variants
  )
  return [m for m in models if not m["variant"] and same(m)] + variants
