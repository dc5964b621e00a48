"""`metrics["faithfulness"]` for the page, `templates/faithfulness.html`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_jax.faithfulness import criteria as criteria_lib
from sparse_jax.report import charts, text

_KEY = "faithfulness"
_MAX_ROWS = 100
# What damaged metrics raise.
_ERRORS = LookupError, TypeError, AttributeError, ValueError, ArithmeticError
# Curves of the chart: its key under "controls", what it is called, its class.
_CURVES = (
  ("same", "the task itself, under the controls' settings", "circuit"),
  ("nonsense", "nonsense labels", "without"),
  ("reinitialised", "random weights behind the same zeros", "density"),
  ("backup", "without the circuit's nodes", "eval"),
  ("random", "nodes in random order", "full"),
)


def accuracy_lost(metrics: Mapping[str, Any]) -> float | None:
  """Returns a circuit's accuracy lost to the worst adversary, if measured.

  The full model's accuracy, from 0 to 1, minus that under the adversary.
  """
  full, attacked = (
    _at(metrics, _KEY, *keys, "accuracy", "value")
    for keys in (
      ("sufficiency_and_necessity", "full_model"),
      ("partial_ablation", "adversarial"),
    )
  )
  return full - attacked if all(map(text.is_number, (full, attacked))) else None


def losses_without(metrics: Mapping[str, Any]) -> dict[Any, float]:
  """Returns the loss without each node, by key, and each edge, by two keys.

  In nats; those that were not measured are missing.
  """
  losses = {}
  for kind, ends in (("nodes", None), ("edges", ("from", "to"))):
    rows = _at(metrics, _KEY, "importance", kind)
    for row in rows if isinstance(rows, (list, tuple)) else ():
      loss = _at(row, "loss_without", "value")
      if text.is_number(loss):
        names = [_name(_at(row, end)) for end in ends or ()]
        losses[tuple(names) if ends else _name(row)] = float(loss)
  return losses


def claims(metrics: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns how many criteria hold, and of how many; None if unmeasured."""
  try:
    criteria = criteria_lib.check_criteria(_at(metrics, _KEY))
  except _ERRORS:
    return None
  return sum(c.holds for c in criteria), len(criteria)


def faithfulness(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Returns what is known of a task's circuits; None if nothing is.

  Args:
    parts: the core and then any robust circuit: "name", "class", "circuit".
  """
  known = [
    (part, metrics)
    for part in parts
    if isinstance(metrics := _at(part["circuit"].metrics, _KEY), Mapping)
  ]
  if not known:
    return None
  return {
    "circuits": [_circuit(part, metrics) for part, metrics in known],
    "is_nested": len(parts) > 1,
    "charts": [chart for chart in _charts(known) if chart["chart"]],
  }


def _circuit(part, metrics) -> dict[str, Any]:
  """Returns one circuit's criteria, None if they cannot be read, and more."""
  try:
    criteria = criteria_lib.check_criteria(metrics)
  except _ERRORS:
    criteria = None
  extra = _at(metrics, "controls", "extra_nodes")
  extra = extra if isinstance(extra, Mapping) else {}
  return {
    "name": part["name"],
    "class": part["class"],
    "criteria": criteria,
    "failed": [c.name for c in criteria or () if not c.holds],
    "chart": charts.size_curves(
      [
        charts.Curve(label, class_, _curve(metrics, "controls", key))
        for key, label, class_ in _CURVES
      ],
      part["circuit"].target_loss,
    ),
    "extra_nodes": [
      (label, _extra(extra[key])) for key, label, _ in _CURVES if key in extra
    ],
    "importance": [
      (kind, rows[:_MAX_ROWS])
      for kind in ("node", "edge")
      if (rows := _importance(_at(metrics, "importance", f"{kind}s")))
    ],
  }


def _charts(known) -> Iterable[dict[str, Any]]:
  """Yields charts of all circuits, those with nothing to draw as None."""
  part, outermost = known[-1]
  random = f"random circuits of the size of the {part['name']}"

  def plot(title, keys, fields, x, y, random_keys=(), **options):
    curves = [
      (part["name"], part["class"], metrics, keys) for part, metrics in known
    ]
    if random_keys:
      curves.insert(0, (random, "full", outermost, random_keys))
    return charts.plot(
      title,
      [
        charts.Curve(label, class_, _points(_at(metrics, *keys), *fields))
        for label, class_, metrics, keys in curves
      ],
      *(x, y),
      **options,
    )

  partial = "partial_ablation"
  yield {
    "id": "steps",
    "budget": _budget(_at(outermost, partial, "budget")),
    "chart": plot(
      "Loss against the adversary's steps",
      (partial, "by_steps", "circuit"),
      ("steps", "loss"),
      "steps of the adversary",
      "worst task loss (nats)",
      (partial, "by_steps", "random_circuit"),
    ),
  }
  yield {
    "id": "random",
    "chart": plot(
      "Loss against the share ablated at random",
      (partial, "random"),
      ("fraction", "loss"),
      "share of the outside that is ablated",
      "task loss (nats)",
      (partial, "random_circuit"),
    ),
  }
  cuts = [
    (f"the {part['name']}", part["circuit"].num_nodes) for part, _ in known
  ]
  yield {
    "id": "size-loss",
    "chart": plot(
      "Loss against size",
      (partial, "by_size"),
      ("num_nodes", "loss"),
      "nodes kept (log scale)",
      "worst task loss (nats)",
      log=True,
      cuts=cuts,
    ),
  }
  yield {
    "id": "size",
    "chart": plot(
      "Accuracy lost against size",
      (partial, "by_size"),
      ("num_nodes", "accuracy_lost"),
      "nodes kept (log scale)",
      "accuracy lost to the sign steps",
      log=True,
      line=("accepted", criteria_lib.THRESHOLDS["adversarial_accuracy_lost"]),
      cuts=cuts,
    ),
  }
  yield {
    "id": "curve",
    "areas": [
      (part["name"], *(_at(metrics, "curve", k) for k in ("cpr", "cmd")))
      for part, metrics in known
    ],
    "chart": plot(
      "Faithfulness curve",
      ("curve", "points"),
      ("share", "faithfulness"),
      "share of all nodes (log scale)",
      "faithfulness",
      log=True,
      line=("full model", 1.0),
    ),
  }


def _at(metrics: Any, *keys: str) -> Any:
  """Returns what is found down these keys; None if it is not there."""
  for key in keys:
    metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
  return metrics


def _curve(metrics, *keys: str) -> charts.Points:
  rows = _at(metrics, *keys, "curve")
  return _points(rows, "num_nodes", "validation_loss")


def _points(rows: Any, x: str, y: str) -> charts.Points:
  """Returns the points of a curve; estimates count with their value."""
  rows = rows if isinstance(rows, (list, tuple)) else ()
  value = lambda v: v.get("value") if isinstance(v, Mapping) else v
  rows = [
    {x: row.get(x), y: value(row.get(y))}
    for row in rows
    if isinstance(row, Mapping)
  ]
  return charts.column(rows, y, x)


def _budget(budget: Any) -> str:
  """Returns an adversary's budget in words; "" if it is not known."""
  steps, rate, starts = (_at(budget, k) for k in ("steps", "rate", "starts"))
  if not (text.is_number(steps) and text.is_number(rate)):
    return ""
  if not isinstance(starts, (list, tuple)):
    return ""
  return (
    f"{text.plural(steps, 'sign step')} of {rate:g} from each of"
    f" {text.plural(len(starts), 'start')} ({', '.join(map(str, starts))})"
  )


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
