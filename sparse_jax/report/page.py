"""The page: its frame, its policy, and the file.

Everything is inline; a Content-Security-Policy with hashes lets nothing else
run or load. The same input gives the same bytes.
"""

import base64
import hashlib
import importlib.resources
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_jax.report import charts, markup, parts, section, view
from sparse_jax.utils import errors, files

_el = markup.el


def write_page(
  path: str | os.PathLike,
  circuits: Sequence[view.CircuitView],
  *,
  training: Iterable[Mapping[str, Any]] | None = None,
  title: str = "Sparse circuits",
) -> None:
  """Writes one self-contained page about circuits.

  The file replaces an older one only when it is complete.

  Args:
    path: file to write; its directory is made if needed.
    circuits: see `CircuitView`.
    training: rows of `metrics.jsonl`; losses in nats a token.
    title: heading of the page.

  Raises:
    InputError: if the file cannot be written.
  """
  path = pathlib.Path(path)
  if not path.name:
    raise errors.bad_value("path", str(path), "a file name")
  text = render(circuits, training=training, title=title)
  files.write_bytes(path, text.encode())


def render(
  circuits: Sequence[view.CircuitView],
  *,
  training: Iterable[Mapping[str, Any]] | None = None,
  title: str = "Sparse circuits",
) -> str:
  """Returns the page as HTML; arguments as for `write_page`."""
  rows = list(training or ())
  return document(
    title,
    _overview(circuits),
    [
      section.circuit_section(c, section.anchor(i))
      for i, c in enumerate(circuits)
    ],
    _training(rows) if rows else None,
  )


def document(title: str, *children) -> str:
  """Returns a whole page as HTML: heading, children, style and policy.

  Args:
    title: heading of the page.
    *children: as `markup.el` takes them.
  """
  css, script = (_asset(name) for name in ("page.css", "page.js"))
  policy = (
    f"default-src 'none'; style-src '{_hash(css)}';"
    f" script-src '{_hash(script)}'; img-src data:; base-uri 'none';"
    " form-action 'none'"
  )
  head = _el(
    "head",
    _el("meta", charset="utf-8"),
    _el("meta", http_equiv="Content-Security-Policy", content=policy),
    _el(
      "meta",
      name="viewport",
      content="width=device-width, initial-scale=1",
    ),
    _el("meta", name="color-scheme", content="light dark"),
    _el("title", title),
    # Keeps a browser from asking the server for an icon.
    _el("link", rel="icon", href="data:,"),
    _el("style", css),
  )
  main = _el(
    "main",
    _el("h1", title),
    *children,
  )
  body = _el("body", main, _el("script", script))
  return "<!DOCTYPE html>\n" + _el("html", head, "\n", body, lang="en") + "\n"


def _asset(name: str) -> markup.Markup:
  assets = importlib.resources.files("sparse_jax.report")
  return markup.Markup(assets.joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode("utf-8")).digest()
  return "sha256-" + base64.b64encode(digest).decode("ascii")


def _overview(circuits: Sequence[view.CircuitView]) -> markup.Markup:
  if not circuits:
    return _el("p", "No circuits were given.", class_="lead")
  rows = []
  for i, circuit in enumerate(circuits):
    m, (nodes, edges) = circuit.metrics, circuit.graph
    rows.append(
      (
        _el("a", circuit.task, href=f"#{section.anchor(i)}"),
        markup.count(len(nodes)),
        markup.count(len(edges)),
        *(markup.number(m.get(f"{p}test_loss")) for _, p, _ in parts.MODELS),
        markup.percent(m.get("test_accuracy")),
      )
    )
  header = (
    ("task", ""),
    ("nodes", "num"),
    ("edges", "num"),
    ("circuit's loss", "num"),
    ("full model's", "num"),
    ("without circuit", "num"),
    ("circuit's accuracy", "num"),
  )
  caption = (
    f"{parts.plural(len(circuits), 'circuit')}, measured on held-out pairs"
  )
  return _el(
    "section",
    _el(
      "p",
      "A circuit is the part of a weight-sparse transformer that is left"
      " when every node a task does not need is held at a fixed value.",
      class_="lead",
    ),
    parts.table(caption, header, rows),
    _el("p", parts.TASK_LOSS, class_="define"),
    aria_label="Overview",
  )


def _training(rows: Sequence[Mapping[str, Any]]) -> markup.Markup:
  chart = charts.training_svg(rows)
  speed = [v for _, v in charts.column(rows, "tokens_per_second")]

  def last(name):
    points = charts.column(rows, name)
    return markup.number(points[-1][1] if points else None)

  facts = (
    ("steps", last("step")),
    ("tokens", last("tokens")),
    ("last train loss (nats per token)", last("train_loss")),
    ("last eval loss (nats per token)", last("eval_loss")),
    ("last density (share of nonzero weights)", last("density")),
    ("last learning rate", last("learning_rate")),
    (
      "median tokens per second",
      markup.number(round(statistics.median(speed)) if speed else None),
    ),
  )
  figure = _el("p", "No losses were logged.", class_="note")
  if chart:
    legend = [("line train", "train loss"), ("line eval", "eval loss")]
    density = charts.column(rows, "density")
    if density:
      scale = "log scale" if charts.is_log(density) else "right axis"
      legend.append(("line density", f"density ({scale})"))
    items = [
      _el("li", parts.swatch(parts.stroke(class_)), text)
      for class_, text in legend
    ]
    figure = _el(
      "figure",
      _el(
        "div",
        chart,
        class_="drawing plot",
        role="region",
        aria_label="Training curve",
        tabindex=0,
      ),
      _el("figcaption", _el("ul", items, class_="legend")),
    )
  return _el(
    "section",
    _el("h2", "Training", id="training"),
    figure,
    parts.table(
      "Training run", (("figure", ""), ("value", "num")), facts, "narrow"
    ),
    aria_labelledby="training",
  )
