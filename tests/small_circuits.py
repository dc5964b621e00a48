"""A small random model's circuit, and a tokenizer, for tests of programs."""

import helpers
import jax
import numpy as np
from hypothesis import strategies as st

from sparse_jax import config as config_lib
from sparse_jax import programs, tasks
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import transformer

TASK = "single_double_quote"
_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)
TOKENIZER = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
QUOTES = ("'", '"')
ANSWERS = programs.find_answers([QUOTES, QUOTES[::-1]], TOKENIZER)

# Every option of a model, by Hypothesis.
OPTIONS = {
  "positions": st.sampled_from(
    ["none", "learned", "concatenated", "sinusoidal", "rotary"]
  ),
  "rotary_share": st.sampled_from([0.5, 1.0]),
  "rotary_base": st.sampled_from([7.0, 10000.0]),
  "d_position": st.integers(1, 9),
  "norm": st.sampled_from(["rms", "layer"]),
  "norm_bias": st.booleans(),
  "activation": st.sampled_from(["gelu", "gelu_tanh", "relu"]),
  "bias": st.booleans(),
  "attention_bias": st.sampled_from(["all", "output", "none"]),
  "scale_scores": st.booleans(),
  "windows": st.sampled_from([(), (3, 0), (0, 5), (2, 4)]),
  "parallel": st.booleans(),
  "tied": st.booleans(),
  "sink": st.booleans(),
  "bigram": st.sampled_from(["learned", "fixed", "none"]),
  "residual_activation": st.sampled_from(["identity", "relu"]),
}


def make(share=0.15, density=0.5, fraction=0.25, gate_last=False, **fields):
  """Returns (circuit, params) of a small random model."""
  config = config_lib.ModelConfig(
    **{
      **{"n_layer": 2, "d_model": 16, "d_head": 4, "d_mlp": 32},
      **{"vocab_size": TOKENIZER.vocab_size, "context_length": 64},
      **fields,
    }
  )
  sparsity = config_lib.SparsityConfig(activation_fraction=fraction)
  model = transformer.Model(config, sparsity)
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  weight = lambda s: rng.normal(size=s.shape) * (rng.random(s.shape) < density)
  params = jax.tree.map(lambda s: (0.4 * weight(s)).astype(np.float32), shapes)
  for name, p in (*params["layers"].items(), ("ln_f", params["ln_f"])):
    if "scale" in p:
      p["scale"] += 1
    del name
  mask, means = helpers.random_masks(model, share), helpers.random_means(model)
  if gate_last:
    shape = model.config.site_shape("final_resid")
    mask["final_resid"] = rng.random(shape) < 0.5
    means["final_resid"] = rng.normal(size=shape).astype(np.float32)
  return with_mask(model, params, mask, means), params


def with_mask(model, params, mask, means):
  """Returns the circuit of a mask; scale 1.5, a loss of 0.1234."""
  return helpers.make_circuit(
    model,
    params,
    mask,
    task=TASK,
    logit_scale=1.5,
    means=means,
    metrics={"test_loss": 0.1234},
    details={"examples": [{"answer": QUOTES[0], "counter_answer": QUOTES[1]}]},
  )


def with_prompts():
  """Returns a circuit, its model's parameters, and 256 prompts of its task."""
  circuit, params = make(positions="learned", context_length=128)
  pairs = tasks.make_task(TASK, TOKENIZER).pairs("test", count=128)
  return circuit, params, pairs.sequences()
