"""Small models that several tests share."""

import jax
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import model as model_lib
from sparse_jax import sites


def tiny_model(activation_fraction: float = 0.25, **fields):
  """Returns (model, params, tokens [3, 9]); no parameter is left at 0 or 1."""
  config = config_lib.ModelConfig(
    **{
      "n_layer": 2,
      "d_model": 16,
      "d_head": 4,
      "d_mlp": 32,
      "vocab_size": 40,
      "context_length": 12,
      **fields,
    }
  )
  sparsity = config_lib.SparsityConfig(
    activation_fraction=activation_fraction, min_alive=0
  )
  model = model_lib.Model(config, sparsity)
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
    params,
  )
  tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, 40)
  return model, params, tokens


def random_masks(model: model_lib.Model, share: float, seed: int = 0):
  """Returns per node site `[layers, width]` masks, `share` of them true."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.random(mask_shape(model, name)) < share
    for name in sites.LAYER_NODE_SITES
  }


def random_means(model: model_lib.Model, seed: int = 0):
  """Returns per node site `[layers, width]` float32 ablation values."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=mask_shape(model, name)).astype(np.float32)
    for name in sites.LAYER_NODE_SITES
  }


def mask_shape(model: model_lib.Model, name: str) -> tuple[int, int]:
  """Returns the shape of a site's masks."""
  rows = sites.num_rows(name, model.config.n_layer)
  return rows, model.config.width(name)


def sparsify(params, share: float, seed: int = 0):
  """Returns the parameters with random weights set to zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda w: w * (rng.random(w.shape) < share).astype(np.float32), params
  )
