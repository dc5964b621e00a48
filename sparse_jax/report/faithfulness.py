"""`metrics["faithfulness"]` for the page, `templates/faithfulness.html`."""

from collections.abc import Mapping
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import criteria as criteria_lib
from sparse_jax.report import charts, text

_MAX_ROWS = 100
# Curves of the chart: its key under "controls", what it is called, its class.
_CURVES = (
  ("same", "the task itself, under the controls' settings", "circuit"),
  ("nonsense", "nonsense labels", "without"),
  ("reinitialised", "random weights behind the same zeros", "density"),
  ("backup", "without the circuit's nodes", "eval"),
  ("random", "nodes in random order", "full"),
)


def faithfulness(circuit: circuit_lib.Circuit) -> dict[str, Any] | None:
  """Returns what is known of a circuit's faithfulness; None if nothing is.

  `criteria` is None where the metrics cannot be read.
  """
  metrics = circuit.metrics.get("faithfulness")
  if not isinstance(metrics, Mapping):
    return None
  try:
    criteria = criteria_lib.check_criteria(metrics)
  except (KeyError, TypeError, AttributeError, ValueError, IndexError):
    return {"criteria": None}
  controls, importance = (
    part if isinstance(part, Mapping) else {}
    for part in (metrics.get("controls"), metrics.get("importance"))
  )
  extra = controls.get("extra_nodes")
  extra = extra if isinstance(extra, Mapping) else {}
  return {
    "criteria": [(c.name, c.holds, c.measured, c.need) for c in criteria],
    "failed": [c.name for c in criteria if not c.holds],
    "chart": charts.size_curves(
      [
        charts.Curve(label, class_, _points(controls.get(key)))
        for key, label, class_ in _CURVES
      ],
      circuit.target_loss,
    ),
    "extra_nodes": [
      (label, _extra(extra[key])) for key, label, _ in _CURVES if key in extra
    ],
    "importance": [
      (kind, rows[:_MAX_ROWS])
      for kind in ("node", "edge")
      if (rows := _importance(importance.get(f"{kind}s")))
    ],
  }


def _points(control: Any) -> charts.Points:
  curve = control.get("curve") if isinstance(control, Mapping) else None
  points = curve if isinstance(curve, (list, tuple)) else ()
  points = [point for point in points if isinstance(point, Mapping)]
  return charts.column(points, "validation_loss", "num_nodes")


def _extra(nodes: Any) -> str:
  if not text.is_number(nodes):
    return "the target is missed"
  return f"{text.number(nodes)} more"


def _importance(items: Any) -> list[tuple[str, str, str]]:
  rows = []
  for item in items if isinstance(items, (list, tuple)) else ():
    loss = item.get("loss_without") if isinstance(item, Mapping) else None
    if not isinstance(loss, Mapping) or not text.is_number(loss.get("value")):
      continue
    interval = "–".join(text.number(loss.get(k)) for k in ("low", "high"))
    is_edge = {"from", "to"} <= set(item)
    ends = (item["from"], item["to"]) if is_edge else (item,)
    rows.append((float(loss["value"]), " → ".join(map(_name, ends)), interval))
  rows.sort(key=lambda row: -row[0])
  return [(name, text.number(loss), interval) for loss, name, interval in rows]


def _name(node: Any) -> str:
  if not isinstance(node, Mapping):
    return text.MISSING
  return f"{node.get('site', '')}:{node.get('index', '')}"
