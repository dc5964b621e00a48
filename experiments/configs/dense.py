"""A dense model for docs/dense.md: every weight and activation may be nonzero.

  python -m experiments.corpus --out=corpus
  python -m experiments.train --config=experiments/configs/dense.py \\
    --workdir=runs/dense

The quickstart's shape and windows on the pinned corpus. The rate is lower than
a sparse model's: nothing has to recover from weights that vanish.
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the dense model's config."""
  c = config.to_config_dict()
  c.data.source = "corpus/files"
  c.data.directory = "corpus/tokens"
  c.data.clean = False  # The corpus has rules of its own, fixed by its hash.
  c.data.context_length = 64
  c.model.n_layer = 2
  c.model.d_model = 128
  c.model.positions = "learned"
  c.sparsity.density = 1.0
  c.sparsity.activation_fraction = 1.0
  c.train.steps = 2000
  c.train.batch_size = 32
  c.train.learning_rate = 6.4e-3
  c.train.checkpoint_every = 200
  return c
