"""The section on trust: claims, verdict, controls, and each part's worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax import faithfulness
from sparse_jax.report import charts, markup, parts, view

_el = markup.el
_MAX_ROWS = 100
# Curves of the chart: its key under "controls", what it is called, its class.
_CURVES = (
  ("same", "the task itself, under the controls' settings", "circuit"),
  ("nonsense", "nonsense labels", "without"),
  ("reinitialised", "random weights behind the same zeros", "density"),
  ("backup", "without the circuit's nodes", "eval"),
  ("random", "nodes in random order", "full"),
)


def evidence_section(
  circuit: view.CircuitView, prefix: str
) -> markup.Markup | None:
  """Returns what speaks for and against the circuit; None if nothing is known.

  Args:
    circuit: `metrics["faithfulness"]` is what `measure_faithfulness` returned.
    prefix: starts every id.
  """
  trust = circuit.metrics.get("faithfulness")
  if not isinstance(trust, Mapping):
    return None
  try:
    found = faithfulness.check_criteria(trust)
  except (KeyError, TypeError, AttributeError, ValueError, IndexError):
    text = "The circuit file's evidence is not what the trust checks write."
    return _el("p", text, class_="warning")
  failed = [c.name for c in found if not c.holds]
  lead = "Every claim below holds."
  if failed:
    lead = f"Not established: {', '.join(failed)}."
  rows = [
    (
      claim.name,
      _el("strong", "holds" if claim.holds else "fails", class_="verdict"),
      claim.measured,
      claim.need,
    )
    for claim in found
  ]
  header = (("claim", ""), ("", ""), ("measured", ""), ("needs", ""))
  return _el(
    "div",
    _el("h3", "Is it what the model computes?"),
    _el("p", lead),
    parts.table(
      "Claims, with 90% bootstrap intervals over pairs", header, rows
    ),
    _controls(trust.get("controls"), circuit.target, prefix),
    _worth(trust.get("importance")),
  )


def _points(control) -> list[tuple[float, float]]:
  curve = control.get("curve") if isinstance(control, Mapping) else None
  if not isinstance(curve, (list, tuple)):
    return []
  found = []
  for point in curve:
    if not isinstance(point, Mapping):
      continue
    nodes, loss = point.get("num_nodes"), point.get("validation_loss")
    if markup.is_number(nodes) and markup.is_number(loss) and nodes > 0:
      found.append((float(nodes), float(loss)))
  return sorted(found)


def _controls(controls, target, prefix: str) -> markup.Markup | None:
  if not isinstance(controls, Mapping):
    return None
  curves = [
    (name, class_, points)
    for key, name, class_ in _CURVES
    if (points := _points(controls.get(key)))
  ]
  if not curves:
    return None
  legend = [
    _el("li", parts.swatch(parts.stroke(f"line {class_}")), name)
    for name, class_, _ in curves
  ]
  chart = charts.size_curves(curves, target, prefix)
  gaps = controls.get("extra_nodes")
  names = {key: name for key, name, _ in _CURVES}
  sentences = [
    f"{names[key]}: {_gap(gap)}."
    for key, gap in (gaps.items() if isinstance(gaps, Mapping) else ())
    if key in names
  ]
  return _el(
    "figure",
    _el(
      "div",
      chart,
      class_="drawing plot",
      role="region",
      aria_label="Loss against size, for the circuit and its controls",
      tabindex=0,
    ),
    _el(
      "figcaption",
      _el("ul", legend, class_="legend"),
      _el(
        "p",
        "Task loss on validation pairs when only the first nodes of a search's"
        " order are kept. A control that reaches the target with as few nodes"
        " would show that pruning fits anything.",
        f" More nodes than the task itself takes: {' '.join(sentences)}"
        if sentences
        else None,
        class_="define",
      ),
    ),
  )


def _gap(gap) -> str:
  if not markup.is_number(gap):
    return "the target is missed"
  return f"{markup.number(gap)} more"


def _worth(importance) -> markup.Markup | None:
  if not isinstance(importance, Mapping):
    return None
  tables = []
  for key, name in (("nodes", "node"), ("edges", "edge")):
    rows = _worth_rows(importance.get(key))
    if rows:
      tables.append(
        _el(
          "div",
          parts.table(
            f"Loss without each {name}, the worst first",
            ((name, ""), ("loss (nats)", "num"), ("90% interval", "num")),
            rows[:_MAX_ROWS],
            "sortable",
          ),
          class_="cell",
        )
      )
  return _el("div", tables, class_="pair") if tables else None


def _worth_rows(items: Any) -> list[Sequence[Any]]:
  rows = []
  for item in items if isinstance(items, (list, tuple)) else ():
    loss = item.get("loss_without") if isinstance(item, Mapping) else None
    if not isinstance(loss, Mapping) or not markup.is_number(loss.get("value")):
      continue
    interval = (markup.number(loss.get(k)) for k in ("low", "high"))
    name = (
      f"{_name(item['from'])} → {_name(item['to'])}"
      if {"from", "to"} <= set(item)
      else _name(item)
    )
    rows.append((float(loss["value"]), name, "–".join(interval)))
  rows.sort(key=lambda row: -row[0])
  return [
    (_el("code", name), markup.number(loss), interval)
    for loss, name, interval in rows
  ]


def _name(node: Any) -> str:
  if not isinstance(node, Mapping):
    return markup.MISSING
  return f"{node.get('site', '')}:{node.get('index', '')}"
