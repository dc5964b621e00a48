"""What a grid has shown, written down: JSON, CSV, pictures, Markdown, a page.

Every figure comes from the cells; nothing is entered by hand.
"""

import csv
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax import files
from sparse_jax.frontier import cells, figures, page

# "Weight-sparse transformers have interpretable circuits", abstract, figure 2.
PAPER_RATIO = 16


def write(
  workdir: files.PathLike,
  results: Sequence[cells.Result],
  comparison: Mapping[str, Any],
  command: str,
  environment: Mapping[str, Any],
  docs: files.PathLike | None = None,
) -> str:
  """Writes everything that the finished cells show; returns the Markdown.

  `frontier.json`, `frontier.csv`, `frontier.{png,svg}`, `followup.{png,svg}`,
  `frontier.html` and `results.md`.

  Args:
    workdir: of the grid.
    results: its finished cells, at least one.
    comparison: as `compare.compare_cells` returns, `verdicts` among it.
    command: what a reader types to make all of it again.
    environment: as `host.environment` returns.
    docs: another directory that gets `results.md` and the pictures.

  Raises:
    InputError: if the disk refuses.
  """
  workdir = pathlib.Path(workdir)
  files.write_json(
    workdir / "frontier.json",
    {
      "command": command,
      "environment": environment,
      "seconds": sum(r["seconds"] for r in results),
      "comparison": comparison,
      "cells": list(results),
    },
  )
  files.write_bytes(workdir / "frontier.csv", _csv(results).encode())
  text = markdown(results, comparison, command, environment)
  for directory in (workdir, *([] if docs is None else [docs])):
    directory = pathlib.Path(directory)
    figures.plot_frontier(directory / "frontier", comparison)
    figures.plot_followup(directory / "followup", comparison)
    files.write_bytes(directory / "results.md", text.encode())
  page.write(workdir, results, comparison)
  return text


_FIGURES = (
  "learned",
  "full_model_loss",
  "full_model_accuracy",
  "meets_target",
  "num_nodes",
  "num_edges",
  "num_needed_edges",
  "test_loss",
  "test_accuracy",
  "needed_edges_test_loss",
  "without_circuit_test_loss",
)


def _csv(results: Sequence[cells.Result]) -> str:
  """Returns a row per cell and task."""
  out = io.StringIO()
  shared = ("name", "width", "density", "variant", "seed", "eval_loss")
  writer = csv.DictWriter(out, [*shared, "task", *_FIGURES])
  writer.writeheader()
  for result in results:
    for task, found in result["tasks"].items():
      writer.writerow(
        {n: result[n] for n in shared}
        | {"task": task}
        | {n: found.get(n) for n in _FIGURES}
      )
  return out.getvalue()


def shown_interval(found: Mapping[str, float] | None, digits: int = 1) -> str:
  """Returns "value [low, high]", or a dash."""
  if not found:
    return "–"
  value, low, high = (found[k] for k in ("value", "low", "high"))
  return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def headline(comparison: Mapping[str, Any]) -> str:
  """Returns the sentence that the grid is there for."""
  found = comparison["best"]["num_edges"]
  if not found:
    return (
      "No sparse model has a loss inside the dense models' range and a task in"
      " common with them yet: there is no ratio."
    )
  tasks = ", ".join(found["tasks"])
  return (
    f"At a held-out loss of {found['loss']:.3f} nats a token, circuits of"
    f" {found['model']} have {shown_interval(found['ratio'])} times fewer edges"
    f" than dense ones (geometric mean over {len(found['tasks'])} tasks:"
    f" {tasks}; 90% interval over seeds and tasks; dense sizes interpolated"
    f" between {' and '.join(found['between'])})."
  )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
  return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def _models(comparison) -> str:
  rows = [
    (
      f"`{m['name']}`",
      str(len(m["cells"])),
      f"{m['eval_loss']:.3f}",
      str(len(m["passed"])),
      *(shown_interval(m["sizes"][name], 0) for name in figures.NAMES),
    )
    for m in comparison["models"]
  ]
  header = ("model", "seeds", "held-out loss", "tasks passed")
  return _table((*header, "edges", "needed edges", "nodes"), rows)


def _ratios(comparison) -> str:
  by_model: dict[str, dict[str, Any]] = {}
  for ratio in comparison["ratios"]:
    by_model.setdefault(ratio["model"], {})[ratio["measure"]] = ratio
  rows = []
  for name, found in by_model.items():
    edges = found["num_edges"]
    rows.append(
      (
        f"`{name}`",
        f"{edges['loss']:.3f}",
        *(shown_interval(found[measure]["ratio"]) for measure in figures.NAMES),
        edges.get("why") or ", ".join(edges["tasks"]),
      )
    )
  return _table(
    ("model", "loss", "edges", "needed edges", "nodes", "tasks"), rows
  )


def _left_out(comparison) -> str:
  lines = []
  for ratio in comparison["ratios"]:
    if ratio["measure"] == "num_edges" and ratio["left_out"]:
      tasks = "; ".join(
        f"{task} (not passed by {', '.join(names)})"
        for task, names in ratio["left_out"].items()
      )
      lines.append(f"- `{ratio['model']}`: {tasks}")
  return "\n".join(lines) or "None."


