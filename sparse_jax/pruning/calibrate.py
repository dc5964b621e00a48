"""Calibration: the scale, and if asked a shift, of a circuit's logits.

Pruning shrinks logits, so a circuit is judged after its best scale is fitted by
L-BFGS (paper appendix A.5). One shift of all logits would change nothing under
softmax; a shift between the two answers does.
"""

import jax
import jax.numpy as jnp
import optax

from sparse_jax.tasks import logit_difference as logit_difference_lib

# The scale stays between 1/100 and 100: separable answers have no best one.
_LOG_LIMIT = 4.605170185988092
_STEPS = 16


def smoothed_loss(diff_S: jax.Array) -> jax.Array:
  """Returns the task loss as if one answer more were wrong.

  Where every answer is right, the loss alone asks for an infinite scale, and a
  single wrong answer on other prompts then costs everything.
  """
  wrong = jnp.mean(jax.nn.softplus(diff_S)) / diff_S.shape[0]
  return jnp.mean(jax.nn.softplus(-diff_S)) + wrong


def fit(
  diff_S: jax.Array, sign_S: jax.Array, shifts: bool
) -> logit_difference_lib.Calibration:
  """Returns the calibration of least `smoothed_loss`, by L-BFGS.

  Args:
    diff_S: right minus wrong logit, in nats.
    sign_S: as `answer_sign` returns.
    shifts: whether to fit the shift as well; 0 otherwise.
  """

  def unpack(free):
    log_scale = _LOG_LIMIT * jnp.tanh(free["log_scale"] / _LOG_LIMIT)
    return logit_difference_lib.Calibration(
      jnp.exp(log_scale), free.get("shift", jnp.zeros([]))
    )

  def loss(free):
    return smoothed_loss(
      logit_difference_lib.calibrate(diff_S, sign_S, unpack(free))
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
