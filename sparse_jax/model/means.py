"""Mean activations over the pretraining distribution (paper appendix A.5)."""

from collections.abc import Iterable

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

  The ablation values of the paper: the mean over the pretraining distribution.

  Args:
    model: the model.
    params: its parameters.
    batches: int `[B, L]` tokens each, all of one shape.
  """

  @jax.jit
  def batch_means(params, tokens):
    _, acts = hooks.run_with_sites(model, params, tokens)
    return {
      name: jnp.stack(
        [
          jnp.mean(acts[sites.site_id(name, row)], (0, 1))
          for row in range(sites.num_rows(name, model.config.n_layer))
        ]
      )
      for name in sites.NODE_SITES
    }

  means = [batch_means(params, jnp.asarray(batch)) for batch in batches]
  return jax.tree.map(lambda *rows: jnp.mean(jnp.stack(rows), 0), *means)
