"""What a circuit's section shows; `templates/circuit.html` is its markup."""

import difflib
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax.report import charts, draw, faithfulness, graph, text
from sparse_jax.utils import errors

MAX_ROWS = 2000
MAX_EXAMPLES = 24
_NOTES = ("read_tokens", "write_tokens")
_MAX_DEPTH = 4

# What a loss is of: its name, the prefix of its metrics, its colour's class.
MODELS = (
  ("circuit", "", "circuit"),
  ("full model", "full_model_", "full"),
  ("model without the circuit", "without_circuit_", "without"),
)
_ABLATIONS = {
  "mean_pretrain": "mean over the pretraining distribution (mean_pretrain)",
  "mean_task": "mean over the task's prompts (mean_task)",
  "zero": "zero",
}
# Shown in places of their own; every other metric is listed as it comes.
_PLACED = frozenset(
  {"num_nodes", "num_edges", "target_loss", "faithfulness"}
  | {f"{p}test_{k}" for _, p, _ in MODELS for k in ("loss", "accuracy")}
)
_MEANINGS = {
  "num_embedding_edges": "nonzero embedding weights of kept channels",
  "num_unembedding_edges": "nonzero unembedding weights of kept channels",
  "logit_scale": "factor on the circuit's logits",
  "meets_target": "on the validation pairs, to which the circuit was cut",
  "validation_loss": "on the pairs to which the circuit was cut",
}


def anchor(index: int) -> str:
  """Returns the id of a page's section on its circuit of that index."""
  return f"c{index}"


def section(circuit: circuit_lib.Circuit, index: int) -> dict[str, Any]:
  """Returns what the template shows of a page's circuit of that index.

  Raises InputError if the circuit's edges, examples or notes are damaged.
  """
  where = f"circuit.json of {circuit.task}"
  metrics = _checked(f"{where}: metrics", circuit.metrics, dict)
  shown = graph.from_circuit(circuit)
  examples, notes = (
    _checked(f"{where}: {name}", circuit.details.get(name) or kind(), kind)
    for name, kind in (("examples", list), ("node_notes", dict))
  )
  # On test pairs: the model's name, its task loss and its accuracy.
  losses = [
    (name, *(metrics.get(f"{p}test_{k}") for k in ("loss", "accuracy")))
    for name, p, _ in MODELS
  ]
  bars = [(name, metrics.get(f"{p}test_loss"), c) for name, p, c in MODELS]
  lines = [("target", circuit.target_loss), ("guessing", math.log(2))]
  meets = metrics.get("meets_target")
  is_known = isinstance(meets, bool)
  return {
    "id": anchor(index),
    "circuit": circuit,
    "graph": shown,
    "losses": losses,
    "test_target": _verdict(metrics.get("test_loss"), circuit.target_loss),
    "validation_target": ("misses", "meets")[meets] if is_known else "",
    "disagreement": _disagreement(metrics, shown),
    "drawing": draw.drawing(circuit.task, shown) if shown.nodes else None,
    "bars": charts.loss_bars(bars, lines),
    "facts": _facts(circuit),
    "faithfulness": faithfulness.faithfulness(circuit),
    "examples": [
      _example(f"{where}: examples[{position}]", example)
      for position, example in enumerate(examples[:MAX_EXAMPLES])
    ],
    "num_examples": len(examples),
    "nodes": _node_rows(f"{where}: node_notes", shown, notes),
    "has_notes": bool(notes),
    "edges": [
      (edge.source.key, edge.target.key, edge.weight)
      for edge in reversed(draw.strongest(shown.edges, MAX_ROWS))
    ],
  }


def _verdict(loss, target) -> str:
  if not (text.is_number(loss) and text.is_number(target)):
    return ""
  return "meets" if loss <= target else "misses"


def _disagreement(metrics: Mapping[str, Any], shown: graph.Graph) -> str:
  differ = []
  for name in ("nodes", "edges"):
    stated, num = metrics.get(f"num_{name}"), len(getattr(shown, name))
    if text.is_number(stated) and stated != num:
      differ.append(f"num_{name} is {text.number(stated)}, {num} are listed")
  return "; ".join(differ)


