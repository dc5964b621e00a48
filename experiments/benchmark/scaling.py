"""How the training step's time and memory grow along one axis of its shape."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from experiments.benchmark import measure
from sparse_jax.utils import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
  """Time and memory of the step along one axis, all else held.

  Attributes:
    axis: which field of `measure.Shape` varies.
    shape: the one it varies around.
    values: of that field.
    seconds: median of a step, one each.
    peak_bytes: one each.
  """

  axis: str
  shape: measure.Shape
  values: Sequence[float]
  seconds: Sequence[float]
  peak_bytes: Sequence[int]

  def slopes(self) -> dict[str, float]:
    """Returns the exponents of time and memory at the axis's upper end.

    The slope of the line through the last three points, both logarithmic: 1 is
    proportional.
    """
    x = np.log(self.values[-3:])
    slope = lambda y: float(np.polyfit(x, np.log(y[-3:]), 1)[0])
    return {
      name: slope(getattr(self, name)) for name in ("seconds", "peak_bytes")
    }

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    return dataclasses.asdict(self) | {"slopes": self.slopes()}


def measure_growth(
  axis: str, base: measure.Shape, values: Sequence[float], rounds: int
) -> Growth:
  """Measures the training step at rising values of a field of `base`."""
  shapes = [dataclasses.replace(base, **{axis: value}) for value in values]
  built = measure.training_steps(shapes)
  steps = dict(zip(map(str, values), built, strict=True))
  medians, _ = measure.interleave(
    {n: s.sample for n, s in steps.items()}, rounds
  )
  return Growth(
    axis=axis,
    shape=base,
    values=tuple(values),
    seconds=tuple(medians[name] for name in steps),
    peak_bytes=tuple(step.peak_bytes for step in steps.values()),
  )


def growth_table(growths: Sequence[Growth]) -> str:
  """Returns time, memory and their slopes along every axis, as Markdown."""
  lines = ["| axis | value | step, ms | memory, MB |", "|---|---|---|---|"]
  for g in growths:
    for value, s, size in zip(g.values, g.seconds, g.peak_bytes, strict=True):
      lines.append(
        f"| {g.axis} | {value:g} | {1e3 * s:.1f} | {size / 1e6:.0f} |"
      )
    slopes = g.slopes()
    lines.append(
      f"| {g.axis} | slope | {slopes['seconds']:.2f} |"
      f" {slopes['peak_bytes']:.2f} |"
    )
  return "\n".join(lines)


def plot_growth(path: files.PathLike, growths: Sequence[Growth]) -> None:
  """Draws time and memory against every axis, logarithmic, as PNG.

  Raises:
    InputError: if the file cannot be written.
  """
  figure = matplotlib.figure.Figure(
    figsize=(3 * len(growths), 5), layout="constrained"
  )
  axes = figure.subplots(2, len(growths), sharey="row", squeeze=False)
  for column, g in enumerate(growths):
    slopes = g.slopes()
    rows = (
      ("step, s", g.seconds, slopes["seconds"]),
      ("memory, MB", np.array(g.peak_bytes) / 1e6, slopes["peak_bytes"]),
    )
    for row, (label, y, slope) in enumerate(rows):
      ax = axes[row][column]
      ax.loglog(g.values, y, marker="o")
      ax.set_xticks(g.values, [f"{v:.3g}" for v in g.values], rotation=45)
      ax.minorticks_off()
      ax.set_title(f"slope {slope:.2f}", fontsize=9)
      if column == 0:
        ax.set_ylabel(label)
      if row == 1:
        ax.set_xlabel(g.axis)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  files.write_bytes(path, buffer.getvalue())
