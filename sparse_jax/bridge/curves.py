"""Steering curves of a whole circuit, and what it carries over."""

from typing import Any

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.bridge import carry, directory, steering
from sparse_jax.utils import progress

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def steering_curves(
  bridge: directory.Bridge, circuit: circuit_lib.Circuit, pairs: tasks_lib.Pairs
) -> dict[str, Any]:
  """Returns `carry_over` of a circuit and each node's curves, fit for JSON.

  A node's curves are means over the prompts, by `STRENGTHS`: its own and those
  of its controls. Nodes that move the dense model most stand first. Raises
  InputError if the circuit is not the sparse model's.
  """
  carried = carry.carry_over(bridge, circuit, pairs)
  nodes = []
  with progress.progress_bar(len(circuit.nodes), 0, "nodes") as bar:
    for node in circuit.nodes:
      found = steering.curves(bridge, node, STRENGTHS, task=pairs)
      mean = lambda x: np.mean(x, 1).tolist()
      nodes.append(
        {
          "node": found["node"].node,
          "moved": {k: of.moved for k, of in found.items()},
          "probability": {k: mean(of.probability) for k, of in found.items()},
          "logit_difference": {
            k: mean(of.logit_difference) for k, of in found.items()
          },
        }
      )
      bar.update()
  nodes.sort(key=lambda node: -abs(node["moved"]["node"]))
  return {
    "task": circuit.task,
    "num_nodes": circuit.num_nodes,
    "num_edges": circuit.num_edges,
    "strengths": list(STRENGTHS),
    "carry_over": carried,
    "nodes": nodes,
  }
