"""Circuits of many tasks side by side: a table (text, CSV, JSON), a plot."""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure

from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import files

Row = dict[str, Any]

_METRICS = (
  "num_nodes",
  "num_edges",
  "num_essential_edges",
  "test_loss",
  "test_accuracy",
  "essential_edges_test_loss",
  "full_model_test_loss",
  "full_model_test_accuracy",
  "without_circuit_test_loss",
  "validation_loss",
  "meets_target",
  "learned",
)

_ROBUST = (
  "robust_nodes",
  "robust_edges",
  "robust_accuracy_lost",
  "robust_meets_target",
)


def row(
  circuit: circuit_lib.Circuit, robust: circuit_lib.Circuit | None = None
) -> Row:
  """Returns the metrics of a task's circuits; absent ones are None.

  `robust_nodes`, `robust_edges`: size of the robust circuit. `edges_low` and
  `edges_high`: least and most edges, before the clean-up, of the
  hyperparameters that other seeds repeated.
  """
  seeds = circuit.details.get("edges_over_seeds") or [None]
  return {
    "task": circuit.task,
    **{name: circuit.metrics.get(name) for name in _METRICS},
    "target_loss": circuit.target_loss,
    **_robust(robust),
    "num_runs": len(circuit.details.get("runs", ())),
    "edges_low": seeds[0],
    "edges_high": seeds[-1],
    "num_seeds": len(seeds) if seeds[0] is not None else 0,
  }


def _robust(robust: circuit_lib.Circuit | None) -> Row:
  if robust is None:
    return dict.fromkeys(_ROBUST)
  faithfulness = robust.metrics.get("faithfulness") or {}
  partial = faithfulness.get("partial_ablation")
  lost = None
  if partial:
    full = faithfulness["sufficiency_and_necessity"]["full_model"]["accuracy"]
    attacked = partial["adversarial"]["accuracy"]
    lost = full["value"] - attacked["value"]
  meets = robust.metrics["meets_target"]
  size = robust.metrics["num_nodes"], robust.metrics["num_edges"]
  return dict(zip(_ROBUST, (*size, lost, meets), strict=True))


def geometric_mean(values: Sequence[float]) -> float:
  """Returns the geometric mean; zeros count as one, NaN if there are none."""
  if not values:
    return float("nan")
  return float(np.exp(np.mean(np.log(np.maximum(values, 1.0)))))


def means(rows: Sequence[Row]) -> dict[str, Any]:
  """Returns geometric means over the tasks that are learned and met."""
  used = [r for r in rows if r["meets_target"] and r["learned"] is not False]
  essential = [r["num_essential_edges"] for r in used]
  return {
    "tasks": [r["task"] for r in used],
    "num_nodes": geometric_mean([r["num_nodes"] for r in used]),
    "num_edges": geometric_mean([r["num_edges"] for r in used]),
    "num_essential_edges": geometric_mean(
      [n for n in essential if n is not None]
    ),
  }


def text(rows: Sequence[Row]) -> str:
  """Returns the table as a person reads it; losses in nats."""
  width = max([len(r["task"]) for r in rows] + [14])
  lines = [
    f"{'task':<{width}} {'nodes':>6} {'edges':>6} {'essential':>9}"
    f" {'robust':>11} {'over seeds':>13} {'circuit':>14} {'full model':>14}"
    f" {'without':>8}"
  ]
  for r in rows:
    essential = (
      "–" if r["num_essential_edges"] is None else r["num_essential_edges"]
    )
    robust = "–"
    if r["robust_nodes"] is not None:
      robust = f"{r['robust_nodes']}/{r['robust_edges']}"
    spread = "–"
    if r["edges_low"] is not None:
      spread = f"{r['edges_low']}–{r['edges_high']} ({r['num_seeds']})"
    score = lambda p, r=r: (
      f"{r[f'{p}test_loss']:.3f} ({100 * r[f'{p}test_accuracy']:.1f}%)"
    )
    lines.append(
      f"{r['task']:<{width}} {r['num_nodes']:>6} {r['num_edges']:>6}"
      f" {essential:>9} {robust:>11} {spread:>13} {score(''):>14}"
      f" {score('full_model_'):>14} {r['without_circuit_test_loss']:>8.3f}"
    )
    if not r["meets_target"]:
      lines.append("  no run reaches the target; this is the nearest miss")
    if r["learned"] is False:
      lines.append("  not learned: the full model does not do this task")
  mean = means(rows)
  lines.append(
    f"{'geometric mean':<{width}} {mean['num_nodes']:>6.1f}"
    f" {mean['num_edges']:>6.1f} {mean['num_essential_edges']:>9.1f}"
    f"   over {len(mean['tasks'])} tasks that are learned and meet the target"
  )
  return "\n".join(lines)


def write(
  directory: pathlib.Path, rows: Sequence[Row], skipped: Mapping[str, str]
) -> None:
  """Writes circuits.csv and circuits.json."""
  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  files.write_bytes(directory / "circuits.csv", out.getvalue().encode())
  files.write_json(
    directory / "circuits.json",
    {
      "tasks": {r["task"]: r for r in rows},
      "geometric_mean": means(rows),
      "skipped": dict(skipped),
    },
  )


def plot_curves(
  path: files.PathLike, circuits: Iterable[circuit_lib.Circuit]
) -> None:
  """Draws validation loss against edges, one line a task, as PNG or SVG."""
  drawing = figure.Figure(figsize=(7, 4.5), layout="constrained")
  axes = drawing.add_subplot()
  target = None
  for circuit in circuits:
    points = circuit.details.get("curve", ())
    target = circuit.target_loss
    axes.plot(
      [max(p["num_edges"], 1) for p in points],
      [p["validation_loss"] for p in points],
      marker=".",
      label=circuit.task,
    )
  if target is not None:
    axes.axhline(target, color="0.5", linestyle=":", linewidth=1)
  axes.set(
    xscale="log", xlabel="edges", ylabel="task loss, nats", ylim=(0, None)
  )
  axes.legend(fontsize=7, frameon=False)
  out = io.BytesIO()
  kind = pathlib.Path(path).suffix.removeprefix(".")
  drawing.savefig(out, format=kind, dpi=150)
  files.write_bytes(path, out.getvalue())
