"""What a task's section shows; `templates/circuit.html` is its markup."""

import difflib
import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax.report import charts, draw, faithfulness, graph, text
from sparse_jax.utils import errors

MAX_ROWS = 2000
MAX_EXAMPLES = 24
# Support of larger robust circuits is hidden until it is asked for.
MAX_SHOWN = 150
# Under which names a circuit's notes keep the tokens of a node.
_NOTES = {"reads": "read_tokens", "writes": "write_tokens"}
_MAX_DEPTH = 4

# Of a loss and an accuracy: the prefix of their metrics.
_MODELS = {"own": "", "full": "full_model_", "without": "without_circuit_"}
_ABLATIONS = {
  "mean_pretrain": "mean over the pretraining distribution (mean_pretrain)",
  "mean_task": "mean over the task's prompts (mean_task)",
  "zero": "zero",
}
# Shown in places of their own; every other metric is listed as it comes.
_PLACED = frozenset(
  {"num_nodes", "num_edges", "target_loss", "faithfulness"}
  | {f"{p}test_{k}" for p in _MODELS.values() for k in ("loss", "accuracy")}
)
_MEANINGS = {
  "num_embedding_edges": "nonzero embedding weights of kept channels",
  "num_unembedding_edges": "nonzero unembedding weights of kept channels",
  "logit_scale": "factor on the circuit's logits",
  "meets_target": "on the validation pairs, to which the circuit was cut",
  "validation_loss": "on the pairs to which the circuit was cut",
}


def anchor(index: int) -> str:
  """Returns the id of a page's section on its task of that index."""
  return f"c{index}"


def section(
  circuits: Mapping[str, circuit_lib.Circuit],
  index: int,
  elsewhere: frozenset[graph.Node] = frozenset(),
) -> dict[str, Any]:
  """Returns what the template shows of a page's task of that index.

  `circuits` are the "core" and maybe the "robust" circuit that contains it;
  `elsewhere` are the nodes of the page's other circuits. Raises InputError if
  their edges, examples or notes are damaged.
  """
  core = circuits["core"]
  named = {"core": "circuit"}
  if "robust" in circuits:
    named = {"core": "core", "robust": "robust circuit"}
  parts = [_part(circuits[which], which, name) for which, name in named.items()]
  shown = parts[0]["graph"]
  if len(parts) > 1:
    shown = graph.nest(shown, parts[1]["graph"])
  notes = {}
  for part in reversed(parts):  # The core's own notes win.
    notes |= _notes(part["file"], part["circuit"].details)
  file = parts[0]["file"]
  examples = _detail(file, core.details, "examples", list)
  losses = _losses(parts)
  edge_losses = {}
  for part in reversed(parts):  # As the core does without them, if it has them.
    edge_losses |= part["edge_losses"]
  lines = [("target", core.target_loss), ("guessing", math.log(2))]
  return {
    "id": anchor(index),
    "task": core.task,
    "parts": parts,
    "graph": shown,
    "losses": losses,
    "notes": notes,
    "edge_losses": edge_losses,
    "drawing": draw.drawing(
      core.task, shown, losses=edge_losses, elsewhere=elsewhere
    )
    if shown.nodes
    else None,
    "shows_support": len(shown.nodes) <= MAX_SHOWN,
    "bars": charts.loss_bars([(n, v, c) for n, v, _, c in losses], lines),
    "columns": [
      (name, "") for name in (named.values() if len(parts) > 1 else ["value"])
    ],
    "facts": _facts([p["circuit"] for p in parts]),
    "faithfulness": faithfulness.faithfulness(parts),
    "examples": [
      _example(f"{file}: examples[{position}]", example, named["core"])
      for position, example in enumerate(examples[:MAX_EXAMPLES])
    ],
    "num_examples": len(examples),
    "nodes": _node_rows(shown, notes),
    "has_notes": bool(notes),
    "edges": [
      (edge, shown.is_support(edge.source, edge.target))
      for edge in reversed(draw.strongest(shown, MAX_ROWS))
    ],
  }


def _part(
  circuit: circuit_lib.Circuit, which: str, name: str
) -> dict[str, Any]:
  """Returns what is known of one circuit, which the page calls `name`."""
  file = f"{'circuit' if which == 'core' else which}.json of {circuit.task}"
  metrics = _checked(f"{file}: metrics", circuit.metrics, dict)
  shown = graph.from_circuit(circuit, file)
  meets = metrics.get("meets_target")
  losses = faithfulness.losses_without(metrics)
  return {
    "file": file,
    "name": name,
    "class": "circuit" if which == "core" else which,
    "circuit": circuit,
    "graph": shown,
    "scores": {
      model: [metrics.get(f"{p}test_{k}") for k in ("loss", "accuracy")]
      for model, p in _MODELS.items()
    },
    "node_losses": {k: v for k, v in losses.items() if isinstance(k, str)},
    "edge_losses": {k: v for k, v in losses.items() if not isinstance(k, str)},
    "claims": faithfulness.claims(metrics),
    "accuracy_lost": faithfulness.accuracy_lost(metrics),
    "test_target": _verdict(metrics.get("test_loss"), circuit.target_loss),
    "validation_target": (
      ("misses", "meets")[meets] if isinstance(meets, bool) else ""
    ),
    "disagreement": _disagreement(metrics, shown),
  }


