"""Writes a circuit as a readable Python file: NumPy and `tokenizers` alone.

  python -m experiments.compile --out=quote.py \\
    --circuit=runs/quickstart/circuits/single_double_quote
  python quote.py "x = ['alpha"

  python -m experiments.compile --onnx=quote.onnx \\
    --circuit=runs/quickstart/circuits/single_double_quote

The file computes the circuit's logits of its task's answers, as `Circuit.apply`
does, up to rounding. One function a head and a neuron; docs/programs.md shows
how to read it. `--onnx` writes the same as an ONNX model.
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, explain, faithfulness, programs, reference
from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors, files

_CIRCUIT = flags.DEFINE_string("circuit", None, "A circuit directory.")
_WHICH = flags.DEFINE_enum(
  "which", "core", ["core", "robust"], "Which of its circuits."
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model directory; model/ beside circuits/ by default."
)
_OUT = flags.DEFINE_string("out", None, "The Python file to write.")
_ONNX = flags.DEFINE_string("onnx", None, "The ONNX model to write.")
cli.require("circuit")


def main(overrides: list[str]) -> None:
  """Writes the files."""
  del overrides  # The command has no config.
  if not (_OUT.value or _ONNX.value):
    raise errors.InputError("need --out, a Python file, or --onnx, or both")
  directory = pathlib.Path(_CIRCUIT.value)
  circuit = circuit_lib.Circuit.load(directory, _WHICH.value)
  where = _MODEL.value or reference.model_beside(directory)
  model, params = checkpoint.load_model(where)
  faithfulness.check_circuit(model, params, circuit)
  tokenizer = checkpoint.load_tokenizer(where)
  answers = programs.find_answers(explain.answer_pairs(circuit), tokenizer)
  if _ONNX.value:
    made = programs.write_onnx(circuit, params, answers)
    files.write_bytes(_ONNX.value, made)
    print(f"{_ONNX.value}: tokens to logits of {', '.join(answers.texts)}")
  if not _OUT.value:
    return
  measured = circuit.metrics.get("faithfulness")
  claims = faithfulness.check_criteria(measured) if measured else []
  source = programs.write_source(
    circuit, params, tokenizer, answers, programs.describe_claims(claims)
  )
  files.write_bytes(_OUT.value, source.encode())
  print(
    f"{_OUT.value}: {circuit.num_nodes} nodes and {circuit.num_edges} edges in"
    f" {source.count(chr(10))} lines; python {_OUT.value} PROMPT"
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
