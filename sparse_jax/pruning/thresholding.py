"""From trained masks to a circuit: order the nodes, keep as many as it takes.

A circuit's size is decided here: `keep_first` keeps the fewest nodes of an
order that meet the target (`target.py`), and `clean_up` drops what the target
does not need.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_jax.model import edges as edges_lib
from sparse_jax.pruning import calibrate, connectivity, masks
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_IMPORTANCE_PAIRS = 32
# Larger circuits are not taken apart node by node: they are no circuits yet.
_MAX_SINGLY = 400
_MAX_ROUNDS = 3
# Around the number of open gates, where the answer usually is.
_AROUND = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.3, 2.0)
# The same where each count costs an attack.
_AROUND_ROBUST = (0.5, 0.75, 1.0, 1.5)
# Share of the number of nodes by which such a count may be too large.
_ROBUST_TOLERANCE = 0.05
# A round's share of new nodes where a circuit grows, and how large it may get.
_GROWTH = 0.1
_MOST_GROWTH = 3
# Nodes of an order that are kept: the rest has no use.
_MAX_ORDER = 4096


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One run's circuit.

  Attributes:
    node_mask: per site `[layers, width]` bool.
    num_nodes: nodes kept.
    num_edges: edges between them.
    calibration: fitted on validation pairs.
    validation_loss: task loss so calibrated, in nats.
    validation_accuracy_lost: to the adversary, of the whole model's; None where
      it was not asked.
    share: of its targets that it takes; at most 1 meets them all.
    order: flat indices of its nodes and of those that would come next, most
      important first.
    run: index of the run.
  """

  node_mask: dict[str, np.ndarray]
  num_nodes: int
  num_edges: int
  calibration: logit_difference_lib.Calibration
  validation_loss: float
  validation_accuracy_lost: float | None
  share: float
  order: np.ndarray
  run: int = 0

  @property
  def meets_target(self) -> bool:
    return self.share <= 1


def smallest_count(
  shares_of: Callable[[np.ndarray], np.ndarray],
  size: int,
  hint: int | None = None,
  tolerance: float = 0.0,
  around: Sequence[float] = _AROUND,
) -> int:
  """Returns the smallest number of nodes seen to meet the target.

  Sections several counts a pass, first around `hint` or evenly in the
  logarithm, then between the smallest count that met the target and the next
  smaller one tried. So it does not rest on the loss falling monotonically with
  the count. If no count tried meets the target, it returns the nearest miss.

  Args:
    shares_of: share of the target that circuits of given sizes, ascending,
      take; at most 1 meets it.
    size: the number of all nodes.
    hint: a likely count.
    tolerance: share of the count by which it may be too large.
    around: shares of the hint to try first; so many counts a pass.
  """
  if hint is None:
    counts = np.geomspace(1, size, len(around))
  else:
    counts = max(hint, 1) * np.array(around)
  low, high = 0, size + 1
  tried: dict[int, float] = {}
  while True:
    counts = np.clip(np.round(counts).astype(int), low + 1, high - 1)
    counts = np.maximum.accumulate(counts)
    shares = np.asarray(shares_of(counts))
    tried |= dict(zip(counts.tolist(), shares.tolist(), strict=True))
    meets = shares <= 1
    if meets.any():
      first = int(np.argmax(meets))
      high = int(counts[first])
      low = int(counts[first - 1]) if first else low
    else:
      low = int(counts[-1])
    if high > size:
      if low >= size:
        return min(tried, key=lambda n: (tried[n], n))
      counts = np.geomspace(low + 1, size, len(around))
      continue
    low = min(low, high - 1)
    if high - low <= max(1, tolerance * low):
      return high
    counts = np.linspace(low, high, len(around) + 2)[1:-1]


