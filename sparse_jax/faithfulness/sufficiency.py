"""Sufficiency and necessity: the circuit alone, and the model without it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_jax.faithfulness import context as context_lib
from sparse_jax.model import hooks

_NUM_RANDOM = 8


def sufficiency_and_necessity(
  context: context_lib.Context, ablations: Mapping[str, hooks.SiteArrays]
) -> dict[str, Any]:
  """Returns, by ablation, scores of circuit, of model without it, of controls.

  The model without as many random nodes has to keep what the model without the
  circuit loses (Wang et al. 2022, "Interpretability in the wild": faithfulness
  and completeness). They are drawn outside the circuit, site by site and layer
  by layer: drawn anywhere, as `without_random_circuit`, some are its own.

  Args:
    context: of the circuit.
    ablations: by name, values of closed nodes per site `[layers, width]`.
  """
  mask = context.mask
  draws = {
    "without_random_circuit": random_mask,
    "without_random_others": random_others,
  }
  random = {
    name: [draw(mask, context.seed + i) for i in range(_NUM_RANDOM)]
    for name, draw in draws.items()
  }
  result = {}
  for ablation, means in ablations.items():
    evaluator = context.evaluator.with_means(means)
    without = lambda kept, evaluator=evaluator: evaluator.logit_difference(
      {name: 1 - m for name, m in kept.items()}
    )
    diff_S = evaluator.logit_difference(mask)
    if ablation == context.circuit.ablation:
      # The calibration was fitted under this ablation; others move the scale.
      diff_S = context.calibrated(diff_S)
    result[ablation] = {
      "circuit": context.score(diff_S),
      "without_circuit": context.score(without(mask)),
    } | {
      name: context.score(np.stack([without(kept) for kept in masks]))
      for name, masks in random.items()
    }
  result["full_model"] = context.score(context.full_difference())
  return result


def random_mask(mask: context_lib.Mask, seed: int) -> dict[str, np.ndarray]:
  """Returns a mask with as many random nodes in every site and layer."""
  rng = np.random.default_rng(seed)
  return {name: rng.permuted(m, axis=1) for name, m in mask.items()}


def random_others(mask: context_lib.Mask, seed: int) -> dict[str, np.ndarray]:
  """Returns a mask of random nodes that the given one closes.

  As many in every site and layer as that keeps, or all where there are fewer.
  """
  rng = np.random.default_rng(seed)
  others = {}
  for name, m in mask.items():
    # Closed nodes in random order come first, open ones last.
    rank = np.argsort(np.argsort(rng.random(m.shape) + (m > 0), axis=1), axis=1)
    kept = (m > 0).sum(1, keepdims=True)
    others[name] = ((rank < kept) & (m == 0)).astype(m.dtype)
  return others
