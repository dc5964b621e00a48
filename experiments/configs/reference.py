"""The reference model: three layers, one block weight in eight, pinned data.

  python -m experiments.corpus --out=corpus
  python -m experiments.train --config=experiments/configs/reference.py \\
    --workdir=runs/reference
  python -m experiments.prune --config=experiments/configs/reference.py \\
    --model=reference --tasks=all --workdir=runs/atlas

docs/reference.md holds how the shape was chosen, what it cost and what it does.
Light noise on nodes teaches it not to break where a few unrelated ones are
gone, so that circuits can be specific (docs/robust.md).
"""

import ml_collections

from sparse_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Returns the reference model's config."""
  c = config.to_config_dict()
  c.data.source = "corpus/files"
  c.data.directory = "corpus/tokens"
  c.data.clean = False  # The corpus has rules of its own, fixed by its hash.
  c.data.context_length = 64
  c.model.n_layer = 3
  c.model.d_model = 192
  c.model.positions = "learned"
  c.sparsity.density = 1 / 8
  c.sparsity.activation_fraction = 1 / 8
  c.sparsity.anneal_stop = 0.25
  c.train.steps = 20_000
  c.train.batch_size = 32
  c.train.learning_rate = 1.28e-2
  c.train.node_noise = 0.5
  c.train.checkpoint_every = 1000
  c.train.keep_every = 1000
  c.train.eval_every = 1000
  c.prune.steps = 250
  c.prune.batch_size = 16
  c.prune.k_coefs = (1e-3, 2e-3, 4e-3, 8e-3)
  c.prune.num_runs = 4
  c.prune.num_seeds = 0
  c.prune.robust_k_coefs = (2e-5, 5e-5, 1e-4)
  c.prune.num_robust_runs = 3
  return c
