"""Calibration: the scale, and if asked a shift, of a circuit's logits.

Pruning shrinks logits, so a circuit is scored after its best scale is fitted by
L-BFGS (paper appendix A.5). One shift of all logits would change nothing under
softmax; a shift between the two answers does.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax.model import edges as edges_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib

# The scale stays between 1/100 and 100: separable answers have no best one.
_LOG_LIMIT = 4.605170185988092
_STEPS = 16
# Rows of logit differences a call, so that one program serves any number, and
# the least number of prompts, which are padded to a power of two: a program
# takes longer to make than these rows ever take to run.
_ROWS = 8
_PROMPTS = 512


def smoothed_loss(
  diff_S: jax.Array, is_used_S: jax.Array | None = None
) -> jax.Array:
  """Returns the task loss as if one answer more were incorrect.

  Where every answer is correct, the loss alone asks for an infinite scale, and
  a single incorrect answer on other prompts then costs everything. Rows that
  are not used only pad the others.
  """
  count = diff_S.shape[0] if is_used_S is None else jnp.sum(is_used_S)
  mean = lambda x_S: jnp.sum(x_S, where=is_used_S) / count
  incorrect = mean(jax.nn.softplus(diff_S)) / count
  return mean(jax.nn.softplus(-diff_S)) + incorrect


def fit(
  diff_S: jax.Array,
  sign_S: jax.Array,
  shifts: bool,
  is_used_S: jax.Array | None = None,
) -> logit_difference_lib.Calibration:
  """Returns the calibration of least `smoothed_loss`, by L-BFGS.

  Args:
    diff_S: correct minus incorrect logit, in nats.
    sign_S: as `answer_sign` returns.
    shifts: whether to fit the shift as well; 0 otherwise.
    is_used_S: which rows count, bool; None is all.
  """

  def unpack(free):
    log_scale = _LOG_LIMIT * jnp.tanh(free["log_scale"] / _LOG_LIMIT)
    return logit_difference_lib.Calibration(
      jnp.exp(log_scale), free.get("shift", jnp.zeros([]))
    )

  def loss(free):
    calibration = unpack(free)
    return smoothed_loss(
      logit_difference_lib.calibrate(diff_S, sign_S, calibration), is_used_S
    )

  optimizer = optax.lbfgs(
    linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=12)
  )
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(_, carry):
    free, state = carry
    value, grad = value_and_grad(free, state=state)
    updates, state = optimizer.update(
      grad, state, free, value=value, grad=grad, value_fn=loss
    )
    moved = optax.apply_updates(free, updates)
    # At the optimum a direction of length zero has no finite line search.
    finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(moved))))
    free = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, free)
    return free, state

  free = {"log_scale": jnp.zeros([])}
  if shifts:
    free["shift"] = jnp.zeros([])
  free, _ = jax.lax.fori_loop(0, _STEPS, step, (free, optimizer.init(free)))
  return unpack(free)


class Scores(NamedTuple):
  """What several masks reach, each with a calibration of its own.

  Attributes:
    losses: task loss in nats, `[masks]`.
    diffs: calibrated logit differences, `[masks, S]`.
    calibrations: each field `[masks]`.
  """

  losses: np.ndarray
  diffs: np.ndarray
  calibrations: logit_difference_lib.Calibration

  def calibration(self, mask: int) -> logit_difference_lib.Calibration:
    """Returns one mask's calibration as plain numbers."""
    return logit_difference_lib.Calibration(
      *(float(field[mask]) for field in self.calibrations)
    )


def score_differences(
  diffs_MxS: np.ndarray, sequences: sequences_lib.Sequences, shifts: bool
) -> Scores:
  """Returns the scores of rows of logit differences, on the host.

  Args:
    diffs_MxS: a row per mask, not calibrated.
    sequences: the prompts that they were measured on.
    shifts: whether calibrations fit a shift.
  """
  sign_S = logit_difference_lib.answer_sign(
    sequences.correct, sequences.incorrect
  )
  total = len(diffs_MxS)
  if not total:
    none = np.zeros(0, np.float32)
    nothing = logit_difference_lib.Calibration(none, none)
    return Scores(none, diffs_MxS, nothing)
  parts = []
  num_prompts = diffs_MxS.shape[1]
  width = max(_PROMPTS, 1 << max(0, num_prompts - 1).bit_length())
  pad = lambda x: np.pad(
    x, [(0, 0)] * (x.ndim - 1) + [(0, width - num_prompts)]
  )
  prompts = pad(sign_S), np.arange(width) < num_prompts
  for start in range(0, total, _ROWS):
    # A short call repeats its rows.
    rows = np.resize(np.arange(start, min(total, start + _ROWS)), _ROWS)
    parts.append(_score_rows(pad(diffs_MxS[rows]), *prompts, shifts))
  scores = jax.tree.map(lambda *rows: np.concatenate(rows)[:total], *parts)
  return scores._replace(diffs=scores.diffs[:, :num_prompts])


@functools.partial(jax.jit, static_argnames="shifts")
def _score_rows(diffs_MxS, sign_S, is_used_S, shifts):
  def score(diff_S):
    calibration = fit(diff_S, sign_S, shifts, is_used_S)
    diff_S = logit_difference_lib.calibrate(diff_S, sign_S, calibration)
    loss_S = jax.nn.softplus(-diff_S)
    loss = jnp.mean(loss_S, where=is_used_S)
    return Scores(loss, diff_S, calibration)

  return jax.vmap(score)(diffs_MxS)


def score_masks(
  evaluator: mask_evaluator.MaskEvaluator,
  masks: Mapping[str, Any],
  shifts: bool,
  edge_masks: edges_lib.EdgeArrays | None = None,
) -> Scores:
  """Returns what masks reach on the evaluator's prompts.

  `masks` and `edge_masks` are those of `MaskEvaluator.logit_differences`.
  """
  diffs_MxS = evaluator.logit_differences(masks, edge_masks)
  return score_differences(diffs_MxS, evaluator.sequences, shifts)
