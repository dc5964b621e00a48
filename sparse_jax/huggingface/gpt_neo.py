"""GPT-Neo and TinyStories: local attention in some layers, scores not scaled.

Source of names and meanings: `modeling_gpt_neo.py` and
`configuration_gpt_neo.py` of transformers.
"""

import types
from typing import Any

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.huggingface import family
from sparse_jax.huggingface import fields as fields_lib
from sparse_jax.huggingface.fields import Field
from sparse_jax.utils import errors

_KINDS = ("global", "local")
_LIST = config_lib.Accepted("a list", lambda x: isinstance(x, list))

_FIELDS = {
  "vocab_size": Field(fields_lib.SIZE),
  "hidden_size": Field(fields_lib.SIZE),
  "num_layers": Field(fields_lib.NUM_LAYERS),
  "num_heads": Field(fields_lib.SIZE),
  "intermediate_size": Field(fields_lib.OPTIONAL_SIZE, None),
  "max_position_embeddings": Field(fields_lib.SIZE),
  "activation_function": Field(fields_lib.ACTIVATION, "gelu_new"),
  "layer_norm_epsilon": Field(fields_lib.POSITIVE, 1e-5),
  "attention_types": Field(_LIST, [[list(_KINDS), 12]]),
  "attention_layers": fields_lib.absent(_LIST),
  "window_size": Field(fields_lib.SIZE, 256),
  "tie_word_embeddings": Field(fields_lib.FLAG, True),
}


def _config(where: str, f: types.SimpleNamespace) -> config_lib.ModelConfig:
  kinds = _layers(where, f)
  window = min(f.window_size, config_lib.NO_WINDOW)
  windows = tuple(window if kind == "local" else 0 for kind in kinds)
  return family.dense(
    n_layer=f.num_layers,
    d_model=f.hidden_size,
    d_head=fields_lib.head_width(
      where, "num_heads", f.hidden_size, f.num_heads
    ),
    d_mlp=f.intermediate_size or 4 * f.hidden_size,
    vocab_size=f.vocab_size,
    context_length=f.max_position_embeddings,
    positions="learned",
    norm_eps=float(f.layer_norm_epsilon),
    activation=fields_lib.ACTIVATIONS[f.activation_function],
    attention_bias="output",
    scale_scores=False,
    windows=windows if any(windows) else (),
    tied=f.tie_word_embeddings,
  )


def _layers(where: str, f: types.SimpleNamespace) -> list[str]:
  """Returns every layer's kind of attention."""
  kinds = _expanded(where, f.attention_types, f.num_layers)
  if f.attention_layers not in (None, kinds):
    need = f"null or {kinds!r}, as attention_types has it"
    raise errors.bad_value(
      f"{where}: attention_layers", f.attention_layers, need
    )
  return kinds


def _expanded(where: str, groups: Any, num_layers: int) -> list[str]:
  """Returns the kinds of `[[kinds, how many times], …]`, one a layer."""
  need = f'[[["global", "local"], times], …] for num_layers={num_layers}'
  refused = errors.bad_value(f"{where}: attention_types", groups, need)
  kinds = []
  for group in groups:
    if not (isinstance(group, list) and len(group) == 2):
      raise refused
    some, times = group
    is_list = isinstance(some, list) and all(k in _KINDS for k in some)
    # Held against the number of layers before the list is made.
    is_count = fields_lib.SIZE.holds(times)
    if not (is_list and is_count and len(some) * times <= num_layers):
      raise refused
    kinds += some * times
  if len(kinds) != num_layers:
    raise refused
  return kinds


def _slots(c: config_lib.ModelConfig) -> dict[str, family.Slot]:
  d, f, same = c.d_model, c.d_mlp, family.same
  attention, transposed = "h.{}.attn.attention", family.transposed
  found = {
    "wte.weight": family.Slot((c.vocab_size, d), sites.EMBED, same),
    "wpe.weight": family.Slot((c.context_length, d), sites.POSITION, same),
    **family.norm("h.{}.ln_1", sites.ATTN_NORM, d),
  }
  for block, name in enumerate("qkv"):
    projection = f"{attention}.{name}_proj", sites.C_ATTN, (d, d)
    found |= family.linear(*projection, family.part(block), has_bias=False)
  out = f"{attention}.out_proj", sites.ATTN_C_PROJ, (d, d)
  up = "h.{}.mlp.c_fc", sites.C_FC, (f, d)
  down = "h.{}.mlp.c_proj", sites.MLP_C_PROJ, (d, f)
  return {
    **found,
    **family.linear(*out, transposed),
    **family.norm("h.{}.ln_2", sites.MLP_NORM, d),
    **family.linear(*up, transposed),
    **family.linear(*down, transposed),
    **family.norm("ln_f", sites.LAST_NORM, d),
  }


GPT_NEO = family.Family(
  fields=_FIELDS,
  config=_config,
  prefix="transformer.",
  slots=_slots,
  buffers=(
    "h.{}.attn.attention.bias",
    "h.{}.attn.attention.masked_bias",
  ),
  head="lm_head.weight",
)
