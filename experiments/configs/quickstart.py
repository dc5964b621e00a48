"""The quickstart: a circuit that closes a string with the quote that opened it.

  make quickstart

A two-layer decoder, block weights 90% zero, trained on 6 million tokens of the
machine's own Python files, then pruned on two tasks. README.md holds the
figures it reached and how long it took.
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the quickstart's config."""
  c = config.to_config_dict()
  c.data.max_megabytes = 40.0
  c.data.context_length = 128
  c.model.n_layer = 2
  c.model.d_model = 128
  c.sparsity.density = 0.1
  c.train.steps = 1000
  c.train.batch_size = 32
  c.train.learning_rate = 1.28e-2
  return c
