"""Importance: the circuit's loss without each node, and without each edge."""

import functools
from typing import Any

import jax
import numpy as np

from sparse_jax import sites
from sparse_jax.faithfulness import context as context_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.pruning import calibrate
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator

_MAX_NODES = 400
_MAX_EDGES = 1000
_ROWS = mask_evaluator.MASKS_PER_CALL


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
  entries = [
    (name, row, index)
    for name in context.evaluator.shapes
    for row, index in np.argwhere(circuit.node_mask[name])
  ]
  losses = _losses(context, _without_nodes(context, entries))
  nodes = [
    {**edges_lib.node(*entry), "loss_without": loss}
    for entry, loss in zip(entries, losses, strict=True)
  ]
  if circuit.num_edges > _MAX_EDGES:
    return {"nodes": nodes, "edges": None}
  losses = _losses(context, _without_edges(context))
  edges = [
    {"from": edge["from"], "to": edge["to"], "loss_without": loss}
    for edge, loss in zip(circuit.edges, losses, strict=True)
  ]
  return {"nodes": nodes, "edges": edges}


def _without_nodes(context, entries) -> np.ndarray:
  masks = {
    name: np.repeat(mask[None], len(entries), 0)
    for name, mask in context.mask.items()
  }
  for i, (name, row, index) in enumerate(entries):
    masks[name][i, row, index] = 0
  return context.evaluator.logit_differences(masks)


def _without_edges(context) -> np.ndarray:
  evaluator, edges = context.evaluator, context.circuit.edges
  shapes = {
    kind.matrix: edges_lib.parameter(evaluator.params, kind.matrix).shape
    for kind in sites.EDGE_KINDS
  }
  diffs = [np.zeros((0, len(evaluator.sequences.positions)), np.float32)]
  # All edges at once would take a copy of every matrix for each.
  for start in range(0, len(edges), _ROWS):
    part = edges[start : start + _ROWS]
    edge_masks = {
      path: np.ones((len(part), *shape), np.float32)
      for path, shape in shapes.items()
    }
    for i, edge in enumerate(part):
      path, *entry = edges_lib.entry(edge, evaluator.params)
      edge_masks[path][(i, *entry)] = 0
    diffs.append(evaluator.logit_differences(context.mask, edge_masks))
  return np.concatenate(diffs)


def _losses(context, diffs_MxS) -> list[dict[str, float]]:
  """Returns the loss of every row, after a calibration of its own."""
  sequences = context.evaluator.sequences
  sign_S = logit_difference_lib.answer_sign(
    sequences.correct, sequences.incorrect
  )
  shifts = bool(context.circuit.details.get("answer_shift"))
  losses = []
  for start in range(0, len(diffs_MxS), _ROWS):
    part = diffs_MxS[start : start + _ROWS]
    # A short call repeats its rows: one program serves any number.
    rows = np.resize(np.arange(len(part)), _ROWS)
    fitted = np.asarray(_calibrated(part[rows], sign_S, shifts))[: len(part)]
    losses += [context_lib.score(d, context.seed)["loss"] for d in fitted]
  return losses


@functools.partial(jax.jit, static_argnums=2)
def _calibrated(diffs_MxS, sign_S, shifts):
  def one(diff_S):
    calibration = calibrate.fit(diff_S, sign_S, shifts)
    return logit_difference_lib.calibrate(diff_S, sign_S, calibration)

  return jax.vmap(one)(diffs_MxS)
