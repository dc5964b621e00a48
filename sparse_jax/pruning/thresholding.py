"""From trained masks to a circuit: order the nodes, keep as many as it takes.

Everything here asks one question of many masks at a time: what is the task loss
if only these nodes are kept? `Judge` answers it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import calibrate, connectivity
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib

_MASKS_PER_CALL = 8
_IMPORTANCE_PAIRS = 32
# Larger circuits are not taken apart node by node: they are no circuits yet.
_MAX_SINGLY = 400
# Around the number of open gates, where the answer usually is.
_AROUND = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.3, 2.0)


class Scores(NamedTuple):
  """What several masks reach, each with a calibration of its own.

  Attributes:
    losses: task loss in nats, `[masks]`.
    diffs: calibrated logit differences, `[masks, S]`.
    calibrations: each field `[masks]`.
  """

  losses: jax.Array
  diffs: jax.Array
  calibrations: logit_difference_lib.Calibration


def score_masks(
  model: transformer.Model,
  shifts: bool,
  freeze_norms: bool,
  params: transformer.Params,
  means: hooks.SiteArrays,
  masks: hooks.SiteArrays,
  sequences: sequences_lib.Sequences,
) -> Scores:
  """Returns the scores of several masks.

  Args:
    model: the model.
    shifts: whether the calibration fits a shift.
    freeze_norms: see `prune.circuit_hook`.
    params: its parameters.
    means: ablation values, per site `[layers, width]`.
    masks: per site `[masks, layers, width]`.
    sequences: what the calibration is fitted and the loss measured on.
  """

  def diff_of(mask):
    hook = hooks.circuit_hook(
      model,
      params,
      sequences.tokens,
      sequences.positions,
      mask,
      means,
      freeze_norms,
    )
    return logit_difference_lib.logit_difference(model, params, sequences, hook)

  return score_diffs(jax.lax.map(diff_of, masks), sequences, shifts)


def score_diffs(
  diffs_MxS: jax.Array, sequences: sequences_lib.Sequences, shifts: bool
) -> Scores:
  """Returns the scores of rows of logit differences, each row calibrated."""
  sign_S = logit_difference_lib.answer_sign(
    sequences.correct, sequences.incorrect
  )

  def one(diff_S):
    found = calibrate.fit(diff_S, sign_S, shifts)
    diff_S = logit_difference_lib.calibrate(diff_S, sign_S, found)
    return Scores(logit_difference_lib.task_loss(diff_S), diff_S, found)

  return jax.vmap(one)(diffs_MxS)


@functools.partial(jax.jit, static_argnames=("model", "shifts", "freeze_norms"))
def _jitted_score_masks(model, shifts, freeze_norms, *args):
  return score_masks(model, shifts, freeze_norms, *args)


@dataclasses.dataclass(frozen=True)
class Judge:
  """Measures masks of one task, a few a call so that one program serves all.

  Attributes:
    model: the model.
    params: its parameters.
    means: ablation values, per site `[layers, width]`.
    shifts: whether calibrations fit a shift.
    sequences: what calibrations are fitted and losses measured on.
    freeze_norms: see `prune.circuit_hook`.
  """

  model: transformer.Model
  params: transformer.Params
  means: hooks.SiteArrays
  shifts: bool
  sequences: sequences_lib.Sequences
  freeze_norms: bool = False

  def hook(
    self,
    params: transformer.Params,
    sequences: sequences_lib.Sequences,
    gates: hooks.SiteArrays,
    means: hooks.SiteArrays,
  ) -> transformer.Hook:
    """Returns the hook of a circuit; arguments are traced, inside a jit."""
    return hooks.circuit_hook(
      self.model,
      params,
      sequences.tokens,
      sequences.positions,
      gates,
      means,
      self.freeze_norms,
    )

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Per gated site `(layers, width)`, in the order of flat indices."""
    return {n: self.means[n].shape for n in masks_lib.in_order(self.means)}

  def __call__(
    self, masks: hooks.SiteArrays
  ) -> tuple[np.ndarray, list[logit_difference_lib.Calibration]]:
    """Returns losses `[masks]` and calibrations of per site `[masks, …]`."""
    found = self.scores(masks)
    pairs = zip(*found.calibrations, strict=True)
    return found.losses, [
      logit_difference_lib.Calibration(float(a), float(b)) for a, b in pairs
    ]

  def scores(self, masks: hooks.SiteArrays) -> Scores:
    """Returns the scores of per site `[masks, …]`, on the host."""
    total = len(next(iter(masks.values())))
    parts = []
    for start in range(0, total, _MASKS_PER_CALL):
      stop = start + _MASKS_PER_CALL
      rows = np.resize(np.arange(start, min(total, stop)), _MASKS_PER_CALL)
      part = {name: np.asarray(mask)[rows] for name, mask in masks.items()}
      parts.append(
        _jitted_score_masks(
          self.model,
          self.shifts,
          self.freeze_norms,
          self.params,
          self.means,
          part,
          self.sequences,
        )
      )
    flat = lambda *leaves: np.concatenate([np.asarray(x) for x in leaves])
    return jax.tree.map(lambda *leaves: flat(*leaves)[:total], *parts)

  def on(self, sequences: sequences_lib.Sequences) -> "Judge":
    """Returns a judge by these sequences."""
    return dataclasses.replace(self, sequences=sequences)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One run's discretised circuit.

  Attributes:
    node_mask: per site `[layers, width]` bool.
    num_nodes: nodes kept.
    num_edges: edges between them.
    calibration: fitted on validation pairs.
    loss: validation task loss so calibrated, in nats.
    meets_target: whether `loss` is at most the target.
    order: flat indices of its nodes and of those that would come next, most
      needed first.
    sizes: `{count: loss}` of every size tried.
    run: index of the run.
  """

  node_mask: dict[str, np.ndarray]
  num_nodes: int
  num_edges: int
  calibration: logit_difference_lib.Calibration
  loss: float
  meets_target: bool
  order: np.ndarray
  sizes: dict[int, float]
  run: int = 0


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
    counts = np.geomspace(1, size, _MASKS_PER_CALL)
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
      counts = np.geomspace(low + 1, size, _MASKS_PER_CALL)
      continue
    low = min(low, high - 1)
    if high - low <= max(1, tolerance * low):
      return high
    counts = np.linspace(low, high, _MASKS_PER_CALL + 2)[1:-1]


def keep_first(
  judge: Judge,
  order: np.ndarray,
  target: float,
  hint: int | None = None,
  tolerance: float = 0.0,
) -> Candidate:
  """Keeps the first nodes of a total order that reach the target.

  Args:
    judge: measures masks.
    order: flat node indices, most needed first; nodes left out stay closed.
    target: in nats, mean over both sides.
    hint: a likely number of nodes.
    tolerance: share of the number by which it may be too large.
  """
  seen: dict[int, tuple[float, logit_difference_lib.Calibration]] = {}

  def losses_of(counts):
    losses, found = judge(masks_lib.masks_of_order(judge.shapes, order, counts))
    for count, loss, calibration in zip(counts, losses, found, strict=True):
      seen[int(count)] = float(loss), calibration
    return losses

  count = smallest_count(losses_of, len(order), target, hint, tolerance)
  loss, calibration = seen[count]
  masks = masks_lib.masks_of_order(judge.shapes, order, [count])
  node_mask = {name: mask[0] for name, mask in masks.items()}
  return Candidate(
    node_mask=node_mask,
    num_nodes=count,
    num_edges=edges_lib.count_edges(judge.params, node_mask),
    calibration=calibration,
    loss=loss,
    meets_target=loss <= target,
    order=np.asarray(order)[: max(256, 2 * count)],
    sizes={n: seen[n][0] for n in sorted(seen)},
  )


def flat_nodes(node_mask: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the kept nodes as flat indices, as `prune.node_order` does."""
  names = masks_lib.in_order(node_mask)
  return np.flatnonzero(np.concatenate([np.ravel(node_mask[n]) for n in names]))


