"""The smallest run that shows everything: about half a minute on two cores.

  python -m experiments.train --config=experiments/configs/tiny.py \
    --workdir=runs/tiny

It learns next to nothing; use it to try an idea for errors.
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the default config, shrunk."""
  c = config.to_config_dict()
  c.data.max_megabytes = 4.0
  c.data.vocab_size = 512
  c.data.context_length = 32
  c.model.d_model = 32
  c.sparsity.density = 0.2
  c.train.steps = 60
  c.train.batch_size = 8
  c.train.checkpoint_every = 20
  c.train.eval_every = 20
  c.train.eval_batches = 2
  return c
