"""Robustness: what happens between the whole model and the circuit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_jax.faithfulness import context as context_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ADVERSARIAL_SHARES = (0.05, 0.2, 0.5, 1.0)
_ADVERSARIAL_ROUNDS = 3


def partial_ablation(context: context_lib.Context) -> dict[str, Any]:
  """Returns scores between the whole model and the circuit.

  `random`: a random fraction of the complement is ablated. `relaxed`: all of
  it, by a share: gates 1 - fraction (mask relaxation: Drori 2026).
  `adversarial`: one choice of its nodes for all test pairs that hurts most
  (`adversary`); a faithful circuit does not care. Logits are not rescaled.
  """
  mask = context.mask
  rng = np.random.default_rng(context.seed)
  draws = {name: rng.random(m.shape) for name, m in mask.items()}

  def random(name, m, fraction):
    return np.where(draws[name] < fraction, m, 1.0)

  def relaxed(_, m, fraction):
    return 1 - fraction * (1 - m)

  def steps(gate):
    for fraction in _FRACTIONS:
      gates = {name: gate(name, m, fraction) for name, m in mask.items()}
      yield {"fraction": fraction, **_score(context, gates)}

  return {
    "random": list(steps(random)),
    "relaxed": list(steps(relaxed)),
    "adversarial": adversary(context),
  }


def adversary(
  context: context_lib.Context, rounds: int = _ADVERSARIAL_ROUNDS
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
    context: of the circuit.
    rounds: gradients taken from each start.
  """
  mask = context.mask
  ones = context.evaluator.constant(1)
  halfway = lambda a, b: {name: (a[name] + b[name]) / 2 for name in a}
  loss_of = lambda scored: scored["loss"]["value"]
  # The first of equals wins, so a later tie changes nothing.
  worst: dict[str, Any] = {}
  # Every start tries the circuit itself, and starts differ in gradients alone.
  of_circuit = _score(context, mask)
  for gates in (ones, halfway(ones, mask)):
    for _ in range(rounds):
      _, slope = context.evaluator.loss_and_gradient(gates)
      tried = [(of_circuit, mask)]
      tried += [
        (_score(context, chosen), chosen)
        for chosen in _worst_first(mask, slope)
      ]
      scored, chosen = max(tried, key=lambda each: loss_of(each[0]))
      if not worst or loss_of(scored) > loss_of(worst):
        closed = sum(int(np.sum(gate == 0)) for gate in chosen.values())
        worst = {"num_ablated": closed, **scored}
      gates = halfway(gates, chosen)
  return worst


def _score(context, gates):
  diff_S = context.evaluator.logit_difference(gates)
  return context_lib.score(diff_S, context.seed)


def _worst_first(mask, slope) -> Iterator[dict[str, np.ndarray]]:
  """Yields gates that close growing shares of what hurts outside a circuit."""
  # Closing a gate changes the loss by minus its gradient, to first order.
  harm = {
    name: np.where((m == 0) & (slope[name] < 0), -slope[name], 0.0)
    for name, m in mask.items()
  }
  ranked = np.sort(np.concatenate([np.ravel(h) for h in harm.values()]))[::-1]
  harmful = int(np.sum(ranked > 0))
  for share in _ADVERSARIAL_SHARES:
    # With nothing harmful, no gate closes.
    least = ranked[max(1, int(share * harmful)) - 1] if harmful else np.inf
    yield {name: np.where(h >= least, 0.0, 1.0) for name, h in harm.items()}


def frozen_norms(context: context_lib.Context) -> dict[str, Any] | None:
  """Returns the circuit's score with every norm's scale held at the model's.

  Ablation changes norms, which then rescale what is left; a circuit that needs
  this works by another way. None for norms that are not RMS norms.
  """
  config = context.evaluator.model.config
  if config.norm != "rms" or config.concatenates_positions:
    return None
  frozen = dataclasses.replace(context.evaluator, freeze_norms=True)
  diff_S = context.calibrated(frozen.logit_difference(context.mask))
  return context_lib.score(diff_S, context.seed)
