"""Whether a model does a task well enough for its circuit to mean anything.

Where the whole model is far above the target loss, a mask that reaches it was
fitted to the labels and says nothing of how the model computes.
"""

import dataclasses

# Correct on nine sides in ten: half of what lies between chance and always, and
# more, is the model's own doing, and not a side that it always prefers.
MIN_ACCURACY = 0.9
# A model correct on nine sides in ten and equally sure of each has a loss of
# 0.325 nats at best: about twice the paper's target of 0.15.
MAX_LOSS_OVER_TARGET = 2.0


@dataclasses.dataclass(frozen=True)
class LearnedCheck:
  """A full model's score on a task, held against what pruning requires.

  Losses are in nats, means over both sides; circuits are pruned to the target.
  """

  loss: float
  accuracy: float
  target_loss: float

  @property
  def max_loss(self) -> float:
    return MAX_LOSS_OVER_TARGET * self.target_loss

  @property
  def min_accuracy(self) -> float:
    return MIN_ACCURACY

  @property
  def learned(self) -> bool:
    return not self.reasons

  @property
  def reasons(self) -> tuple[str, ...]:
    """What speaks against pruning; empty if nothing does."""
    reasons = []
    # Negated, so that NaN does not pass.
    if not self.accuracy >= self.min_accuracy:
      low = f"accuracy {self.accuracy:.3f}, below {self.min_accuracy:g}"
      reasons.append(low)
    if not self.loss <= self.max_loss:
      reasons.append(f"loss {self.loss:.3f}, above {self.max_loss:g}")
    return tuple(reasons)
