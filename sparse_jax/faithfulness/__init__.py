"""Whether a circuit is what the model computes: measures and controls."""

from sparse_jax.faithfulness.criteria import (
  THRESHOLDS,
  Criterion,
  check_criteria,
  summary,
  verdict,
)
from sparse_jax.faithfulness.measure import (
  FaithfulnessOptions,
  measure_all,
  measure_faithfulness,
)
from sparse_jax.faithfulness.reproduce import (
  check_circuit,
  left_out,
  reproduce,
  reproduce_metrics,
)

__all__ = [
  "THRESHOLDS",
  "Criterion",
  "FaithfulnessOptions",
  "check_circuit",
  "check_criteria",
  "left_out",
  "measure_all",
  "measure_faithfulness",
  "reproduce",
  "reproduce_metrics",
  "summary",
  "verdict",
]
