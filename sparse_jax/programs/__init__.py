"""Circuits as Python files that run with NumPy and `tokenizers` alone."""

from sparse_jax.programs.source import (
  Answers,
  describe_claims,
  find_answers,
  write_source,
)

__all__ = ("Answers", "describe_claims", "find_answers", "write_source")
