"""Prompts on which a circuit alone predicts that its model fails.

A prompt fails where the incorrect answer's logit is larger. The circuit is run
on random prompts of the task's grammar and on neighbours of those it finds
hardest; the model is run afterwards, on what the circuit predicts, and on
prompts that say what the prediction is worth.
"""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import grammar as grammar_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.tasks.pairs import pad_rows
from sparse_jax.utils import bootstrap, errors, progress, ranks

_DRAWS = 4000

Prompts = Sequence[grammar_lib.Prompt]
# Prompts -> the correct answer's logit minus the incorrect one's, `[S]`, nats.
Difference = Callable[[Prompts], np.ndarray]


@dataclasses.dataclass(frozen=True)
class StressOptions:
  """How long to search.

  Attributes:
    num_random: prompts drawn at random; the search starts from them.
    num_rounds: of the search.
    num_neighbours: prompts of each round.
    num_predicted: of the prompts that are predicted to fail the surest.
    seed: of all draws.
  """

  num_random: int = 512
  num_rounds: int = 4
  num_neighbours: int = 256
  num_predicted: int = 128
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Set:
  """Prompts, and how the model does on them.

  Attributes:
    prompts: S of them.
    model: the whole model's logit differences, `[S]`, nats.
    circuit: the circuit's, calibrated, `[S]`.
  """

  prompts: Prompts
  model: np.ndarray
  circuit: np.ndarray

  @property
  def num_failures(self) -> int:
    """On how many the model fails."""
    return int(np.sum(self.model < 0))

  @property
  def rate(self) -> float | None:
    """The share of prompts on which the model fails; None without prompts."""
    return self.num_failures / len(self.model) if len(self.model) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Stress:
  """The model on what its circuit predicts, beside what it is compared with.

  Attributes:
    task: the circuit's.
    predicted: the prompts of the search on which the circuit fails, those of
      its largest margins.
    every: all on which it fails.
    random: prompts drawn at random, without a look at any model.
    same_shape: random prompts in the shapes of `predicted`, where they fit:
      what the shapes alone predict.
    other: what another model, or other circuits, predict in the same way.
    num_searched: prompts that the search looked at.
  """

  task: str
  predicted: Set
  every: Set
  random: Set
  same_shape: Set
  other: Set
  num_searched: int

  def times_random(self, chosen: Set) -> dict[str, float | None]:
    """Returns how many times as often the model fails as on random prompts.

    "value", and "low" and "high" of its 90% interval: both shares are drawn
    from their posterior under Jeffreys' prior, which also serves where one of
    them is 0.
    """
    if chosen.rate is None:
      return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng(0)
    draw = lambda s: rng.beta(
      s.num_failures + 0.5, len(s.model) - s.num_failures + 0.5, _DRAWS
    )
    low, high = bootstrap.interval(draw(chosen) / draw(self.random))
    value = chosen.rate / self.random.rate if self.random.rate else None
    return {"value": value, "low": low, "high": high}

  @property
  def auroc(self) -> float | None:
    """Chance that the circuit's difference is lower where the model fails.

    On random prompts; None where the model always or never fails.
    """
    return ranks.auroc(-self.random.circuit, self.random.model < 0)

  def to_dict(self) -> dict[str, Any]:
    """Returns shares and all predicted prompts, fit for JSON."""
    sets = {
      name: getattr(self, name)
      for name in ("predicted", "every", "random", "same_shape", "other")
    }
    return {
      "task": self.task,
      "num_searched": self.num_searched,
      "auroc": self.auroc,
      **{
        name: {
          "num_prompts": len(s.model),
          "num_failures": s.num_failures,
          "share": s.rate,
          "times_random": None if s is self.random else self.times_random(s),
        }
        for name, s in sets.items()
      },
      "prompts": [
        {
          "prompt": p.text,
          "shape": dataclasses.asdict(p.shape),
          "circuit": float(of_circuit),
          "model": float(of_model),
        }
        for p, of_circuit, of_model in zip(
          self.every.prompts,
          self.every.circuit,
          self.every.model,
          strict=True,
        )
      ],
    }


