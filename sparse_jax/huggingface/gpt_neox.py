"""GPT-NeoX and Pythia: rotary positions, a parallel residual, untied.

Source of names and meanings: `modeling_gpt_neox.py` and
`configuration_gpt_neox.py` of transformers.
"""

import types
from typing import Any

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.huggingface import family
from sparse_jax.huggingface import fields as fields_lib
from sparse_jax.huggingface.fields import Field
from sparse_jax.utils import errors

_SHARE = fields_lib.absent(
  config_lib.Accepted(
    "a number above 0 and at most 1",
    lambda x: fields_lib.POSITIVE.holds(x) and x <= 1,
  )
)
_ROPE_TYPE = fields_lib.only("default")
# What `rope_parameters` and its predecessor hold.
_ROPE_FIELDS = {
  "rope_theta": fields_lib.absent(fields_lib.POSITIVE),
  "partial_rotary_factor": _SHARE,
  "rope_type": Field(_ROPE_TYPE, "default"),
  "type": Field(_ROPE_TYPE, "default"),
}
_OBJECT = config_lib.Accepted("an object", lambda x: isinstance(x, dict))
_DEFAULT_BASE, _DEFAULT_SHARE = 10000.0, 0.25

_FIELDS = {
  "vocab_size": Field(fields_lib.SIZE),
  "hidden_size": Field(fields_lib.SIZE),
  "num_hidden_layers": Field(fields_lib.NUM_LAYERS),
  "num_attention_heads": Field(fields_lib.SIZE),
  "intermediate_size": Field(fields_lib.SIZE),
  "max_position_embeddings": Field(fields_lib.SIZE, 2048),
  "hidden_act": Field(fields_lib.ACTIVATION, "gelu"),
  "layer_norm_eps": Field(fields_lib.POSITIVE, 1e-5),
  "attention_bias": Field(fields_lib.FLAG, True),
  "use_parallel_residual": Field(fields_lib.FLAG, True),
  "tie_word_embeddings": Field(fields_lib.FLAG, False),
  "head_dim": Field(fields_lib.OPTIONAL_SIZE, None),
  # The same two numbers have had three names.
  "rotary_pct": _SHARE,
  "rotary_emb_base": fields_lib.absent(fields_lib.POSITIVE),
  "partial_rotary_factor": _SHARE,
  "rope_theta": fields_lib.absent(fields_lib.POSITIVE),
  "rope_parameters": fields_lib.absent(_OBJECT),
  "rope_scaling": fields_lib.absent(_OBJECT),
}


def _config(where: str, f: types.SimpleNamespace) -> config_lib.ModelConfig:
  heads = "num_attention_heads"
  d_head = fields_lib.head_width(
    where, heads, f.hidden_size, f.num_attention_heads
  )
  if f.head_dim not in (None, d_head):
    need = f"null or hidden_size / {heads} = {d_head}"
    raise errors.bad_value(f"{where}: head_dim", f.head_dim, need)
  base, share = _rotary(where, f)
  return family.dense(
    n_layer=f.num_hidden_layers,
    d_model=f.hidden_size,
    d_head=d_head,
    d_mlp=f.intermediate_size,
    vocab_size=f.vocab_size,
    context_length=f.max_position_embeddings,
    positions="rotary",
    rotary_base=base,
    rotary_share=share,
    norm_eps=float(f.layer_norm_eps),
    activation=fields_lib.ACTIVATIONS[f.hidden_act],
    attention_bias="all" if f.attention_bias else "none",
    parallel=f.use_parallel_residual,
    tied=f.tie_word_embeddings,
  )


def _rotary(where: str, f: types.SimpleNamespace) -> tuple[float, float]:
  """Returns (base, share), which every name that is there has to agree on."""
  bases = {"rope_theta": f.rope_theta, "rotary_emb_base": f.rotary_emb_base}
  shares = {
    "partial_rotary_factor": f.partial_rotary_factor,
    "rotary_pct": f.rotary_pct,
  }
  for name in ("rope_parameters", "rope_scaling"):
    inside = getattr(f, name)
    if inside is None:
      continue
    rope = fields_lib.read(f"{where}: {name}", inside, _ROPE_FIELDS)
    bases[f"{name}.rope_theta"] = rope.rope_theta
    shares[f"{name}.partial_rotary_factor"] = rope.partial_rotary_factor
  base = _agreed(where, bases, _DEFAULT_BASE)
  return base, _agreed(where, shares, _DEFAULT_SHARE)


def _agreed(where: str, values: dict[str, Any], default: float) -> float:
  given = {name: x for name, x in values.items() if x is not None}
  first = next(iter(given), None)
  for name, x in given.items():
    if x != given[first]:
      need = f"the same as {first}={given[first]!r}"
      raise errors.bad_value(f"{where}: {name}", x, need)
  return float(given[first]) if given else default


def _by_head(num_heads: int) -> family.View:
  """Returns the view in which q, k and v of a head lie together.

  Ours are all queries, all keys, all values.
  """

  def view(x):
    x_x3xHxK = x.reshape(*x.shape[:-1], 3, num_heads, -1)
    x_xHx3xK = np.swapaxes(x_x3xHxK, -3, -2)
    return x_xHx3xK if x.ndim == 1 else np.moveaxis(x_xHx3xK, 0, -1)

  return view


def _slots(c: config_lib.ModelConfig) -> dict[str, family.Slot]:
  d, f, v = c.d_model, c.d_mlp, c.vocab_size
  layer, transposed = "layers.{}", family.transposed
  has_bias = c.attention_bias == "all"
  attention = f"{layer}.attention"
  fused = f"{attention}.query_key_value", sites.C_ATTN, (3 * d, d)
  out = f"{attention}.dense", sites.ATTN_C_PROJ, (d, d)
  up = f"{layer}.mlp.dense_h_to_4h", sites.C_FC, (f, d)
  down = f"{layer}.mlp.dense_4h_to_h", sites.MLP_C_PROJ, (d, f)
  return {
    "embed_in.weight": family.Slot((v, d), sites.EMBED, family.same),
    **family.norm(f"{layer}.input_layernorm", sites.ATTN_NORM, d),
    **family.linear(*fused, _by_head(c.n_head), has_bias),
    **family.linear(*out, transposed, has_bias),
    **family.norm(f"{layer}.post_attention_layernorm", sites.MLP_NORM, d),
    **family.linear(*up, transposed),
    **family.linear(*down, transposed),
    **family.norm("final_layer_norm", sites.LAST_NORM, d),
  }


GPT_NEOX = family.Family(
  fields=_FIELDS,
  config=_config,
  prefix="gpt_neox.",
  slots=_slots,
  buffers=(
    "layers.{}.attention.bias",
    "layers.{}.attention.masked_bias",
    "layers.{}.attention.rotary_emb.inv_freq",
    "rotary_emb.inv_freq",
  ),
  head="embed_out.weight",
)
