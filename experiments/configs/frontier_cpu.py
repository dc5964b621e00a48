"""The frontier on two CPU cores, in one or several resumed parts.

  python -m experiments.frontier --workdir=runs/frontier_cpu \
    --config=experiments/configs/frontier_cpu.py --docs=docs

Two layers, the quickstart's data and windows; sparse models get twice the
tokens. Beside other work, on a slow machine, its 25 runs took 14 hours of
mostly one core each: seven hours with both, where four were aimed at. A sparse
run of d_model 256 took 78 to 89 minutes of a core, one of 128 29 to 51, a
dense one 4 to 19. docs/results.md holds what came out here.
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
  c.run.train.checkpoint_every = 1000
  # The sizes compared are the paper's: everything else at its mean.
  c.run.prune.ablation_outside = "plain"
  c.run.prune.steps = 200
  c.run.prune.batch_size = 16
  c.run.prune.k_coefs = (1e-3, 2e-3, 4e-3, 8e-3)
  c.run.prune.num_runs = 6
  c.run.prune.num_seeds = 0
  c.run.prune.round_size = 6
  c.run.prune.edge_steps = 150
  c.dense_widths = (16, 32, 48, 64, 96, 128)
  c.sparse_widths = (256, 128)
  c.densities = (1 / 8, 1 / 64)
  c.dense_steps = 2000
  c.sparse_steps = 4000
  c.seeds = (0, 1)
  c.variants = (
    "activation_1",
    "activation_1_2",
    "activation_1_8",
    "no_sink",
    "no_bigram",
    "none_protected",
  )
  # With one seed its circuits were the smallest beside dense ones at its loss.
  c.contenders = ("activation_1",)
  c.variant_width = 128
  c.variant_density = 1 / 8
  return c
