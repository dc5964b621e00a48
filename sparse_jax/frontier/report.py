"""What a grid has shown, written down: JSON, CSV, pictures, Markdown, a page.

Every number comes from the runs; nothing is entered by hand. The prose of
results.md is in `templates/results.md.j2`.
"""

import collections
import csv
import io
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2

from sparse_jax.frontier import compare, figures, grid, page, runs
from sparse_jax.report import text as text_lib
from sparse_jax.utils import files, tables

# "Weight-sparse transformers have interpretable circuits", abstract, figure 2.
PAPER_RATIO = 16
_SIZES = ("edges", "essential edges", "nodes")  # Of `compare.SIZES`.
_METRICS = (
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


def write(
  workdir: files.PathLike,
  results: Sequence[runs.Result],
  comparison: Mapping[str, Any],
  command: str,
  environment: Mapping[str, Any],
  docs: files.PathLike | None = None,
) -> str:
  """Writes all that finished runs, at least one, show; returns results.md.

  `workdir` gets frontier.json, .csv, .html, results.md and the pictures; `docs`
  gets the last two as well. `comparison` is what `compare.compare_runs` returns
  with `grid`, the summary of `runs.Status`, and perhaps `criteria`, which
  `runs.check_faithfulness` returns, and `criteria_of`: the run. `command` makes
  all of it again; `environment` is `host.environment`'s.
  """
  workdir = pathlib.Path(workdir)
  seconds = sum(r["seconds"] for r in results)
  saved = {"command": command, "environment": environment, "seconds": seconds}
  saved |= {"comparison": comparison, "runs": list(results)}
  files.write_json(workdir / "frontier.json", saved)
  files.write_bytes(workdir / "frontier.csv", _csv(results).encode())
  text = markdown(results, comparison, command, environment)
  files.write_bytes(workdir / "results.md", text.encode())
  figures.plot_frontier(workdir / "frontier.png", comparison)
  points = figures.plot_tasks(workdir / "tasks.png", results, comparison)
  figures.plot_followup(workdir / "followup.png", comparison)
  page.write(workdir, results, comparison, points, headline(comparison))
  if docs is not None:
    for name in ("results.md", "frontier.png", "tasks.png", "followup.png"):
      files.write_bytes(pathlib.Path(docs, name), (workdir / name).read_bytes())
  return text


def _csv(results: Sequence[runs.Result]) -> str:
  out = io.StringIO()
  shared = ("name", "width", "density", "variant", "seed", "eval_loss")
  fields = (*shared, "task", *_METRICS)
  writer = csv.DictWriter(out, fields, extrasaction="ignore")
  writer.writeheader()
  for result in results:
    for task, metrics in result["tasks"].items():
      writer.writerow({**metrics, **result, "task": task})
  return out.getvalue()


def resampled(ratio: Mapping[str, Any]) -> str:
  """Returns what the interval of a ratio is over, in words."""
  seeds, tasks = ratio["seeds"], len(ratio["tasks"])
  over = [f"{tasks} tasks"] if tasks > 1 else []
  if max(seeds) > 1:
    count = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    over.append(f"{count} seeds a model")
  if not over:
    return "one task and one seed a model: no interval"
  text = f"90% bootstrap interval over {' and '.join(over)}"
  text += "" if max(seeds) > 1 else ", one seed a model"
  if ratio["outside"]:
    text += f", without the {ratio['outside']:.0%} of draws whose loss no two"
    text += " dense models enclose"
  return text


def headline(comparison: Mapping[str, Any]) -> str:
  """Returns the sentence that the grid is there for."""
  best = comparison["best"]
  if not best:
    return (
      "No sparse model has a loss inside the dense models' range and a task in"
      " common with them yet: there is no ratio."
    )
  edges, essential, nodes = map(compare.interval_text, best["ratios"].values())
  variants = {m["name"]: m["variant"] for m in comparison["models"]}
  changed = grid.changes(variants[best["model"]])
  recipe = f" ({changed})" if changed else ""
  return (
    f"At a held-out loss of {best['loss']:.3f} nats a token, dense circuits"
    f" have {edges} times as many edges as those of {best['model']}{recipe},"
    f" {essential} times as many essential edges, {nodes} times as many nodes"
    f" (geometric mean over {', '.join(best['tasks'])}; {resampled(best)};"
    f" dense sizes interpolated between {' and '.join(best['between'])})."
  )


def markdown(
  results: Sequence[runs.Result],
  comparison: Mapping[str, Any],
  command: str,
  environment: Mapping[str, Any],
) -> str:
  """Returns docs/results.md; arguments as for `write`."""
  templates = jinja2.Environment(
    loader=jinja2.PackageLoader("sparse_jax.frontier"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  variants = comparison["variants"]
  matched = [r for r in comparison["ratios"] if r["ratios"]["num_edges"]]
  return templates.get_template("results.md.j2").render(
    comparison=comparison,
    command=command,
    headline=headline(comparison),
    grid=comparison["grid"],
    num_finished=len(results),
    seeds=sorted({r["seed"] for r in results}),
    duration=runs.duration(sum(r["seconds"] for r in results)),
    machines=_machines(results),
    versions=environment["versions"],
    beaten=[
      m["name"]
      for m in comparison["models"]
      if m["density"] == 1 and not m["on_frontier"]
    ],
    models=_table(_MODELS, comparison["models"]),
    circuits=_circuit_table(results),
    ratios=_table(_RATIOS, comparison["ratios"]),
    sensitivity=matched and _table(_SENSITIVITY, matched),
    variants=variants and _table(_VARIANTS, variants),
    findings=list(paper_findings(comparison)),
    criteria=_criteria_table(comparison.get("criteria", {})),
  )


# A column: what it shows of a row.
Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]


def _table(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> str:
  cells = [[show(row) for show in columns.values()] for row in rows]
  return tables.markdown(list(columns), cells)


def _sizes(field: str) -> Columns:
  return {
    name: lambda row, size=size: compare.interval_text(row[field][size])
    for name, size in zip(_SIZES, compare.SIZES, strict=True)
  }


_edges = lambda ratios: compare.interval_text(ratios["num_edges"])
_number = lambda x: tables.MISSING if x is None else f"{x:.3g}"

_MODELS: Columns = {
  "model": lambda m: f"`{m['name']}`",
  "seeds": lambda m: len(m["runs"]),
  "tokens": lambda m: f"{m['tokens'] / 1e6:.3g}M",
  "held-out loss": lambda m: f"{m['eval_loss']:.3f}",
  "tasks passed": lambda m: len(m["passed"]),
  **_sizes("sizes"),
}
_RATIOS: Columns = {
  "model": lambda r: f"`{r['model']}`",
  "loss": lambda r: f"{r['loss']:.3f}",
  **_sizes("ratios"),
  "tasks": lambda r: r.get("why") or _compared(r),
}
_SENSITIVITY: Columns = {
  "model": lambda r: f"`{r['model']}`",
  "as above": lambda r: _edges(r["ratios"]),
  "draws outside": lambda r: f"{r['outside']:.0%}",
  "by seed": lambda r: ", ".join(map(_number, r["by_seed"])),
  "smallest of seeds": lambda r: _edges(r["ratios_of_smallest"]),
  "none empty": lambda r: _edges(r["ratios_with_edges"]),
  "on test pairs": lambda r: _edges(r["ratios_on_test"]),
  "all dense": lambda r: compare.interval_text(r["with_all_dense"]),
  "tasks on test pairs": lambda r: ", ".join(r["tasks_on_test"]) or None,
}
_VARIANTS: Columns = {
  "variant": lambda v: f"{v['variant']} ({grid.changes(v['variant'])})",
  "seed": lambda v: v["seed"],
  "held-out loss": lambda v: f"{v['loss']:.3f}",
  "above the base's": lambda v: f"{v['above']:+.3f}",
  "edges over the base's": lambda v: _number(v["edges"]),
  "tasks in common": lambda v: ", ".join(v["tasks"]) or None,
  "tasks passed (the base's)": lambda v: "{} ({})".format(*v["passed"]),
}


def _compared(ratio) -> str:
  """Returns the tasks, those with an empty circuit marked."""
  some = ratio["tasks_with_edges"]
  tasks = [t if t in some else f"{t}\\*" for t in ratio["tasks"]]
  return f"{len(tasks)}: {', '.join(tasks)}"


def _circuit_table(results) -> str:
  def edges(metrics):
    if "num_edges" not in metrics:
      return None
    essential = metrics.get("num_essential_edges")
    text = "" if essential is None else f" ({essential})"
    misses = "" if metrics["meets_target"] else ", misses"
    return f"{metrics['num_edges']}{text}{misses}"

  columns: Columns = {"run": lambda r: f"`{r['name']}`"}
  for task in compare.pruned_tasks(results):
    columns[task] = lambda r, task=task: edges(r["tasks"].get(task, {}))
  return _table(columns, results)


def _criteria_table(by_task: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  criteria = {c["name"]: c["need"] for cs in by_task.values() for c in cs}
  holds = {(t, c["name"]): c["holds"] for t, cs in by_task.items() for c in cs}
  shown = {True: "yes", False: "**no**", None: None}
  rows = [
    [name, need, *(shown[holds.get((task, name))] for task in by_task)]
    for name, need in criteria.items()
  ]
  return tables.markdown(["criterion", "needs", *by_task], rows) if rows else ""


def _machines(results) -> str:
  """Returns how many runs were made on what."""

  def machine(result):
    of = result.get("machine")
    if not of:
      return "a machine that was not noted"
    if of["backend"] != "cpu":
      return of["device"]
    return f"{text_lib.plural(of['cores'], 'core')} of {of['processor']}"

  counts = collections.Counter(map(machine, results))
  return ", ".join(f"{n} on {what}" for what, n in counts.most_common())


def paper_findings(comparison: Mapping[str, Any]) -> Iterator[str]:
  """Yields what is seen here of what the paper says, sentence by sentence."""
  ratio = (comparison["best"] or {}).get("ratios", {}).get("num_edges")
  if ratio and ratio["low"] is not None:
    low, high = ratio["low"], ratio["high"]
    inside = "inside" if low <= PAPER_RATIO <= high else "outside"
    yield (
      f"The paper's ratio of edges, about {PAPER_RATIO}, is {inside} the"
      f" interval here, [{low:.3g}, {high:.3g}]."
    )
  models = comparison["models"]
  sparse = [m for m in models if m["density"] < 1 and not m["variant"]]
  sparse.sort(key=lambda m: (m["width"], -m["density"]))
  for width, curve in itertools.groupby(sparse, lambda m: m["width"]):
    yield from _along_density(width, list(curve))
  for density in sorted({m["density"] for m in sparse}, reverse=True):
    row = [m for m in sparse if m["density"] == density]
    if len(row) > 1:
      losses = ", ".join(f"{m['eval_loss']:.3f} (d{m['width']})" for m in row)
      yield f"Width at density {density:.3g}: loss {losses}."
  shape = lambda m: (m["width"], m["density"])
  shapes = {shape(m) for m in models if m["variant"]}
  alone = {"sparsity.activation_fraction"}
  varied = [
    m
    for m in models
    if shape(m) in shapes and alone >= {*grid.VARIANTS.get(m["variant"], ())}
  ]
  varied.sort(key=lambda m: -m["activation_fraction"])
  if len(varied) > 1:
    losses = ", ".join(
      f"{m['eval_loss']:.3f} ({m['activation_fraction']:.3g})" for m in varied
    )
    least = min(varied, key=lambda m: m["eval_loss"])["activation_fraction"]
    yield (
      "The paper finds that some AbsTopK helps and too much hurts (its figure"
      " 37). By the share of channels that it keeps, the loss here is"
      f" {losses}: least at {least:.3g}."
    )


def _along_density(width, curve) -> Iterator[str]:
  """In the paper the loss rises and circuits shrink as density falls."""
  sizes = [(m["density"], m["sizes"]["num_edges"]) for m in curve]
  losses = [(m["density"], m["eval_loss"]) for m in curve]
  edges = [(density, size["value"]) for density, size in sizes if size]
  for what, verb, sign, points in (
    ("the loss", "rises", 1, losses),
    ("the mean number of edges", "falls", -1, edges),
  ):
    if len(points) < 2:
      continue
    shown = ", ".join(f"{v:.4g} (density {d:.3g})" for d, v in points)
    values = [sign * value for _, value in points]
    holds = "yes" if values == sorted(values) else "no"
    yield (
      f"d_model {width}: {what} is {shown}; it {verb} as density falls, as in"
      f" the paper: {holds}."
    )
