"""The fields of a Hugging Face `config.json`, each checked or refused.

A field that changes what a model computes is read, or is held to the value that
changes nothing. A field that is known to have no effect here is passed over.
Any other is refused: a model that is read wrong looks like one that is right.
"""

import json
import math
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from sparse_jax.config import MOST_SIZE, Accepted
from sparse_jax.utils import errors

_REQUIRED = object()
_MOST_LAYERS = 10_000


class Field(NamedTuple):
  """What a field may hold, and what it means where it is absent."""

  accepted: Accepted
  default: Any = _REQUIRED


def _is_whole(x: Any, most: int = MOST_SIZE) -> bool:
  return isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= most


def _is_number(x: Any) -> bool:
  is_number = isinstance(x, int | float) and not isinstance(x, bool)
  return is_number and math.isfinite(x)


SIZE = Accepted("a whole number from 1 to 2^31 - 1", _is_whole)
OPTIONAL_SIZE = Accepted(
  "null or a whole number from 1 to 2^31 - 1",
  lambda x: x is None or _is_whole(x),
)
NUM_LAYERS = Accepted(
  f"a whole number from 1 to {_MOST_LAYERS}",
  lambda x: _is_whole(x, _MOST_LAYERS),
)
POSITIVE = Accepted("a number above 0", lambda x: _is_number(x) and x > 0)
FLAG = Accepted("true or false", lambda x: isinstance(x, bool))
# Theirs by ours; several names of theirs are one function.
ACTIVATIONS: Mapping[str, str] = {
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
ACTIVATION = Accepted(
  "one of " + ", ".join(ACTIVATIONS),
  lambda x: isinstance(x, str) and x in ACTIVATIONS,
)


def only(*values: Any) -> Accepted:
  """Accepts these values alone: any other would change the model."""
  is_same = lambda x, y: type(x) is type(y) and x == y
  return Accepted(
    " or ".join(map(json.dumps, values)),
    lambda x: any(is_same(x, value) for value in values),
  )


def absent(accepted: Accepted) -> Field:
  """Returns a field that may be absent or null, and is None then."""
  text = f"null or {accepted.text}"
  holds = lambda x: x is None or accepted.holds(x)
  return Field(Accepted(text, holds), None)


# Of every family: what would make it another model.
COMMON: Mapping[str, Field] = {
  "add_cross_attention": Field(only(False), False),
  "auto_map": Field(only(None), None),
  "is_encoder_decoder": Field(only(False), False),
  "pruned_heads": Field(only({}, None), None),
  "quantization_config": Field(only(None), None),
}

# What only training, text generation, other heads or the library's own
# bookkeeping read.
_WITHOUT_EFFECT = frozenset(
  """
  activation_dropout architectures attention_dropout attn_implementation
  attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id
  chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
  decoder_start_token_id diversity_penalty do_sample dropout dtype
  early_stopping embd_pdrop embed_dropout encoder_no_repeat_ngram_size
  eos_token_id
  exponential_decay_length_penalty finetuning_task forced_bos_token_id
  forced_eos_token_id gradient_checkpointing hidden_dropout id2label
  initializer_range is_decoder label2id length_penalty max_length min_length
  model_type n_ctx name_or_path no_repeat_ngram_size num_beam_groups num_beams
  num_labels num_return_sequences output_attentions output_hidden_states
  output_past output_scores pad_token_id prefix problem_type
  remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_dropout
  resid_pdrop return_dict return_dict_in_generate sep_token_id
  summary_activation summary_first_dropout summary_proj_to_labels summary_type
  summary_use_proj suppress_tokens task_specific_params temperature
  tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
  torchscript transformers_version typical_p use_bfloat16 use_cache
  """.split()
)


def read(
  where: str, values: Mapping[str, Any], fields: Mapping[str, Field]
) -> types.SimpleNamespace:
  """Returns the values of fields, defaults filled in.

  `where` is the file, for errors. Raises InputError for a field that is
  missing, holds what is not accepted, or is not known.
  """
  found = {}
  for name, field in fields.items():
    if name not in values and field.default is _REQUIRED:
      raise errors.InputError(
        f"{where}: {name} is missing; need {field.accepted.text}"
      )
    found[name] = values.get(name, field.default)
    if name in values and not field.accepted.holds(found[name]):
      raise errors.bad_value(
        f"{where}: {name}", found[name], field.accepted.text
      )
  for name, value in values.items():
    is_known = name in fields or name in _WITHOUT_EFFECT or name[:1] == "_"
    if not is_known and value is not None and value is not False:
      raise errors.bad_value(
        f"{where}: {name}",
        value,
        "null, since nothing is known of such a field; known are "
        + ", ".join(fields),
      )
  return types.SimpleNamespace(**found)


def head_width(where: str, name: str, d_model: int, num_heads: int) -> int:
  """Returns the width of a head; `name` is the field of their number."""
  if d_model % num_heads:
    need = f"a divisor of the model's width {d_model}"
    raise errors.bad_value(f"{where}: {name}", num_heads, need)
  return d_model // num_heads
