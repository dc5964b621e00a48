"""Small models that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib


@functools.cache
def _tiny_model(activation_fraction, **fields):
  config = config_lib.ModelConfig(
    **{
      "n_layer": 2,
      "d_model": 16,
      "d_head": 4,
      "d_mlp": 32,
      "vocab_size": 40,
      "context_length": 12,
      **fields,
    }
  )
  sparsity = config_lib.SparsityConfig(
    activation_fraction=activation_fraction, min_alive=0
  )
  model = transformer.Model(config, sparsity)
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: (
      np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
    ),
    params,
  )
  tokens = jax.random.randint(jax.random.key(2), (3, 9), 0, 40)
  return model, params, tokens


def tiny_model(activation_fraction: float = 0.25, **fields):
  """Returns (model, params, tokens [3, 9]); no parameter is left at 0 or 1.

  Models of equal fields are one, so that tests share their programs; the
  parameters are the caller's own.
  """
  model, params, tokens = _tiny_model(activation_fraction, **fields)
  return model, jax.tree.map(jnp.array, params), tokens


def random_masks(model: transformer.Model, share: float, seed: int = 0):
  """Returns per node site `[layers, width]` masks, `share` of them true."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.random(model.config.site_shape(name)) < share
    for name in sites.LAYER_NODE_SITES
  }


def random_means(model: transformer.Model, seed: int = 0):
  """Returns per node site `[layers, width]` float32 ablation values."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=model.config.site_shape(name)).astype(np.float32)
    for name in sites.LAYER_NODE_SITES
  }


def sparsify(params, share: float, seed: int = 0):
  """Returns the parameters with random weights set to zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda w: w * (rng.random(w.shape) < share).astype(np.float32), params
  )


def make_circuit(model, params, mask, **fields) -> circuit_lib.Circuit:
  """Returns the circuit of a mask, with its numbers of nodes and edges.

  `fields` are the circuit's, in place of the defaults below; metrics are added.
  """
  edges = edges_lib.find_edges(params, mask)
  counts = {
    "num_nodes": sum(int(np.sum(m)) for m in mask.values()),
    "num_edges": len(edges),
  }
  return circuit_lib.Circuit(
    **{
      "task": "single_double_quote",
      "model_fingerprint": fingerprint_lib.fingerprint(model, params),
      "model_config": model.config,
      "sparsity": model.sparsity,
      "ablation": "mean_pretrain",
      "target_loss": 0.15,
      "logit_scale": 1.0,
      "node_mask": mask,
      "means": random_means(model),
      "edges": edges,
      **fields,
      "metrics": counts | fields.get("metrics", {}),
    }
  )


def random_sequences(count=8, length=9, seed=3):
  """Returns `count` sequences of random tokens and answers below 40."""
  rng = np.random.default_rng(seed)
  return sequences_lib.Sequences(
    tokens=jnp.asarray(rng.integers(0, 40, (count, length))),
    positions=jnp.asarray(rng.integers(3, length, count)),
    correct=jnp.asarray(rng.integers(0, 20, count)),
    incorrect=jnp.asarray(rng.integers(20, 40, count)),
    groups=jnp.tile(jnp.arange(-(-count // 2)), 2)[:count],
  )


def tiny_evaluator(share=1.0, count=16, **fields):
  """Returns a `MaskEvaluator` on random prompts; `share` of weights not 0."""
  model, params, _ = tiny_model(**fields)
  if share < 1:
    params = sparsify(params, share)
  return mask_evaluator.MaskEvaluator(
    model, params, random_means(model), random_sequences(count, seed=2)
  )


def quick_prune_flags(**fields) -> list[str]:
  """Returns the flags of a pruning of seconds, and of other fields' values."""
  quick = {
    "steps": 3,
    "batch_size": 4,
    "num_runs": 2,
    "num_seeds": 0,
    "num_train": 8,
    "num_validation": 8,
    "num_test": 8,
    "edge_steps": 2,
    "target_loss": 5.0,
    "ablation_outside": "plain",
  }
  return [f"--config.prune.{n}={v}" for n, v in (quick | fields).items()]
