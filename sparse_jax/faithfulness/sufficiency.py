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

  The model without a random circuit of the same sites and sizes has to keep
  what the model without the circuit loses (Wang et al. 2022, "Interpretability
  in the wild": faithfulness and completeness).

  Args:
    context: of the circuit.
    ablations: by name, values of closed nodes per site `[layers, width]`.
  """
  mask = context.mask
  random = [random_mask(mask, context.seed + i) for i in range(_NUM_RANDOM)]
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
      "without_random_circuit": context.score(
        np.stack([without(kept) for kept in random])
      ),
    }
  result["full_model"] = context.score(context.full_difference())
  return result


def random_mask(mask: context_lib.Mask, seed: int) -> dict[str, np.ndarray]:
  """Returns a mask with as many random nodes in every site and layer."""
  rng = np.random.default_rng(seed)
  return {name: rng.permuted(m, axis=1) for name, m in mask.items()}
