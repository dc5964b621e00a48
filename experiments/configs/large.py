"""A model of 39 billion parameters, to be planned, not trained, on this page.

  python -m experiments.plan --config=experiments/configs/large.py --devices=256

Prints bytes a device and collectives a step (docs/running.md has the table);
takes minutes on one core and no accelerator. The settings are the paper's where
they do not depend on size.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  return ml_collections.ConfigDict(
    {
      "data": {"vocab_size": 65536, "context_length": 2048},
      "model": {
        "n_layer": 48,
        "d_model": 8192,
        "d_head": 128,
        "bigram": "none",
      },
      "sparsity": {"density": 0.01},
      "train": {
        "batch_size": 256,
        "accumulate": 16,
        "remat": True,
        "compute_dtype": "bfloat16",
        "model_parallel": 16,
        "steps": 100_000,
      },
    }
  )
