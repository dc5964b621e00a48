"""How the training step's time and memory grow along one axis of its shape."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from experiments.benchmark import measure
from sparse_jax.utils import files, tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
  """Median seconds and memory of the step along one axis, all else held."""

  axis: str  # Which field of `shape` varies.
  shape: measure.Shape
  values: Sequence[float]
  seconds: Sequence[float]
  peak_bytes: Sequence[int]

  def slopes(self) -> dict[str, float]:
    """Returns the exponents of time and memory at the axis's upper end.

    The slope of the line through the last three points, both logarithmic: 1 is
    proportional.
    """
    ys = {"seconds": self.seconds, "peak_bytes": self.peak_bytes}
    log = lambda x: np.log(x[-3:])
    fit = lambda y: np.polyfit(log(self.values), log(y), 1)
    return {name: float(fit(y)[0]) for name, y in ys.items()}

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return dataclasses.asdict(self) | {"slopes": self.slopes()}


def measure_growth(
  axis: str, base: measure.Shape, values: Sequence[float], rounds: int
) -> Growth:
  """Measures the training step at rising values of a field of `base`."""
  shapes = [dataclasses.replace(base, **{axis: value}) for value in values]
  steps = measure.training_steps(shapes)
  samplers = {str(i): step.sample for i, step in enumerate(steps)}
  return Growth(
    axis=axis,
    shape=base,
    values=tuple(values),
    seconds=tuple(measure.interleave(samplers, rounds).medians.values()),
    peak_bytes=tuple(step.peak_bytes for step in steps),
  )


def growth_table(growths: Sequence[Growth]) -> str:
  """Returns time, memory and their slopes along every axis, as Markdown."""
  rows = []
  for g in growths:
    points = zip(g.values, g.seconds, g.peak_bytes, strict=True)
    rows += [
      (g.axis, f"{value:g}", f"{1e3 * seconds:.1f}", f"{size / 1e6:.0f}")
      for value, seconds, size in points
    ]
    rows.append((g.axis, "slope", *map("{:.2f}".format, g.slopes().values())))
  return tables.markdown(("axis", "value", "step, ms", "memory, MB"), rows)


def plot_growth(path: files.PathLike, growths: Sequence[Growth]) -> None:
  """Draws time and memory against every axis, logarithmic, as PNG."""
  size = 3 * len(growths), 5
  figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
  axes = figure.subplots(2, len(growths), sharey="row", squeeze=False)
  for column, g in enumerate(growths):
    megabytes = np.array(g.peak_bytes) / 1e6
    y_and_slope = zip((g.seconds, megabytes), g.slopes().values(), strict=True)
    for ax, (y, slope) in zip(axes[:, column], y_and_slope, strict=True):
      ax.loglog(g.values, y, marker="o")
      ax.set_xticks(g.values, [f"{v:.3g}" for v in g.values], rotation=45)
      ax.minorticks_off()
      ax.set_title(f"slope {slope:.2f}", fontsize=9)
    ax.set_xlabel(g.axis)
  axes[0, 0].set_ylabel("step, s")
  axes[1, 0].set_ylabel("memory, MB")
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  files.write_bytes(path, buffer.getvalue())
