"""Writes a circuit as an ONNX model, by jax2onnx.

The graph is that of `Circuit.compact`: tokens `[batch, length]` to logits of
the answers `[batch, length, answers]`, for any batch and, up to the model's
context, any length.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import program as program_lib
from sparse_jax.programs.source import Answers
from sparse_jax.utils import errors


def write_onnx(circuit: circuit_lib.Circuit, params, answers: Answers) -> bytes:
  """Returns a circuit's ONNX model, serialised.

  Its input is "tokens", its output "logits"; its metadata has the task and the
  answers' texts, a line each.

  Args:
    circuit: the circuit.
    params: parameters of the model it was cut from.
    answers: what it decides between.

  Raises:
    InputError: for a circuit with frozen norms, or without jax2onnx.
  """
  program = circuit.compact(params, answers.tokens)
  try:
    import jax2onnx  # noqa: PLC0415 (an extra)
  except ImportError as e:
    raise errors.InputError(
      f"{e.name} is not installed; need pip install 'sparse_jax[onnx]'"
    ) from None

  def logits(tokens_BxL):
    return program_lib.run(program, tokens_BxL, None, _OPS)

  # Arrays of unknown size whose kind is that of tokens.
  shape = jax.export.symbolic_shape("batch, length")
  made = jax2onnx.to_onnx(
    logits,
    inputs=[jax.ShapeDtypeStruct(shape, jnp.int32)],
    model_name=circuit.task,
    input_names=["tokens"],
    output_names=["logits"],
  )
  for key, text in (
    ("task", circuit.task),
    ("answers", "\n".join(map(repr, answers.texts))),
    ("model_fingerprint", circuit.model_fingerprint),
  ):
    made.metadata_props.add(key=key, value=text)
  return made.SerializeToString()


def _compete(x_TxX: jax.Array, site: program_lib.Site) -> jax.Array:
  """Returns the open channels of AbsTopK, `[N, ...]`, each compared with all.

  ONNX has no counterpart of the loops and bits that JAX's own program uses.
  """
  at_N = np.flatnonzero(site.is_open)
  size_TxX = jnp.abs(x_TxX)
  kept = []
  for at in at_N.tolist():
    others_TxX = jnp.concatenate([size_TxX[:at], size_TxX[at + 1 :]])
    # The lower index wins a tie.
    is_before_T = (np.arange(len(x_TxX) - 1) < at).reshape(
      -1, *[1] * (x_TxX.ndim - 1)
    )
    size_1xX = size_TxX[at : at + 1]
    is_above = (others_TxX > size_1xX) | (
      (others_TxX == size_1xX) & is_before_T
    )
    rank_1xX = jnp.sum(is_above.astype(jnp.float32), 0, keepdims=True)
    kept.append(jnp.where(rank_1xX < site.k, x_TxX[at : at + 1], 0.0))
  return jnp.concatenate(kept)


_OPS = program_lib.JAX._replace(compete=_compete)
