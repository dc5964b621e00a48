"""Whether what a circuit directory says is so: of its model, measured again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import criteria
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import transformer
from sparse_jax.utils import errors

# Recomputed values may differ by rounding on another machine.
_TOLERANCE = 5e-3
_RELATIVE_TOLERANCE = 0.02
# Where rounding turns a sign, an adversary goes another way.
_ATTACKS = ("by_steps", "by_size")
_ATTACK_TOLERANCE = 0.25
# Prunings differ more: rounding decides near ties, step by step.
_CONTROL_RATIO = 1.5
# What a second measurement may leave out: it needs the files that natural
# prompts came from, or minutes.
_OPTIONAL = ("natural", "controls")


def check_circuit(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
) -> None:
  """Checks that a circuit is this model's and has not been edited.

  Raises:
    InputError: naming what does not fit.
  """

  name = f"circuit of {circuit.task}"
  circuit_lib.check_model(circuit, name, model, params)
  circuit_lib.check_consistent(circuit, name)
  between = edges_lib.find_edges(params, circuit.node_mask)
  if sorted(map(_edge_key, between)) != sorted(map(_edge_key, circuit.edges)):
    raise errors.InputError(
      f"{name}: its edges are not the model's nonzero weights between its"
      " nodes; need a circuit.json that was not edited"
    )


def _edge_key(edge) -> tuple[Any, ...]:
  ends = [(str(edge[e]["site"]), int(edge[e]["index"])) for e in ("from", "to")]
  return str(edge["kind"]), *ends, round(float(edge["weight"]), 5)


def reproduce(stored: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
  """Returns what is stored and a second measurement contradicts, as lines.

  An estimate reproduces if each of the two values lies in the other's interval,
  widened by rounding: an interval that was stretched does not help. Other
  numbers have to be equal up to rounding. Controls reproduce if they meet the
  target again, or miss it again, with about as many nodes. The second
  measurement may lack natural prompts and controls, and is then not held
  against the verdict; what is stored may lack controls.

  Args:
    stored: `metrics.faithfulness` of a circuit.
    again: the same, measured anew.
  """
  lines = _contradictions(stored, again, "")
  if isinstance(stored, Mapping) and not left_out(stored, again):
    verdict = again.get("verdict")
    if "controls" in again and "controls" not in stored:
      verdict = criteria.verdict({**again, "controls": None})
    if stored.get("verdict") != verdict:
      lines.append(f"verdict: {stored.get('verdict')!r}, now {verdict!r}")
  return lines


def left_out(stored: Any, again: Any) -> list[str]:
  """Returns which optional parts were stored and not measured again."""
  if not isinstance(stored, Mapping) or not isinstance(again, Mapping):
    return []
  names = [n for n in stored if n in _OPTIONAL and n not in again]
  both = [n for n in stored if n in again]
  return sum((left_out(stored[n], again[n]) for n in both), names)


def reproduce_metrics(
  metrics: Mapping[str, Any], again: Mapping[str, Any]
) -> list[str]:
  """Returns which of a circuit's own test metrics do not reproduce.

  Args:
    metrics: of circuit.json.
    again: its faithfulness, measured anew.
  """
  scores = again["sufficiency_and_necessity"]
  own = scores[again["ablation"]]
  lines = []
  for prefix, scored in (
    ("", own["circuit"]),
    ("full_model_", scores["full_model"]),
    ("without_circuit_", own["without_circuit"]),
  ):
    for name in ("loss", "accuracy"):
      key = f"{prefix}test_{name}"
      value, new = metrics.get(key), scored[name]
      if key in metrics and not (_is_number(value) and _within(value, new)):
        lines.append(f"metrics.{key}: {value}, now {_shown(new)}")
  return lines


def _is_number(value) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and bool(np.isfinite(value))


def _is_estimate(value) -> bool:
  return (
    isinstance(value, Mapping)
    and set(value) == {"value", "low", "high"}
    and all(map(_is_number, value.values()))
  )


def _within(value: float, estimate: Mapping[str, float]) -> bool:
  return estimate["low"] - _TOLERANCE <= value <= estimate["high"] + _TOLERANCE


def _shown(value) -> str:
  if _is_estimate(value):
    return f"{value['value']:.4f} in [{value['low']:.4f}, {value['high']:.4f}]"
  text = repr(value)
  return text if len(text) < 60 else text[:57] + "..."


def _contradictions(stored, again, path: str) -> list[str]:
  both = lambda kind: isinstance(stored, kind) and isinstance(again, kind)
  if _is_estimate(stored) and _is_estimate(again):
    # A value outside its own interval was not measured with it.
    same = (
      _within(stored["value"], again)
      and _within(again["value"], stored)
      and _within(stored["value"], stored)
    )
  elif path == "controls":
    return _control_contradictions(stored, again)
  elif both(Mapping):
    prefix = f"{path}." if path else ""
    lines = []
    for name, value in stored.items():
      if prefix + name == "verdict":
        continue
      if name in again:
        lines += _contradictions(value, again[name], prefix + name)
      elif name not in _OPTIONAL:
        lines.append(f"{prefix}{name} was not measured again")
    return lines
  elif both(list):
    if len(stored) != len(again):
      return [f"{path}: {len(stored)} entries, now {len(again)}"]
    return [
      line
      for i, (a, b) in enumerate(zip(stored, again, strict=True))
      for line in _contradictions(a, b, f"{path}[{i}]")
    ]
  elif _is_number(stored) and _is_number(again):
    is_attack = any(name in path for name in _ATTACKS)
    share = _ATTACK_TOLERANCE if is_attack else _RELATIVE_TOLERANCE
    near = _TOLERANCE + share * abs(again)
    same = abs(stored - again) <= near
  else:
    same = type(stored) is type(again) and stored == again
  where = path or "faithfulness"
  return [] if same else [f"{where}: {_shown(stored)}, now {_shown(again)}"]


def _control_contradictions(stored, again) -> list[str]:
  lines = []
  for name, new in again.items():
    if not isinstance(new, Mapping) or "meets_target" not in new:
      continue
    old = stored.get(name) if isinstance(stored, Mapping) else None
    old = old if isinstance(old, Mapping) else {}
    meets, size = old.get("meets_target"), old.get("num_nodes")
    where = f"controls.{name}"
    if meets != new["meets_target"]:
      lines.append(f"{where}.meets_target: {meets}, now {new['meets_target']}")
    sizes = size, new["num_nodes"]
    close = _is_number(size) and max(sizes) <= _CONTROL_RATIO * min(sizes)
    if new["meets_target"] and not close:
      lines.append(f"{where}.num_nodes: {size}, now {new['num_nodes']}")
  return lines
