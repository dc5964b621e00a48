"""The frontier on one accelerator: 105M tokens and more, d_model to 1024.

  python -m experiments.frontier --workdir=runs/frontier_gpu \
    --config=experiments/configs/frontier_gpu.py

Meant for one H200 in two hours. That is an estimate, from operations at a third
of the card's rate and eight runs a task: it has not been run there yet. Four
layers, all Python files of the machine, windows of 256 tokens.
"""

import ml_collections

from sparse_jax import frontier
from sparse_jax.frontier import grid


def get_config() -> ml_collections.ConfigDict:
  """Returns the grid."""
  c = grid.to_config_dict(frontier.FrontierConfig())
  c.run.data.context_length = 256
  c.run.model.n_layer = 4
  c.run.train.batch_size = 128
  c.run.train.checkpoint_every = 1000
  # The sizes compared are the paper's: everything else at its mean.
  c.run.prune.ablation_outside = "plain"
  c.run.prune.steps = 250
  c.run.prune.num_runs = 8
  c.run.prune.num_seeds = 0
  c.dense_widths = (32, 64, 128, 256)
  c.sparse_widths = (256, 512, 1024)
  c.densities = (1 / 8, 1 / 32, 1 / 256)
  c.dense_steps = 3200
  c.sparse_steps = 4000
  c.seeds = (0, 1)
  c.variants = tuple(sorted(frontier.VARIANTS))
  c.contenders = ("activation_1",)
  c.variant_width = 256
  c.variant_density = 1 / 8
  c.faithfulness = False
  return c
