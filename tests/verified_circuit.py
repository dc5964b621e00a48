"""A small model's circuit in a directory, for tests that measure it again."""

import pathlib

import helpers
import jax
import numpy as np
import small_circuits

from sparse_jax import checkpoint, tasks
from sparse_jax import config as config_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import sequences as sequences_lib

TASK = small_circuits.TASK


def write(root: pathlib.Path) -> pathlib.Path:
  """Returns a circuit directory below `root`, with three models beside it.

  model/ is the circuit's own, bare/ lacks its means, moved/ was trained on by a
  hair: it has the same zeros and another fingerprint.
  """
  tokenizer = small_circuits.TOKENIZER
  shape = config_lib.ModelConfig(
    n_layer=1,
    d_model=16,
    d_head=4,
    d_mlp=16,
    vocab_size=tokenizer.vocab_size,
    context_length=64,
  )
  model = transformer.Model(shape, config_lib.SparsityConfig(min_alive=0))
  params = helpers.sparsify(
    jax.device_get(jax.jit(model.init)(jax.random.key(0))), 0.3
  )
  params = jax.tree.map(np.asarray, params)
  means = helpers.random_means(model)
  config = config_lib.Config(
    prune=config_lib.PruneConfig(
      num_train=12, num_validation=8, num_test=8, ablation="mean_pretrain"
    )
  )
  checkpoint.save_model(root / "model", model, params, tokenizer, config, means)
  checkpoint.save_model(root / "bare", model, params, tokenizer, config)
  moved = jax.tree.map(lambda w: w * np.float32(1 + 1e-4), params)
  checkpoint.save_model(root / "moved", model, moved, tokenizer, config, means)
  mask = helpers.random_masks(model, 0.2)
  task = tasks.make_task(TASK, tokenizer)
  test = sequences_lib.make_splits(task, config.prune, config.seed).test
  circuit = helpers.make_circuit(
    model,
    params,
    mask,
    task=TASK,
    means=means,
    details={"examples": [{"answer": "'", "counter_answer": '"'}]},
  )
  logits = jax.jit(circuit.apply)(params, test.tokens)
  rows = np.arange(len(test.tokens))
  last = np.asarray(logits)[rows, test.positions]
  diff = last[rows, test.correct] - last[rows, test.incorrect]
  circuit.metrics["test_loss"] = float(np.logaddexp(0, -diff).mean())
  directory = root / "circuits" / TASK
  circuit.save(directory)
  return directory