def differences(
  circuit: circuit_lib.Circuit,
  params: transformer.Params,
  mask: Mapping[str, np.ndarray] | None = None,
) -> Difference:
  """Returns what runs a circuit on prompts, with its calibration.

  Args:
    circuit: its means and calibration are used.
    params: parameters of the model it was cut from.
    mask: other nodes than its own, per site `[layers, width]`.
  """
  mask = circuit.node_mask if mask is None else mask
  return _runner(circuit, params, mask, circuit.calibrated)


def model_differences(
  circuit: circuit_lib.Circuit, params: transformer.Params
) -> Difference:
  """Returns what runs the circuit's whole model on prompts."""
  ones = {name: np.ones_like(m) for name, m in circuit.node_mask.items()}
  return _runner(circuit, params, ones, lambda diff_S, sequences: diff_S)


def _runner(circuit, params, mask, adjust) -> Difference:
  width = circuit.model_config.context_length

  def run(prompts):
    if not prompts:
      return np.zeros(0, np.float32)
    sequences = _sequences(prompts, width)
    evaluator = circuit.evaluator(params, sequences)
    return adjust(evaluator.logit_difference(mask), sequences)

  return run


def _sequences(prompts: Prompts, width: int) -> sequences_lib.Sequences:
  tokens, lengths = pad_rows([p.tokens for p in prompts], width)
  return sequences_lib.Sequences(
    tokens=jnp.asarray(tokens),
    positions=jnp.asarray(lengths - 1),
    correct=jnp.array([p.correct for p in prompts]),
    incorrect=jnp.array([p.incorrect for p in prompts]),
    groups=jnp.arange(len(prompts)),
  )


def search(
  grammar: grammar_lib.Grammar,
  difference: Difference,
  start: Prompts,
  options: StressOptions,
) -> tuple[list[grammar_lib.Prompt], np.ndarray]:
  """Returns the prompts that were looked at, and their logit differences.

  From `start` on, each round looks at neighbours of the hardest quarter, each
  prompt once.
  """
  rng = random.Random(f"search/{options.seed}")
  prompts = list({p.text: p for p in start}.values())
  seen = {p.text for p in prompts}
  diff_S = difference(prompts)
  with progress.progress_bar(options.num_rounds, 0, "search") as bar:
    for _ in range(options.num_rounds):
      hardest = np.argsort(diff_S, kind="stable")[: max(1, len(prompts) // 4)]
      fresh = []
      for _ in range(options.num_neighbours):
        near = grammar.vary(prompts[rng.choice(hardest.tolist())], rng)
        if near.text not in seen:
          seen.add(near.text)
          fresh.append(near)
      prompts += fresh
      diff_S = np.concatenate([diff_S, difference(fresh)])
      bar.update()
  return prompts, diff_S


def measure(
  grammar: grammar_lib.Grammar,
  of_circuit: Difference,
  of_model: Difference,
  others: Sequence[Difference],
  options: StressOptions,
) -> Stress:
  """Returns the model on what the circuit predicts, and on what others do.

  Args:
    grammar: of the circuit's task.
    of_circuit: the circuit's logit differences.
    of_model: its model's.
    others: another model's, or random circuits' of equal size: what they
      predict is pooled.
    options: how long to search.
  """
  rng = random.Random(f"random/{options.seed}")
  start = [grammar.draw(rng) for _ in range(options.num_random)]
  examine = lambda prompts: Set(prompts, of_model(prompts), of_circuit(prompts))

  def predicted_by(difference):
    prompts, diff_S = search(grammar, difference, start, options)
    order = np.argsort(diff_S, kind="stable")
    return [prompts[i] for i in order if diff_S[i] < 0], len(prompts)

  every, num_searched = predicted_by(of_circuit)
  predicted = every[: options.num_predicted]
  by_others = [
    prompt
    for other in others
    for prompt in predicted_by(other)[0][: options.num_predicted]
  ]
  return Stress(
    task=grammar.task.name,
    predicted=examine(predicted),
    every=examine(every),
    random=examine(start),
    same_shape=examine(_in_shapes_of(predicted, grammar, rng)),
    other=examine(list({p.text: p for p in by_others}.values())),
    num_searched=num_searched,
  )


def _in_shapes_of(prompts: Prompts, grammar, rng) -> list[grammar_lib.Prompt]:
  """Returns a random prompt of each one's shape, where one fits the context."""
  found = []
  for prompt in prompts:
    with contextlib.suppress(errors.InputError):
      found.append(grammar.draw(rng, prompt.shape))
  return found
