"""Interchange: the model's own values, put into the circuit's nodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.faithfulness import evidence
from sparse_jax.model import hooks
from sparse_jax.tasks import logit_difference as logit_difference_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def interchange(subject: evidence.Subject) -> dict[str, Any]:
  """Returns the loss as circuit nodes take the full model's values.

  A random fraction of the kept nodes is set to what it is in the whole trained
  model, AbsTopK included, on the same prompt; the rest runs as in the circuit
  (interchange evaluation of Drori 2026, whose reference run lacks AbsTopK).
  `fvu` is the fraction of variance unexplained of the circuit's values at its
  nodes, per site and layer: E(full - circuit)^2 / Var(full), over the prompts'
  tokens, not their padding.
  """
  model, params, test = subject.model, subject.params, subject.test
  gates = {n: jnp.asarray(g) for n, g in subject.gates.items()}
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}

  @jax.jit
  def run(params, test, gates, means, chosen):
    full: dict[str, jax.Array] = {}
    logit_difference_lib.logit_difference(
      model, params, test, hooks.record(full)
    )
    seen: dict[str, jax.Array] = {}

    def swap(site, layer, x):
      if site not in chosen:
        return x
      c = chosen[site][0 if layer is None else layer]
      return jnp.where(c > 0, full[sites.site_id(site, layer)], x)

    own = subject.hook(params, test, gates, means)
    hook = hooks.compose(own, swap, hooks.record(seen))
    diff = logit_difference_lib.logit_difference(model, params, test, hook)
    return diff, {
      name: (full[name], seen[name])
      for name in seen
      if name.partition(".")[2] in gates
    }

  rng = np.random.default_rng(subject.seed)
  draws = {name: rng.random(g.shape) for name, g in subject.gates.items()}
  curve = []
  for fraction in _FRACTIONS:
    chosen = {
      name: jnp.asarray((draws[name] < fraction) * g, jnp.float32)
      for name, g in subject.gates.items()
    }
    diff, acts = run(params, test, gates, means, chosen)
    scored = evidence.score(subject.calibrated(np.asarray(diff)), subject.seed)
    curve.append({"fraction": fraction, **scored})
    if fraction == 0.0:
      fvu = _unexplained(
        acts, subject.gates, np.asarray(test.positions), subject.seed
      )
  return {"curve": curve, "fvu": fvu}


def _unexplained(acts, gates, positions, seed) -> dict[str, Any]:
  found = {}
  for name, (full, seen) in acts.items():
    layer, _, site = name.partition(".")
    nodes = np.flatnonzero(gates[site][int(layer)])
    if not len(nodes):
      continue
    full, seen = (np.asarray(x)[..., nodes] for x in (full, seen))
    # Sites that are computed at the answer's position alone have one token.
    last = positions if full.shape[1] > 1 else np.zeros_like(positions)
    used = np.arange(full.shape[1])[None] <= last[:, None]
    center = full[used].mean(0)
    total = lambda x, w=used: (np.square(x).sum(-1) * w).sum(1)
    found[name] = evidence.ratio(total(full - seen), total(full - center), seed)
  return found
