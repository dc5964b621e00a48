"""The smallest bridge: errors show in a minute, nothing is learned.

  python -m experiments.train --config=experiments/configs/tiny.py \\
    --workdir=runs/tiny --config.sparsity.density=1 \\
    --config.sparsity.activation_fraction=1
  python -m experiments.bridge --dense=runs/tiny/model \\
    --config=experiments/configs/bridge_tiny.py --workdir=runs/bridge_tiny
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the bridge's defaults, shrunk."""
  c = config.to_config_dict(config.BridgeRunConfig())
  c.data.max_megabytes = 4.0
  c.data.vocab_size = 512
  c.data.context_length = 32
  c.model.d_model = 48
  c.sparsity.density = 0.2
  c.train.steps = 40
  c.train.batch_size = 8
  c.train.checkpoint_every = 20
  c.train.eval_every = 20
  c.train.eval_batches = 2
  c.prune.mean_batches = 4
  return c
