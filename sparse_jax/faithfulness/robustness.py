"""Robustness: what happens between the whole model and the circuit."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.faithfulness import evidence
from sparse_jax.model import hooks
from sparse_jax.tasks import logit_difference as logit_difference_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ADVERSARIAL_SHARES = (0.05, 0.2, 0.5, 1.0)
_ADVERSARIAL_ROUNDS = 3


def partial_ablation(subject: evidence.Subject) -> dict[str, Any]:
  """Returns scores between the whole model and the circuit.

  `random`: a random fraction of the complement is ablated. `relaxed`: all of
  it, by a share: gates 1 - fraction (mask relaxation: Drori 2026).
  `adversarial`: one choice of its nodes for all test pairs that hurts most
  (`adversary`); a faithful circuit does not care. Logits are not rescaled.
  """
  gates = subject.gates
  rng = np.random.default_rng(subject.seed)
  draws = {name: rng.random(g.shape) for name, g in gates.items()}
  steps = {"random": [], "relaxed": []}
  for fraction in _FRACTIONS:
    part = {
      name: np.where(draws[name] < fraction, g, 1.0)
      for name, g in gates.items()
    }
    relaxed = {name: 1 - fraction * (1 - g) for name, g in gates.items()}
    for name, chosen in (("random", part), ("relaxed", relaxed)):
      scored = evidence.score(subject.diff(chosen), subject.seed)
      steps[name].append({"fraction": fraction, **scored})
  return {**steps, "adversarial": adversary(subject)}


def adversary(
  subject: evidence.Subject, rounds: int = _ADVERSARIAL_ROUNDS
) -> dict[str, Any]:
  """Returns the score of the worst ablation found outside the circuit.

  Frank-Wolfe on the task loss over gates of the complement: the gradient says
  which nodes hurt when closed, several shares of those and the whole complement
  are tried as they are, and the next gradient is taken halfway to what raised
  the loss most. It starts at the whole model and at the middle between model
  and circuit. One choice for a whole batch, as in parameter decomposition and
  as the comments on "Weight-sparse circuits may be interpretable yet
  unfaithful" (Drori 2026) ask: ablating all of a large complement leaves the
  pruning too much freedom.

  Args:
    subject: the circuit in its model.
    rounds: gradients taken from each start.
  """
  gates = subject.gates
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}
  loss = lambda g, params, test, means: logit_difference_lib.task_loss(
    logit_difference_lib.logit_difference(
      subject.model, params, test, subject.hook(params, test, g, means)
    )
  )
  slope = jax.jit(jax.grad(loss))
  ones = {name: np.ones_like(g) for name, g in gates.items()}
  halfway = lambda a, b: {name: (a[name] + b[name]) / 2 for name in a}
  worst: dict[str, Any] = {}
  for start in (ones, halfway(ones, gates)):
    at = start
    for _ in range(rounds):
      found = slope(
        {name: jnp.asarray(g) for name, g in at.items()},
        subject.params,
        subject.test,
        means,
      )
      worst_here = None
      for chosen in (gates, *_worst_first(gates, found)):
        scored = evidence.score(subject.diff(chosen), subject.seed)
        value = scored["loss"]["value"]
        if worst_here is None or value > worst_here[0]:
          worst_here = value, chosen
        if not worst or value > worst["loss"]["value"]:
          closed = int(sum(np.sum(c == 0) for c in chosen.values()))
          worst = {"num_ablated": closed, **scored}
      at = halfway(at, worst_here[1])
  return worst


def _worst_first(gates, slope) -> Iterator[dict[str, np.ndarray]]:
  """Yields gates that close growing shares of what hurts outside a circuit."""
  # Closing a gate changes the loss by minus its gradient, to first order.
  harm = {
    name: np.where((g == 0) & (np.asarray(slope[name]) < 0), -slope[name], 0.0)
    for name, g in gates.items()
  }
  ranked = np.sort(np.concatenate([np.ravel(h) for h in harm.values()]))[::-1]
  harmful = int(np.sum(ranked > 0))
  for share in _ADVERSARIAL_SHARES:
    if harmful:
      least = ranked[max(1, int(share * harmful)) - 1]
      yield {n: np.where(h >= least, 0.0, 1.0) for n, h in harm.items()}
    else:
      yield {name: np.ones_like(g) for name, g in gates.items()}


def frozen_norms(subject: evidence.Subject) -> dict[str, Any] | None:
  """Returns the circuit's score with every norm's scale held at the model's.

  Ablation changes norms, which then rescale what is left; a circuit that needs
  this works by another way. None for norms that are not RMS norms.
  """
  model, params, test = subject.model, subject.params, subject.test
  if model.config.norm != "rms" or model.config.concatenates_positions:
    return None
  gates = {n: jnp.asarray(g) for n, g in subject.gates.items()}
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}

  @jax.jit
  def run(params, test, gates, means):
    hook = hooks.circuit_hook(
      model,
      params,
      test.tokens,
      test.positions,
      gates,
      means,
      freeze_norms=True,
    )
    return logit_difference_lib.logit_difference(model, params, test, hook)

  diff = np.asarray(run(params, test, gates, means))
  return evidence.score(subject.calibrated(diff), subject.seed)
