"""Agreement: whether the circuit answers as the model does, labels aside."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax.faithfulness import context as context_lib
from sparse_jax.tasks import sequences as sequences_lib

_CORRUPTED_SHARE = 0.15


def agreement(
  context: context_lib.Context,
  prompts: Mapping[str, sequences_lib.Sequences],
) -> dict[str, Any]:
  """Returns how far the circuit answers as the model does, by set of prompts.

  `kl`: KL(p || q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of the
  model's and the circuit's probability of the correct one of the two answers,
  in nats (Conmy et al. 2023, "Towards automated circuit discovery", score
  circuits by the KL to the model). `agreement`: the share of prompts on which
  both prefer the same answer.

  Args:
    context: of the circuit.
    prompts: named sets of sequences.
  """
  result = {}
  for name, sequences in prompts.items():
    here = context.on(sequences)
    full_S, circuit_S = here.full_difference(), here.circuit_difference()
    same_S = (full_S > 0) == (circuit_S > 0)
    result[name] = {
      "num_prompts": len(full_S),
      "kl": here.estimate(binary_kl(full_S, circuit_S)),
      "agreement": here.estimate(same_S),
    }
  return result


def binary_kl(diff_p_S: np.ndarray, diff_q_S: np.ndarray) -> np.ndarray:
  """Returns KL(p || q) of two-answer distributions, in nats, `[S]`."""
  p = 1 / (1 + np.exp(-diff_p_S.astype(float)))
  log_p, log_not_p = -np.logaddexp(0, -diff_p_S), -np.logaddexp(0, diff_p_S)
  log_q, log_not_q = -np.logaddexp(0, -diff_q_S), -np.logaddexp(0, diff_q_S)
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
