"""What a grid has shown, written down: JSON, CSV, pictures, Markdown, a page.

Every number comes from the runs; nothing is entered by hand. The prose of
results.md is in `templates/results.md.j2`.
"""

import collections
import csv
import io
import itertools
import operator
import pathlib
from collections.abc import Iterator, Mapping, Sequence
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

  Args:
    workdir: gets `frontier.json`, `.csv`, `.html`, `results.md` and pictures.
    results: the finished runs.
    comparison: as `compare.compare_runs` returns, with `grid`, the summary of
      `runs.Status`, and perhaps `criteria`, as `runs.check_faithfulness`
      returns, and `criteria_of`: the run.
    command: what a reader types to make all of it again.
    environment: as `host.environment` returns.
    docs: another directory that gets `results.md` and the pictures.
  """
  workdir = pathlib.Path(workdir)
  files.write_json(
    workdir / "frontier.json",
    {
      "command": command,
      "environment": environment,
      "seconds": sum(r["seconds"] for r in results),
      "comparison": comparison,
      "runs": list(results),
    },
  )
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
  writer = csv.writer(out)
  writer.writerow([*shared, "task", *_METRICS])
  writer.writerows(
    [*map(result.get, shared), task, *map(metrics.get, _METRICS)]
    for result in results
    for task, metrics in result["tasks"].items()
  )
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
  best = comparison["best"]
  if not best:
    return (
      "No sparse model has a loss inside the dense models' range and a task in"
      " common with them yet: there is no ratio."
    )
  edges, essential, nodes = _intervals(best["ratios"])
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
    models=_model_table(comparison["models"]),
    circuits=_circuit_table(results),
    ratios=_ratio_table(comparison["ratios"]),
    sensitivity=_sensitivity_table(comparison["ratios"]),
    variants=_variant_table(comparison["variants"]),
    findings=list(paper_findings(comparison)),
    criteria=_criteria_table(comparison.get("criteria", {})),
  )


def _intervals(sizes: Mapping[str, Any]) -> list[str]:
  return [compare.interval_text(sizes[size]) for size in compare.SIZES]


def _model_table(models) -> str:
  header = ("model", "seeds", "tokens", "held-out loss", "tasks passed")
  return tables.markdown(
    [*header, *_SIZES],
    (
      [
        f"`{m['name']}`",
        len(m["runs"]),
        f"{m['tokens'] / 1e6:.3g}M",
        f"{m['eval_loss']:.3f}",
        len(m["passed"]),
        *_intervals(m["sizes"]),
      ]
      for m in models
    ),
  )


def _circuit_table(results) -> str:
  names = compare.pruned_tasks(results)

  def shown(metrics):
    if "num_edges" not in metrics:
      return None
    essential = metrics.get("num_essential_edges")
    return (
      f"{metrics['num_edges']}"
      + ("" if essential is None else f" ({essential})")
      + ("" if metrics["meets_target"] else ", misses")
    )

  return tables.markdown(
    ["run", *names],
    (
      [f"`{r['name']}`", *(shown(r["tasks"].get(name, {})) for name in names)]
      for r in results
    ),
  )


def _ratio_table(ratios) -> str:
  def compared(ratio):
    """The tasks; those with an empty circuit are marked."""
    some = ratio["tasks_with_edges"]
    tasks = [t if t in some else f"{t}\\*" for t in ratio["tasks"]]
    return f"{len(tasks)}: {', '.join(tasks)}"

  rows = [
    [
      f"`{ratio['model']}`",
      f"{ratio['loss']:.3f}",
      *_intervals(ratio["ratios"]),
      ratio.get("why") or compared(ratio),
    ]
    for ratio in ratios
  ]
  return tables.markdown(["model", "loss", *_SIZES, "tasks"], rows)


def _sensitivity_table(ratios) -> str:
  shown = lambda value: tables.MISSING if value is None else f"{value:.3g}"
  rows = [
    [
      f"`{ratio['model']}`",
      compare.interval_text(ratio["ratios"]["num_edges"]),
      f"{ratio['outside']:.0%}",
      ", ".join(map(shown, ratio["by_seed"])),
      *(
        compare.interval_text(ratio[f"ratios_{name}"]["num_edges"])
        for name in ("of_smallest", "with_edges", "on_test")
      ),
      compare.interval_text(ratio["with_all_dense"]),
      ", ".join(ratio["tasks_on_test"]) or None,
    ]
    for ratio in ratios
    if ratio["ratios"]["num_edges"]
  ]
  header = ["model", "as above", "draws outside", "by seed"]
  header += ["smallest of seeds", "none empty", "on test pairs", "all dense"]
  header += ["tasks on test pairs"]
  return tables.markdown(header, rows) if rows else ""


def _variant_table(variants) -> str:
  rows = [
    [
      f"{v['variant']} ({grid.changes(v['variant'])})",
      v["seed"],
      f"{v['loss']:.3f}",
      f"{v['above']:+.3f}",
      None if v["edges"] is None else f"{v['edges']:.3g}",
      ", ".join(v["tasks"]) or None,
      "{} ({})".format(*v["passed"]),
    ]
    for v in variants
  ]
  header = ["variant", "seed", "held-out loss", "above the base's"]
  header += ["edges over the base's", "tasks in common"]
  header += ["tasks passed (the base's)"]
  return tables.markdown(header, rows) if rows else ""


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
  alone = {"sparsity.activation_fraction"}
  varied = [
    m
    for m in _with_base(models)
    if alone.issuperset(grid.VARIANTS.get(m["variant"], ()))
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
  losses = [(m["density"], m["eval_loss"]) for m in curve]
  edges = [
    (m["density"], size["value"])
    for m in curve
    if (size := m["sizes"]["num_edges"])
  ]
  for what, verb, in_order, points in (
    ("the loss", "rises", operator.le, losses),
    ("the mean number of edges", "falls", operator.ge, edges),
  ):
    if len(points) < 2:
      continue
    shown = ", ".join(f"{v:.4g} (density {d:.3g})" for d, v in points)
    holds = all(in_order(a, b) for (_, a), (_, b) in itertools.pairwise(points))
    yield (
      f"d_model {width}: {what} is {shown}; it {verb} as density falls, as in"
      f" the paper: {'yes' if holds else 'no'}."
    )


def _with_base(models):
  """Returns the variants, behind the model that they are variants of."""
  shape = lambda m: (m["width"], m["density"])
  variants = [m for m in models if m["variant"]]
  shapes = {shape(v) for v in variants}
  bases = [m for m in models if not m["variant"] and shape(m) in shapes]
  return bases + variants
