"""The frontier, small: whether all of it works, with a real picture.

  python -m experiments.frontier --workdir=runs/frontier_tiny \
    --config=experiments/configs/frontier_tiny.py

Four models, 14 minutes on two CPU cores. So small models learn few tasks: the
ratio rests on one of them.
"""

import ml_collections

from sparse_jax import frontier
from sparse_jax.frontier import grid


def get_config() -> ml_collections.ConfigDict:
  """Returns the grid."""
  c = grid.to_config_dict(frontier.FrontierConfig())
  c.run.data.max_megabytes = 30.0
  c.run.data.context_length = 64
  c.run.train.batch_size = 32
  # With AbsTopK the sparse loss would be above all dense ones: no ratio.
  c.run.sparsity.activation_fraction = 1.0
  # The sizes compared are the paper's: everything else at its mean.
  c.run.prune.ablation_outside = "plain"
  c.run.prune.steps = 150
  c.run.prune.batch_size = 16
  c.run.prune.k_coefs = (1e-3, 2e-3, 4e-3, 8e-3)
  c.run.prune.num_runs = 4
  c.run.prune.num_seeds = 0
  c.run.prune.edge_steps = 100
  c.dense_widths = (16, 32, 64)
  c.sparse_widths = (128,)
  c.densities = (1 / 8,)
  c.dense_steps = 1200
  c.sparse_steps = 1600
  c.seeds = (0,)
  c.tasks = ("single_double_quote", "else_elif", "while_return_true")
  c.faithfulness = False
  return c
