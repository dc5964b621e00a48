"""The faithfulness curve: how much of the answer the first k nodes give."""

from typing import Any

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import context as context_lib
from sparse_jax.pruning import masks

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def total_order(circuit: circuit_lib.Circuit, total: int) -> np.ndarray:
  """Returns all nodes as flat indices, in the order that the search left.

  The circuit's own come first; those that it did not order last, in forward
  order.
  """
  order = np.asarray(circuit.details.get("order", ()), int)
  own = np.flatnonzero(masks.flatten(circuit.node_mask))
  first = order[np.isin(order, own)]
  first = np.concatenate([first, np.setdiff1d(own, first)])
  rest = order[~np.isin(order, own)]
  ordered = np.concatenate([first, rest])
  return np.concatenate([ordered, np.setdiff1d(np.arange(total), ordered)])


def faithfulness_curve(context: context_lib.Context) -> dict[str, Any]:
  """Returns f(k) along the circuit's order of nodes, and its areas.

  f(k) = (m(C_k) - m(∅)) / (m(full) - m(∅)), m the mean logit difference, C_k
  the first k nodes. CPR is the area under f, CMD that between f and 1, by
  trapezoids over linear k (MIB, hannamw/MIB-circuit-track `evaluation.py`).
  """
  evaluator = context.evaluator
  total = evaluator.num_nodes
  order = total_order(context.circuit, total)
  counts = [0, *(max(1, round(share * total)) for share in SHARES)]
  gates = masks.masks_of_order(evaluator.shapes, order, counts)
  means = evaluator.logit_differences(gates).astype(float).mean(1)
  empty, full = means[0], means[-1]
  # A model with no preference of its own has none to be faithful to.
  f = (means - empty) / (full - empty) if full != empty else 0 * means
  points = [
    {"share": share, "num_nodes": count, "faithfulness": float(value)}
    for share, count, value in zip((0.0, *SHARES), counts, f, strict=True)
  ]
  shares = np.array([p["share"] for p in points])
  return {
    "points": points,
    "cpr": float(np.trapezoid(f, shares)),
    "cmd": float(np.trapezoid(np.abs(1 - f), shares)),
  }
