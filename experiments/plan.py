"""Says what a training step takes of devices that need not be there.

  python -m experiments.plan --config=experiments/configs/large.py --devices=256

Compiles the step for so many devices on this CPU, without making an array, and
prints the bytes that each would hold and what they would send each other.
"""

import jax
from absl import flags

from experiments import cli
from sparse_jax.training import plan

_CONFIG = flags.DEFINE_string(
  "config", None, "A Python file with get_config()."
)
_DEVICES = flags.DEFINE_integer(
  "devices", 256, "How many devices to plan for.", lower_bound=1
)
cli.require("config")


def main(overrides: list[str]) -> None:
  """Plans as the flags say."""
  config = cli.load_config(_CONFIG.value, overrides)
  # Before JAX looks for devices.
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", _DEVICES.value)
  print("compiling, which takes minutes for a large model", flush=True)
  print(plan.dry_run(config).text)


if __name__ == "__main__":
  cli.run(main, __doc__)
