"""What a circuit's section shows; `templates/circuit.html` is its markup."""

import difflib
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


class Section(NamedTuple):
  """One circuit, ready to be drawn.

  Attributes:
    id: starts every id of the section.
    losses: (model, task loss, accuracy) each, on test pairs.
    test_target: "meets" or "misses" the target on test pairs, or "".
    validation_target: the same on validation pairs.
    disagreement: where the file's own counts are not those of its lists.
    facts: (name, value, meaning, whether the name is a metric's) each.
    nodes: rows of the table of nodes.
    edges: (source, target, weight) each, the strongest first.
  """

  id: str
  circuit: circuit_lib.Circuit
  graph: graph.Graph
  losses: Sequence[tuple[str, Any, Any]]
  test_target: str
  validation_target: str
  disagreement: str
  drawing: draw.Drawing | None
  bars: charts.Bars
  facts: Sequence[tuple[str, str, str, bool]]
  faithfulness: faithfulness.Faithfulness | None
  examples: Sequence[Mapping[str, Any]]
  num_examples: int
  nodes: Sequence[Mapping[str, Any]]
  has_notes: bool
  edges: Sequence[tuple[str, str, float]]


def anchor(index: int) -> str:
  """Returns the id of a page's section on its circuit of that index."""
  return f"c{index}"


def section(circuit: circuit_lib.Circuit, index: int) -> Section:
  """Returns the section of a page's circuit of that index.

  Raises:
    InputError: if the circuit's edges, examples or notes are damaged.
  """
  where = f"circuit.json of {circuit.task}"
  metrics = _checked(f"{where}: metrics", circuit.metrics, dict)
  shown = graph.from_circuit(circuit)
  losses = [
    (name, metrics.get(f"{p}test_loss"), metrics.get(f"{p}test_accuracy"))
    for name, p, _ in MODELS
  ]
  examples, notes = (
    _checked(f"{where}: {name}", circuit.details.get(name) or kind(), kind)
    for name, kind in (("examples", list), ("node_notes", dict))
  )
  meets = metrics.get("meets_target")
  return Section(
    id=anchor(index),
    circuit=circuit,
    graph=shown,
    losses=losses,
    test_target=_verdict(metrics.get("test_loss"), circuit.target_loss),
    validation_target=("misses", "meets")[meets]
    if isinstance(meets, bool)
    else "",
    disagreement=_disagreement(metrics, shown),
    drawing=draw.drawing(circuit.task, shown) if shown.nodes else None,
    bars=charts.loss_bars(
      [
        (name, loss, class_)
        for (name, loss, _), (*_, class_) in zip(losses, MODELS, strict=True)
      ],
      [("target", circuit.target_loss), ("guessing", math.log(2))],
    ),
    facts=_facts(circuit),
    faithfulness=faithfulness.faithfulness(circuit),
    examples=[
      _example(f"{where}: examples[{position}]", example)
      for position, example in enumerate(examples[:MAX_EXAMPLES])
    ],
    num_examples=len(examples),
    nodes=_node_rows(f"{where}: node_notes", shown, notes),
    has_notes=bool(notes),
    edges=[
      (edge.source.key, edge.target.key, edge.weight)
      for edge in reversed(draw.strongest(shown.edges, MAX_ROWS))
    ],
  )


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
  ablation = str(circuit.ablation)
  ablation = _ABLATIONS.get(ablation, ablation)
  return [
    ("target loss", f"{text.number(circuit.target_loss)} nats", "", False),
    ("value of ablated nodes", ablation or text.MISSING, "", False),
    (
      "model fingerprint",
      circuit.model_fingerprint or text.MISSING,
      "",
      False,
    ),
    *(
      (name, shown, _MEANINGS.get(name, ""), True)
      for name, shown in _further(circuit.metrics)
    ),
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
    answer = example.get(f"{prefix}answer", "")
    _checked(f"{where}.{prefix}answer", answer, str)
    sides.append({"name": name, "tokens": tokens, "answer": answer})
  marks = _differences(*(side["tokens"] for side in sides))
  for side, marked in zip(sides, marks, strict=True):
    side["marked"] = marked
  probabilities = [
    (name, example.get(key), class_)
    for name, key, class_ in (
      ("circuit", "circuit_prob", "circuit"),
      ("full model", "full_prob", "full"),
    )
  ]
  has_counter = bool(sides[1]["tokens"])
  return {
    "sides": sides if has_counter else sides[:1],
    "meters": [
      (name, p, class_, 100 * min(1.0, max(0.0, p)) if text.is_number(p) else 0)
      for name, p, class_ in probabilities
    ],
  }


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
