"""What nodes outside a circuit may do: anything between their mean and more.

A node's value is x̃ = μ + m (x - μ), m = g + (1 - g) r: g its gate, r in [0, 1]
how much of it is left on although the gate is closed. r = 0 is the paper's mean
ablation, r = 1 the whole model. A circuit that is what the model computes does
not care about r; one that a mask was fitted to falls apart under the r that an
adversary picks (stochastic and PGD masks of goodfire-ai/spd; the comments on
"Weight-sparse circuits may be interpretable yet unfaithful", Drori 2026, ask
for one r for all prompts).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.model import hooks
from sparse_jax.tasks.logit_difference import task_loss
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


def start(
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
    losses: the task loss before each of the steps and after the last, nats.
  """

  r: dict[str, np.ndarray]
  losses: np.ndarray

  @property
  def loss(self) -> float:
    """The worst loss seen."""
    return float(np.max(self.losses))


def attack(
  evaluator: MaskEvaluator,
  mask: Mapping[str, Any],
  r: Mapping[str, Any],
  steps: int,
  rate: float = 0.1,
  scale: float = 1.0,
) -> Attack:
  """Climbs the task loss over one r for all of the evaluator's prompts.

  Args:
    evaluator: the model on the prompts.
    mask: the circuit, per site `[layers, width]`, 1 for kept nodes.
    r: where to start.
    steps: sign steps.
    rate: length of a step.
    scale: of the logit differences that the loss is taken of.
  """
  gates = {name: jnp.asarray(m, jnp.float32) for name, m in mask.items()}
  r = {name: jnp.asarray(r[name], jnp.float32) for name in gates}
  worst, losses = _climb(evaluator, gates, r, steps, rate, scale)
  used = {name: np.asarray(worst[name] * (1 - g)) for name, g in gates.items()}
  return Attack(used, np.asarray(losses))


@functools.partial(jax.jit, static_argnames="steps")
def _climb(evaluator, gates, r, steps, rate, scale):
  def loss_of(r):
    diff_S = evaluator.difference(leave_on(gates, r))
    return task_loss(diff_S, scale)

  def keep_worse(worst, r, loss):
    most, kept = worst
    return jax.tree.map(
      lambda old, new: jnp.where(loss > most, new, old), (most, kept), (loss, r)
    )

  def step(carry, _):
    r, worst = carry
    loss, slope = jax.value_and_grad(loss_of)(r)
    return (ascend(r, slope, rate), keep_worse(worst, r, loss)), loss

  nothing = jnp.float32(-jnp.inf), r
  (r, worst), losses = jax.lax.scan(step, (r, nothing), None, steps)
  last = loss_of(r)
  _, worst = keep_worse(worst, r, last)
  return worst, jnp.append(losses, last)


def worst_attack(
  evaluator: MaskEvaluator,
  mask: Mapping[str, Any],
  steps: int,
  seed: int,
  rate: float = 0.1,
  scale: float = 1.0,
) -> Attack:
  """Returns the worst attack from all `STARTS`."""
  attacks = [
    attack(evaluator, mask, start(name, mask, seed), steps, rate, scale)
    for name in STARTS
  ]
  return max(attacks, key=lambda a: a.loss)
