"""What a grid has shown, written down: JSON, CSV, pictures, Markdown, a page.

Every figure comes from the cells; nothing is entered by hand.
"""

import collections
import csv
import io
import itertools
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.frontier import cells, compare, figures, grid, page
from sparse_jax.report import text as text_lib
from sparse_jax.utils import files

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

  `frontier.json`, `frontier.csv`, `results.md`, `frontier.html`, and the
  pictures `frontier`, `tasks` and `followup` as PNG and SVG.

  Args:
    workdir: of the grid.
    results: its finished cells, at least one.
    comparison: as `compare.compare_cells` returns, with `grid`, as
      `cells.outcome` returns, and perhaps `verdicts`: every claim's fields
      by task, and `verdicts_of`: the cell.
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
  files.write_bytes(workdir / "results.md", text.encode())
  figures.plot_frontier(workdir / "frontier", comparison)
  points = figures.plot_tasks(workdir / "tasks", results, comparison)
  figures.plot_followup(workdir / "followup", comparison)
  page.write(workdir, results, comparison, points, headline(comparison))
  if docs is not None:
    pictures = itertools.product(
      ("frontier", "tasks", "followup"), ("png", "svg")
    )
    for name in ("results.md", *map(".".join, pictures)):
      files.write_bytes(
        pathlib.Path(docs) / name, (workdir / name).read_bytes()
      )
  return text


