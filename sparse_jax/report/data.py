"""What the page's script reads: one JSON text beside the drawings.

Texts are spelled out (`text.spell_out`, `text.pieces`) before they go in, and
no `<` is left, so that nothing in it can end the element that holds it.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_jax.faithfulness import overlap as overlap_lib
from sparse_jax.report import activations, graph, text
from sparse_jax.utils import errors

MAX_EDGES = 4000


def page_data(
  sections: Sequence[Mapping[str, Any]],
  evidence: activations.Evidence | None = None,
) -> text.Markup:
  """Returns the JSON of all circuits of a page.

  Args:
    sections: as `section.section` returns them.
    evidence: what `activations.collect` found for them, if there is a model.

  Raises:
    InputError: if the evidence is of another number of circuits.
  """
  if evidence and len(evidence.circuits) != len(sections):
    raise errors.bad_value(
      "evidence", f"of {len(evidence.circuits)}", f"{len(sections)} circuits"
    )
  tokens = _Tokens(evidence.texts if evidence else {})
  homes = _homes(sections)
  circuits = []
  for i, section in enumerate(sections):
    found = _circuit(section, i, homes, tokens)
    if evidence:
      found |= _evidence(evidence.circuits[i], found["nodes"], tokens)
    circuits.append(found)
  windows = evidence.windows if evidence else ()
  content = {
    "circuits": circuits,
    "windows": [
      [text.spell_out(name), tokens.ids(row)] for name, row in windows
    ],
    "tokens": tokens.pieces,
  }
  raw = json.dumps(content, separators=(",", ":"), allow_nan=False)
  return text.Markup(raw.replace("<", "\\u003c"))


class _Tokens:
  """Every token of the page once; others name it by its number."""

  def __init__(self, texts: Mapping[int, str]):
    self._texts = texts
    self._numbers: dict[str, int] = {}
    self.pieces: list[list[tuple[str, str]]] = []

  def number(self, token: str) -> int:
    """Returns the number of a token's text."""
    if token not in self._numbers:
      self._numbers[token] = len(self.pieces)
      self.pieces.append(text.pieces(token))
    return self._numbers[token]

  def ids(self, row) -> list[int]:
    """Returns the numbers of the model's tokens."""
    return [self.number(self._texts[int(i)]) for i in row]


class Overlap(NamedTuple):
  """What two cores have in common."""

  count: int  # Of nodes.
  share: float  # Of the union.
  expected: float | None  # Nodes by chance; None of one with itself.
  p: float | None  # Of so many by chance, corrected for all pairs.


def overlap(sections: Sequence[Mapping[str, Any]]) -> list[list[Overlap]]:
  """Returns what every two cores have in common.

  There is no chance to speak of between circuits of different models.
  """
  circuits = [section["parts"][0]["circuit"] for section in sections]
  nodes = dict(enumerate(map(overlap_lib.nodes, circuits)))
  found = {}
  if len({circuit.model_fingerprint for circuit in circuits}) == 1:
    total = {}
    for circuit in circuits:
      total |= overlap_lib.num_nodes(circuit)
    for pair in overlap_lib.compare(nodes, total):
      found[pair.first, pair.second] = pair.expected, pair.p_corrected

  def cell(i, j):
    count = len(nodes[i] & nodes[j])
    share = count / (len(nodes[i] | nodes[j]) or 1)
    by_chance = found.get((min(i, j), max(i, j)), (None, None))
    return Overlap(count, share, *by_chance)

  return [[cell(i, j) for j in nodes] for i in nodes]


def _homes(sections) -> dict[graph.Node, list[int]]:
  """Returns which circuits' cores have a node."""
  homes = defaultdict(list)
  for i, section in enumerate(sections):
    for node in section["parts"][0]["graph"].nodes:
      homes[node].append(i)
  return homes


def _circuit(section, index: int, homes, tokens: _Tokens) -> dict[str, Any]:
  """Returns what is known of a circuit without its model."""
  shown, parts = section["graph"], section["parts"]
  means = parts[-1]["circuit"].means
  nodes = []
  for node in shown.nodes:
    found: dict[str, Any] = {"key": node.key}
    if shown.support:
      found["part"] = "support" if shown.is_support(node) else "core"
    head = shown.head(node)
    if head is not None:
      found["head"] = f"{node.layer}.{head}"
    found["mean"] = _number(means[node.name][node.layer or 0][node.index])
    found["losses"] = [
      (part["name"], _number(part["node_losses"][node.key]))
      for part in parts
      if node.key in part["node_losses"]
    ]
    for key, pairs in section["notes"].get(node.key, {}).items():
      if pairs:
        found[key] = [(tokens.number(t), _number(w)) for t, w in pairs]
    if others := [i for i in homes[node] if i != index]:
      found["also"] = others
    nodes.append(found)
  at = {node: i for i, node in enumerate(shown.nodes)}
  edges = sorted(shown.edges, key=lambda e: -e.magnitude)[:MAX_EDGES]
  return {
    "id": section["id"],
    "task": text.spell_out(section["task"]),
    "nodes": nodes,
    "edges": [
      (
        at[e.source],
        at[e.target],
        _number(e.weight),
        _number(section["edge_losses"].get((e.source.key, e.target.key))),
      )
      for e in edges
    ],
  }


def _number(value) -> float | None:
  """Returns four significant digits; None for what is not finite."""
  value = float(value) if isinstance(value, np.generic) else value
  return float(f"{value:.4g}") if text.is_number(value) else None


def _evidence(found: activations.Activations, nodes, tokens: _Tokens):
  """Returns values of nodes, in 8 bits; adds each node's own to it."""
  for node in nodes:
    values = found.nodes.get(node["key"])
    if values is None:
      continue
    node["scale"] = _number(values.scale)
    node["values"] = _packed(values.prompts, values.scale)
    node["most"] = [_snippet(s, values.scale) for s in values.most]
    node["least"] = [_snippet(s, values.scale) for s in values.least]
    low, high, *counts = values.histogram
    node["histogram"] = [_number(low), _number(high), *counts]
  return {
    "prompts": [
      {
        "own": prompt.is_own,
        "sides": [
          {
            "tokens": tokens.ids(side.tokens),
            "answers": tokens.ids(side.answers),
            "differences": [
              (name, [_number(d) for d in row.tolist()])
              for name, row in side.differences
            ],
          }
          for side in prompt.sides
        ],
      }
      for prompt in found.prompts
    ],
    "heads": {
      head: _base64(np.round(255 * pattern.clip(0, 1)).astype(np.uint8))
      for head, pattern in found.heads.items()
    },
  }


def _snippet(snippet: activations.Snippet, scale: float):
  window, first, peak, values = snippet
  return [window, first, peak, _packed(values, scale)]


def _packed(values: np.ndarray, scale: float) -> str:
  """Returns values as bytes: 128 is 0, 1 is -scale, 255 is scale."""
  steps = np.round(127 * values / (scale or 1.0)).clip(-127, 127)
  return _base64((128 + steps).astype(np.uint8))


def _base64(values: np.ndarray) -> str:
  return base64.b64encode(values.tobytes()).decode("ascii")
