"""Evidence that a circuit is what the model computes, and controls."""

from sparse_jax.faithfulness.criteria import THRESHOLDS, summary, verdict
from sparse_jax.faithfulness.measure import (
  Trust,
  check_circuit,
  headline,
  left_out,
  measure,
  reproduce,
)

__all__ = [
  "THRESHOLDS",
  "Trust",
  "check_circuit",
  "headline",
  "left_out",
  "measure",
  "reproduce",
  "summary",
  "verdict",
]