def keep_first(
  target: target_lib.Target,
  order: np.ndarray,
  hint: int | None = None,
  tolerance: float = 0.0,
) -> Candidate:
  """Keeps the first nodes of a total order that reach the target.

  Args:
    target: what they have to reach.
    order: flat node indices, most important first; others stay closed.
    hint: a likely number of nodes.
    tolerance: share of the number by which it may be too large; where each
      count costs an attack, no less than a twentieth.
  """
  evaluator = target.evaluator
  tried: dict[int, tuple[target_lib.Reached, int]] = {}

  def shares_of(counts):
    reached = target.measure(
      masks.masks_of_order(evaluator.shapes, order, counts)
    )
    tried.update({int(n): (reached, i) for i, n in enumerate(counts)})
    return reached.shares

  around = _AROUND
  if target.accuracy_lost is not None:
    around, tolerance = _AROUND_ROBUST, max(tolerance, _ROBUST_TOLERANCE)
  count = smallest_count(shares_of, len(order), hint, tolerance, around)
  return _candidate(target, order, count, *tried[count])


def keep(target: target_lib.Target, order: np.ndarray, count: int) -> Candidate:
  """Keeps the first `count` nodes of an order, whatever they reach."""
  kept = masks.masks_of_order(target.evaluator.shapes, order, [count])
  return _candidate(target, order, count, target.measure(kept), 0)


def cut(target: target_lib.Target, order: np.ndarray, count: int) -> Candidate:
  """Returns the smallest circuit found of a trained mask that reaches a target.

  Under plain ablation as many nodes of its order as that takes. A robust target
  that the mask misses is reached by growing; only where that fails does the cut
  go on along the nodes that the mask has closed.

  Args:
    target: what it has to reach, on validation prompts.
    order: flat node indices, the mask's own first.
    count: how many nodes the mask has.
  """
  if target.accuracy_lost is None:
    return keep_first(target, order, count)
  # What to open is known from one start, but only where that has been climbed
  # to its end: the first r that shows a miss leads in circles.
  brisk = dataclasses.replace(target, ends_on_miss="starts")
  candidate = keep(brisk, order, count)
  if not candidate.meets_target:
    candidate = grow(brisk, candidate, _MOST_GROWTH * count)
  if not candidate.meets_target:
    return keep_first(target, order, count)
  return shorten(target, candidate)


def shorten(target: target_lib.Target, candidate: Candidate) -> Candidate:
  """Keeps the first nodes of a robust circuit, as few as still meet its target.

  Bisects, one attack a size; those that show a miss end early. So the count
  may be too large by a twentieth, and by more where what is lost does not fall
  with the count.
  """
  order = candidate.order[: candidate.num_nodes]
  return _fewest(target, candidate, order, order[:0])


def _fewest(
  target: target_lib.Target,
  candidate: Candidate,
  optional: np.ndarray,
  needed: np.ndarray,
) -> Candidate:
  """Returns the smallest circuit seen to meet a robust target, by bisection.

  Args:
    target: the target.
    candidate: the circuit of all these nodes, which meets it.
    optional: flat indices, of which the first are kept.
    needed: flat indices, which all are.
  """
  hasty = dataclasses.replace(target, ends_on_miss="attack")
  best, low, high = candidate, 0, len(optional)
  while high - low > max(1, _ROBUST_TOLERANCE * best.num_nodes):
    middle = (low + high) // 2
    order = np.concatenate([optional[:middle], needed])
    tried = keep(hasty, order, len(order))
    if tried.meets_target:
      best, high = _behind(tried, candidate), middle
    else:
      low = middle
  return best


def grow(
  target: target_lib.Target, candidate: Candidate, most: int
) -> Candidate:
  """Opens what the adversary uses against a circuit, until it reaches a target.

  The order of the nodes that a mask has closed says little: no gate of theirs
  was trained to be kept. The attack on the circuit does: each round opens those
  that would repair most (`outside.relief`). They come first in the order, so
  that a cut begins with the mask's weakest.

  Args:
    target: what the circuit has to reach.
    candidate: the circuit.
    most: nodes at which it gives up.

  Returns:
    The circuit; a miss where nothing helps, or too much would be needed.
  """
  bar = progress.progress_bar(most, candidate.num_nodes, "growing")
  with bar:
    while not candidate.meets_target and candidate.num_nodes < most:
      relief = masks.flatten(target.relief(candidate.node_mask))
      count = max(1, round(_GROWTH * candidate.num_nodes))
      opened = np.argsort(-relief, kind="stable")[:count]
      opened = opened[relief[opened] > 0]
      if not len(opened):
        break
      before = candidate.order[: candidate.num_nodes]
      order = np.concatenate([opened, before])
      candidate = _behind(keep(target, order, len(order)), candidate)
      bar.update(len(opened))
      if candidate.meets_target:
        candidate = _fewest(target, candidate, opened, before)
  return candidate


