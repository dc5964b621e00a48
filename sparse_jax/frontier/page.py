"""frontier.html: the pictures, and a way from each point to its circuits."""

import base64
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.frontier import compare, figures, runs
from sparse_jax.report import markup, page, parts, section
from sparse_jax.utils import files

_el = markup.el


def write(
  workdir: pathlib.Path,
  results: Sequence[runs.Result],
  comparison: Mapping[str, Any],
  points: Sequence[figures.Point],
  headline: str,
) -> None:
  """Writes frontier.html into a grid's directory.

  Self-contained but for the links to the runs' own pages, which are relative.

  Args:
    workdir: of the grid, with the pictures.
    results: its finished runs.
    comparison: as `compare.compare_runs` returns, with `grid`.
    points: of tasks.png, as `figures.plot_tasks` returns.
    headline: what the grid has shown, in a sentence.

  Raises:
    InputError: if a picture is missing or the disk refuses.
  """
  text = page.document(
    "Sparse and dense circuits at the same loss",
    _el("p", headline, class_="lead"),
    _picture(workdir / "frontier.png", "Circuit size against held-out loss"),
    _linked_picture(workdir / "tasks.png", points, results),
    _ratio_table(comparison),
    _run_table(results),
    _el(
      "section",
      _el("h2", "Follow-up figures"),
      _picture(workdir / "followup.png", "Density, and one change at a time"),
    ),
  )
  files.write_bytes(workdir / "frontier.html", text.encode())


def _read(path: pathlib.Path) -> bytes:
  with files.disk_errors(path):
    return path.read_bytes()


def _source(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _picture(path: pathlib.Path, text: str) -> markup.Markup:
  source = _source(_read(path))
  return _el("figure", _el("img", src=source, alt=text, width="100%"))


def _page_of(run: str) -> str:
  return f"runs/{run}/report.html"


def _linked_picture(
  path: pathlib.Path,
  points: Sequence[figures.Point],
  results: Sequence[runs.Result],
) -> markup.Markup:
  """Returns a picture whose points lead to their circuits."""
  learned = {r["name"]: runs.learned_tasks(r) for r in results}
  circuit_of = lambda p: section.anchor(learned[p.run].index(p.task))
  png = _read(path)
  # A PNG's first chunk holds its size in pixels.
  width, height = struct.unpack(">II", png[16:24])
  links = [
    _el(
      "a",
      _el("title", f"{p.run}, {p.task}: {parts.plural(p.edges, 'edge')}"),
      _el(
        "circle",
        cx=f"{p.x * width:.1f}",
        cy=f"{p.y * height:.1f}",
        r=9,
        fill="transparent",
      ),
      href=f"{_page_of(p.run)}#{circuit_of(p)}",
    )
    for p in points
  ]
  return _el(
    "figure",
    _el(
      "svg",
      _el("title", "Edges against held-out loss, task by task"),
      _el("image", href=_source(png), width=width, height=height),
      links,
      viewBox=f"0 0 {width} {height}",
      width="100%",
    ),
    _el(
      "figcaption",
      "Circuits that meet the target: their edges, one if there is none,"
      " against their model's loss. A point leads to its circuit. Variants that"
      " are no contenders are in the follow-up figures alone.",
    ),
  )


def _ratio_table(comparison: Mapping[str, Any]) -> markup.Markup:
  rows = [
    (
      ratio["model"],
      markup.number(ratio["loss"], 4),
      *(compare.interval_text(ratio["ratios"][m]) for m in compare.SIZES),
      ratio.get("why") or ", ".join(ratio["tasks"]),
      "; ".join(ratio["left_out"]) or markup.MISSING,
    )
    for ratio in comparison["ratios"]
  ]
  header = [("model", ""), ("loss", "num")]
  header += [(figures.SIZE_NAMES[m], "num") for m in compare.SIZES]
  header += [("tasks", ""), ("left out", "")]
  outcome = comparison["grid"]
  missing = f"{len(outcome['missing'])} of {outcome['num_runs']} runs missing"
  return _el(
    "section",
    _el("h2", "How many times larger dense circuits are at the same loss"),
    parts.table(
      f"Ratio with its 90% bootstrap interval; {missing}", header, rows
    ),
  )


def _run_table(results: Sequence[runs.Result]) -> markup.Markup:
  names = compare.pruned_tasks(results)
  rows = []
  for result in results:
    found = result["tasks"]
    name = result["name"]
    link = name
    if runs.learned_tasks(result):
      link = _el("a", name, href=_page_of(name))
    rows.append(
      (
        link,
        markup.number(result["eval_loss"], 4),
        *(markup.count(found.get(t, {}).get("num_edges")) for t in names),
      )
    )
  header = [("run", ""), ("loss", "num"), *((name, "num") for name in names)]
  return _el(
    "section",
    _el("h2", "Every point, and its circuits"),
    parts.table(
      f"{parts.plural(len(rows), 'finished run')}: edges of each circuit",
      header,
      rows,
    ),
  )
