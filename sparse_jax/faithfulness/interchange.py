"""Interchange: the model's own values, put into the circuit's nodes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.faithfulness import context as context_lib
from sparse_jax.model import hooks
from sparse_jax.tasks import logit_difference as logit_difference_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def interchange(context: context_lib.Context) -> dict[str, Any]:
  """Returns the loss as circuit nodes take the full model's values.

  A random fraction of the kept nodes is set to what it is in the whole trained
  model, AbsTopK included, on the same prompt; the rest runs as in the circuit
  (interchange evaluation of Drori 2026, whose reference run lacks AbsTopK).
  `fvu` is the fraction of variance unexplained of the circuit's values at its
  nodes, per site and layer: E(full - circuit)^2 / Var(full), over the prompts'
  tokens, not their padding.
  """
  evaluator, mask = context.evaluator, context.mask
  rng = np.random.default_rng(context.seed)
  draws = {name: rng.random(m.shape) for name, m in mask.items()}
  curve = []
  for fraction in _FRACTIONS:
    chosen = {
      name: ((draws[name] < fraction) * m).astype(np.float32)
      for name, m in mask.items()
    }
    diff_S, acts = _swapped(
      evaluator.model,
      evaluator.freeze_norms,
      evaluator.params,
      evaluator.sequences,
      jax.tree.map(jnp.asarray, mask),
      {name: jnp.asarray(evaluator.means[name]) for name in mask},
      chosen,
    )
    scored = context.score(context.calibrated(np.asarray(diff_S)))
    curve.append({"fraction": fraction, **scored})
    if fraction == 0.0:
      positions = np.asarray(evaluator.sequences.positions)
      fvu = unexplained(context, acts, positions)
  return {"curve": curve, "fvu": fvu}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _swapped(model, freeze_norms, params, sequences, mask, means, chosen):
  """Returns the logit differences, and (full, circuit) values by site."""
  full: dict[str, jax.Array] = {}
  logit_difference_lib.logit_difference(
    model, params, sequences, hooks.record(full)
  )

  def swap(site, layer, x):
    if site not in chosen:
      return x
    row = chosen[site][0 if layer is None else layer]
    return jnp.where(row > 0, full[sites.site_id(site, layer)], x)

  own = hooks.circuit_hook(
    model,
    params,
    sequences.tokens,
    sequences.positions,
    mask,
    means,
    freeze_norms,
  )
  seen: dict[str, jax.Array] = {}
  hook = hooks.compose(own, swap, hooks.record(seen))
  diff_S = logit_difference_lib.logit_difference(model, params, sequences, hook)
  gated = [n for n in seen if n.partition(".")[2] in mask]
  return diff_S, {name: (full[name], seen[name]) for name in gated}


def unexplained(
  context: context_lib.Context, acts, positions: np.ndarray
) -> dict[str, Any]:
  """Returns the fraction of variance unexplained, by "layer.site".

  Args:
    context: of the circuit, whose nodes count.
    acts: by "layer.site" (full, circuit) values, each `[S, T or 1, width]`.
    positions: `[S]`, of each prompt's last token.
  """
  fvu = {}
  for name, pair in acts.items():
    layer, _, site = name.partition(".")
    nodes = np.flatnonzero(context.mask[site][int(layer)])
    if not len(nodes):
      continue
    full, seen = (np.asarray(x)[..., nodes] for x in pair)
    # The last layer computes some sites at the answer's position alone.
    last = positions if full.shape[1] > 1 else np.zeros_like(positions)
    used = np.arange(full.shape[1])[None] <= last[:, None]
    center = full[used].mean(0)
    total = lambda x, used=used: (np.square(x).sum(-1) * used).sum(1)
    fvu[name] = context.ratio(total(full - seen), total(full - center))
  return fvu