def agreement_with_paper(comparison: Mapping[str, Any]) -> list[str]:
  """Returns what holds here of what the paper says, sentence by sentence."""
  lines = []
  found = comparison["best"]["num_edges"]
  if found:
    low, high = found["ratio"]["low"], found["ratio"]["high"]
    inside = low <= PAPER_RATIO <= high
    lines.append(
      f"The paper's ratio of edges, about {PAPER_RATIO}, is"
      f" {'inside' if inside else 'outside'} the interval here,"
      f" [{low:.1f}, {high:.1f}]."
    )
  sparse = [
    m for m in comparison["models"] if m["density"] < 1 and not m["variant"]
  ]
  for width in sorted({m["width"] for m in sparse}):
    curve = sorted(
      (m for m in sparse if m["width"] == width), key=lambda m: -m["density"]
    )
    lines += _along_density(width, curve)
  lines += _along_width(sparse)
  return lines


def _along_density(width, curve) -> list[str]:
  if len(curve) < 2:
    return []
  losses = [m["eval_loss"] for m in curve]
  rises = all(a <= b for a, b in itertools.pairwise(losses))
  lines = [
    f"d_model {width}: as density falls from {curve[0]['density']:.3g} to"
    f" {curve[-1]['density']:.3g}, the loss goes from {losses[0]:.3f} to"
    f" {losses[-1]:.3f} nats ({'rising throughout, as' if rises else 'not'}"
    f" {'' if rises else 'rising throughout as '}in the paper)."
  ]
  sizes = [m["sizes"]["num_edges"] for m in curve]
  sizes = [s["value"] for s in sizes if s]
  if len(sizes) > 1:
    falls = all(a >= b for a, b in itertools.pairwise(sizes))
    lines.append(
      f"d_model {width}: over the same models circuits go from"
      f" {sizes[0]:.0f} to {sizes[-1]:.0f} edges"
      f" ({'falling' if falls else 'not falling'} throughout; in the paper"
      " they fall)."
    )
  return lines


def _along_width(sparse) -> list[str]:
  lines = []
  for density in sorted({m["density"] for m in sparse}, reverse=True):
    row = sorted(
      (m for m in sparse if m["density"] == density), key=lambda m: m["width"]
    )
    if len(row) < 2:
      continue
    losses = ", ".join(f"{m['eval_loss']:.3f} (d{m['width']})" for m in row)
    better = row[-1]["eval_loss"] < row[0]["eval_loss"]
    lines.append(
      f"Density {density:.3g}: loss {losses}; more width"
      f" {'helps, as' if better else 'does not help, other than'} in the paper."
    )
  return lines


def markdown(
  results: Sequence[cells.Result],
  comparison: Mapping[str, Any],
  command: str,
  environment: Mapping[str, Any],
) -> str:
  """Returns docs/results.md; arguments as for `write`."""
  machine, versions = environment["machine"], environment["versions"]
  seconds = sum(r["seconds"] for r in results)
  seeds = sorted({r["seed"] for r in results})
  shown = lambda name: f"![{name}]({name}.png)\n\n```sh\n{command}\n```"
  verdicts = comparison.get("verdicts", {})
  variants = [m for m in comparison["models"] if m["variant"]]
  sections = [
    "# Results",
    headline(comparison),
    f"Made by the command below, which writes this file: {len(results)} cells,"
    f" seeds {', '.join(map(str, seeds))}, {cells.duration(seconds)} of"
    f" training and pruning in all, on {machine['cores']} cores"
    f" ({machine['processor']}, {machine['device']}), Python"
    f" {versions['python']}, JAX {versions['jax']}. A cell is a finished"
    " training run, pruned on every task that it has learned with one budget"
    " of search.",
    "## Circuit size against loss",
    "Geometric means over "
    + (", ".join(comparison["common_tasks"]) or "no task in common")
    + "; models that do not pass all of these are not drawn.",
    shown("frontier"),
    _models(comparison),
    "## Ratio at matched loss",
    "Dense size over sparse size at the sparse model's own loss, task by task"
    " on the dense curve; nothing is extrapolated. The largest ratio is the"
    " headline; that it was chosen is not corrected for.",
    _ratios(comparison),
    "Tasks left out of both sides of a ratio, because one side has not learned"
    " them or has no circuit that meets the target:",
    _left_out(comparison),
    "## Follow-up figures",
    shown("followup"),
    "Variants, one thing changed at a time: "
    + (", ".join(f"`{m['name']}`" for m in variants) or "none in this grid")
    + ".",
    "## The paper's findings, at this scale",
    "\n".join(f"- {line}" for line in agreement_with_paper(comparison))
    or "Too few cells to say.",
    "## Verdicts on the best circuits",
    "\n".join(
      f"- `{task}` in `{comparison['verdicts_of']}`: {text}"
      for task, text in verdicts.items()
    )
    or "Not measured.",
  ]
  return "\n\n".join(sections) + "\n"