_FIGURES = (
  "learned",
  "full_model_loss",
  "full_model_accuracy",
  "meets_target",
  "num_nodes",
  "num_edges",
  "num_essential_edges",
  "test_loss",
  "test_accuracy",
  "essential_edges_test_loss",
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


def resampled(ratio: Mapping[str, Any]) -> str:
  """Returns what the interval of a ratio is over, in words."""
  seeds, tasks = ratio["seeds"], len(ratio["tasks"])
  over = [f"{tasks} tasks"] if tasks > 1 else []
  if max(seeds) > 1:
    few, many = min(seeds), max(seeds)
    count = f"{few}" if few == many else f"{few} to {many}"
    over.append(f"{count} seeds a model")
  if not over:
    return "one task and one seed a model: no interval"
  alone = "" if max(seeds) > 1 else ", one seed a model"
  text = f"90% bootstrap interval over {' and '.join(over)}{alone}"
  if not ratio["outside"]:
    return text
  return (
    f"{text}, without the {ratio['outside']:.0%} of draws whose loss no two"
    " dense models enclose"
  )


def headline(comparison: Mapping[str, Any]) -> str:
  """Returns the sentence that the grid is there for."""
  found = comparison["best"]
  if not found:
    return (
      "No sparse model has a loss inside the dense models' range and a task in"
      " common with them yet: there is no ratio."
    )
  tasks = ", ".join(found["tasks"])
  edges, needed, nodes = (
    compare.shown_interval(found["ratios"][m]) for m in compare.MEASURES
  )
  models = {m["name"]: m for m in comparison["models"]}
  changed = grid.changes(models[found["model"]]["variant"])
  recipe = f" ({changed})" if changed else ""
  return (
    f"At a held-out loss of {found['loss']:.3f} nats a token, dense circuits"
    f" have {edges} times as many edges as those of {found['model']}{recipe},"
    f" {needed} times as many that are needed, {nodes} times as"
    f" many nodes (geometric mean over {tasks}; {resampled(found)}; dense sizes"
    f" interpolated between {' and '.join(found['between'])})."
  )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
  return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def _models(comparison) -> str:
  rows = [
    (
      f"`{m['name']}`",
      str(len(m["cells"])),
      f"{m['tokens'] / 1e6:.3g}M",
      f"{m['eval_loss']:.3f}",
      str(len(m["passed"])),
      *(compare.shown_interval(m["sizes"][name]) for name in figures.NAMES),
    )
    for m in comparison["models"]
  ]
  header = ("model", "seeds", "tokens", "held-out loss", "tasks passed")
  return _table((*header, "edges", "needed edges", "nodes"), rows)


def _per_task(results) -> str:
  """Returns every circuit's edges, needed edges in brackets."""
  names = compare.pruned_tasks(results)

  def shown(found):
    if "num_edges" not in found:
      return "–"
    needed = found.get("num_essential_edges")
    text = f"{found['num_edges']}"
    text += "" if needed is None else f" ({needed})"
    return text if found["meets_target"] else f"{text}, misses"

  rows = [
    (f"`{r['name']}`", *(shown(r["tasks"].get(name, {})) for name in names))
    for r in results
  ]
  return _table(("cell", *names), rows)


def _ratios(comparison) -> str:
  rows = [
    (
      f"`{ratio['model']}`",
      f"{ratio['loss']:.3f}",
      *(compare.shown_interval(ratio["ratios"][m]) for m in figures.NAMES),
      ratio.get("why") or _compared(ratio),
    )
    for ratio in comparison["ratios"]
  ]
  header = ("model", "loss", "edges", "needed edges", "nodes", "tasks")
  return _table(header, rows)


def _compared(ratio) -> str:
  """Returns a ratio's tasks; those with an empty circuit are marked."""
  marked = [
    task if task in ratio["tasks_with_edges"] else f"{task}\\*"
    for task in ratio["tasks"]
  ]
  return f"{len(marked)}: {', '.join(marked)}"


def _beaten(comparison) -> str:
  """Returns why some dense models are not in the baseline, or ""."""
  names = [
    f"`{m['name']}`"
    for m in comparison["models"]
    if m["density"] == 1 and not m["on_frontier"]
  ]
  if not names:
    return ""
  return (
    f" Not in the dense curve, because a narrower dense model has at most the"
    f" same loss: {', '.join(names)}."
  )


def _sensitivity(comparison) -> str:
  """Returns the ratios of edges of other choices of seeds and tasks, or ""."""
  shown = lambda value: "–" if value is None else f"{value:.3g}"
  rows = [
    (
      f"`{ratio['model']}`",
      compare.shown_interval(ratio["ratios"]["num_edges"]),
      f"{ratio['outside']:.0%}",
      ", ".join(map(shown, ratio["by_seed"])),
      *(
        compare.shown_interval(ratio[f"ratios_{name}"]["num_edges"])
        for name in ("of_smallest", "with_edges", "on_test")
      ),
      compare.shown_interval(ratio["with_all_dense"]),
      ", ".join(ratio["tasks_on_test"]) or "–",
    )
    for ratio in comparison["ratios"]
    if ratio["ratios"]["num_edges"]
  ]
  header = ("model", "as above", "draws outside", "by seed")
  header += ("smallest of seeds",)
  header += ("none empty", "on test pairs", "all dense")
  header += ("tasks on test pairs",)
  return _table(header, rows) if rows else ""


def _left_out(comparison) -> str:
  lines = []
  for ratio in comparison["ratios"]:
    if ratio["left_out"]:
      tasks = "; ".join(
        f"{task} (not passed by {', '.join(names)})"
        for task, names in ratio["left_out"].items()
      )
      lines.append(f"- `{ratio['model']}`: {tasks}")
  return "\n".join(lines) or "None."


def agreement_with_paper(comparison: Mapping[str, Any]) -> list[str]:
  """Returns what is seen here of what the paper says, sentence by sentence."""
  lines = []
  found = comparison["best"]
  if found and found["ratios"]["num_edges"]["low"] is not None:
    low, high = (found["ratios"]["num_edges"][k] for k in ("low", "high"))
    inside = low <= PAPER_RATIO <= high
    lines.append(
      f"The paper's ratio of edges, about {PAPER_RATIO}, is"
      f" {'inside' if inside else 'outside'} the interval here,"
      f" [{low:.3g}, {high:.3g}]."
    )
  sparse = [
    m for m in comparison["models"] if m["density"] < 1 and not m["variant"]
  ]
  for width in sorted({m["width"] for m in sparse}):
    curve = sorted(
      (m for m in sparse if m["width"] == width), key=lambda m: -m["density"]
    )
    lines += _along_density(width, curve)
  for density in sorted({m["density"] for m in sparse}, reverse=True):
    row = sorted(
      (m for m in sparse if m["density"] == density), key=lambda m: m["width"]
    )
    if len(row) > 1:
      losses = ", ".join(f"{m['eval_loss']:.3f} (d{m['width']})" for m in row)
      lines.append(f"Width at density {density:.3g}: loss {losses}.")
  return lines + _along_activation(comparison["models"])


def _along_density(width, curve) -> list[str]:
  """In the paper the loss rises and circuits shrink as density falls."""
  lines = []
  for what, verb, in_order, points in (
    (
      "the loss",
      "rises",
      operator.le,
      [(m["density"], m["eval_loss"]) for m in curve],
    ),
    (
      "the mean number of edges",
      "falls",
      operator.ge,
      [
        (m["density"], m["sizes"]["num_edges"]["value"])
        for m in curve
        if m["sizes"]["num_edges"]
      ],
    ),
  ):
    if len(points) < 2:
      continue
    shown = ", ".join(f"{v:.4g} (density {d:.3g})" for d, v in points)
    holds = all(in_order(a, b) for (_, a), (_, b) in itertools.pairwise(points))
    lines.append(
      f"d_model {width}: {what} is {shown}; it {verb} as density falls, as in"
      f" the paper: {'yes' if holds else 'no'}."
    )
  return lines


def _along_activation(models) -> list[str]:
  """In the paper some AbsTopK helps and too much hurts (figure 37)."""
  varied = [
    m
    for m in _with_base(models)
    if not m["variant"]
    or set(grid.VARIANTS[m["variant"]]) == {"sparsity.activation_fraction"}
  ]
  varied.sort(key=lambda m: -m["activation_fraction"])
  if len(varied) < 2:
    return []
  shown = ", ".join(
    f"{m['eval_loss']:.3f} ({m['activation_fraction']:.3g})" for m in varied
  )
  best = min(varied, key=lambda m: m["eval_loss"])["activation_fraction"]
  return [
    "The paper finds that some AbsTopK helps and too much hurts (its figure"
    f" 37). By the share of channels that it keeps, the loss here is {shown}:"
    f" least at {best:.3g}."
  ]


def _with_base(models):
  """Returns the variants, behind the model that they are variants of."""
  variants = [m for m in models if m["variant"]]
  same = lambda m: any(
    (m["width"], m["density"]) == (v["width"], v["density"]) for v in variants
  )
  return [m for m in models if not m["variant"] and same(m)] + variants


def _grid_text(outcome: Mapping[str, Any], num_finished: int) -> str:
  lines = [
    f"{num_finished} of the grid's {outcome['num_cells']} cells are finished."
  ]
  if outcome["missing"]:
    names = ", ".join(f"`{n}`" for n in outcome["missing"])
    lines.append(
      f"The same command goes on with the others, which are in no figure here:"
      f" {names}."
    )
  for name, why in outcome["diverged"].items():
    lines.append(f"`{name}` diverged: {why}.")
  for name, why in outcome["left_out"].items():
    lines.append(f"`{name}` cannot be had: {why}.")
  return "\n".join(lines)


def _variants(comparison) -> str:
  """Returns every variant beside its base, or ""."""
  rows = [
    (
      f"{v['variant']} ({grid.changes(v['variant'])})",
      str(v["seed"]),
      f"{v['loss']:.3f}",
      f"{v['above']:+.3f}",
      "–" if v["edges"] is None else f"{v['edges']:.3g}",
      ", ".join(v["tasks"]) or "–",
      "{} ({})".format(*v["passed"]),
    )
    for v in comparison["variants"]
  ]
  header = ("variant", "seed", "held-out loss", "above the base's")
  header += ("edges over the base's", "tasks in common")
  header += ("tasks passed (the base's)",)
  return _table(header, rows) if rows else ""


def _verdicts(comparison) -> str:
  """Returns which claims hold of which circuit, or ""."""
  by_task = comparison.get("verdicts")
  if not by_task:
    return ""
  claims = {c["name"]: c["need"] for found in by_task.values() for c in found}
  holds = {
    (task, c["name"]): c["holds"]
    for task, found in by_task.items()
    for c in found
  }
  shown = {True: "yes", False: "**no**", None: "–"}
  rows = [
    (
      name,
      need,
      *(shown[holds.get((task, name))] for task in by_task),
    )
    for name, need in claims.items()
  ]
  return (
    f"Of `{comparison['verdicts_of']}`: what the evidence says of each circuit,"
    " and what it needs for a yes. The figures are on the circuits' pages.\n\n"
    + _table(("claim", "needs", *by_task), rows)
  )


def _machines(results) -> str:
  """Returns how many cells ran on what."""
  found = collections.Counter(map(_machine, results))
  return ", ".join(f"{count} on {what}" for what, count in found.most_common())


def _machine(result) -> str:
  machine = result.get("machine")
  if not machine:
    return "a machine that was not noted"
  if machine["backend"] != "cpu":
    return machine["device"]
  return (
    f"{text_lib.plural(machine['cores'], 'core')} of {machine['processor']}"
  )


def markdown(
  results: Sequence[cells.Result],
  comparison: Mapping[str, Any],
  command: str,
  environment: Mapping[str, Any],
) -> str:
  """Returns docs/results.md; arguments as for `write`."""
  versions = environment["versions"]
  seconds = sum(r["seconds"] for r in results)
  seeds = sorted({r["seed"] for r in results})
  shown = lambda name: f"![{name}]({name}.png)\n\n```sh\n{command}\n```"
  zero = ", ".join(f"`{name}`" for name in comparison["without_edges"])
  sections = [
    "# Results",
    headline(comparison),
    _grid_text(comparison["grid"], len(results)),
    "Made by the command below, which writes this file: seeds"
    f" {', '.join(map(str, seeds))}; the times of the cells, which run side by"
    f" side, add up to {cells.duration(seconds)} ({_machines(results)}); Python"
    f" {versions['python']}, JAX {versions['jax']}. A cell is a finished"
    " training run, pruned on every task that it has learned with one budget"
    " of search.",
    "## Circuit size against loss",
    "Circuits meet the target loss on validation pairs. Geometric means over "
    + (", ".join(comparison["common_tasks"]) or "no task in common")
    + "; models that do not pass all of these are not drawn, nor are variants"
    " that are no contenders. Intervals are 90%"
    " bootstrap intervals over tasks, and over seeds where there are several."
    + (f" Circuits of no edge count as one: {zero}." if zero else ""),
    shown("frontier"),
    _models(comparison),
    "Every task by itself: each point is a circuit that meets the target, drawn"
    " at one if it has no edge. Variants that are no contenders are in the"
    " follow-up figures alone.",
    shown("tasks"),
    "Edges of every circuit, those that are needed in brackets:",
    _per_task(results),
    "## Ratio at matched loss",
    "Dense size over sparse size at the sparse model's own loss, task by task"
    " on the dense curve; nothing is extrapolated. The largest ratio is the"
    " headline; that it was chosen is not corrected for, and an interval over"
    " one or two seeds is too narrow. Nor is it corrected for that a variant"
    " may have been made a contender because of its first seed. A star: some"
    " circuit of the task has no edge and counts as one; a ratio of nothing"
    " else says little." + _beaten(comparison),
    _ratios(comparison),
    "How far the ratio of edges depends on seeds, tasks and the dense"
    " curve. Draws outside: the share of the interval's draws whose loss no"
    " two dense models enclose, which are left out. By seed: each seed of"
    " the sparse model alone, a dash outside the dense losses. Smallest of"
    " seeds: for every model and task the smallest circuit of its seeds, so"
    " that one failed search does not decide. None empty: without the tasks"
    " for which some circuit has no edge. On test pairs: with the tasks"
    " whose circuits meet the target on test pairs, of new templates. All"
    " dense: between dense models that a narrower one beats as well.",
    _sensitivity(comparison) or "No ratio yet.",
    "Tasks left out of both sides of a ratio, because one side has not learned"
    " them or has no circuit that meets the target:",
    _left_out(comparison),
    "## Follow-up figures",
    shown("followup"),
    "Variants, one thing changed at a time, against the cell of the same width,"
    " density and seed: the loss above that cell's, and edges over its edges"
    " (geometric mean over the tasks that both pass; no edge counts as one).",
    _variants(comparison) or "None is finished.",
    "## The paper's findings, at this scale",
    "\n".join(f"- {line}" for line in agreement_with_paper(comparison))
    or "Too few cells to say.",
    "## Verdicts on the best circuits",
    _verdicts(comparison) or "Not measured.",
  ]
  return "\n\n".join(sections) + "\n"
