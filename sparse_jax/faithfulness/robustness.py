"""Robustness: what happens between the whole model and the circuit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparse_jax.faithfulness import context as context_lib
from sparse_jax.faithfulness import curve, sufficiency
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import outside
from sparse_jax.tasks import sequences as sequences_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ADVERSARIAL_SHARES = (0.05, 0.2, 0.5, 1.0)
_ADVERSARIAL_ROUNDS = 3
# The budget of the criterion: it is part of the claim.
STEPS = 40
RATE = 0.1
# Of the curve, which is measured on a part of the pairs.
_CURVE_STEPS = (0, 5, 10, 20, 40, 80, 160, 320)
_CURVE_PAIRS = 16
# Sizes of circuits that are attacked, in sizes of the circuit.
_SIZE_TIMES = (1, 1.5, 2, 3, 5, 8)


def partial_ablation(context: context_lib.Context) -> dict[str, Any]:
  """Returns scores between the whole model and the circuit.

  `random`: a random fraction of the complement is ablated; `random_circuit`:
  the same of a random circuit of equal size. `relaxed`: all of it, by a share:
  gates 1 - fraction (mask relaxation: Drori 2026). `frank_wolfe` and
  `sign_ascent`: one choice for all test pairs that hurts most; a faithful
  circuit does not care. `adversarial`: the worst of both. `by_steps`: the worst
  loss that so many sign steps find; `by_size`, of robust circuits: what they do
  to larger ones of the same order. Logits are not rescaled.
  """
  mask = context.mask
  other = sufficiency.random_mask(mask, context.seed)
  attacks = {"frank_wolfe": frank_wolfe(context), **sign_ascent(context)}
  worst = max(attacks, key=lambda name: attacks[name]["loss"]["value"])
  relaxed = lambda f: {name: 1 - f * (1 - m) for name, m in mask.items()}
  measured = {
    "random": _by_fraction(context, _random_ablation(context, mask)),
    "random_circuit": _by_fraction(context, _random_ablation(context, other)),
    "relaxed": _by_fraction(context, relaxed),
    **attacks,
    "adversarial": {"by": worst, **attacks[worst]},
    "by_steps": {"circuit": loss_by_steps(context, mask)},
    "budget": {"steps": STEPS, "rate": RATE, "starts": list(outside.STARTS)},
  }
  if context.circuit.is_robust:
    # What was pruned under plain ablation makes no claim that these concern.
    measured["by_steps"]["random_circuit"] = loss_by_steps(context, other)
    measured["by_size"] = attack_by_size(context)
  return measured


def _by_fraction(context, gates_of) -> list[dict[str, Any]]:
  return [{"fraction": f, **_score(context, gates_of(f))} for f in _FRACTIONS]


def _random_ablation(context, mask):
  rng = np.random.default_rng(context.seed)
  draws = {name: rng.random(m.shape) for name, m in mask.items()}
  return lambda f: {n: np.where(draws[n] < f, m, 1.0) for n, m in mask.items()}


def sign_ascent(context: context_lib.Context) -> dict[str, Any]:
  """Returns, as "sign_ascent_START", the score of the worst r from each start.

  One r for all prompts (`tasks/outside.py`).
  """
  scores = {}
  for start in outside.STARTS:
    found = _attack(context, context.mask, start)
    scores[f"sign_ascent_{start}"] = context.score(found.differences)
  return scores


def _attack(context, mask, start="uniform", steps=STEPS) -> outside.Attack:
  return outside.attack(
    context.evaluator, mask, start, steps, context.seed, RATE
  )


def loss_by_steps(
  context: context_lib.Context, mask: context_lib.Mask
) -> list[dict[str, float]]:
  """Returns the worst loss after so many sign steps, on a part of the pairs."""
  few = sequences_lib.spread_pairs(context.evaluator.sequences, _CURVE_PAIRS)
  found = _attack(context.on(few), mask, steps=_CURVE_STEPS[-1])
  worst = np.maximum.accumulate(found.losses)
  return [{"steps": n, "loss": float(worst[n])} for n in _CURVE_STEPS]


def attack_by_size(context: context_lib.Context) -> list[dict[str, float]]:
  """Returns what the sign steps do to ever larger circuits, up to the model.

  Circuits of the first nodes of the circuit's order, from itself on: the loss
  under attack in nats and the accuracy lost, on a part of the pairs. Where no
  circuit of readable size holds, this is the evidence.
  """
  few = sequences_lib.spread_pairs(context.evaluator.sequences, _CURVE_PAIRS)
  here = context.on(few)
  evaluator = here.evaluator
  total = evaluator.num_nodes
  order = curve.total_order(context.circuit, total)
  most = total / max(1, context.circuit.num_nodes)
  times = [t for t in _SIZE_TIMES if t < most]
  counts = [round(t * context.circuit.num_nodes) for t in times] + [total]
  full = np.mean(here.full_difference() > 0)
  masks = masks_lib.masks_of_order(evaluator.shapes, order, counts)
  points = []
  for i, count in enumerate(counts):
    mask = {name: gates[i] for name, gates in masks.items()}
    found = _attack(here, mask)
    lost = float(full - np.mean(found.differences > 0))
    points.append(
      {"num_nodes": count, "loss": found.loss, "accuracy_lost": lost}
    )
  return points


def frank_wolfe(
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
      _, slope = context.evaluator.difference_and_gradient(gates)
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
  return context.score(diff_S)


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
  c = context.evaluator.model.config
  if c.norm != "rms" or c.concatenates_positions or c.parallel:
    return None
  frozen = dataclasses.replace(context.evaluator, freeze_norms=True)
  diff_S = context.calibrated(frozen.logit_difference(context.mask))
  return context.score(diff_S)
