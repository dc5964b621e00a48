"""The paper's own grid, for those who have the machines.

  python -m experiments.frontier --workdir=runs/frontier_paper \
    --config=experiments/configs/frontier_paper.py

Eight layers, widths 256 times an expansion factor, 512 windows of 256 tokens a
step for 32 billion tokens a model, 256 prunings a model and task (paper section
2 and appendix; the authors' train.py). It was never run. Their text was Python
from the web: give yours with `--config.run.data.source=`. Several machines may
share one workdir.
"""

import ml_collections

from sparse_jax import frontier
from sparse_jax.frontier import grid


def get_config() -> ml_collections.ConfigDict:
  """Returns the grid."""
  c = grid.to_config_dict(frontier.FrontierConfig())
  c.run.data.context_length = 256
  c.run.model.n_layer = 8
  c.run.train.batch_size = 512
  c.run.train.checkpoint_every = 2000
  # The sizes compared are the paper's: everything else at its mean.
  c.run.prune.ablation_outside = "plain"
  c.run.prune.steps = 1000
  c.run.prune.num_runs = 256
  c.run.prune.num_seeds = 8
  c.run.prune.round_size = 32
  c.dense_widths = (32, 64, 128, 256, 512)
  c.sparse_widths = (256, 512, 1024, 2048, 4096)
  c.densities = tuple(2.0**-n for n in range(1, 11))
  c.dense_steps = 244_000
  c.sparse_steps = 244_000
  c.seeds = (0, 1, 2)
  c.variants = tuple(sorted(frontier.VARIANTS))
  c.variant_width = 2048
  c.variant_density = 2.0**-6
  return c
