"""A circuit for other tools: a NumPy file, ONNX, an attribution graph."""

from sparse_jax.programs.attribution import graph as attribution_graph
from sparse_jax.programs.onnx_file import write_onnx
from sparse_jax.programs.source import (
  Answers,
  describe_claims,
  find_answers,
  write_source,
)

__all__ = (
  "Answers",
  "attribution_graph",
  "describe_claims",
  "find_answers",
  "write_onnx",
  "write_source",
)
