"""Whether a model does a task well enough for its circuit to mean anything.

Pruning to a target loss looks for a part of the model that reaches it. Where
the whole model is far above it, a mask that reaches it was fitted to the
labels: it says nothing of how the model computes (nonsense labels can be
fitted, too).
"""

import dataclasses

# Right on nine sides in ten: half of what lies between chance and always, and
# more, is the model's own doing, and not a side that it always prefers.
MIN_ACCURACY = 0.9
# A model right on nine sides in ten and equally sure of each has a loss of
# 0.325 nats at best: about twice the paper's target of 0.15.
MAX_LOSS_OVER_TARGET = 2.0


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A full model's task figures, held against the gate.

  Attributes:
    loss: the full model's task loss, in nats, mean over both sides.
    accuracy: the share of sides whose right answer has the larger logit.
    max_loss: largest loss that passes.
    min_accuracy: smallest accuracy that passes.
  """

  loss: float
  accuracy: float
  max_loss: float
  min_accuracy: float

  @property
  def learned(self) -> bool:
    """Whether the task may be pruned."""
    return not self.reasons

  @property
  def reasons(self) -> tuple[str, ...]:
    """What speaks against pruning; empty if nothing does."""
    reasons = []
    # Negated, so that NaN does not pass.
    if not self.accuracy >= self.min_accuracy:
      reasons.append(
        f"accuracy {self.accuracy:.3f}, below {self.min_accuracy:g}"
      )
    if not self.loss <= self.max_loss:
      reasons.append(f"loss {self.loss:.3f}, above {self.max_loss:g}")
    return tuple(reasons)


def judge(loss: float, accuracy: float, target_loss: float) -> Verdict:
  """Returns whether a full model does a task well enough to be pruned for it.

  Args:
    loss: the full model's task loss, in nats, mean over both sides.
    accuracy: its accuracy, from 0 to 1.
    target_loss: what circuits are pruned to, in nats, mean over both sides
      (`PruneConfig.target_per_side`).
  """
  return Verdict(
    loss=float(loss),
    accuracy=float(accuracy),
    max_loss=MAX_LOSS_OVER_TARGET * target_loss,
    min_accuracy=MIN_ACCURACY,
  )
