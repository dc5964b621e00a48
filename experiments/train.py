"""Trains a weight-sparse transformer.

  python -m experiments.train --config=experiments/configs/tiny.py \\
    --workdir=runs/tiny --config.sparsity.density=0.15

The same command again resumes from the newest checkpoint.
"""

import jax
from absl import flags

from experiments import cli
from sparse_jax.model import sharding
from sparse_jax.training import loop

_CONFIG = flags.DEFINE_string(
  "config", None, "A Python file with get_config()."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A directory for the run; the same one resumes it."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the other processes: those of the cluster (Slurm, Open MPI, Kubernetes,"
  " Cloud TPU), or of JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and"
  " JAX_PROCESS_ID.",
)
cli.require("config", "workdir")


def main(overrides: list[str]) -> None:
  """Trains as the flags say."""
  config = cli.load_config(_CONFIG.value, overrides)
  if _DISTRIBUTED.value:
    sharding.join_processes()
  trained = loop.run(config, _WORKDIR.value)
  if jax.process_index() == 0:
    print(
      f"held-out loss {trained.eval_loss:.4f} nats a token, block weights"
      f" {100 * (1 - loop.block_density(trained.params)):.1f}% zero;"
      f" model in {trained.model_directory}"
    )


if __name__ == "__main__":
  cli.run(main, __doc__)