def leave_one_out(
  judge: Judge, node_mask: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Scores]:
  """Returns a circuit's nodes as flat indices, and the scores without each.

  The calibration is fitted again each time.
  """
  nodes = flat_nodes(node_mask)
  shapes = {n: node_mask[n].shape for n in masks_lib.in_order(node_mask)}
  flat = np.concatenate([np.ravel(node_mask[n]) for n in shapes])
  without = np.repeat(flat[None], len(nodes), 0)
  without[np.arange(len(nodes)), nodes] = False
  return nodes, judge.scores(masks_lib.unflatten(shapes, without))


def importance_order(
  judge: Judge, node_mask: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns a circuit's nodes, as flat indices, by what each one is worth.

  A node's worth is the loss of the circuit without it: exact leave-one-out. τ
  is a poorer guide among the last nodes: it saturates, and masks are trained
  for a cost per node and not for a target.
  """
  nodes, without = leave_one_out(judge, node_mask)
  return nodes[np.argsort(-without.losses, kind="stable")]


def rank(candidate: Candidate) -> tuple[Any, ...]:
  """Returns what candidates are compared by; less is better.

  The fewest edges that meet the target; a miss comes after every hit, the
  nearest first.
  """
  if candidate.meets_target:
    return 0, candidate.num_edges, candidate.num_nodes
  return 1, candidate.loss, candidate.num_edges


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
  """Returns the first of least `rank`."""
  return min(candidates, key=rank)


def clean_up(
  judge: Judge,
  candidate: Candidate,
  target: float,
  d_head: int,
  train: sequences_lib.Sequences,
  max_rounds: int = 3,
) -> tuple[Candidate, list[dict[str, Any]]]:
  """Drops what the target does not need; reports the effect of each step.

  First nodes on no path from an input to the answer, then, round by round,
  those that are worth least, while the target is met. Worth is measured on
  training pairs, the target on the judge's.

  Args:
    judge: measures masks.
    candidate: what discretising left.
    target: in nats, mean over both sides.
    d_head: width of a head.
    train: training pairs.
    max_rounds: rounds of dropping by worth.

  Returns:
    The smaller circuit, and per step name, nodes, edges and validation loss.
  """
  steps = [_described("discretised", candidate)]
  if not candidate.meets_target:
    return candidate, steps
  answers = np.stack([judge.sequences.correct, judge.sequences.incorrect])
  connected = connectivity.on_a_path(
    judge.params, candidate.node_mask, d_head, answers
  )
  order = candidate.order[: candidate.num_nodes]
  kept = order[np.isin(order, flat_nodes(connected))]
  if 0 < len(kept) < len(order):
    shorter = keep_first(judge, kept, target, len(kept))
    candidate = best_candidate([candidate, shorter])
  steps.append(_described("without nodes on no path", candidate))
  num_pairs = len(train.tokens) // 2
  few = min(_IMPORTANCE_PAIRS, num_pairs)
  rows = np.r_[0:few, num_pairs : num_pairs + few]
  some = sequences_lib.Sequences(*(x[rows] for x in train))
  for _ in range(max_rounds if candidate.num_nodes <= _MAX_SINGLY else 0):
    worth = importance_order(judge.on(some), candidate.node_mask)
    smaller = keep_first(judge, worth, target, candidate.num_nodes)
    if rank(smaller) >= rank(candidate):
      break
    candidate = dataclasses.replace(
      smaller, sizes=candidate.sizes | smaller.sizes, run=candidate.run
    )
    steps.append(_described("without what is worth least", candidate))
  return candidate, steps


def _described(step: str, candidate: Candidate) -> dict[str, Any]:
  return {
    "step": step,
    "num_nodes": candidate.num_nodes,
    "num_edges": candidate.num_edges,
    "validation_loss": candidate.loss,
  }


def size_curve(
  judge: Judge, order: np.ndarray, targets: Sequence[float], num_sizes: int = 32
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Returns loss against size along an order, and sizes at several targets.

  Args:
    judge: measures masks.
    order: flat node indices, most needed first.
    targets: in nats.
    num_sizes: how many sizes, evenly in the logarithm.

  Returns:
    `[{num_nodes, num_edges, validation_loss}]` by size, and the smallest of
    them at each target, `[{target_loss, num_nodes, num_edges}]`, None where
    none meets it.
  """
  if not len(order):
    nothing = {"num_nodes": None, "num_edges": None}
    return [], [{"target_loss": float(t), **nothing} for t in targets]
  counts = np.unique(
    np.round(np.geomspace(1, len(order), num_sizes)).astype(int)
  )
  masks = masks_lib.masks_of_order(judge.shapes, order, counts)
  losses, _ = judge(masks)

  def edges(count):
    mask = masks_lib.masks_of_order(judge.shapes, order, [count])
    return edges_lib.count_edges(
      judge.params, {name: m[0] for name, m in mask.items()}
    )

  curve = [
    {
      "num_nodes": int(n),
      "num_edges": edges(n),
      "validation_loss": float(loss),
    }
    for n, loss in zip(counts, losses, strict=True)
  ]
  reached = []
  for target in targets:
    sizes = [p for p in curve if p["validation_loss"] <= target]
    smallest = sizes[0] if sizes else {}
    reached.append(
      {
        "target_loss": float(target),
        "num_nodes": smallest.get("num_nodes"),
        "num_edges": smallest.get("num_edges"),
      }
    )
  return curve, reached


def jnp_mask(node_mask: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Returns a mask as device arrays."""
  return {name: jnp.asarray(mask) for name, mask in node_mask.items()}
