"""Mean activations over the pretraining distribution (paper appendix A.5)."""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.model import hooks, transformer


def mean_activations(
  model: transformer.Model,
  params: transformer.Params,
  batches: Iterable[np.ndarray],
) -> dict[str, jax.Array]:
  """Returns every node site's mean over all tokens, `[layers, width]`.

  Batches are int `[B, L]` tokens each, all of one shape.
  """
  means = [_batch_means(model, params, jnp.asarray(b)) for b in batches]
  return jax.tree.map(lambda *rows: jnp.mean(jnp.stack(rows), 0), *means)


@functools.partial(jax.jit, static_argnames="model")
def _batch_means(model, params, tokens):
  _, acts = hooks.run_with_sites(model, params, tokens)
  return over_sites(model, acts, lambda x_BxLxW: jnp.mean(x_BxLxW, (0, 1)))


def over_sites(
  model: transformer.Model,
  acts: Mapping[str, jax.Array],
  reduce: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
  """Returns `reduce` of every node site's activation, `[layers, width]`."""
  rows = {n: sites.num_rows(n, model.config.n_layer) for n in sites.NODE_SITES}
  site = lambda name, row: reduce(acts[sites.site_id(name, row)])
  return {n: jnp.stack([site(n, i) for i in range(rows[n])]) for n in rows}