def _candidate(target, order, count, reached, row) -> Candidate:
  """Returns the first `count` nodes, which `reached` has in that row."""
  kept = masks.masks_of_order(target.evaluator.shapes, order, [count])
  node_mask = {name: mask[0] for name, mask in kept.items()}
  lost = float(reached.accuracy_lost[row])
  return Candidate(
    node_mask=node_mask,
    num_nodes=count,
    num_edges=edges_lib.count_edges(target.evaluator.params, node_mask),
    calibration=reached.scores.calibration(row),
    validation_loss=float(reached.scores.losses[row]),
    validation_accuracy_lost=None if np.isnan(lost) else lost,
    share=float(reached.shares[row]),
    order=np.asarray(order)[:_MAX_ORDER],
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
  return 1, candidate.share, candidate.num_edges


def clean_up(
  target: target_lib.Target,
  candidate: Candidate,
  train: sequences_lib.Sequences,
) -> tuple[Candidate, list[dict[str, Any]]]:
  """Drops what the target does not need; reports the effect of each step.

  First nodes on no path from an input to the answer; what is left is cut again,
  as circuits of fewer nodes may do without those. Then, round by round, the
  least important, while the target is met. Importance is measured on training
  pairs, the target on its own. The importance of a robust circuit's nodes under
  plain ablation says little of the adversary's: there only paths count.

  Returns:
    The smaller circuit, and per step name, nodes, edges and validation losses.
  """
  steps = [_described("thresholded", candidate)]
  if not candidate.meets_target:
    return candidate, steps
  evaluator, is_robust = target.evaluator, target.accuracy_lost is not None
  order = candidate.order[: candidate.num_nodes]
  kept = _on_a_path(evaluator, candidate.node_mask, order)
  if 0 < len(kept) < len(order):
    shorter = _behind(keep(target, kept, len(kept)), candidate)
    candidate = min(candidate, shorter, key=rank)
    steps.append(_described("without nodes on no path", candidate))
    if is_robust and candidate is shorter:
      candidate = shorten(target, candidate)
      steps.append(_described("cut again", candidate))
  if is_robust or candidate.num_nodes > _MAX_SINGLY:
    return candidate, steps
  few = evaluator.on(sequences_lib.first_pairs(train, _IMPORTANCE_PAIRS))
  for _ in range(_MAX_ROUNDS):
    order = importance_order(few, candidate.node_mask, target.shifts)
    smaller = keep_first(target, order, candidate.num_nodes)
    if rank(smaller) >= rank(candidate):
      break
    candidate = _behind(smaller, candidate)
    steps.append(_described("without the least important nodes", candidate))
  return candidate, steps


def _on_a_path(evaluator, node_mask, order) -> np.ndarray:
  """Returns those of `order` that lie between an input and the answers."""
  sequences = evaluator.sequences
  connected = connectivity.on_a_path(
    evaluator.params,
    node_mask,
    evaluator.model.config.d_head,
    np.stack([sequences.correct, sequences.incorrect]),
    evaluator.model.config.parallel,
  )
  return order[masks.flatten(connected)[order]]


def _behind(smaller: Candidate, candidate: Candidate) -> Candidate:
  """Returns the smaller circuit, with the candidate's other nodes behind it."""
  rest = candidate.order[~np.isin(candidate.order, smaller.order)]
  order = np.concatenate([smaller.order, rest])
  return dataclasses.replace(smaller, order=order, run=candidate.run)


def _described(step: str, candidate: Candidate) -> dict[str, Any]:
  return {
    "step": step,
    "num_nodes": candidate.num_nodes,
    "num_edges": candidate.num_edges,
    "validation_loss": candidate.validation_loss,
    "validation_accuracy_lost": candidate.validation_accuracy_lost,
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
