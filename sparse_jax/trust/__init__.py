"""Evidence that a circuit is what the model computes, and controls."""

from sparse_jax.trust.claims import THRESHOLDS, summary, verdict
from sparse_jax.trust.measure import (
  Trust,
  check_circuit,
  headline,
  left_out,
  measure,
  natural_prompts,
  reproduce,
)

__all__ = [
  "THRESHOLDS",
  "Trust",
  "check_circuit",
  "headline",
  "left_out",
  "measure",
  "natural_prompts",
  "reproduce",
  "summary",
  "verdict",
]
