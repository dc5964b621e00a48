"""Pieces that several sections of the page share."""

from collections.abc import Iterable, Sequence

from sparse_jax.report import markup

TASK_LOSS = (
  "Task loss: mean over both sides of the pairs of the cross-entropy between"
  " the two answer tokens, in nats. Guessing gives ln 2 ≈ 0.693."
)
# What a loss is of: its name, the prefix of its metrics, its colour's class.
MODELS = (
  ("circuit", "", "circuit"),
  ("full model", "full_model_", "full"),
  ("model without the circuit", "without_circuit_", "without"),
)
_el = markup.el


def table(
  caption: str,
  header: Sequence[tuple[str, str]],
  rows: Iterable[Sequence],
  class_: str = "",
) -> markup.Markup:
  """Returns a table in a box that scrolls.

  Args:
    caption: shown above; also names the box.
    header: (column's name, "num" for figures or "").
    rows: the first cell names its row.
    class_: further classes.
  """
  head = [
    _el("th", name, scope="col", class_=kind or None) for name, kind in header
  ]
  body = []
  for first, *cells in rows:
    body.append(
      _el(
        "tr",
        _el("th", first, scope="row"),
        [
          _el("td", cell, class_=kind or None)
          for cell, (_, kind) in zip(cells, header[1:], strict=True)
        ],
      )
    )
  element = _el(
    "table",
    _el("caption", caption),
    _el("thead", _el("tr", head)),
    _el("tbody", body),
    class_=class_ or None,
  )
  # A box that scrolls has to be reachable by keyboard.
  return _el(
    "div",
    element,
    class_="tablebox",
    role="region",
    aria_label=caption,
    tabindex=0,
  )


def plural(number: int, noun: str) -> str:
  """Returns a count and its noun."""
  return f"{markup.count(number)} {noun}{'' if number == 1 else 's'}"


def stroke(class_: str) -> markup.Markup:
  """Returns a line for a swatch."""
  return _el("path", d="M1 7H29", class_=class_, stroke_width="2.5")


def swatch(shape: markup.Markup) -> markup.Markup:
  """Returns a legend's picture around an SVG shape."""
  return _el(
    "svg",
    shape,
    class_="swatch",
    width=30,
    height=14,
    viewBox="0 0 30 14",
    aria_hidden="true",
  )
