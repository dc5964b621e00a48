"""Importance: what the circuit is worth without each node, and each edge."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.faithfulness import evidence
from sparse_jax.model import edges as edges_lib
from sparse_jax.pruning import calibrate, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib

_MAX_NODES = 400
_MAX_EDGES = 1000
_EDGES_PER_CALL = 8


def importance(
  subject: evidence.Subject, fit_on: sequences_lib.Sequences
) -> dict[str, list[dict[str, Any]] | None]:
  """Returns the loss without each node and without each edge, exactly.

  `loss_without`: mean task loss of the circuit less that node or edge, with its
  interval over pairs (exact node importance: Drori 2026). A circuit of more
  nodes or edges than anyone would read one by one has None in their place: it
  is the nearest miss of a model that has not learned the task.

  Args:
    subject: the circuit in its model.
    fit_on: training pairs; each loss is measured there, calibrated anew.
  """
  circuit = subject.circuit
  if circuit.num_nodes > _MAX_NODES:
    return {"nodes": None, "edges": None}
  means = {n: jnp.asarray(m) for n, m in circuit.means.items()}
  shifts = bool(circuit.details.get("answer_shift"))
  evaluator = mask_evaluator.MaskEvaluator(
    subject.model, subject.params, means, fit_on, circuit.freeze_norms
  )
  names = masks_lib.in_order(circuit.node_mask)
  described = [
    {"site": sites.site_id(name, row), "index": int(index)}
    for name in names
    for row, index in np.ndindex(circuit.node_mask[name].shape)
  ]

  def loss(diff_S):
    return evidence.score(diff_S, subject.seed)["loss"]

  flat, without = thresholding.leave_one_out(
    evaluator, circuit.node_mask, shifts
  )
  nodes = [
    {**described[i], "loss_without": loss(diff_S)}
    for i, diff_S in zip(flat, without.diffs, strict=True)
  ]
  if circuit.num_edges > _MAX_EDGES:
    return {"nodes": nodes, "edges": None}
  diffs_ExS = _diffs_without_edges(evaluator, circuit, shifts)
  edges = [
    {"from": edge["from"], "to": edge["to"], "loss_without": loss(diff_S)}
    for edge, diff_S in zip(circuit.edges, diffs_ExS, strict=True)
  ]
  return {"nodes": nodes, "edges": edges}


def _diffs_without_edges(evaluator, circuit, shifts) -> np.ndarray:
  shapes = {
    kind.matrix: edges_lib.parameter(evaluator.params, kind.matrix).shape
    for kind in sites.EDGE_KINDS
  }
  diffs = [np.zeros((0, len(evaluator.sequences.tokens)))]
  for start in range(0, len(circuit.edges), _EDGES_PER_CALL):
    part = circuit.edges[start : start + _EDGES_PER_CALL]
    gates = {
      p: np.ones((_EDGES_PER_CALL, *s), np.float32) for p, s in shapes.items()
    }
    for row, edge in enumerate(part):
      path, *entry = edges_lib.entry(edge, evaluator.params)
      gates[path][(row, *entry)] = 0
    scores = calibrate.score_masks(evaluator, circuit.node_mask, shifts, gates)
    diffs.append(np.asarray(scores.diffs)[: len(part)])
  return np.concatenate(diffs)
