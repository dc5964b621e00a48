"""The drawing of a circuit as a PNG, without a browser."""

import os
import pathlib
import re

import matplotlib
import resvg_py

from sparse_jax import circuit as circuit_lib
from sparse_jax.report import draw, graph, page, text
from sparse_jax.utils import errors, files

# In pixels of the page; the file has `_ZOOM` times as many.
_WIDTH, _ZOOM = 900, 2
# Text needs no fonts of the machine: Matplotlib brings these along.
_FONTS = {"sans": '"DejaVu Sans"', "mono": '"DejaVu Sans Mono"'}


def write_picture(
  path: str | os.PathLike, circuit: circuit_lib.Circuit
) -> None:
  """Writes the page's drawing of a circuit as a PNG on white.

  Raises InputError if the circuit is empty or the file cannot be written.
  """
  shown = graph.from_circuit(circuit)
  if not shown.nodes:
    raise errors.InputError(
      f"{circuit.task}: the circuit is empty; need one with nodes to draw"
    )
  svg = (
    page.environment()
    .get_template("picture.svg")
    .render(
      d=draw.drawing(circuit.task, shown, _WIDTH),
      heading=f"{circuit.task}: {text.plural(len(shown.nodes), 'node')},"
      f" {text.plural(len(shown.edges), 'edge')}",
      css=_style(),
    )
  )
  fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  png = resvg_py.svg_to_bytes(
    svg_string=svg,
    background="white",
    zoom=_ZOOM,
    skip_system_fonts=True,
    font_files=[
      str(fonts / f"DejaVuSans{kind}.ttf") for kind in ("", "-Bold", "Mono")
    ],
  )
  files.write_bytes(pathlib.Path(path), png)


def _style() -> text.Markup:
  """Returns the drawing's style in light colours, its variables resolved."""
  light, _, _ = page.source("page.css").partition("}")
  colours = dict(re.findall(r"--([\w-]+): ([^;]+);", light))
  colours |= _FONTS | {"paper": "#fff", "panel": "#fff"}
  css = str(page.source("drawing.css"))
  value = lambda match: colours[match[1]]
  return text.Markup(re.sub(r"var\(--([\w-]+)\)", value, css))