def _losses(parts) -> list[tuple[str, Any, Any, str]]:
  """Returns (model, task loss, accuracy, class) on test pairs."""
  return [
    *((p["name"], *p["scores"]["own"], p["class"]) for p in parts),
    ("full model", *parts[0]["scores"]["full"], "full"),
    *(
      (f"model without the {p['name']}", *p["scores"]["without"], "without")
      for p in parts
    ),
  ]


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


def _facts(
  circuits: Sequence[circuit_lib.Circuit],
) -> list[tuple[str, list[str], str, bool]]:
  """Returns (name, value by circuit, meaning, whether the name is a metric's).

  A circuit that lacks a metric has a dash there.
  """
  ablations = [str(circuit.ablation) for circuit in circuits]
  facts = {
    "target loss": [f"{text.number(c.target_loss)} nats" for c in circuits],
    "value of ablated nodes": [_ABLATIONS.get(a, a) for a in ablations],
    "model fingerprint": [c.model_fingerprint for c in circuits],
  }
  further = [dict(_further(circuit.metrics)) for circuit in circuits]
  names = dict.fromkeys(itertools.chain.from_iterable(further))
  dashed = lambda values: [value or text.MISSING for value in values]
  return [(k, dashed(values), "", False) for k, values in facts.items()] + [
    (k, dashed(f.get(k) for f in further), _MEANINGS.get(k, ""), True)
    for k in names
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


def _detail(file: str, details: Mapping[str, Any], name: str, kind):
  return _checked(f"{file}: {name}", details.get(name) or kind(), kind)


def _checked(where: str, value, kind):
  """Returns a value of a circuit's details if it is of a kind."""
  if not isinstance(value, (list, tuple) if kind is list else kind):
    shown = repr(value)
    shown = value if len(shown) <= 80 else shown[:79] + "…"
    accepted = {list: "a list", dict: "an object", str: "text"}[kind]
    raise errors.bad_value(where, shown, accepted)
  return value


def _example(where: str, example: Any, name: str) -> dict[str, Any]:
  """Returns one pair of prompts, with the positions at which they differ."""
  _checked(where, example, dict)
  sides = []
  for label, prefix in (("prompt", ""), ("counter-prompt", "counter_")):
    key = f"{where}.{prefix}prompt_tokens"
    tokens = _checked(key, example.get(f"{prefix}prompt_tokens", []), list)
    for token in tokens:
      _checked(key, token, str)
    key = f"{prefix}answer"
    answer = _checked(f"{where}.{key}", example.get(key, ""), str)
    sides.append({"name": label, "tokens": tokens, "answer": answer})
  marks = _differences(*(side["tokens"] for side in sides))
  for side, marked in zip(sides, marks, strict=True):
    side["marked"] = marked
  clip = lambda v: min(1.0, max(0.0, v)) if text.is_number(v) else 0.0
  circuit, full = example.get("circuit_prob"), example.get("full_prob")
  meters = [
    (name, circuit, "circuit", clip(circuit)),
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
  shown: graph.Graph, notes: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """Returns a row for each node, the core's first."""
  num_in, num_out = draw.degrees(shown.edges)
  return [
    {
      "node": node,
      "is_support": shown.is_support(node),
      "head": shown.head(node),
      "num_in": num_in[node],
      "num_out": num_out[node],
      "notes": notes.get(node.key, {key: [] for key in _NOTES}).values(),
    }
    for node in sorted(shown.nodes, key=shown.is_support)[:MAX_ROWS]
  ]


def _notes(file: str, details: Mapping[str, Any]) -> dict[str, dict]:
  """Returns by node the tokens that it reads, and those that it writes."""
  notes = _detail(file, details, "node_notes", dict)
  return {
    key: {
      shown: _note(f"{file}: node_notes[{key!r}].{k}", note, k)
      for shown, k in _NOTES.items()
    }
    for key, note in notes.items()
  }


def _note(where: str, note: Any, key: str) -> list[tuple[str, Any]]:
  """Returns a note's (token, weight) pairs."""
  _checked(where, note, dict)
  pairs = _checked(where, note.get(key, []), list)
  for pair in pairs:
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not (is_pair and isinstance(pair[0], str)):
      raise errors.bad_value(where, pair, "pairs of a token and a weight")
  return pairs
