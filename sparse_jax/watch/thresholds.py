"""When a circuit's scores are alarming: ranges and thresholds, as stored.

A score is larger the more there is to worry about. Its threshold lets through
all but a stated share of held-out prompts on which the model is right: the
split-conformal quantile (Vovk et al. 2005; Angelopoulos and Bates 2021), so
that on further prompts of the kind the alarm is false no more often than that.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors

ALARMS = ("disagreement", "outside", "range")
# What of a node's values counts as usual.
_USUAL = (0.01, 0.99)
# A range is taken to be no narrower than this share of the circuit's mean one.
_NARROWEST = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Thresholds:
  """What is usual for one circuit.

  Attributes:
    circuit: which circuit, as `identity` says.
    answers: token ids of its pairs of answers, `[P, 2]`.
    rate: the largest share of false alarms, of each alarm.
    num_prompts: how many prompts the thresholds rest on.
    low: `[F]`, the low ends of the nodes' usual ranges (`Reading.nodes`).
    high: `[F]`, the high ends.
    limits: by alarm, the score above which it sounds; infinite where there
      were too few prompts for the rate.
  """

  circuit: str
  answers: np.ndarray
  rate: float
  num_prompts: int
  low: np.ndarray
  high: np.ndarray
  limits: Mapping[str, float]

  def distance(self, nodes_RxF: np.ndarray) -> np.ndarray:
    """Returns how far nodes lie outside their ranges, in ranges, `[R]`.

    The mean over all values; 0 if every one is usual.
    """
    width_F = self.high - self.low
    least = _NARROWEST * width_F.mean() if width_F.size else 0
    width_F = np.maximum(width_F, least or 1.0)
    over_RxF = np.maximum(self.low - nodes_RxF, nodes_RxF - self.high)
    return (np.maximum(over_RxF, 0) / width_F).sum(-1) / max(1, width_F.size)

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON; no limit is None."""
    short = lambda x: [float(f"{v:.4g}") for v in x]
    return {
      "circuit": self.circuit,
      "answers": self.answers.tolist(),
      "rate": self.rate,
      "num_prompts": self.num_prompts,
      "limits": {
        name: limit if math.isfinite(limit) else None
        for name, limit in self.limits.items()
      },
      "low": short(self.low),
      "high": short(self.high),
    }


def usual_range(nodes_RxF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the low and high ends of values on at least one prompt, `[F]`."""
  low_F, high_F = np.quantile(nodes_RxF, _USUAL, axis=0)
  return low_F, high_F


def limit(scores_R: np.ndarray, rate: float) -> float:
  """Returns the score that at most a share `rate` of further ones exceeds.

  Infinite if there are fewer than `1 / rate - 1`.
  """
  count = len(scores_R)
  # In exact arithmetic: 100 scores at a rate of 0.01 have a limit.
  rank = math.ceil((count + 1) * (1 - rate) - 1e-9)
  return float(np.sort(scores_R)[rank - 1]) if rank <= count else math.inf


def identity(circuit: circuit_lib.Circuit) -> str:
  """Returns what tells a circuit from another: model, nodes and calibration."""
  nodes = [f"{node['site']}:{node['index']}" for node in circuit.nodes]
  said = circuit.model_fingerprint, circuit.logit_scale, nodes
  return "sha256:" + hashlib.sha256(json.dumps(said).encode()).hexdigest()


def attach(
  circuits: Mapping[str, circuit_lib.Circuit], stored: Mapping[str, Any]
) -> dict[str, circuit_lib.Circuit]:
  """Returns the circuits with these thresholds, and no others, by name.

  Raises InputError if `stored` is no mapping.
  """
  if not isinstance(stored, Mapping):
    raise errors.bad_value(
      "thresholds", str(stored)[:80], "an object by the circuit's name"
    )
  with_them = lambda name, c: c.details | {"watch": stored.get(name)}
  return {
    name: dataclasses.replace(circuit, details=with_them(name, circuit))
    for name, circuit in circuits.items()
  }


def read(name: str, circuit: circuit_lib.Circuit) -> Thresholds | None:
  """Returns the thresholds that came with a circuit; None if none did.

  Raises InputError if they are another circuit's, or damaged.
  """
  raw = circuit.details.get("watch")
  if raw is None:
    return None
  again = "need those that experiments.alarms --fit writes"
  try:
    limits = {n: raw["limits"][n] for n in ALARMS}
    found = Thresholds(
      circuit=raw["circuit"],
      answers=np.array(raw["answers"], np.int32).reshape(-1, 2),
      rate=float(raw["rate"]),
      num_prompts=int(raw["num_prompts"]),
      low=np.array(raw["low"], np.float64),
      high=np.array(raw["high"], np.float64),
      limits={
        n: math.inf if value is None else float(value)
        for n, value in limits.items()
      },
    )
  except (KeyError, TypeError, ValueError, OverflowError) as e:
    raise errors.InputError(
      f"thresholds of {name}: {type(e).__name__} {e}; {again}"
    ) from e
  if found.circuit != identity(circuit):
    raise errors.InputError(
      f"thresholds of {name}: they were fitted to another circuit; {again}"
    )
  values = np.concatenate([found.low, found.high])
  if found.low.shape != found.high.shape or not np.all(np.isfinite(values)):
    raise errors.InputError(
      f"thresholds of {name}: low and high are no finite ranges; {again}"
    )
  return found
