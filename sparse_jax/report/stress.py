"""Circuit and model against the grammar's numbers, as a picture."""

import dataclasses
import io

import matplotlib
import numpy as np
from matplotlib import figure

from sparse_jax.faithfulness import stress as stress_lib
from sparse_jax.tasks import grammar
from sparse_jax.utils import files

_BAND = (5, 95)  # Percentiles.
_COLOURS = {"model": "#22262b", "circuit": "#c04a12"}


def write_picture(path: files.PathLike, stress: stress_lib.Stress) -> None:
  """Writes an SVG: logit differences of random prompts, a panel a number.

  Lines are means, bands hold nine prompts in ten; the other numbers of the
  shape vary as they are drawn. The same figures give the same bytes.
  """
  shown = stress.random
  names = [field.name for field in dataclasses.fields(grammar.Shape)]
  drawing = figure.Figure(figsize=(10, 2.8), layout="constrained")
  panels = drawing.subplots(1, len(names), sharey=True)
  for axes, name in zip(panels, names, strict=True):
    number_S = np.array([getattr(p.shape, name) for p in shown.prompts])
    numbers = np.unique(number_S)
    for label, colour in _COLOURS.items():
      diffs = [getattr(shown, label)[number_S == n] for n in numbers]
      low, high = np.array([np.percentile(d, _BAND) for d in diffs]).T
      axes.fill_between(numbers, low, high, color=colour, alpha=0.12, lw=0)
      means = [d.mean() for d in diffs]
      axes.plot(numbers, means, "o-", ms=3, color=colour, label=label)
    axes.axhline(0, color="#9aa0a6", lw=0.8)
    axes.set(xlabel=name)
    axes.grid(alpha=0.2)
  panels[0].set(ylabel="logit difference, nats")
  panels[0].legend(fontsize=8, frameon=False)
  out = io.BytesIO()
  with matplotlib.rc_context({"svg.hashsalt": stress.task}):
    drawing.savefig(out, format="svg", metadata={"Date": None})
  files.write_bytes(path, out.getvalue())
