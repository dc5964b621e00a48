"""A sparse model bridged to the dense one of dense.py, on a CPU.

  python -m experiments.train --config=experiments/configs/dense.py \\
    --workdir=runs/dense
  python -m experiments.bridge --dense=runs/dense/model \\
    --config=experiments/configs/bridge_cpu.py --workdir=runs/bridge

docs/dense.md holds what came out. A step takes five passes through each model
from the embedding to the loss, where plain training takes one.
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the bridge's config."""
  c = config.to_config_dict(config.BridgeRunConfig())
  c.data.source = "corpus/files"
  c.data.directory = "corpus/tokens"
  c.data.clean = False  # The corpus has rules of its own, fixed by its hash.
  c.data.context_length = 64
  c.model.n_layer = 2
  c.model.d_model = 256
  c.model.positions = "learned"
  c.model.bigram = "fixed"  # The dense model's: behind every bridge.
  c.sparsity.density = 1 / 8
  c.sparsity.activation_fraction = 1 / 4
  c.sparsity.anneal_stop = 0.25
  c.bridge.distillation = 1.0
  c.train.steps = 4000
  c.train.batch_size = 16
  c.train.learning_rate = 1.28e-2
  c.train.checkpoint_every = 100
  c.train.eval_every = 500
  c.prune.steps = 250
  c.prune.batch_size = 16
  c.prune.k_coefs = (1e-3, 2e-3, 4e-3, 8e-3)
  c.prune.num_runs = 4
  c.prune.num_seeds = 0
  c.prune.robust_k_coefs = (3e-5, 1e-4)
  c.prune.num_robust_runs = 2
  return c
