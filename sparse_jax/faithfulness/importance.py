"""Importance: the circuit's loss without each node, and without each edge."""

from typing import Any

import numpy as np

from sparse_jax import sites
from sparse_jax.faithfulness import context as context_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.pruning import calibrate, thresholding

_MAX_NODES = 400
_MAX_EDGES = 1000


def importance(
  context: context_lib.Context,
) -> dict[str, list[dict[str, Any]] | None]:
  """Returns the loss without each node and without each edge, exactly.

  `loss_without`: mean task loss of the circuit less that node or edge, with its
  interval over pairs (exact node importance: Drori 2026). Each loss is
  calibrated anew. A circuit of more nodes or edges than anyone would read one
  by one has None in their place: it is the nearest miss of a model that has not
  learned the task.

  Args:
    context: of the circuit, on the pairs that calibrations are fitted on.
  """
  circuit = context.circuit
  if circuit.num_nodes > _MAX_NODES:
    return {"nodes": None, "edges": None}
  loss = lambda diff_S: context.score(diff_S)["loss"]
  entries = [
    (name, row, index)
    for name in context.evaluator.shapes
    for row, index in np.argwhere(circuit.node_mask[name])
  ]
  shifts = bool(circuit.details.get("answer_shift"))
  _, scores = thresholding.leave_one_out(
    context.evaluator, circuit.node_mask, shifts
  )
  nodes = [
    {**edges_lib.node(*entry), "loss_without": loss(diff_S)}
    for entry, diff_S in zip(entries, scores.diffs, strict=True)
  ]
  if circuit.num_edges > _MAX_EDGES:
    return {"nodes": nodes, "edges": None}
  scores = calibrate.score_differences(
    _without_edges(context), context.evaluator.sequences, shifts
  )
  edges = [
    {"from": edge["from"], "to": edge["to"], "loss_without": loss(diff_S)}
    for edge, diff_S in zip(circuit.edges, scores.diffs, strict=True)
  ]
  return {"nodes": nodes, "edges": edges}


def _without_edges(context) -> np.ndarray:
  """Returns the logit differences without each edge, `[edges, S]`."""
  evaluator, edges = context.evaluator, context.circuit.edges
  shapes = {
    kind.matrix: edges_lib.parameter(evaluator.params, kind.matrix).shape
    for kind in sites.EDGE_KINDS
  }
  diffs = [np.zeros((0, len(evaluator.sequences.positions)), np.float32)]
  # All edges at once would take a copy of every matrix for each.
  for edge in edges:
    edge_masks = {path: np.ones((1, *shapes[path]), bool) for path in shapes}
    path, *entry = edges_lib.entry(edge, evaluator.params)
    edge_masks[path][(0, *entry)] = False
    diffs.append(evaluator.logit_differences(context.mask, edge_masks))
  return np.concatenate(diffs)
