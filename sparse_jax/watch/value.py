"""Do alarms mean anything? Thresholds from one half of code, worth on another.

An error is a prompt after which the file goes on with something else than the
model's likeliest next token. AUROC is the chance that a prompt with an error
scores higher than one without (Hanley and McNeil 1982): 0.5 says nothing. A
score is of use where it beats what needs no circuit: the model's entropy, how
near its two answers are, and how unusual its residual stream is (Lee et al.
2018, "A simple unified framework for detecting out-of-distribution samples").
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import bootstrap, ranks
from sparse_jax.watch import held_out, thresholds
from sparse_jax.watch.monitor import Monitor, Reading

BASELINES = ("entropy", "nearness", "mahalanobis")
_RESAMPLES = 200
# Of the covariance's mean variance, added to each, so that it has an inverse.
_RIDGE = 1e-2


class Cases(NamedTuple):
  """Prompts to which one circuit applies, as it and the model took them."""

  reading: Reading
  is_error: np.ndarray  # `[R]` bool.
  groups: np.ndarray  # `[R]`, of one document.
  entropy: np.ndarray  # `[R]`, of the model's next token, in nats.
  residual: np.ndarray  # `[R, D]`.
  num_prompts: int  # Those to which it does not apply included.


class Stream(NamedTuple):
  """What is usual of a residual stream."""

  mean_D: np.ndarray
  precision_DxD: np.ndarray

  def distance(self, x_RxD: np.ndarray) -> np.ndarray:
    """Returns the Mahalanobis distance from the mean, `[R]`."""
    d_RxD = x_RxD - self.mean_D
    square_R = np.einsum("RD,DE,RE->R", d_RxD, self.precision_DxD, d_RxD)
    return np.sqrt(np.maximum(square_R, 0))


def examine(monitor: Monitor, name: str, prompts: held_out.Labelled) -> Cases:
  """Returns what the model and one circuit make of prompts."""
  outlook, readings = monitor.measure(prompts.rows, [name])
  reading = readings[name]
  rows = reading.rows
  return Cases(
    reading=reading,
    is_error=outlook.top[rows] != prompts.following[rows],
    groups=prompts.groups[rows],
    entropy=outlook.entropy[rows],
    residual=outlook.residual[rows].astype(np.float64),
    num_prompts=len(prompts.rows),
  )


def usual_stream(x_RxD: np.ndarray) -> Stream:
  """Returns what is usual of at least two streams."""
  covariance_DxD = np.cov(x_RxD, rowvar=False)
  width = len(covariance_DxD)
  ridge = _RIDGE * np.trace(covariance_DxD) / width + 1e-12
  precision_DxD = np.linalg.inv(covariance_DxD + ridge * np.eye(width))
  return Stream(x_RxD.mean(0), precision_DxD)


def fit(
  circuit: circuit_lib.Circuit,
  answers_Px2: np.ndarray,
  kinds: Mapping[str, Cases],
  rate: float,
) -> thresholds.Thresholds | None:
  """Returns thresholds at a rate of false alarms; None without prompts.

  Only prompts on which the model is right count. Documents of even number give
  the ranges, the others the limits: a range holds what it was made from. A
  limit is the largest of those of each kind of prompt, so that the rate holds
  for every kind that has enough prompts, and for any mixture of them.
  """
  is_even = lambda cases: cases.groups % 2 == 0
  for_range_RxF = np.concatenate(
    [c.reading.nodes[~c.is_error & is_even(c)] for c in kinds.values()]
  )
  for_limit = {n: ~c.is_error & ~is_even(c) for n, c in kinds.items()}
  num_prompts = int(sum(part.sum() for part in for_limit.values()))
  if not (len(for_range_RxF) and num_prompts):
    return None
  low, high = thresholds.usual_range(for_range_RxF)
  found = thresholds.Thresholds(
    circuit=thresholds.identity(circuit),
    answers=answers_Px2,
    rate=rate,
    num_prompts=num_prompts,
    low=low,
    high=high,
    limits={},
  )
  # As it is going to be read from a file.
  found = dataclasses.replace(
    found, **{k: np.array(found.to_dict()[k]) for k in ("low", "high")}
  )
  by_kind = [
    {
      alarm: thresholds.limit(score_R[for_limit[name]], rate)
      for alarm, score_R in cases.reading.scores(found).items()
    }
    for name, cases in kinds.items()
  ]
  limits = {
    alarm: max(
      (of[alarm] for of in by_kind if np.isfinite(of[alarm])), default=np.inf
    )
    for alarm in thresholds.ALARMS
  }
  # Where circuit and model agree, they do not disagree.
  limits["disagreement"] = max(0.0, limits["disagreement"])
  return dataclasses.replace(found, limits=limits)


def worth(
  cases: Cases, usual: thresholds.Thresholds, stream: Stream
) -> dict[str, Any]:
  """Returns each score's AUROC for errors, and how often alarms sound.

  Plain values, fit for JSON: "auroc" by score with its 90% interval over
  documents, None without errors or without anything else; "sounds" by alarm,
  its share of the prompts with an error and of those without.
  """
  scores = {
    **cases.reading.scores(usual),
    "entropy": cases.entropy,
    "nearness": -cases.reading.full,
    "mahalanobis": stream.distance(cases.residual),
  }
  is_error_R, is_right_R = cases.is_error, ~cases.is_error
  sounds = {n: scores[n] > usual.limits[n] for n in thresholds.ALARMS}
  sounds["any"] = np.any(list(sounds.values()), 0)
  share = lambda on_R, of_R: float(np.mean(on_R[of_R])) if of_R.any() else None
  return {
    "num_prompts": cases.num_prompts,
    "num_applies": len(is_error_R),
    "num_errors": int(is_error_R.sum()),
    "auroc": {
      name: _with_interval(score_R, is_error_R, cases.groups)
      for name, score_R in scores.items()
    },
    "sounds": {
      name: {"errors": share(on, is_error_R), "right": share(on, is_right_R)}
      for name, on in sounds.items()
    },
  }


def _with_interval(score_R, is_error_R, groups) -> Mapping[str, float] | None:
  value = ranks.auroc(score_R, is_error_R)
  if value is None:
    return None
  rows_of = [np.flatnonzero(groups == g) for g in np.unique(groups)]
  rng, drawn = np.random.default_rng(0), []
  for _ in range(_RESAMPLES):
    picked = rng.integers(0, len(rows_of), len(rows_of))
    rows = np.concatenate([rows_of[i] for i in picked])
    again = ranks.auroc(score_R[rows], is_error_R[rows])
    if again is not None:
      drawn.append(again)
  low, high = bootstrap.interval(drawn) if drawn else (value, value)
  return {"value": value, "low": low, "high": high}
