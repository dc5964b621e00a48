"""The drawing of a circuit as PNG or SVG, without a browser."""

import base64
import html
import io
import os
import pathlib
import re

import matplotlib
import resvg_py
from fontTools import subset

from sparse_jax import circuit as circuit_lib
from sparse_jax.report import draw, graph, page, text
from sparse_jax.utils import errors, files

THEMES = ("light", "dark")
# In pixels of the page; the file has `_ZOOM` times as many.
_WIDTH, _ZOOM = 900, 2
# Text needs no fonts of the machine: Matplotlib brings these along.
_FONTS = {"sans": '"DejaVu Sans"', "mono": '"DejaVu Sans Mono"'}
# File, family and weight of what the drawing uses.
_FACES = (
  ("DejaVuSans.ttf", "DejaVu Sans", 400),
  ("DejaVuSans-Bold.ttf", "DejaVu Sans", 600),
  ("DejaVuSansMono.ttf", "DejaVu Sans Mono", 400),
)


def write_picture(
  path: str | os.PathLike, circuit: circuit_lib.Circuit
) -> None:
  """Writes the page's drawing of a circuit as a PNG on white.

  Raises InputError if the circuit is empty or the file cannot be written.
  """
  svg = _svg(circuit, "light")
  png = resvg_py.svg_to_bytes(
    svg_string=svg,
    background="white",
    zoom=_ZOOM,
    skip_system_fonts=True,
    font_files=[str(_font(file)) for file, *_ in _FACES],
  )
  files.write_bytes(pathlib.Path(path), png)


def write_svg(
  path: str | os.PathLike, circuit: circuit_lib.Circuit, theme: str = "light"
) -> None:
  """Writes the page's drawing of a circuit as an SVG with its fonts in it.

  Raises InputError if the theme is not one of `THEMES`, the circuit is empty or
  the file cannot be written.
  """
  if theme not in THEMES:
    raise errors.unknown_name("theme", theme, THEMES)
  bare = _svg(circuit, theme)
  characters = "".join(sorted(set(html.unescape(bare))))
  faces = text.Markup("").join(_face(*face, characters) for face in _FACES)
  files.write_bytes(
    pathlib.Path(path), _svg(circuit, theme, faces).encode("utf-8")
  )


def _svg(circuit, theme: str, faces: str = "") -> str:
  shown = graph.from_circuit(circuit)
  if not shown.nodes:
    raise errors.InputError(
      f"{circuit.task}: the circuit is empty; need one with nodes to draw"
    )
  return (
    page.environment()
    .get_template("picture.svg")
    .render(
      d=draw.drawing(circuit.task, shown, _WIDTH),
      heading=f"{circuit.task}: {text.plural(len(shown.nodes), 'node')},"
      f" {text.plural(len(shown.edges), 'edge')}",
      css=faces + _style(theme),
      theme=theme,
    )
  )


def _font(file: str) -> pathlib.Path:
  return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", file)


def _face(file: str, family: str, weight: int, characters: str) -> text.Markup:
  """Returns a font's CSS, with only the characters that are drawn."""
  # No layout features: labels have no ligatures that anyone would miss.
  options = subset.Options(layout_features=[], notdef_outline=True)
  options.drop_tables += ["FFTM"]  # FontForge's own notes.
  font = subset.load_font(str(_font(file)), options)
  maker = subset.Subsetter(options)
  maker.populate(text=characters)
  maker.subset(font)
  raw = io.BytesIO()
  subset.save_font(font, raw, options)
  data = base64.b64encode(raw.getvalue()).decode("ascii")
  return text.Markup(
    f'@font-face {{ font-family: "{family}"; font-weight: {weight};'
    f" src: url(data:font/ttf;base64,{data}); }}\n"
  )


def _style(theme: str) -> text.Markup:
  """Returns the drawing's style in a theme, its variables resolved."""
  light, dark = re.findall(r":root \{([^}]*)\}", page.source("page.css"))[:2]
  find = lambda css: dict(re.findall(r"--([\w-]+): ([^;]+);", css))
  colours = find(light) | _FONTS
  if theme == "dark":
    colours |= find(dark)
  else:
    colours |= {"paper": "#fff", "panel": "#fff"}
  css = str(page.source("drawing.css"))
  value = lambda match: colours[match[1]]
  return text.Markup(re.sub(r"var\(--([\w-]+)\)", value, css))
