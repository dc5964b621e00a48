"""From trained masks to a circuit: order the nodes, keep as many as it takes.

A circuit's size is decided here: `keep_first` keeps the fewest nodes of an
order that meet the target on validation pairs, and `clean_up` drops what the
target does not need.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.pruning import calibrate, connectivity, masks
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib

_COUNTS_PER_PASS = mask_evaluator.MASKS_PER_CALL
_IMPORTANCE_PAIRS = 32
# Larger circuits are not taken apart node by node: they are no circuits yet.
_MAX_SINGLY = 400
_MAX_ROUNDS = 3
# Around the number of open gates, where the answer usually is.
_AROUND = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.3, 2.0)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One run's circuit.

  Attributes:
    node_mask: per site `[layers, width]` bool.
    num_nodes: nodes kept.
    num_edges: edges between them.
    calibration: fitted on validation pairs.
    validation_loss: task loss so calibrated, in nats.
    meets_target: whether that is at most the target.
    order: flat indices of its nodes and of those that would come next, most
      important first.
    run: index of the run.
  """

  node_mask: dict[str, np.ndarray]
  num_nodes: int
  num_edges: int
  calibration: logit_difference_lib.Calibration
  validation_loss: float
  meets_target: bool
  order: np.ndarray
  run: int = 0


def validation_target(config: config_lib.PruneConfig) -> float:
  """Returns the loss that validation pairs have to meet, in nats."""
  return config.selection_margin * config.target_per_side


def smallest_count(
  losses_of: Callable[[np.ndarray], np.ndarray],
  size: int,
  target: float,
  hint: int | None = None,
  tolerance: float = 0.0,
) -> int:
  """Returns the smallest number of nodes seen to meet the target.

  Sections several counts a pass, first around `hint` or evenly in the
  logarithm, then between the smallest count that met the target and the next
  smaller one tried. So it does not rest on the loss falling monotonically with
  the count. If no count tried meets the target, it returns the one of least
  loss.

  Args:
    losses_of: task losses of circuits of given sizes, ascending.
    size: the number of all nodes.
    target: in nats.
    hint: a likely count.
    tolerance: share of the count by which it may be too large.
  """
  if hint is None:
    counts = np.geomspace(1, size, _COUNTS_PER_PASS)
  else:
    counts = max(hint, 1) * np.array(_AROUND)
  low, high = 0, size + 1
  tried: dict[int, float] = {}
  while True:
    counts = np.clip(np.round(counts).astype(int), low + 1, high - 1)
    counts = np.maximum.accumulate(counts)
    losses = np.asarray(losses_of(counts))
    tried |= dict(zip(counts.tolist(), losses.tolist(), strict=True))
    meets = losses <= target
    if meets.any():
      first = int(np.argmax(meets))
      high = int(counts[first])
      low = int(counts[first - 1]) if first else low
    else:
      low = int(counts[-1])
    if high > size:
      if low >= size:
        return min(tried, key=lambda n: (tried[n], n))
      counts = np.geomspace(low + 1, size, _COUNTS_PER_PASS)
      continue
    low = min(low, high - 1)
    if high - low <= max(1, tolerance * low):
      return high
    counts = np.linspace(low, high, _COUNTS_PER_PASS + 2)[1:-1]


def keep_first(
  evaluator: mask_evaluator.MaskEvaluator,
  order: np.ndarray,
  target: float,
  hint: int | None = None,
  tolerance: float = 0.0,
  shifts: bool = False,
) -> Candidate:
  """Keeps the first nodes of a total order that reach the target.

  Args:
    evaluator: on the prompts that have to meet the target.
    order: flat node indices, most important first; others stay closed.
    target: in nats, mean over both sides.
    hint: a likely number of nodes.
    tolerance: share of the number by which it may be too large.
    shifts: whether calibrations fit a shift.
  """
  tried: dict[int, tuple[float, logit_difference_lib.Calibration]] = {}

  def losses_of(counts):
    scores = calibrate.score_masks(
      evaluator, masks.masks_of_order(evaluator.shapes, order, counts), shifts
    )
    for i, count in enumerate(counts):
      tried[int(count)] = float(scores.losses[i]), scores.calibration(i)
    return scores.losses

  count = smallest_count(losses_of, len(order), target, hint, tolerance)
  loss, calibration = tried[count]
  kept = masks.masks_of_order(evaluator.shapes, order, [count])
  node_mask = {name: mask[0] for name, mask in kept.items()}
  return Candidate(
    node_mask=node_mask,
    num_nodes=count,
    num_edges=edges_lib.count_edges(evaluator.params, node_mask),
    calibration=calibration,
    validation_loss=loss,
    meets_target=loss <= target,
    order=np.asarray(order)[: max(256, 2 * count)],
  )


