"""A circuit in its model: what it does alone, and what is left without it.

Every figure is a mean over sequences with a 90% bootstrap interval over pairs
(`evaluate.score_diffs`): {"value", "low", "high"}. Losses are in nats.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib

_NUM_RANDOM = 8
_RESAMPLES = 2000
_CORRUPTED_SHARE = 0.15

Gates = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A circuit in its model, with the prompts it is examined on.

  Attributes:
    model: the model it was cut from.
    params: its parameters.
    circuit: the circuit.
    means: by ablation, its values per gated site `[layers, width]`.
    test: test pairs as sequences; row i pairs with row i + S/2.
    seed: of random subsets, corruption and the bootstrap.
  """

  model: transformer.Model
  params: transformer.Params
  circuit: circuit_lib.Circuit
  means: Mapping[str, Mapping[str, Any]]
  test: sequences_lib.Sequences
  seed: int

  @property
  def gates(self) -> dict[str, np.ndarray]:
    """The circuit's nodes, 1 for kept, per site `[layers, width]` float32."""
    mask = self.circuit.node_mask
    return {name: np.asarray(m, np.float32) for name, m in mask.items()}

  @property
  def own_means(self) -> Mapping[str, Any]:
    """The ablation values that the circuit itself stores."""
    return self.circuit.means

  @property
  def calibration(self) -> logit_difference_lib.Calibration:
    """What was fitted to the circuit's logits."""
    shift = self.circuit.details.get("answer_shift", 0.0)
    return logit_difference_lib.Calibration(self.circuit.logit_scale, shift)

  @functools.cached_property
  def _gated_diff(self):
    return jax.jit(
      lambda params, gates, means, sequences: (
        logit_difference_lib.logit_difference(
          self.model,
          params,
          sequences,
          self.hook(params, sequences, gates, means),
        )
      )
    )

  def hook(
    self,
    params: transformer.Params,
    sequences: sequences_lib.Sequences,
    gates: hooks.SiteArrays,
    means: hooks.SiteArrays,
  ) -> transformer.Hook:
    """Returns the hook of these gates; arguments are traced, inside a jit."""
    return hooks.circuit_hook(
      self.model,
      params,
      sequences.tokens,
      sequences.positions,
      gates,
      means,
      self.circuit.freeze_norms,
    )

  def diff(
    self,
    gates: Gates,
    means=None,
    sequences: sequences_lib.Sequences | None = None,
  ) -> np.ndarray:
    """Returns logit differences with these gates, uncalibrated, `[S]`."""
    means = self.own_means if means is None else means
    means = {name: jnp.asarray(means[name]) for name in gates}
    gates = {name: jnp.asarray(g, jnp.float32) for name, g in gates.items()}
    sequences = sequences or self.test
    return np.asarray(self._gated_diff(self.params, gates, means, sequences))

  def calibrated(
    self,
    diff: np.ndarray,
    sequences: sequences_lib.Sequences | None = None,
  ) -> np.ndarray:
    """Returns diffs with the circuit's scale and shift."""
    s = sequences or self.test
    sign = np.asarray(logit_difference_lib.answer_sign(s.correct, s.incorrect))
    return np.asarray(
      logit_difference_lib.calibrate(diff, sign, self.calibration)
    )

  def full_difference(
    self, sequences: sequences_lib.Sequences | None = None
  ) -> np.ndarray:
    """Returns the whole model's logit differences, `[S]`."""
    ones = {name: np.ones_like(g) for name, g in self.gates.items()}
    return self.diff(ones, sequences=sequences)


def estimate(values: np.ndarray, groups, seed: int) -> dict[str, float]:
  """Returns a mean with its bootstrap interval over groups."""
  found = evaluation.mean_estimate(np.asarray(values, float), groups, seed)
  return {"value": found.value, "low": found.low, "high": found.high}


