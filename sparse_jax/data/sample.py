"""The first text of a source, in the tokens of any tokenizer."""

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.utils import errors


def first_windows(
  config: config_lib.DataConfig,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  context_length: int,
  count: int,
  progress: bool = True,
) -> np.ndarray:
  """Returns int32 `[count, context_length]` of a source's training documents.

  These come in the order of their hashes, an end of text behind each; a source
  that has fewer windows repeats them. Raises InputError if it has none.
  """
  blocks, missing = [], count * context_length
  for document in sources.documents(config, "train", progress):
    ids = [*tokenizer.encode(document.text), tokenizer.end_of_text]
    blocks.append(np.array(ids, np.int32))
    missing -= len(ids)
    if missing <= 0:
      break
  tokens = np.concatenate(blocks)
  whole = len(tokens) // context_length
  if not whole:
    raise errors.InputError(
      f"data.source={config.source!r} gives {len(tokens)} train tokens; need at"
      f" least {context_length} for data.context_length={context_length}"
    )
  windows = tokens[: whole * context_length].reshape(whole, context_length)
  return windows[np.arange(count) % whole]
