"""What do these masks do on these prompts? One object, one program a shape.

Thresholding, clean-up, edge masks, faithfulness, controls and explanations all
ask it. A mask is a gate per node: 1 leaves the node's value, 0 puts its
ablation value there, and what lies between mixes the two.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib

# One program serves any number of masks, so many a call.
MASKS_PER_CALL = 8


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["params", "means", "sequences"],
  meta_fields=["model", "freeze_norms"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class MaskEvaluator:
  """A model with the prompts and the ablation values that masks are scored by.

  A pytree: jitted functions take it as an argument, and evaluators of one shape
  share their programs.

  Attributes:
    model: static, like `freeze_norms`.
    params: the model's.
    means: ablation values of the gated sites, per site `[layers, width]`.
    sequences: the prompts, `[S, …]`.
    freeze_norms: whether norms keep the whole model's scales (`circuit_hook`).
  """

  model: transformer.Model
  params: transformer.Params
  means: hooks.SiteArrays
  sequences: sequences_lib.Sequences
  freeze_norms: bool = False

  def on(self, sequences: sequences_lib.Sequences) -> "MaskEvaluator":
    """Returns the same evaluator on other prompts."""
    return dataclasses.replace(self, sequences=sequences)

  def with_means(self, means: hooks.SiteArrays) -> "MaskEvaluator":
    """Returns the same evaluator with other ablation values."""
    return dataclasses.replace(self, means=means)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Per gated site `(layers, width)`, in the order of flat node indices."""
    names = [name for name in sites.NODE_SITES if name in self.means]
    return {name: self.means[name].shape for name in names}

  def constant(self, value: float) -> dict[str, np.ndarray]:
    """Returns the mask of one value everywhere: 1 is the whole model."""
    return {
      name: np.full(shape, value, np.float32)
      for name, shape in self.shapes.items()
    }

  def logit_difference(self, mask: Mapping[str, Any]) -> np.ndarray:
    """Returns one mask's logit differences `[S]`, not calibrated."""
    one = {name: np.asarray(gate)[None] for name, gate in mask.items()}
    return self._run(one, {})[0]

  def logit_differences(
    self,
    masks: Mapping[str, Any],
    edge_masks: edges_lib.EdgeArrays | None = None,
  ) -> np.ndarray:
    """Returns many masks' logit differences `[masks, S]`, not calibrated.

    Args:
      masks: per site `[masks, layers, width]`; with `edge_masks` alternatively
        `[layers, width]`, one for all.
      edge_masks: by matrix path `[masks, layer, in, out]`: 0 closes an edge,
        which then carries its source's ablation value.
    """
    edge_masks = edge_masks or {}
    total = len(next(iter((edge_masks or masks).values())))
    masks = {
      name: np.broadcast_to(gate, (total, *np.shape(gate)[-2:]))
      for name, gate in masks.items()
    }
    parts = [np.zeros((0, len(self.sequences.positions)), np.float32)]
    for start in range(0, total, MASKS_PER_CALL):
      # A short call repeats its rows.
      rows = np.arange(start, min(total, start + MASKS_PER_CALL))
      rows = np.resize(rows, MASKS_PER_CALL)
      picked = jax.tree.map(
        lambda x, rows=rows: np.asarray(x)[rows], (masks, dict(edge_masks))
      )
      parts.append(self._run(*picked))
    return np.concatenate(parts)[:total]

  def task_loss(self, mask: Mapping[str, Any]) -> float:
    """Returns one mask's task loss in nats, not calibrated."""
    return float(np.mean(np.logaddexp(0, -self.logit_difference(mask))))

  def loss_and_gradient(
    self, mask: Mapping[str, Any]
  ) -> tuple[float, dict[str, np.ndarray]]:
    """Returns one mask's task loss and its slope along every gate."""
    mask = {name: jnp.asarray(g, jnp.float32) for name, g in mask.items()}
    loss, grads = _loss_and_gradient(self, mask)
    return float(loss), jax.tree.map(np.asarray, grads)

  def _run(self, masks, edge_masks) -> np.ndarray:
    masks, edge_masks = jax.tree.map(
      lambda m: jnp.asarray(m, jnp.float32), (dict(masks), dict(edge_masks))
    )
    return np.asarray(_logit_differences(self, masks, edge_masks))

  def _difference(self, mask, edge_mask=None) -> jax.Array:
    return masked_logit_difference(
      self.model,
      self.freeze_norms,
      self.params,
      self.means,
      mask,
      self.sequences,
      edge_mask,
    )


def masked_logit_difference(
  model: transformer.Model,
  freeze_norms: bool,
  params: transformer.Params,
  means: hooks.SiteArrays,
  mask: hooks.SiteArrays,
  sequences: sequences_lib.Sequences,
  edge_mask: edges_lib.EdgeArrays | None = None,
) -> jax.Array:
  """Returns one mask's logit differences `[S]`: pure, to be jitted or vmapped.

  Args:
    model: static under jit.
    freeze_norms: whether norms keep the whole model's scales; static.
    params: the model's.
    means: ablation values, per site `[layers, width]`.
    mask: gates, per site `[layers, width]`.
    sequences: the prompts.
    edge_mask: by matrix path `[layer, in, out]`; see `edges.mask_edges`.
  """
  hook = hooks.circuit_hook(
    model,
    params,
    sequences.tokens,
    sequences.positions,
    mask,
    means,
    freeze_norms,
  )
  if edge_mask:
    params = edges_lib.mask_edges(params, edge_mask, means)
  return logit_difference_lib.logit_difference(model, params, sequences, hook)


@jax.jit
def _logit_differences(evaluator, masks, edge_masks):
  return jax.lax.map(
    lambda one: evaluator._difference(*one), (masks, edge_masks)
  )


@jax.jit
def _loss_and_gradient(evaluator, mask):
  loss = lambda mask: logit_difference_lib.task_loss(
    evaluator._difference(mask)
  )
  return jax.value_and_grad(loss)(mask)