def pair_groups(count: int) -> np.ndarray:
  """Returns which pair each of `count` sequences belongs to."""
  return np.tile(np.arange(count // 2), 2)


def ratio(num_S: np.ndarray, den_S: np.ndarray, seed: int):
  """Returns sum(num) / sum(den) with its 90% interval over pairs, or None.

  None where nothing varies: a ratio to 0 says nothing.
  """
  if not np.sum(den_S) > 0:
    return None
  half = len(num_S) // 2
  num_P, den_P = (x[:half] + x[half:] for x in (num_S, den_S))
  times_RxP = np.random.default_rng(seed).multinomial(
    half, np.full(half, 1 / half), _RESAMPLES
  )
  den_R = times_RxP @ den_P
  drawn = (times_RxP @ num_P)[den_R > 0] / den_R[den_R > 0]
  low, high = np.quantile(drawn, [0.05, 0.95])
  value = np.sum(num_S) / np.sum(den_S)
  return {"value": float(value), "low": float(low), "high": float(high)}


def score(diff: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
  """Returns task loss and accuracy of logit differences over pairs.

  Args:
    diff: `[S]`, or `[draws, S]`: then the mean of the draws' losses and
      accuracies, never the score of their mean diff, which is an ensemble's.
    seed: of the bootstrap.
  """
  diff = np.atleast_2d(diff).astype(float)
  groups = pair_groups(diff.shape[1])
  return {
    "loss": estimate(np.logaddexp(0, -diff).mean(0), groups, seed),
    "accuracy": estimate((diff > 0).mean(0), groups, seed),
  }


def random_circuit(gates: Gates, seed: int) -> dict[str, np.ndarray]:
  """Returns gates with as many random nodes in every site and layer."""
  rng = np.random.default_rng(seed)
  return {name: rng.permuted(g, axis=1) for name, g in gates.items()}


def sufficiency_and_necessity(subject: Subject) -> dict[str, Any]:
  """Returns, by ablation, scores of circuit, of model without it, of controls.

  The model without a random circuit of the same sites and sizes has to keep
  what the model without the circuit loses (Wang et al. 2022, "Interpretability
  in the wild": faithfulness and completeness).
  """
  gates = subject.gates
  without = {name: 1 - g for name, g in gates.items()}
  result = {}
  for ablation, means in subject.means.items():
    own = ablation == subject.circuit.ablation
    diff = subject.diff(gates, means)
    random = [
      subject.diff(
        {
          name: 1 - g
          for name, g in random_circuit(gates, subject.seed + i).items()
        },
        means,
      )
      for i in range(_NUM_RANDOM)
    ]
    # Other ablations move the logits' scale: what was fitted is for its own.
    result[ablation] = {
      "circuit": score(subject.calibrated(diff) if own else diff, subject.seed),
      "without_circuit": score(subject.diff(without, means), subject.seed),
      "without_random_circuit": score(np.stack(random), subject.seed),
    }
  result["full_model"] = score(subject.full_difference(), subject.seed)
  return result


def _binary_kl(diff_p: np.ndarray, diff_q: np.ndarray) -> np.ndarray:
  """Returns KL(p || q) of two-answer distributions, in nats, `[S]`."""
  p = 1 / (1 + np.exp(-diff_p.astype(float)))
  log_p, log_not_p = -np.logaddexp(0, -diff_p), -np.logaddexp(0, diff_p)
  log_q, log_not_q = -np.logaddexp(0, -diff_q), -np.logaddexp(0, diff_q)
  return p * (log_p - log_q) + (1 - p) * (log_not_p - log_not_q)


def corrupted(
  sequences: sequences_lib.Sequences, vocab_size: int, seed: int
) -> sequences_lib.Sequences:
  """Returns the prompts with a share of their tokens drawn at random."""
  rng = np.random.default_rng(seed)
  tokens = np.asarray(sequences.tokens)
  drawn = rng.integers(0, vocab_size, tokens.shape)
  changed = rng.random(tokens.shape) < _CORRUPTED_SHARE
  return sequences._replace(
    tokens=jnp.asarray(np.where(changed, drawn, tokens), jnp.int32)
  )


def agreement(
  subject: Subject,
  prompts: Mapping[str, sequences_lib.Sequences],
  groups: Mapping[str, Sequence[Hashable]] | None = None,
) -> dict[str, Any]:
  """Returns how far the circuit answers as the model does, labels aside.

  Per set of prompts: KL(p || q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q))
  of the model's and the circuit's probability of the right one of the two
  answers, in nats, and the share of prompts on which both prefer the same
  answer (Conmy et al. 2023, "Towards automated circuit discovery", judge
  circuits by the KL to the model).

  Args:
    subject: the circuit in its model.
    prompts: named sets of sequences.
    groups: by name, labels of what the bootstrap resamples together, such as
      files; pairs where nothing is said.
  """
  result = {}
  for name, sequences in prompts.items():
    full = subject.full_difference(sequences)
    diff = subject.calibrated(
      subject.diff(subject.gates, None, sequences), sequences
    )
    alike = (groups or {}).get(name)
    alike = pair_groups(len(full)) if alike is None else alike
    result[name] = {
      "num_prompts": len(full),
      "kl": estimate(_binary_kl(full, diff), alike, subject.seed),
      "agreement": estimate((full > 0) == (diff > 0), alike, subject.seed),
    }
  return result
