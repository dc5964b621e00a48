"""What nodes outside a circuit may do: anything between their mean and more.

A node's value is x̃ = μ + m (x - μ), m = g + (1 - g) r: g its gate, r in [0, 1]
how much of it is left on although the gate is closed. r = 0 is the paper's mean
ablation, r = 1 the whole model. A circuit that is what the model computes does
not care about r; one that a mask was fitted to falls apart under the r that an
adversary picks (stochastic and PGD masks of goodfire-ai/spd; the comments on
"Weight-sparse circuits may be interpretable yet unfaithful", Drori 2026, ask
for one r for all prompts).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.model import hooks
from sparse_jax.tasks.mask_evaluator import MaskEvaluator

STARTS = ("ones", "uniform", "zeros")


def leave_on(gates: hooks.SiteArrays, r: hooks.SiteArrays) -> hooks.SiteArrays:
  """Returns m = g + (1 - g) r, per site; `r` may have leading axes."""
  return {name: g + (1 - g) * r[name] for name, g in gates.items()}


def opened(
  mask: Mapping[str, Any], r: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns `leave_on` of one circuit and one r, on the host."""
  mask = {name: np.asarray(m, np.float32) for name, m in mask.items()}
  return {n: np.asarray(m) for n, m in leave_on(mask, r).items()}


def ascend(
  r: hooks.SiteArrays, slope: hooks.SiteArrays, rate: float
) -> hooks.SiteArrays:
  """Returns r after a projected sign step up the loss: r + rate sign ∂L/∂r."""
  step = lambda x, dx: jnp.clip(x + rate * jnp.sign(dx), 0.0, 1.0)
  return {name: step(x, slope[name]) for name, x in r.items()}


_ascend = jax.jit(ascend)


def start_r(
  name: str, like: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray]:
  """Returns where an ascent starts, one of `STARTS`, shaped as `like`."""
  rng = np.random.default_rng(seed)
  draw = {"ones": np.ones, "uniform": rng.random, "zeros": np.zeros}[name]
  shapes = {site: np.shape(x) for site, x in like.items()}
  return {site: draw(s).astype(np.float32) for site, s in shapes.items()}


class Attack(NamedTuple):
  """What an adversary found outside a circuit.

  Attributes:
    r: the worst r seen, per site `[layers, width]`; 0 in the circuit.
    differences: logit differences under it, not calibrated, `[S]`.
    losses: the task loss before each of the steps and after the last, nats.
  """

  r: dict[str, np.ndarray]
  differences: np.ndarray
  losses: np.ndarray

  @property
  def loss(self) -> float:
    """The worst loss seen."""
    return float(np.max(self.losses))


def attack(
  evaluator: MaskEvaluator,
  mask: Mapping[str, Any],
  start: str,
  steps: int,
  seed: int = 0,
  rate: float = 0.1,
  is_enough: Callable[[np.ndarray], bool] = lambda diff_S: False,
) -> Attack:
  """Climbs the task loss over one r for all of the evaluator's prompts.

  Args:
    evaluator: the model on the prompts.
    mask: the circuit, per site `[layers, width]`, 1 for kept nodes.
    start: one of `STARTS`.
    steps: sign steps.
    seed: of a uniform start.
    rate: length of a step.
    is_enough: ends the climb, given the logit differences `[S]` that an r
      leaves; that r is then the attack's.
  """
  gates = {name: np.asarray(m, np.float32) for name, m in mask.items()}
  r = start_r(start, gates, seed)
  most, kept = -np.inf, r
  worst, losses = np.zeros(0, np.float32), []
  closed = lambda r: {name: r[name] * (1 - g) for name, g in gates.items()}
  task_loss = lambda diff_S: float(np.mean(np.logaddexp(0, -diff_S)))
  for _ in range(steps):
    diff_S, slope = evaluator.difference_and_gradient(opened(gates, r))
    losses.append(task_loss(diff_S))
    if is_enough(diff_S):
      return Attack(closed(r), diff_S, np.array(losses))
    if losses[-1] > most:
      most, kept, worst = losses[-1], r, diff_S
    # What is open moves with no r.
    slope = {name: (1 - g) * slope[name] for name, g in gates.items()}
    r = jax.tree.map(np.asarray, _ascend(r, slope, rate))
  last = evaluator.logit_difference(opened(gates, r))
  losses.append(task_loss(last))
  if losses[-1] > most:
    kept, worst = r, last
  return Attack(closed(kept), worst, np.array(losses))


def relief(
  evaluator: MaskEvaluator,
  mask: Mapping[str, Any],
  found: Attack,
  points: int = 6,
) -> dict[str, np.ndarray]:
  """Returns each closed node's share in what opening them all would repair.

  Integrated gradients (Sundararajan et al. 2017, equation 1) of the loss from
  the attacked circuit to the whole model, downwards: they sum to what the loss
  falls by. At the attack itself a path that is shut twice has no slope.

  Args:
    evaluator: the model on the prompts that were attacked.
    mask: the circuit.
    found: the attack on it.
    points: of the straight line that slopes are taken at, evenly.

  Returns:
    Nats, per site `[layers, width]`, 0 in the circuit.
  """
  start = opened(mask, found.r)
  total = {name: np.zeros_like(m) for name, m in start.items()}
  for t in (np.arange(points) + 0.5) / points:
    here = {n: np.float32(m + t * (1 - m)) for n, m in start.items()}
    _, slope = evaluator.difference_and_gradient(here)
    total = {n: total[n] - slope[n] * (1 - start[n]) for n in total}
  return {name: x / points for name, x in total.items()}
