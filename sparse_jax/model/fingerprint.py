"""A hash that tells models apart."""

import hashlib
import json

import jax
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import transformer


def fingerprint(model: transformer.Model, params: transformer.Params) -> str:
  """Returns a hash of the shape, the activation sparsity and all weights."""
  unset = config_lib.OPTIONS.keys() - model.config.set_options
  fields = config_lib.to_dict(model.config)
  behaviour = {
    "model": {k: v for k, v in fields.items() if k not in unset},
    "activation_fraction": model.sparsity.activation_fraction,
    "activation_sites": model.sparsity.activation_sites,
  }
  digest = hashlib.sha256(json.dumps(behaviour, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(sites.path_name(path).encode())
    digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
  return "sha256:" + digest.hexdigest()
