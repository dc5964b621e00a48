"""The target: what a circuit has to reach on validation prompts to be kept.

A loss on a few templates is a loss on those templates: what counts is the upper
end of its interval when templates are resampled. A robust circuit may also lose
little accuracy to the worst ablation outside it. That is its 0-1 loss: under an
adversary the mean of the cross-entropy is decided by the few prompts that go
wrong most confidently, and the whole model's own may be above the target.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.pruning import calibrate
from sparse_jax.tasks import evaluation, mask_evaluator, outside
from sparse_jax.tasks import sequences as sequences_lib

_ATTACK_PAIRS = 96


class Reached(NamedTuple):
  """What several masks reach.

  Attributes:
    scores: losses and calibrations, under plain ablation.
    accuracy_lost: to the adversary, not calibrated, `[masks]`; NaN where it was
      not asked.
    shares: the largest share of a target that a bound of these takes,
      `[masks]`; at most 1 meets every target.
  """

  scores: calibrate.Scores
  accuracy_lost: np.ndarray
  shares: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """What masks have to reach, on which prompts.

  Attributes:
    evaluator: on validation prompts.
    loss: target of the plain loss, in nats.
    accuracy_lost: to the adversary, of the whole model's; None asks for none.
    steps: the adversary's, which climbs on a part of the pairs and is scored
      there.
    stride: length of each of them.
    shifts: whether calibrations fit a shift.
    seed: of the adversary's start.
    ends_on_miss: what ends as soon as an attack shows a miss: "attack" all of
      it, "starts" the list of its starts, once one is climbed to its end. A
      miss is cheaper then, and says less of how near it is. "" ends nothing.
  """

  evaluator: mask_evaluator.MaskEvaluator
  loss: float
  accuracy_lost: float | None = None
  steps: int = 12
  stride: float = 0.5
  shifts: bool = False
  seed: int = 0
  ends_on_miss: Literal["", "starts", "attack"] = ""

  @classmethod
  def of(
    cls,
    config: config_lib.PruneConfig,
    evaluator: mask_evaluator.MaskEvaluator,
    seed: int,
  ) -> "Target":
    """Returns the share of its targets that the config allows a circuit."""
    lost = config.target_share * config.target_accuracy_lost
    return cls(
      evaluator,
      config.target_share * config.target_per_side,
      None if config.ablation_outside == "plain" else lost,
      config.outside_steps,
      config.outside_stride,
      config.shift_answers,
      seed,
    )

  def on(self, sequences: sequences_lib.Sequences) -> "Target":
    """Returns the same target on other prompts."""
    return dataclasses.replace(self, evaluator=self.evaluator.on(sequences))

  def measure(
    self, masks: Mapping[str, Any], edge_masks: Mapping[str, Any] | None = None
  ) -> Reached:
    """Returns what masks reach.

    `masks`, `edge_masks` are those of `MaskEvaluator.logit_differences`.
    """
    scores = calibrate.score_masks(
      self.evaluator, masks, self.shifts, edge_masks
    )
    losses_MxS = np.logaddexp(0, -scores.diffs)
    shares = _bounds(self.evaluator, losses_MxS) / self.loss
    lost_M = np.full(len(shares), np.nan)
    if self.accuracy_lost is not None:
      lost_MxS = np.stack(
        [
          self._lost(
            self._attack({n: m[i] for n, m in masks.items()}).differences
          )
          for i in range(len(shares))
        ]
      )
      lost_M = np.mean(lost_MxS, 1)
      shares = np.maximum(shares, self._shares_lost(lost_MxS))
    return Reached(scores, lost_M, shares)

  def relief(self, mask: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns `outside.relief` under the adversary of this target."""
    return outside.relief(self._attacked, mask, self._attack(mask))

  def _attack(self, mask: Mapping[str, Any]) -> outside.Attack:
    """Returns the worst attack on a mask from all starts, made once."""
    kept = b"".join(np.packbits(np.asarray(mask[n]) > 0) for n in sorted(mask))
    if kept not in self._attacks:
      self._attacks[kept] = max(
        self._ascents(mask), key=lambda found: self._cost(found.differences)
      )
    return self._attacks[kept]

  def _ascents(self, mask: Mapping[str, Any]) -> Iterator[outside.Attack]:
    """Yields an attack from each start, until one is enough."""
    misses = lambda diff_S: self._cost(diff_S) > 1
    never = lambda diff_S: False
    for start in outside.STARTS:
      found = outside.attack(
        self._attacked,
        mask,
        start,
        self.steps,
        self.seed,
        self.stride,
        is_enough=misses if self.ends_on_miss == "attack" else never,
      )
      yield found
      if self.ends_on_miss and misses(found.differences):
        return

  def _cost(self, diff_S: np.ndarray) -> float:
    """Returns the share of the accuracy lost that these differences take."""
    return float(self._shares_lost(self._lost(diff_S)[None])[0])

  def _shares_lost(self, lost_MxS: np.ndarray) -> np.ndarray:
    """Returns the share of the accuracy that may be lost, `[masks]`."""
    return _bounds(self._attacked, lost_MxS) / self.accuracy_lost

  @functools.cached_property
  def _attacks(self) -> dict[bytes, outside.Attack]:
    """Attacks by mask: cuts measure circuits again that growing has left."""
    return {}

  def _lost(self, diff_S: np.ndarray) -> np.ndarray:
    """Returns what an attack costs on each prompt: 1, 0 or -1, `[S]`."""
    return self._is_right - (diff_S > 0)

  @functools.cached_property
  def _is_right(self) -> np.ndarray:
    """Which of those prompts the whole model answers rightly, 0 or 1."""
    full = self._attacked.constant(1)
    return (self._attacked.logit_difference(full) > 0).astype(int)

  @functools.cached_property
  def _attacked(self) -> mask_evaluator.MaskEvaluator:
    """The evaluator on the pairs that the adversary climbs on."""
    pairs = sequences_lib.spread_pairs(self.evaluator.sequences, _ATTACK_PAIRS)
    return self.evaluator.on(pairs)


def _bounds(
  evaluator: mask_evaluator.MaskEvaluator, values_MxS: np.ndarray
) -> np.ndarray:
  """Returns the upper ends of the means' 90% intervals over templates."""
  groups = np.asarray(evaluator.sequences.groups).tolist()
  ones_S = np.ones(len(groups))
  bound = lambda x_S: evaluation.ratio_estimate(x_S, ones_S, groups, 0).high
  return np.array([bound(x_S) for x_S in values_MxS])
