"""What do these masks do on these prompts? One object, one program a shape.

Thresholding, clean-up, edge masks, faithfulness, controls and explanations all
ask it. A mask is a gate per node: 1 leaves the node's value, 0 puts its
ablation value there, and what lies between mixes the two.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, sharding, transformer
from sparse_jax.tasks.logit_difference import logit_difference
from sparse_jax.tasks.sequences import Sequences, padded_length

# Most prompts a call. More fill an accelerator; a CPU is no faster for them.
_MOST_ROWS = {"cpu": 32}
_MOST_ROWS_ELSEWHERE = 256
# Of a call's prompts: each length is a program more of every kind.
_LENGTH_MULTIPLE = 32


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
  """

  model: transformer.Model
  params: transformer.Params
  means: hooks.SiteArrays  # Of the gated sites `[layers, width]`.
  sequences: Sequences
  freeze_norms: bool = False  # Whether norms keep the whole model's scales.

  def on(self, sequences: Sequences) -> "MaskEvaluator":
    """Returns the same evaluator on other prompts."""
    sequences = sharding.beside(self.params, sequences)
    return dataclasses.replace(self, sequences=sequences)

  def with_means(self, means: hooks.SiteArrays) -> "MaskEvaluator":
    """Returns the same evaluator with other ablation values."""
    return dataclasses.replace(self, means=means)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Per gated site `(layers, width)`, in the order of flat node indices."""
    names = [name for name in sites.NODE_SITES if name in self.means]
    return {name: self.means[name].shape for name in names}

  @property
  def num_nodes(self) -> int:
    """Number of nodes of all gated sites."""
    return sum(int(np.prod(shape)) for shape in self.shapes.values())

  def constant(self, value: float) -> dict[str, np.ndarray]:
    """Returns the mask of one value everywhere: 1 is the whole model."""
    full = lambda shape: np.full(shape, value, np.float32)
    return {name: full(shape) for name, shape in self.shapes.items()}

  def logit_difference(self, mask: Mapping[str, Any]) -> np.ndarray:
    """Returns one mask's logit differences `[S]`, not calibrated."""
    return self._run(mask, {})[0]

  def logit_differences(
    self,
    masks: Mapping[str, Any],
    edge_masks: edges_lib.EdgeArrays | None = None,
  ) -> np.ndarray:
    """Returns many masks' logit differences `[masks, S]`, not calibrated.

    Args:
      masks: per site `[masks, layers, width]`; with `edge_masks` alternatively
        `[layers, width]`, one for all.
      edge_masks: by matrix path `[masks, layer, in, out]`; see
        `edges.mask_edges`.
    """
    edge_masks = edge_masks or {}
    total = len(next(iter((edge_masks or masks).values())))
    masks = {
      name: np.broadcast_to(gate, (total, *np.shape(gate)[-2:]))
      for name, gate in masks.items()
    }
    diffs = [np.zeros((0, len(self.sequences.positions)), np.float32)]
    for i in range(total):
      pick = lambda m, i=i: np.asarray(m)[i]
      diffs.append(self._run(*jax.tree.map(pick, (masks, dict(edge_masks)))))
    return np.concatenate(diffs)

  def task_loss(self, mask: Mapping[str, Any]) -> float:
    """Returns one mask's task loss in nats, not calibrated."""
    return float(np.mean(np.logaddexp(0, -self.logit_difference(mask))))

  def difference_and_gradient(
    self, mask: Mapping[str, Any]
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns one mask's logit differences `[S]`, not calibrated, and a slope.

    It is the slope of their task loss in nats along every gate.
    """
    mask = _as_floats(mask)
    found = [
      _difference_and_gradient(part, is_used_S, mask)
      for part, is_used_S in self._parts
    ]
    diffs, slopes = zip(*found, strict=True)
    total = len(self.sequences.positions)
    slope = jax.tree.map(lambda *x: np.sum(x, 0) / total, *slopes)
    return self._joined(diffs), slope

  def _run(self, mask: Mapping[str, Any], edge_mask: dict) -> np.ndarray:
    """Returns one mask's logit differences, `[1, S]`."""
    gates = _as_floats(mask), _as_floats(edge_mask)
    # Asked for before the first is waited for.
    diffs = [_logit_difference(part, *gates) for part, _ in self._parts]
    return self._joined(diffs)[None]

  @functools.cached_property
  def _by_length(self) -> np.ndarray:
    """The prompts' rows from the shortest to the longest, `[S]`."""
    return np.argsort(np.asarray(self.sequences.positions), kind="stable")

  @functools.cached_property
  def _parts(self) -> list[tuple["MaskEvaluator", np.ndarray]]:
    """The evaluator on each call's prompts, and its rows in use, `[rows]` bool.

    Prompts of like length are together, without the padding of longer ones.
    Every call has as many rows, a power of two, so that sets of prompts share
    programs; the last repeats its own at its end.
    """
    total = len(self._by_length)
    most = _MOST_ROWS.get(jax.default_backend(), _MOST_ROWS_ELSEWHERE)
    size = min(most, 1 << max(0, total - 1).bit_length())
    prompts = Sequences(*map(np.asarray, self.sequences))
    parts = []
    for start in range(0, total, size):
      is_used = np.arange(start, start + size) < total
      rows = np.resize(self._by_length[start : start + size], size)
      part = Sequences(*(x[rows] for x in prompts))
      longest = int(part.positions.max()) + 1
      length = padded_length(longest, _LENGTH_MULTIPLE)
      part = part._replace(tokens=part.tokens[:, :length])
      parts.append((self.on(Sequences(*map(jnp.asarray, part))), is_used))
    return parts

  def _joined(self, diffs: Sequence[jax.Array]) -> np.ndarray:
    """Returns what the parts have, in the order of the prompts, `[S]`."""
    joined_S = np.empty(len(self._by_length), np.float32)
    joined_S[self._by_length] = np.concatenate(diffs)[: len(joined_S)]
    return joined_S

  def difference(self, mask, edge_mask=None) -> jax.Array:
    """Returns one mask's logit differences `[S]`: pure, for jitted callers."""
    model = self.model, self.freeze_norms, self.params, self.means
    return masked_logit_difference(*model, mask, self.sequences, edge_mask)


def on_mesh(
  model: transformer.Model,
  params: transformer.Params,
  means: hooks.SiteArrays,
  sequences: Sequences,
  freeze_norms: bool = False,
) -> MaskEvaluator:
  """Returns a `MaskEvaluator`, its prompts on the mesh of the parameters."""
  sequences = sharding.beside(params, sequences)
  return MaskEvaluator(model, params, means, sequences, freeze_norms)


def masked_logit_difference(
  model: transformer.Model,
  freeze_norms: bool,
  params: transformer.Params,
  means: hooks.SiteArrays,
  mask: hooks.SiteArrays,
  sequences: Sequences,
  edge_mask: edges_lib.EdgeArrays | None = None,
) -> jax.Array:
  """Returns one mask's logit differences `[S]`: pure, to be jitted or vmapped.

  `means` and `mask` are per site `[layers, width]`, `edge_mask` by matrix path
  `[layer, in, out]` (`edges.mask_edges`); `model`, `freeze_norms` are static.
  """
  prompts = sequences.tokens, sequences.positions
  hook = hooks.circuit_hook(model, params, *prompts, mask, means, freeze_norms)
  if edge_mask:
    params = edges_lib.mask_edges(params, edge_mask, means)
  return logit_difference(model, params, sequences, hook)


def _as_floats(gates: Mapping[str, Any]) -> dict[str, jax.Array]:
  return {name: jnp.asarray(g, jnp.float32) for name, g in gates.items()}


@jax.jit
def _logit_difference(evaluator, mask, edge_mask):
  return evaluator.difference(mask, edge_mask)


@jax.jit
def _difference_and_gradient(evaluator, is_used_S, mask):
  def loss(mask):
    diff_S = evaluator.difference(mask)
    return jnp.sum(jax.nn.softplus(-diff_S), where=is_used_S), diff_S

  (_, diff_S), slope = jax.value_and_grad(loss, has_aux=True)(mask)
  return diff_S, slope
