"""A circuit in its model, on the prompts that every measure scores it on.

An estimate is {"value", "low", "high"}: a mean over sequences with its 90%
bootstrap interval, which resamples templates, or the files of real prompts.
Losses are in nats.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import evaluation, mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib

Mask = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
  """What a measure is a function of.

  Attributes:
    circuit: the circuit in question.
    evaluator: its model and ablation values, on test prompts; row i pairs with
      row i + S/2.
    seed: of random subsets, corruption and the bootstrap.
  """

  circuit: circuit_lib.Circuit
  evaluator: mask_evaluator.MaskEvaluator
  seed: int

  @property
  def mask(self) -> dict[str, np.ndarray]:
    """The circuit's nodes, 1 for kept, per site `[layers, width]` float32."""
    mask = self.circuit.node_mask
    return {name: np.asarray(m, np.float32) for name, m in mask.items()}

  def full_difference(self) -> np.ndarray:
    """Returns the whole model's logit differences, `[S]`."""
    return self.evaluator.logit_difference(self.evaluator.constant(1))

  def circuit_difference(self) -> np.ndarray:
    """Returns the circuit's logit differences as it is calibrated, `[S]`."""
    return self.calibrated(self.evaluator.logit_difference(self.mask))

  def calibrated(self, diff_S: np.ndarray) -> np.ndarray:
    """Returns logit differences with the circuit's scale and shift."""
    return self.circuit.calibrated(diff_S, self.evaluator.sequences)

  def on(self, sequences: sequences_lib.Sequences) -> "Context":
    """Returns the same circuit on other prompts."""
    return dataclasses.replace(self, evaluator=self.evaluator.on(sequences))

  def estimate(self, values_S: np.ndarray) -> dict[str, float]:
    """Returns a mean over the prompts with its interval."""
    return self.ratio(values_S, np.ones(len(values_S)))

  def ratio(
    self, num_S: np.ndarray, den_S: np.ndarray
  ) -> dict[str, float] | None:
    """Returns the estimate of sum(num) / sum(den), or None where den sums to 0.

    A ratio to a variance of 0 says nothing.
    """
    if not np.sum(den_S) > 0:
      return None
    groups = np.asarray(self.evaluator.sequences.groups)
    return evaluation.ratio_estimate(
      num_S, den_S, groups.tolist(), self.seed
    )._asdict()

  def score(self, diff: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns task loss and accuracy of logit differences on the prompts.

    Args:
      diff: `[S]`, or `[draws, S]`: then the mean of the draws' losses and
        accuracies, never the score of their mean diff, which is an ensemble's.
    """
    diff = np.atleast_2d(diff).astype(float)
    return {
      "loss": self.estimate(np.logaddexp(0, -diff).mean(0)),
      "accuracy": self.estimate((diff > 0).mean(0)),
    }


def make_context(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  sequences: sequences_lib.Sequences,
  seed: int,
) -> Context:
  """Returns the context of a circuit with the ablation values it stores."""
  evaluator = mask_evaluator.on_mesh(
    model, params, circuit.means, sequences, circuit.freeze_norms
  )
  return Context(circuit, evaluator, seed)
