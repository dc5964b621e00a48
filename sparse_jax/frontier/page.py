"""frontier.html: the pictures, and a way from each point to its circuits."""

import base64
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax import files
from sparse_jax.frontier import cells, compare, figures
from sparse_jax.report import markup, page, parts

_el = markup.el


def write(
  workdir: pathlib.Path,
  results: Sequence[cells.Result],
  comparison: Mapping[str, Any],
) -> None:
  """Writes frontier.html into a grid's directory.

  Self-contained but for the links to the cells' own pages, which are relative.

  Raises:
    InputError: if a picture is missing or the disk refuses.
  """
  text = page.document(
    "Sparse and dense circuits at the same loss",
    _picture(workdir / "frontier.png", "Circuit size against held-out loss"),
    _picture(workdir / "tasks.png", "The same for every task by itself"),
    _ratio_table(comparison),
    _cell_table(results),
    _el(
      "section",
      _el("h2", "Follow-up figures"),
      _picture(workdir / "followup.png", "Density, and one change at a time"),
    ),
  )
  files.write_bytes(workdir / "frontier.html", text.encode())


def _picture(path: pathlib.Path, text: str) -> markup.Markup:
  with files.disk_errors(path):
    data = base64.b64encode(path.read_bytes()).decode("ascii")
  source = f"data:image/png;base64,{data}"
  return _el("figure", _el("img", src=source, alt=text, width="100%"))


def _ratio_table(comparison: Mapping[str, Any]) -> markup.Markup:
  rows = [
    (
      ratio["model"],
      markup.number(ratio["loss"], 4),
      *(compare.shown_interval(ratio["ratios"][m]) for m in compare.MEASURES),
      ratio.get("why") or ", ".join(ratio["tasks"]),
      "; ".join(ratio["left_out"]) or markup.MISSING,
    )
    for ratio in comparison["ratios"]
  ]
  header = [("model", ""), ("loss", "num")]
  header += [(figures.NAMES[m], "num") for m in compare.MEASURES]
  header += [("tasks", ""), ("left out", "")]
  outcome = comparison["grid"]
  missing = f"{len(outcome['missing'])} of {outcome['num_cells']} cells missing"
  return _el(
    "section",
    _el("h2", "How many times larger dense circuits are at the same loss"),
    parts.table(
      f"Ratio with its 90% bootstrap interval; {missing}", header, rows
    ),
  )


def _cell_table(results: Sequence[cells.Result]) -> markup.Markup:
  names = compare.pruned_tasks(results)
  rows = []
  for result in results:
    found = result["tasks"]
    name = result["name"]
    link = name
    if any(f["learned"] for f in found.values()):
      link = _el("a", name, href=f"cells/{name}/report.html")
    rows.append(
      (
        link,
        markup.number(result["eval_loss"], 4),
        *(markup.count(found.get(t, {}).get("num_edges")) for t in names),
      )
    )
  header = [("cell", ""), ("loss", "num"), *((name, "num") for name in names)]
  return _el(
    "section",
    _el("h2", "Every point, and its circuits"),
    parts.table(
      f"{parts.plural(len(rows), 'finished cell')}: edges of each circuit",
      header,
      rows,
    ),
  )
