"""The logit difference of a task's two answers, and the loss made of it."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparse_jax.model import transformer
from sparse_jax.tasks.sequences import Sequences


def logit_difference(
  model: transformer.Model,
  params: transformer.Params,
  sequences: Sequences,
  hook: transformer.Hook | None = None,
) -> jax.Array:
  """Returns the correct answer's logit minus the incorrect one's, `[S]`.

  Only one position and two tokens are unembedded, and the last layer computes
  for that position alone what the others do not read (`Model.residual`).
  """
  chex.assert_rank(sequences.tokens, 2)
  positions_S = sequences.positions
  x_Sx1xD = model.residual(params, sequences.tokens, hook, positions_S)
  chex.assert_axis_dimension(x_Sx1xD, 1, 1)
  last_S = sequences.tokens[jnp.arange(len(positions_S)), positions_S]
  answers_Sx2 = jnp.stack([sequences.correct, sequences.incorrect], -1)
  logits_Sx2 = model.unembed(params, x_Sx1xD[:, 0], last_S, answers_Sx2)
  return logits_Sx2[:, 0] - logits_Sx2[:, 1]


def task_loss(diff_S: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
  """Returns the mean cross-entropy of the two answers over sides, in nats.

  The released files hold its sum over both sides.
  """
  return jnp.mean(jax.nn.softplus(-scale * diff_S))


def task_accuracy(diff_S: jax.Array) -> jax.Array:
  """Returns the share of sides whose correct answer has the larger logit."""
  return jnp.mean(diff_S > 0)


def answer_sign(correct_S: jax.Array, incorrect_S: jax.Array) -> jax.Array:
  """Returns 1 where the correct answer is the token of lower id, else -1."""
  return jnp.where(correct_S < incorrect_S, 1.0, -1.0)


class Calibration(NamedTuple):
  """What is fitted to the logits."""

  scale: jax.Array | float = 1.0  # Of all logits.
  shift: jax.Array | float = 0.0  # Nats, for the answer of lower token id.


def calibrate(
  diff_S: jax.Array, sign_S: jax.Array, calibration: Calibration
) -> jax.Array:
  """Returns calibrated differences, `[S]`: scale * diff + sign * shift."""
  return calibration.scale * diff_S + calibration.shift * sign_S