def leave_one_out(
  evaluator: mask_evaluator.MaskEvaluator,
  node_mask: Mapping[str, np.ndarray],
  shifts: bool = False,
) -> tuple[np.ndarray, calibrate.Scores]:
  """Returns a circuit's nodes as flat indices, and the scores without each.

  The calibration is fitted again each time.
  """
  flat = masks.flatten(node_mask)
  nodes = np.flatnonzero(flat)
  without = np.repeat(flat[None], len(nodes), 0)
  without[np.arange(len(nodes)), nodes] = False
  shapes = {n: np.shape(node_mask[n]) for n in masks.in_order(node_mask)}
  gates = masks.unflatten(shapes, without)
  return nodes, calibrate.score_masks(evaluator, gates, shifts)


def importance_order(
  evaluator: mask_evaluator.MaskEvaluator,
  node_mask: Mapping[str, np.ndarray],
  shifts: bool = False,
) -> np.ndarray:
  """Returns a circuit's nodes, as flat indices, most important first.

  A node's importance is the loss of the circuit without it: exact
  leave-one-out. τ is a poorer guide among the last nodes: it saturates, and
  masks are trained for a cost per node and not for a target.
  """
  nodes, without = leave_one_out(evaluator, node_mask, shifts)
  return nodes[np.argsort(-without.losses, kind="stable")]


def rank(candidate: Candidate) -> tuple[Any, ...]:
  """Returns what candidates are compared by; less is better.

  The fewest edges that meet the target; a miss comes after every hit, the
  nearest first.
  """
  if candidate.meets_target:
    return 0, candidate.num_edges, candidate.num_nodes
  return 1, candidate.validation_loss, candidate.num_edges


def clean_up(
  evaluator: mask_evaluator.MaskEvaluator,
  candidate: Candidate,
  target: float,
  train: sequences_lib.Sequences,
  shifts: bool = False,
) -> tuple[Candidate, list[dict[str, Any]]]:
  """Drops what the target does not need; reports the effect of each step.

  First nodes on no path from an input to the answer, then, round by round, the
  least important, while the target is met. Importance is measured on training
  pairs, the target on the evaluator's.

  Returns:
    The smaller circuit, and per step name, nodes, edges and validation loss.
  """
  steps = [_described("thresholded", candidate)]
  if not candidate.meets_target:
    return candidate, steps
  sequences = evaluator.sequences
  connected = connectivity.on_a_path(
    evaluator.params,
    candidate.node_mask,
    evaluator.model.config.d_head,
    np.stack([sequences.correct, sequences.incorrect]),
  )
  order = candidate.order[: candidate.num_nodes]
  kept = order[masks.flatten(connected)[order]]
  if 0 < len(kept) < len(order):
    shorter = keep_first(evaluator, kept, target, len(kept), shifts=shifts)
    candidate = min(candidate, shorter, key=rank)
  steps.append(_described("without nodes on no path", candidate))
  few = evaluator.on(sequences_lib.first_pairs(train, _IMPORTANCE_PAIRS))
  for _ in range(_MAX_ROUNDS if candidate.num_nodes <= _MAX_SINGLY else 0):
    order = importance_order(few, candidate.node_mask, shifts)
    smaller = keep_first(
      evaluator, order, target, candidate.num_nodes, shifts=shifts
    )
    if rank(smaller) >= rank(candidate):
      break
    candidate = dataclasses.replace(smaller, run=candidate.run)
    steps.append(_described("without the least important nodes", candidate))
  return candidate, steps


def _described(step: str, candidate: Candidate) -> dict[str, Any]:
  return {
    "step": step,
    "num_nodes": candidate.num_nodes,
    "num_edges": candidate.num_edges,
    "validation_loss": candidate.validation_loss,
  }


def size_curve(
  evaluator: mask_evaluator.MaskEvaluator,
  order: np.ndarray,
  targets: Sequence[float] = (),
  shifts: bool = False,
  num_sizes: int = 32,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Returns loss against size along an order, and sizes at several targets.

  Args:
    evaluator: on validation prompts.
    order: flat node indices, most important first.
    targets: in nats.
    shifts: whether calibrations fit a shift.
    num_sizes: how many sizes, evenly in the logarithm.

  Returns:
    `[{num_nodes, num_edges, validation_loss}]` by size, and the smallest of
    them at each target, `[{target_loss, num_nodes, num_edges}]`, None where
    none meets it.
  """
  curve = []
  if len(order):
    counts = np.unique(
      np.round(np.geomspace(1, len(order), num_sizes)).astype(int)
    )
    gates = masks.masks_of_order(evaluator.shapes, order, counts)
    scores = calibrate.score_masks(evaluator, gates, shifts)
    curve = [
      {
        "num_nodes": int(count),
        "num_edges": edges_lib.count_edges(
          evaluator.params, {name: gate[i] for name, gate in gates.items()}
        ),
        "validation_loss": float(scores.losses[i]),
      }
      for i, count in enumerate(counts)
    ]
  reached = []
  for target in targets:
    meets = (p for p in curve if p["validation_loss"] <= target)
    smallest = next(meets, {})
    reached.append(
      {
        "target_loss": float(target),
        "num_nodes": smallest.get("num_nodes"),
        "num_edges": smallest.get("num_edges"),
      }
    )
  return curve, reached
