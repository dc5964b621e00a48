"""The page: its frame, its policy, and the file.

Everything is inline; a Content-Security-Policy with hashes lets nothing else
run or load. The same input gives the same bytes.
"""

import base64
import functools
import hashlib
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import cross_ablation
from sparse_jax.faithfulness import overlap as overlap_lib
from sparse_jax.report import activations, charts, data, graph, section, text
from sparse_jax.utils import errors, files

_STYLES = ("page.css", "drawing.css", "panels.css")
# One script: later parts use earlier ones.
_SCRIPTS = (
  "elements.js",
  "values.js",
  "drawing.js",
  "zoom.js",
  "search.js",
  "card.js",
  "prompts.js",
  "tables.js",
  "page.js",
)


def write_page(
  path: str | os.PathLike,
  circuits: Sequence[Mapping[str, circuit_lib.Circuit]],
  *,
  training: Iterable[Mapping[str, Any]] | None = None,
  title: str = "Sparse circuits",
  evidence: activations.Evidence | None = None,
  without: cross_ablation.Matrix | None = None,
) -> None:
  """Writes one self-contained page about circuits, complete or not at all.

  `circuits` are, by task, what `circuit.load_all` returns: the "core" and, if
  there is one, the "robust" circuit around it. `training` are rows of
  `metrics.jsonl`; losses in nats a token. `evidence` shows how the circuits
  work, as `activations.collect` finds it; `without` what is left of tasks
  without each circuit. Raises InputError if a circuit is
  damaged or the file cannot be written.
  """
  path = pathlib.Path(path)
  if not path.name:
    raise errors.bad_value("path", str(path), "a file name")
  page = render(
    circuits,
    training=training,
    title=title,
    evidence=evidence,
    without=without,
  )
  files.write_bytes(path, page.encode())


def render(
  circuits: Sequence[Mapping[str, circuit_lib.Circuit]],
  *,
  training: Iterable[Mapping[str, Any]] | None = None,
  title: str = "Sparse circuits",
  evidence: activations.Evidence | None = None,
  without: cross_ablation.Matrix | None = None,
) -> str:
  """Returns the page as HTML; arguments as for `write_page`."""
  rows = list(training or ())
  homes = [_nodes(each) for each in circuits]
  sections = [
    section.section(each, i, frozenset().union(*homes[:i], *homes[i + 1 :]))
    for i, each in enumerate(circuits)
  ]
  return document(
    "page.html",
    title,
    sections=sections,
    rows=[(each, part) for each in sections for part in each["parts"]],
    training=_training(rows) if rows else None,
    overlap=data.overlap(sections),
    level=overlap_lib.LEVEL,
    without=without,
    data=data.page_data(sections, evidence),
  )


def _nodes(circuits: Mapping[str, circuit_lib.Circuit]) -> set[graph.Node]:
  """Returns the nodes of a task's core."""
  return {graph.Node(n["site"], n["index"]) for n in circuits["core"].nodes}


def document(template: str, title: str, **context) -> str:
  """Returns a whole page as HTML, of a template that extends `base.html`."""
  css = text.Markup("").join(map(source, _STYLES))
  script = text.Markup("").join(map(source, _SCRIPTS))
  policy = (
    f"default-src 'none'; style-src '{_hash(css)}';"
    f" script-src '{_hash(script)}'; img-src data:; base-uri 'none';"
    " form-action 'none'"
  )
  return (
    environment()
    .get_template(template)
    .render(title=title, css=css, script=script, policy=policy, **context)
  )


@functools.cache
def environment() -> jinja2.Environment:
  """Returns the templates: every value is spelled out, then escaped."""
  env = jinja2.Environment(
    loader=jinja2.PackageLoader("sparse_jax.report"),
    autoescape=True,
    finalize=text.finalize,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  env.globals["charts"] = charts
  env.filters["px"] = lambda value: f"{value:.1f}"
  for function in (
    text.count,
    text.is_number,
    text.number,
    text.percent,
    text.plural,
    text.token,
    text.tokens,
  ):
    env.filters[function.__name__] = function
  return env


def source(name: str) -> text.Markup:
  """Returns a style sheet or script as it stands."""
  env = environment()
  return text.Markup(env.loader.get_source(env, name)[0])


def _hash(content: str) -> str:
  digest = hashlib.sha256(content.encode("utf-8")).digest()
  return "sha256-" + base64.b64encode(digest).decode("ascii")


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  speed = [v for _, v in charts.column(rows, "tokens_per_second")]

  def last(name):
    points = charts.column(rows, name)
    return text.number(points[-1][1] if points else None)

  facts = (
    ("steps", last("step")),
    ("tokens", last("tokens")),
    ("last train loss (nats per token)", last("train_loss")),
    ("last eval loss (nats per token)", last("eval_loss")),
    ("last density (share of nonzero weights)", last("density")),
    ("last learning rate", last("learning_rate")),
    (
      "median tokens per second",
      text.number(round(statistics.median(speed)) if speed else None),
    ),
  )
  return {"chart": charts.training(rows), "facts": facts}