def _facts(circuit: circuit_lib.Circuit) -> list[tuple[str, str, str, bool]]:
  """Returns (name, value, meaning, whether the name is a metric's)."""
  ablation = str(circuit.ablation)
  facts = {
    "target loss": f"{text.number(circuit.target_loss)} nats",
    "value of ablated nodes": _ABLATIONS.get(ablation, ablation),
    "model fingerprint": circuit.model_fingerprint,
  }
  return [
    (k, value or text.MISSING, "", False) for k, value in facts.items()
  ] + [
    (name, value, _MEANINGS.get(name, ""), True)
    for name, value in _further(circuit.metrics)
  ]


def _further(
  metrics: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
  """Yields (dotted name, shown value) of metrics with no other place."""
  for name, value in metrics.items():
    full = f"{prefix}{name}"
    if full in _PLACED:
      continue
    if isinstance(value, Mapping):
      if prefix.count(".") < _MAX_DEPTH:
        yield from _further(value, f"{full}.")
    elif isinstance(value, str):
      yield full, value if len(value) <= 200 else value[:199] + "…"
    elif value is None or isinstance(value, numbers.Real):
      yield full, text.number(value)
    elif isinstance(value, (list, tuple)) and 0 < len(value) <= 16:
      if all(isinstance(v, numbers.Real) or v is None for v in value):
        yield full, ", ".join(text.number(v) for v in value)


def _checked(where: str, value, kind):
  """Returns a value of a circuit's details if it is of a kind."""
  if not isinstance(value, (list, tuple) if kind is list else kind):
    shown = repr(value)
    shown = value if len(shown) <= 80 else shown[:79] + "…"
    accepted = {list: "a list", dict: "an object", str: "text"}[kind]
    raise errors.bad_value(where, shown, accepted)
  return value


def _example(where: str, example: Any) -> dict[str, Any]:
  """Returns one pair of prompts, with the positions at which they differ."""
  _checked(where, example, dict)
  sides = []
  for name, prefix in (("prompt", ""), ("counter-prompt", "counter_")):
    key = f"{where}.{prefix}prompt_tokens"
    tokens = _checked(key, example.get(f"{prefix}prompt_tokens", []), list)
    for token in tokens:
      _checked(key, token, str)
    key = f"{prefix}answer"
    answer = _checked(f"{where}.{key}", example.get(key, ""), str)
    sides.append({"name": name, "tokens": tokens, "answer": answer})
  marks = _differences(*(side["tokens"] for side in sides))
  for side, marked in zip(sides, marks, strict=True):
    side["marked"] = marked
  clip = lambda v: min(1.0, max(0.0, v)) if text.is_number(v) else 0.0
  circuit, full = example.get("circuit_prob"), example.get("full_prob")
  meters = [
    ("circuit", circuit, "circuit", clip(circuit)),
    ("full model", full, "full", clip(full)),
  ]
  # A circuit of one-sided prompts has no counter-prompts.
  return {"sides": sides if sides[1]["tokens"] else sides[:1], "meters": meters}


def _differences(a: list[str], b: list[str]) -> tuple[set[int], set[int]]:
  """Returns the positions at which two token lists differ."""
  matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
  in_a, in_b = set(), set()
  if a and b:
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
      if tag != "equal":
        in_a |= set(range(a0, a1))
        in_b |= set(range(b0, b1))
  return in_a, in_b


def _node_rows(
  where: str, shown: graph.Graph, notes: Mapping[str, Any]
) -> list[dict[str, Any]]:
  num_in, num_out = draw.degrees(shown.edges)
  weighted = {
    key: [_note(f"{where}[{key!r}].{k}", note, k) for k in _NOTES]
    for key, note in notes.items()
  }
  return [
    {
      "node": node,
      "head": shown.head(node),
      "num_in": num_in[node],
      "num_out": num_out[node],
      "notes": weighted.get(node.key, ([], [])),
    }
    for node in shown.nodes[:MAX_ROWS]
  ]


def _note(where: str, note: Any, key: str) -> list[tuple[str, Any]]:
  """Returns a note's (token, weight) pairs."""
  _checked(where, note, dict)
  pairs = _checked(where, note.get(key, []), list)
  for pair in pairs:
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not (is_pair and isinstance(pair[0], str)):
      raise errors.bad_value(where, pair, "pairs of a token and a weight")
  return pairs
