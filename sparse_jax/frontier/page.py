"""frontier.html: the pictures, and a way from each point to its circuits."""

import base64
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.frontier import compare, figures, runs
from sparse_jax.report import page, section
from sparse_jax.report import text as text_lib
from sparse_jax.utils import files


def write(
  workdir: pathlib.Path,
  results: Sequence[runs.Result],
  comparison: Mapping[str, Any],
  points: Sequence[figures.Point],
  headline: str,
) -> None:
  """Writes frontier.html into a grid's directory, which holds the pictures.

  Self-contained but for the links to the runs' own pages, which are relative.
  `points` are those of tasks.png. Raises InputError if a picture is missing.
  """
  pngs = {}
  for name in ("frontier", "tasks", "followup"):
    with files.disk_errors(path := workdir / f"{name}.png"):
      pngs[name] = path.read_bytes()
  # A PNG's first chunk holds its size in pixels.
  width, height = struct.unpack(">II", pngs["tasks"][16:24])
  grid, tasks = comparison["grid"], compare.pruned_tasks(results)
  learned = {r["name"]: runs.learned_tasks(r) for r in results}
  page_of = "runs/{}/report.html".format
  anchor = lambda p: section.anchor(learned[p.run].index(p.task))
  text = page.document(
    "frontier.html",
    "Sparse and dense circuits at the same loss",
    headline=headline,
    pictures={
      name: f"data:image/png;base64,{base64.b64encode(png).decode()}"
      for name, png in pngs.items()
    },
    width=width,
    height=height,
    # Where on the picture to click for each circuit.
    links=[
      {
        "href": f"{page_of(p.run)}#{anchor(p)}",
        "title": f"{p.run}, {p.task}: {text_lib.plural(p.edges, 'edge')}",
        "x": p.x * width,
        "y": p.y * height,
      }
      for p in points
    ],
    missing=f"{len(grid['missing'])} of {grid['num_runs']} runs missing",
    ratio_header=[
      ("model", ""),
      ("loss", "num"),
      *((name, "num") for name in figures.SIZE_NAMES.values()),
      ("tasks", ""),
      ("left out", ""),
    ],
    ratios=[
      (
        ratio["model"],
        text_lib.number(ratio["loss"], 4),
        *map(compare.interval_text, ratio["ratios"].values()),
        ratio.get("why") or ", ".join(ratio["tasks"]),
        "; ".join(ratio["left_out"]) or text_lib.MISSING,
      )
      for ratio in comparison["ratios"]
    ],
    task_header=[(name, "num") for name in tasks],
    runs=[
      {
        "name": r["name"],
        "page": page_of(r["name"]) if learned[r["name"]] else None,
        "loss": r["eval_loss"],
        "edges": [r["tasks"].get(t, {}).get("num_edges") for t in tasks],
      }
      for r in results
    ],
  )
  files.write_bytes(workdir / "frontier.html", text.encode())
