"""A small model, and a circuit in it for a task of the user's own."""

import helpers
import jax

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer

TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)


def make_circuit(tokenizer, share=0.1):
  """Returns (model, params, circuit) of a task of the user's own."""
  config = config_lib.ModelConfig(
    n_layer=2,
    d_model=16,
    d_head=4,
    d_mlp=16,
    vocab_size=tokenizer.vocab_size,
    positions="learned",
    context_length=27,
  )
  model = transformer.Model(config, config_lib.SparsityConfig(min_alive=0))
  params = jax.jit(model.init)(jax.random.key(0))
  mask = helpers.random_masks(model, share)
  texts = lambda text: [tokenizer.token_text(t) for t in tokenizer.encode(text)]
  examples = [
    {
      "prompt_tokens": texts(f"x = ['{word}"),
      "answer": "'",
      "counter_prompt_tokens": texts(f'x = ["{word}'),
      "counter_answer": '"',
    }
    for word in ("alpha", "beta")
  ]
  edges = edges_lib.find_edges(params, mask)
  size = sum(int(m.sum()) for m in mask.values())
  circuit = circuit_lib.Circuit(
    task="own_task",
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.15,
    logit_scale=2.0,
    node_mask=mask,
    means=helpers.random_means(model),
    edges=edges,
    metrics={"num_nodes": size, "num_edges": len(edges)},
    details={"examples": examples, "answer_shift": 0.25},
  )
  return model, params, circuit
