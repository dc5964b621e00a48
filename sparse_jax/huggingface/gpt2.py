"""GPT-2: learned positions, tanh GELU, matrices as `[in, out]`.

Source of names and meanings: `modeling_gpt2.py` and `configuration_gpt2.py` of
transformers.
"""

import types

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.huggingface import family
from sparse_jax.huggingface import fields as fields_lib
from sparse_jax.huggingface.fields import Field

_FIELDS = {
  "vocab_size": Field(fields_lib.SIZE),
  "n_positions": Field(fields_lib.SIZE),
  "n_embd": Field(fields_lib.SIZE),
  "n_layer": Field(fields_lib.NUM_LAYERS),
  "n_head": Field(fields_lib.SIZE),
  "n_inner": Field(fields_lib.OPTIONAL_SIZE, None),
  "activation_function": Field(fields_lib.ACTIVATION, "gelu_new"),
  "layer_norm_epsilon": Field(fields_lib.POSITIVE, 1e-5),
  "scale_attn_weights": Field(fields_lib.FLAG, True),
  "scale_attn_by_inverse_layer_idx": Field(fields_lib.only(False), False),
  "tie_word_embeddings": Field(fields_lib.FLAG, True),
}


def _config(where: str, f: types.SimpleNamespace) -> config_lib.ModelConfig:
  return family.dense(
    n_layer=f.n_layer,
    d_model=f.n_embd,
    d_head=fields_lib.head_width(where, "n_head", f.n_embd, f.n_head),
    d_mlp=f.n_inner or 4 * f.n_embd,
    vocab_size=f.vocab_size,
    context_length=f.n_positions,
    positions="learned",
    norm_eps=float(f.layer_norm_epsilon),
    activation=fields_lib.ACTIVATIONS[f.activation_function],
    scale_scores=f.scale_attn_weights,
    tied=f.tie_word_embeddings,
  )


def _slots(c: config_lib.ModelConfig) -> dict[str, family.Slot]:
  d, f, same = c.d_model, c.d_mlp, family.same
  return {
    "wte.weight": family.Slot((c.vocab_size, d), sites.EMBED, same),
    "wpe.weight": family.Slot((c.context_length, d), sites.POSITION, same),
    **family.norm("h.{}.ln_1", sites.ATTN_NORM, d),
    **family.linear("h.{}.attn.c_attn", sites.C_ATTN, (d, 3 * d), same),
    **family.linear("h.{}.attn.c_proj", sites.ATTN_C_PROJ, (d, d), same),
    **family.norm("h.{}.ln_2", sites.MLP_NORM, d),
    **family.linear("h.{}.mlp.c_fc", sites.C_FC, (d, f), same),
    **family.linear("h.{}.mlp.c_proj", sites.MLP_C_PROJ, (f, d), same),
    **family.norm("ln_f", sites.LAST_NORM, d),
  }


GPT2 = family.Family(
  fields=_FIELDS,
  config=_config,
  prefix="transformer.",
  slots=_slots,
  buffers=("h.{}.attn.bias", "h.{}.attn.masked_bias"),
  head="lm_head.weight",
)
