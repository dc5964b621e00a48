"""The target: what a circuit has to reach on validation prompts to be kept.

A loss on a few templates is a loss on those templates: what counts is the upper
end of its interval when templates are resampled. A robust circuit has to stay
below a target under the worst ablation outside it as well. As that may leave
everything on, which is the whole model, this target is what the whole model
loses and the plain target on top.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.pruning import calibrate
from sparse_jax.tasks import evaluation, mask_evaluator, outside
from sparse_jax.tasks import sequences as sequences_lib

_ATTACK_PAIRS = 48


class Reached(NamedTuple):
  """What several masks reach.

  Attributes:
    scores: losses and calibrations, under plain ablation.
    robust_losses: under the adversary, not calibrated, `[masks]`; NaN where it
      was not asked.
    shares: the largest share of a target that a bound of these takes,
      `[masks]`; at most 1 meets every target.
  """

  scores: calibrate.Scores
  robust_losses: np.ndarray
  shares: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """What masks have to reach, on which prompts.

  Attributes:
    evaluator: on validation prompts.
    loss: target of the plain loss, in nats.
    robust_loss: target of the loss under the adversary; None asks for none.
    steps: the adversary's, which climbs on a part of the pairs and is scored
      there.
    shifts: whether calibrations fit a shift.
    seed: of the adversary's start.
  """

  evaluator: mask_evaluator.MaskEvaluator
  loss: float
  robust_loss: float | None = None
  steps: int = 40
  shifts: bool = False
  seed: int = 0

  @classmethod
  def of(
    cls,
    config: config_lib.PruneConfig,
    evaluator: mask_evaluator.MaskEvaluator,
    seed: int,
  ) -> "Target":
    """Returns the target that the config states."""
    robust_loss = None
    if config.ablation_outside != "plain":
      full = evaluator.task_loss(evaluator.constant(1))
      robust_loss = config.target_per_side + full
    return cls(
      evaluator,
      config.target_per_side,
      robust_loss,
      config.outside_steps,
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
    shares = _bounds(self.evaluator, scores.diffs) / self.loss
    robust = np.full(len(shares), np.nan)
    if self.robust_loss is not None:
      few = self.evaluator.on(
        sequences_lib.spread_pairs(self.evaluator.sequences, _ATTACK_PAIRS)
      )
      for i in range(len(shares)):
        mask = {name: m[i] for name, m in masks.items()}
        found = outside.attack(few, mask, "uniform", self.steps, self.seed)
        diff_S = found.differences
        robust[i] = np.mean(np.logaddexp(0, -diff_S))
        bound = _bounds(few, diff_S[None])[0]
        shares[i] = max(shares[i], bound / self.robust_loss)
    return Reached(scores, robust, shares)


def _bounds(
  evaluator: mask_evaluator.MaskEvaluator, diffs_MxS: np.ndarray
) -> np.ndarray:
  """Returns the upper ends of the losses' 90% intervals over templates."""
  groups = np.asarray(evaluator.sequences.groups).tolist()
  ones_S = np.ones(len(groups))
  bound = lambda loss_S: evaluation.ratio_estimate(loss_S, ones_S, groups, 0)
  losses_MxS = np.logaddexp(0, -diffs_MxS)
  return np.array([bound(loss_S).high for loss_S in losses_MxS])
